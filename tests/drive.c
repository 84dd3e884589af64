#include "tests/drive.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "tests/check.h"

struct engine_options drive_options(const char *base_dir) {
    static char dir[8][512]; /* test_model's buffers are used again sooner */
    static int turn;
    char *p = dir[turn++ % 8];
    snprintf(p, sizeof dir[0], "%s", base_dir);
    return (struct engine_options){.base_dir = p,
                                   .device = "cpu",
                                   .threads = DRIVE_SLOW ? 1 : 2,
                                   .kv_tokens = 4096,
                                   .max_batch_tokens = 256,
                                   .max_seqs = 16,
                                   .max_queue = 256,
                                   .extra_vocab = 64};
}

struct engine *drive_open(const struct engine_options *o) {
    struct engine *e = NULL;
    struct why why = {""};
    CHECK_OK(engine_open(&e, o, &why), why);
    return e;
}

struct tenant *drive_tenant(struct engine *e, const char *path) {
    struct tenant *t = NULL;
    struct why why = {""};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_OK(engine_tenant_load(e, fd, path, &t, &why), why);
    close(fd);
    return t;
}

struct gen_request drive_request(uint64_t id, const int32_t *prompt, int32_t n,
                                 int32_t max_tokens) {
    return (struct gen_request){.id = id,
                                .ids = (int32_t *)(uintptr_t)prompt, /* copied by drive_submit */
                                .n_ids = n,
                                .max_tokens = max_tokens,
                                .top_p = 1,
                                .repetition = 1,
                                .n_top = -1};
}

static void *copy(const void *data, size_t bytes) {
    void *p = malloc(bytes + 1);
    CHECK(p);
    memcpy(p, data, bytes);
    return p;
}

void drive_submit(struct engine *e, const struct gen_request *r) {
    struct gen_request given = *r;
    struct why why = {""};
    given.ids = copy(r->ids, (size_t)r->n_ids * sizeof *r->ids);
    given.bias = r->n_bias ? copy(r->bias, (size_t)r->n_bias * sizeof *r->bias) : NULL;
    CHECK_OK(engine_submit(e, &given, &why), why);
}

static void file_event(struct reply *r, const struct gen_event *event) {
    CHECK(!r->ended); /* nothing follows the last event */
    if (r->n_events == r->capacity) {
        r->capacity = 2 * r->capacity + 8;
        r->event = realloc(r->event, (size_t)r->capacity * sizeof *r->event);
        CHECK(r->event);
    }
    r->event[r->n_events++] = *event;
    r->ended = event->kind == GEN_DONE || event->kind == GEN_FAILED;
}

size_t drive_poll(struct engine *e, struct reply *reply, int timeout_ms) {
    struct gen_event event[64];
    struct pollfd p = {.fd = engine_event_fd(e), .events = POLLIN};
    size_t n, total = 0;
    poll(&p, 1, timeout_ms);
    while ((n = engine_poll(e, event, 64)) > 0)
        for (size_t i = 0; i < n; i++, total++)
            file_event(&reply[event[i].id], &event[i]);
    return total;
}

void drive_finish(struct engine *e, struct reply *reply, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        while (!reply[i].ended)
            drive_poll(e, reply, 1000);
}

static bool event_same(const struct gen_event *a, const struct gen_event *b) {
    size_t n = (size_t)a->n_top;
    return a->kind == b->kind && a->token == b->token && a->n_top == b->n_top &&
           a->finish == b->finish && a->error == b->error &&
           memcmp(&a->logprob, &b->logprob, sizeof a->logprob) == 0 &&
           memcmp(a->top_id, b->top_id, n * sizeof *a->top_id) == 0 &&
           memcmp(a->top_logprob, b->top_logprob, n * sizeof *a->top_logprob) == 0;
}

bool drive_same(const struct reply *a, const struct reply *b) {
    if (a->n_events != b->n_events)
        return false;
    for (int32_t i = 0; i < a->n_events; i++)
        if (!event_same(&a->event[i], &b->event[i]))
            return false;
    return true;
}

void drive_free(struct reply *reply, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        free(reply[i].event);
        reply[i] = (struct reply){0};
    }
}
