#include "server/residency.h"

#include <stdio.h>
#include <string.h>

#include "config/clock.h"
#include "server/load.h"
#include "server/server.h"

static void wake_all(struct server *s, const char *name, err_t e) {
    struct waiter *list = NULL, **last = &list, **at = &s->waiters, *w;
    while ((w = *at)) { /* first taken off: who is woken may wait again */
        if (strcmp(w->name, name) == 0) {
            *at = w->next;
            w->next = NULL;
            *last = w;
            last = &w->next;
        } else {
            at = &w->next;
        }
    }
    while ((w = list)) {
        list = w->next;
        w->wake(w, e);
    }
}

/* The name may have been given to another file, or taken away, since the load was asked for. */
static bool still_away(const struct load *l) {
    const struct served *m = registry_find(&l->server->registry, l->name);
    return m && m->away && strcmp(m->name, l->name) == 0 && strcmp(m->path, l->path) == 0;
}

static void arrived(struct load *l, struct served *m, bool replaced) {
    (void)m, (void)replaced;
    wake_all(l->server, l->name, l->error);
}

err_t residency_want(struct server *s, struct served *m, struct waiter *w, bool *ready) {
    m->used_us = mono_us();
    *ready = !m->away || registry_adopt(&s->registry, m);
    if (*ready)
        return E_OK;
    bool under_way = false;
    struct waiter **last = &s->waiters;
    for (; *last; last = &(*last)->next)
        under_way |= strcmp((*last)->name, m->name) == 0;
    struct load *l = under_way ? NULL : load_new(s, m->name, m->path);
    if (!l && !under_way)
        return E_NOMEM;
    w->next = NULL;
    snprintf(w->name, sizeof w->name, "%.64s", m->name); /* only the base has more */
    *last = w;
    if (l) {
        l->returns = true;
        l->wanted = still_away;
        l->done = arrived;
        load_start(l);
    }
    return E_OK;
}
