/* One plan is: rows for decode (preempting where pages run out), admission, rows for prefill. */
#include "engine/sched.h"

#include <stdlib.h>
#include <string.h>

#include "engine/tenant.h"

err_t sched_init(struct sched *s, struct kv_pool *kv, int32_t max_running, int32_t max_rows,
                 int32_t max_live) {
    *s = (struct sched){.kv = kv, .max_running = max_running, .max_rows = max_rows};
    s->running = calloc((size_t)max_running, sizeof(struct seq *));
    s->waiting = calloc((size_t)max_live, sizeof(struct seq *));
    if (s->running && s->waiting)
        return E_OK;
    sched_free(s);
    return E_NOMEM;
}

void sched_free(struct sched *s) {
    free(s->running);
    free(s->waiting);
    s->running = s->waiting = NULL;
    s->n_running = s->n_waiting = 0;
}

/* ---- the two lists --------------------------------------------------------------------------- */

static bool by_arrival(const struct seq *a, const struct seq *b) {
    return a->arrival < b->arrival;
}

static bool by_tenant(const struct seq *a, const struct seq *b) {
    uint64_t ta = a->tenant->info.generation, tb = b->tenant->info.generation;
    return ta < tb || (ta == tb && a->arrival < b->arrival);
}

static void list_insert(struct seq **list, int32_t *n, struct seq *q,
                        bool (*before)(const struct seq *, const struct seq *)) {
    int32_t at = (*n)++;
    for (; at > 0 && before(q, list[at - 1]); at--)
        list[at] = list[at - 1];
    list[at] = q;
}

static void list_remove(struct seq **list, int32_t *n, const struct seq *q) {
    int32_t at = 0;
    while (at < *n && list[at] != q)
        at++;
    if (at == *n)
        return;
    memmove(list + at, list + at + 1, (size_t)(--*n - at) * sizeof *list);
}

static void enter_running(struct sched *s, struct seq *q) {
    list_remove(s->waiting, &s->n_waiting, q);
    list_insert(s->running, &s->n_running, q, by_tenant);
    q->state = SEQ_RUNNING;
    q->tenant->n_running++;
}

static void leave_running(struct sched *s, struct seq *q) {
    list_remove(s->running, &s->n_running, q);
    kv_release(s->kv, q->pages, &q->n_pages);
    q->state = SEQ_WAITING;
    q->tenant->n_running--;
}

void sched_add(struct sched *s, struct seq *q) {
    q->state = SEQ_WAITING;
    list_insert(s->waiting, &s->n_waiting, q, by_arrival);
}

void sched_remove(struct sched *s, struct seq *q) {
    if (q->state == SEQ_RUNNING)
        leave_running(s, q);
    else
        list_remove(s->waiting, &s->n_waiting, q);
}

/* ---- decode and preemption ------------------------------------------------------------------- */

static struct seq *youngest_running(const struct sched *s) {
    struct seq *found = s->running[0];
    for (int32_t i = 1; i < s->n_running; i++)
        if (s->running[i]->arrival > found->arrival)
            found = s->running[i];
    return found;
}

static void preempt(struct sched *s, struct seq *q) {
    leave_running(s, q);
    q->n_cached = 0; /* the ids stay: they are the prompt of its second life */
    q->n_rows = 0;
    list_insert(s->waiting, &s->n_waiting, q, by_arrival);
    s->preemptions++;
}

/* One row for every running sequence in decode. Returns the rows planned. */
static int32_t plan_decode(struct sched *s) {
    int32_t n_rows = 0;
    for (int32_t i = 0; i < s->n_running;) {
        struct seq *q = s->running[i];
        if (q->n_rows > 0 || seq_rows_left(q) != 1) {
            i++;
        } else if (kv_grow(s->kv, q->pages, &q->n_pages, q->n_cached + 1)) {
            n_rows += q->n_rows = 1;
            i++;
        } else {
            struct seq *victim = youngest_running(s); /* perhaps q itself, perhaps one planned */
            n_rows -= victim->n_rows;
            preempt(s, victim);
            i = 0; /* the list moved */
        }
    }
    return n_rows;
}

/* ---- admission ------------------------------------------------------------------------------- */

static struct seq *fairest_waiting(const struct sched *s) {
    struct seq *found = NULL;
    for (int32_t i = 0; i < s->n_waiting; i++)
        if (!found || s->waiting[i]->tenant->n_running < found->tenant->n_running)
            found = s->waiting[i];
    return found;
}

/* Rows of the sequences that were admitted and have not begun. */
static int32_t rows_not_begun(const struct sched *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->n_cached == 0)
            n += seq_rows_left(s->running[i]);
    return n;
}

/* Admits no more than a step can begin, so that who goes next is decided as late as possible. When
 * the fairest does not fit, nobody else is let past it: it would never fit. */
static void admit(struct sched *s, int32_t budget) {
    int32_t not_begun = rows_not_begun(s);
    while (s->n_running < s->max_running && s->n_waiting > 0 && not_begun < budget) {
        struct seq *q = fairest_waiting(s);
        int32_t reserve = s->n_running;
        if (s->n_running > 0 && kv_pages_for(q->n_ids) + reserve > s->kv->n_free)
            return;
        kv_grow(s->kv, q->pages, &q->n_pages, q->n_ids); /* alone it always fits: engine_submit */
        enter_running(s, q);
        not_begun += seq_rows_left(q);
    }
}

/* ---- prefill --------------------------------------------------------------------------------- */

static int32_t unplanned(const struct seq *q) {
    return seq_rows_left(q) - q->n_rows;
}

static int32_t give_rows(struct seq *q, int32_t at_most) {
    int32_t n = unplanned(q) < at_most ? unplanned(q) : at_most;
    q->n_rows += n;
    return n;
}

static struct seq *oldest_prefill(const struct sched *s) {
    struct seq *found = NULL;
    for (int32_t i = 0; i < s->n_running; i++) {
        struct seq *q = s->running[i];
        if (unplanned(q) > 0 && (!found || q->arrival < found->arrival))
            found = q;
    }
    return found;
}

static struct seq *nearest_prefill(const struct sched *s) {
    struct seq *found = NULL;
    for (int32_t i = 0; i < s->n_running; i++) {
        struct seq *q = s->running[i];
        if (unplanned(q) > 0 && (!found || unplanned(q) < unplanned(found)))
            found = q;
    }
    return found;
}

static int32_t plan_prefill(struct sched *s, int32_t budget) {
    int32_t n_rows = 0;
    struct seq *q = oldest_prefill(s);
    if (q && budget > 0)
        n_rows += give_rows(q, (budget + 1) / 2);
    while (n_rows < budget && (q = nearest_prefill(s)))
        n_rows += give_rows(q, budget - n_rows);
    return n_rows;
}

int32_t sched_plan(struct sched *s) {
    for (int32_t i = 0; i < s->n_running; i++)
        s->running[i]->n_rows = 0;
    uint64_t preemptions = s->preemptions;
    int32_t n_rows = plan_decode(s);
    if (s->preemptions == preemptions) /* else the pages that were freed would go round in a ring */
        admit(s, s->max_rows - n_rows);
    return n_rows + plan_prefill(s, s->max_rows - n_rows);
}
