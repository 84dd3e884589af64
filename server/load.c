#include "server/load.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "server/server.h"

enum {
    ROOM_WAIT_US = 30000000, /* about what a client waits for a queue */
    ROOM_RETRY_US = 90000,
};

err_t load_open_beneath(int root, const char *path, int *fd, struct file_stamp *stamp,
                        struct why *why) {
    if (root < 0)
        return why_set(why, E_PATH, "No directory of deltas is configured (--deltas).");
    /* O_NONBLOCK: opening a FIFO must not wait for its other end. */
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                           .resolve =
                               RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    long opened = syscall(SYS_openat2, root, path, &how, sizeof how);
    if (opened < 0 && (errno == EXDEV || errno == ELOOP))
        return why_set(why, E_PATH,
                       "The path must stay in the deltas directory and may not pass "
                       "through a link.");
    if (opened < 0)
        return why_set(why, E_IO, "The file cannot be opened: %s.", strerror(errno));
    struct stat st;
    if (fstat((int)opened, &st) != 0 || !S_ISREG(st.st_mode)) {
        close((int)opened);
        return why_set(why, E_PATH, "The path is not a regular file.");
    }
    *stamp = (struct file_stamp){(uint64_t)st.st_ino, (int64_t)st.st_size,
                                 (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec};
    *fd = (int)opened;
    return E_OK;
}

struct load *load_new(struct server *s, const char *name, const char *path) {
    struct load *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->server = s;
    l->work.data = l;
    l->start_us = mono_us();
    snprintf(l->name, sizeof l->name, "%s", name);
    snprintf(l->path, sizeof l->path, "%s", path);
    return l;
}

static void read_file(struct load *l) {
    int fd = -1;
    l->error = load_open_beneath(l->server->deltas_fd, l->path, &fd, &l->stamp, &l->why);
    if (l->error)
        return;
    l->error = engine_tenant_load(l->server->engine, fd, l->name, &l->tenant, &l->why);
    close(fd);
}

/* Room for a tenant that found none: another one goes away. */
static bool make_room(const struct load *l) {
    struct server *s = l->server;
    size_t most = s->options->tenant_memory;
    if (l->error != E_NOMEM || (most && (uint64_t)l->stamp.bytes > most)) /* nor would it help */
        return false;
    const struct served *gone = registry_evict(&s->registry, l->name);
    if (!gone)
        return false;
    s->metrics.tenant_evictions++;
    log_info("tenant", "op=evict name=%s print=%s for=%s", gone->name, gone->fingerprint, l->name);
    return true;
}

/* Registers what was read, tells whoever asked, frees l. */
static err_t finish(struct load *l) {
    struct server *s = l->server;
    struct served *m = NULL;
    bool replaced = false;
    if (l->wanted && !l->wanted(l)) {
        tenant_unref(l->tenant);
    } else {
        if (!l->error) {
            l->error = registry_put(&s->registry, l->name, l->tenant, s->tokenizer, &replaced, &m,
                                    &l->why);
            if (!l->error)
                served_came_from(m, l->path, &l->stamp);
        }
        if (l->error) {
            s->metrics.tenant_load_failures++;
            log_warn("tenant", "op=load name=%s error=%s why=\"%s\"", l->name, err_code(l->error),
                     l->why.text);
        } else {
            s->metrics.tenant_loads++;
            log_info("tenant", "op=%s name=%s print=%s bytes=%zu us=%lld",
                     l->returns ? "return"
                     : replaced ? "replace"
                                : "add",
                     l->name, m->fingerprint, m->info->bytes, (long long)(mono_us() - l->start_us));
        }
    }
    err_t e = l->error;
    if (l->done)
        l->done(l, e ? NULL : m, replaced);
    free(l);
    return e;
}

err_t load_now(struct load *l) {
    do
        read_file(l);
    while (make_room(l));
    return finish(l);
}

static void work_read(uv_work_t *w) {
    read_file(w->data);
}

/* Behind the others, to be tried again: room is made by requests that end. */
static bool wait_for_room(struct load *l) {
    struct server *s = l->server;
    int64_t now = mono_us();
    if (l->error != E_NOMEM || !l->returns || s->draining || now - l->start_us > ROOM_WAIT_US)
        return false;
    struct load **last = &s->loads;
    while (*last)
        last = &(*last)->next;
    *last = l;
    l->next = NULL;
    l->tried_us = now;
    return true;
}

static void after_read(uv_work_t *w, int status) {
    struct load *l = w->data;
    struct server *s = l->server;
    (void)status;
    if (make_room(l)) {
        uv_queue_work(&s->loop, &l->work, work_read, after_read);
        return;
    }
    s->loads = l->next;
    s->loading = false;
    if (!wait_for_room(l))
        finish(l); /* may queue another */
    load_continue(s);
}

void load_continue(struct server *s) {
    struct load **at = &s->loads, *l;
    int64_t now = mono_us();
    while (s->draining && !s->loading && (l = s->loads)) { /* the engine takes no more requests */
        s->loads = l->next;
        l->error = E_DRAINING;
        finish(l);
    }
    while ((l = *at) && l->tried_us && now - l->tried_us < ROOM_RETRY_US)
        at = &l->next;
    if (!l || s->loading)
        return;
    *at = l->next; /* the one being read is the first */
    l->next = s->loads;
    s->loads = l;
    s->loading = true;
    uv_queue_work(&s->loop, &l->work, work_read, after_read);
}

void load_start(struct load *l) {
    struct load **last = &l->server->loads;
    while (*last)
        last = &(*last)->next;
    *last = l;
    load_continue(l->server);
}
