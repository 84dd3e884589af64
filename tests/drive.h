/* Plays the I/O thread for tests of the engine: submits requests whose ids are indices of an array
 * of replies, and collects their events. */
#ifndef TESTS_DRIVE_H
#define TESTS_DRIVE_H

#include "engine/engine.h"

/* Sanitizers run the kernels ten to fifty times slower: tests do less there. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { DRIVE_SLOW = 1 };
#else
enum { DRIVE_SLOW = 0 };
#endif

struct reply {
    struct gen_event *event; /* [n_events] in order */
    int32_t n_events, capacity;
    bool ended;
};

/* Options that suit the small models: a CPU engine on the given base. */
struct engine_options drive_options(const char *base_dir);
/* Opens, or fails the test with the sentence. */
struct engine *drive_open(const struct engine_options *o);
/* Loads a tenant file, or fails the test. */
struct tenant *drive_tenant(struct engine *e, const char *path);

/* Greedy, no log-probabilities; ids are copied from `prompt` at every submit. */
struct gen_request drive_request(uint64_t id, const int32_t *prompt, int32_t n, int32_t max_tokens);
/* Submits with copies of ids and bias, or fails the test. */
void drive_submit(struct engine *e, const struct gen_request *r);
/* Waits up to timeout_ms for events and files what has come. Returns the number of events. */
size_t drive_poll(struct engine *e, struct reply *reply, int timeout_ms);
/* Until reply[0 .. n) have all ended. */
void drive_finish(struct engine *e, struct reply *reply, int32_t n);

/* Same kinds, ids and log-probability bits, alternatives included. */
bool drive_same(const struct reply *a, const struct reply *b);
void drive_free(struct reply *reply, int32_t n);

#endif
