/* Properties: between one producer and one consumer every item arrives once, whole and in order, at
 * any interleaving; a full ring refuses, an empty one gives nothing; a wake is never lost. Run
 * with MODE=tsan for the memory order. */
#include "config/ring.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>

#include "config/clock.h"
#include "tests/check.h"

struct item {
    uint64_t number, twice;
    unsigned char pad[40];
};

TEST(ring_refuses_capacities_that_are_no_power_of_two) {
    struct ring r;
    static const size_t bad[] = {0, 3, 6, 100};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_EQ(ring_init(&r, 8, bad[i]), E_INVAL);
    CHECK_EQ(ring_init(&r, 0, 8), E_INVAL);
    CHECK_EQ(ring_init(&r, SIZE_MAX / 4, 8), E_NOMEM);
    ring_free(&r); /* harmless after a failed init */
}

TEST(ring_full_refuses_and_empty_gives_nothing) {
    struct ring r;
    CHECK_EQ(ring_init(&r, sizeof(int), 4), 0);
    int got = -1, pushed = 0, popped = 0;
    CHECK(!ring_pop(&r, &got));
    for (int round = 0; round < 10; round++) { /* over the seam many times */
        while (ring_push(&r, &pushed))
            pushed++;
        CHECK_EQ(pushed - popped, 4);
        for (int i = 0; i < 3; i++) {
            CHECK(ring_pop(&r, &got));
            CHECK_EQ(got, popped++);
        }
    }
    while (ring_pop(&r, &got))
        CHECK_EQ(got, popped++);
    CHECK_EQ(popped, pushed);
    ring_free(&r);
    ring_free(&r);
}

TEST(ring_indices_may_wrap_around) {
    struct ring r;
    CHECK_EQ(ring_init(&r, sizeof(int), 8), 0);
    atomic_store(&r.head, SIZE_MAX - 2);
    atomic_store(&r.tail, SIZE_MAX - 2);
    int n = 0, got;
    while (ring_push(&r, &n))
        n++;
    CHECK_EQ(n, 8);
    for (int i = 0; i < 8; i++) {
        CHECK(ring_pop(&r, &got));
        CHECK_EQ(got, i);
    }
    CHECK(!ring_pop(&r, &got));
    ring_free(&r);
}

enum { ITEMS = 50000 };

static void *produce(void *ring) {
    struct ring *r = ring;
    for (uint64_t i = 0; i < ITEMS;) {
        struct item x = {.number = i, .twice = 2 * i};
        memset(x.pad, (int)(i & 0xff), sizeof x.pad);
        if (ring_push(r, &x)) {
            ring_wake(r);
            i++;
        } else {
            sched_yield();
        }
    }
    return NULL;
}

TEST(ring_two_threads_lose_and_tear_nothing) {
    for (size_t capacity = 1; capacity <= 64; capacity *= 8) {
        struct ring r;
        pthread_t producer;
        CHECK_EQ(ring_init(&r, sizeof(struct item), capacity), 0);
        CHECK_EQ(pthread_create(&producer, NULL, produce, &r), 0);
        uint64_t next = 0;
        while (next < ITEMS) {
            struct item x;
            ring_clear(&r); /* before draining: a wake after the drain stays */
            while (ring_pop(&r, &x)) {
                CHECK_EQ(x.number, next);
                CHECK_EQ(x.twice, 2 * next);
                CHECK_EQ(x.pad[0], next & 0xff);
                CHECK_EQ(x.pad[39], next & 0xff);
                next++;
            }
            if (next < ITEMS)
                ring_wait(&r, -1); /* a lost wake would hang here */
        }
        pthread_join(producer, NULL);
        ring_free(&r);
    }
}

static void *push_one_after_a_while(void *ring) {
    int x = 5;
    poll(NULL, 0, 30);
    CHECK(ring_push(ring, &x));
    ring_wake(ring);
    return NULL;
}

TEST(ring_wait_ends_with_the_wake_and_with_the_limit) {
    struct ring r;
    pthread_t thread;
    int x;
    CHECK_EQ(ring_init(&r, sizeof x, 2), 0);
    int64_t start = mono_us();
    ring_wait(&r, 20);
    CHECK(mono_us() - start >= 15000);
    CHECK_EQ(pthread_create(&thread, NULL, push_one_after_a_while, &r), 0);
    ring_wait(&r, -1);
    ring_clear(&r);
    CHECK(ring_pop(&r, &x));
    CHECK_EQ(x, 5);
    ring_wake(&r);
    ring_wake(&r);
    start = mono_us();
    ring_wait(&r, 10000); /* woken already */
    CHECK(mono_us() - start < 5000000);
    ring_clear(&r);
    struct pollfd p = {.fd = r.event_fd, .events = POLLIN};
    CHECK_EQ(poll(&p, 1, 0), 0); /* one clear forgets all */
    pthread_join(thread, NULL);
    ring_free(&r);
}
