/* Tenant files on their way in: each is opened beneath the deltas directory, without following any
 * link, read by a worker thread, one at a time and in the order they came, and registered on the
 * loop thread. Who asks: the admin API (admin.c), the start and a reload (folder.c). */
#ifndef SERVER_LOAD_H
#define SERVER_LOAD_H

#include <uv.h>

#include "server/registry.h"

struct exchange;
struct server;

enum { LOAD_PATH_BYTES = 1024 };

struct load {
    struct load *next;
    struct server *server;
    struct exchange *x; /* NULL: nobody waits, or the client left; it is registered all the same */
    char name[REGISTRY_NAME_BYTES], path[LOAD_PATH_BYTES];
    struct file_stamp stamp;
    struct tenant *tenant;
    err_t error;
    struct why why;
    int64_t start_us;
    bool returns;     /* it was served before and is away (residency.c): it waits for room */
    int64_t tried_us; /* when it last found none */
    bool (*wanted)(const struct load *l); /* asked before it is registered; NULL: yes */
    /* On the loop thread, before l is freed; m (borrowed) is NULL if l->error. May be NULL. */
    void (*done)(struct load *l, struct served *m, bool replaced);
    uv_work_t work;
};

/* Opens `path` beneath the directory `root` for reading: a regular file, no links, no "..".
 * *fd is given to the caller. Errors: E_PATH, E_IO. */
err_t load_open_beneath(int root, const char *path, int *fd, struct file_stamp *stamp,
                        struct why *why);
/* A load with its name and path (both short enough); NULL without memory. */
struct load *load_new(struct server *s, const char *name, const char *path);
/* Queues it and takes it over. */
void load_start(struct load *l);
/* Goes on with loads that wait for room; called every tenth of a second. */
void load_continue(struct server *s);
/* Reads and registers at once, before the loop runs; frees l. */
err_t load_now(struct load *l);

#endif
