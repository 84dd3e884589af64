#include "server/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "server/load.h"
#include "server/sdnotify.h"
#include "server/server.h"

static const char suffix[] = ".bitdelta";

/* --- what is to be served ------------------------------------------------------------------- */

struct want {
    char *name, *path; /* owned */
};
struct wants {
    struct want *list; /* [n] owned, by name */
    int n, cap;
};

static void wants_free(struct wants *w) {
    for (int i = 0; i < w->n; i++) {
        free(w->list[i].name);
        free(w->list[i].path);
    }
    free(w->list);
}

static err_t add_want(struct wants *w, const char *name, size_t n_name, const char *path) {
    if (w->n == w->cap) {
        int cap = w->cap ? 2 * w->cap : 64;
        struct want *grown = realloc(w->list, (size_t)cap * sizeof *grown);
        if (!grown)
            return E_NOMEM;
        w->list = grown;
        w->cap = cap;
    }
    struct want *it = &w->list[w->n];
    *it = (struct want){strndup(name, n_name), strdup(path)};
    w->n++;
    return it->name && it->path ? E_OK : E_NOMEM;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct want *)a)->name, ((const struct want *)b)->name);
}

static int is_delta(const struct dirent *d) {
    size_t n = strlen(d->d_name);
    return d->d_name[0] != '.' && n > sizeof suffix - 1 &&
           strcmp(d->d_name + n - (sizeof suffix - 1), suffix) == 0;
}

/* The files of the directory, but for names that the admin API decided about. */
static err_t want_files(struct server *s, struct wants *w, struct why *why) {
    struct dirent **list = NULL;
    int n = scandirat(s->deltas_fd, ".", &list, is_delta, NULL);
    err_t e = n < 0 ? why_set(why, E_IO, "--deltas cannot be listed: %s", strerror(errno)) : E_OK;
    for (int i = 0; i < n; i++) {
        const char *file = list[i]->d_name;
        size_t n_name = strlen(file) - (sizeof suffix - 1);
        char name[sizeof list[i]->d_name];
        memcpy(name, file, n_name);
        name[n_name] = 0;
        bool kept =
            kept_get(&s->kept, KEPT_DELTAS, name) || kept_removed(&s->kept, KEPT_DELTAS, name);
        if (!registry_name_ok(name))
            log_warn("tenant", "file=\"%s\" note=\"not a name that a tenant can have\"", file);
        else if (!e && !kept)
            e = add_want(w, name, n_name, file);
        free(list[i]);
    }
    free(list);
    return e;
}

/* What was removed and has no file any more need not be remembered. */
static void forget_gone(struct server *s) {
    const char *name;
    json_t *v;
    void *next;
    json_object_foreach_safe(s->kept.names[KEPT_DELTAS], next, name, v) {
        char file[REGISTRY_NAME_BYTES + sizeof suffix];
        snprintf(file, sizeof file, "%s%s", name, suffix);
        if (json_is_null(v) && faccessat(s->deltas_fd, file, F_OK, AT_SYMLINK_NOFOLLOW) != 0)
            kept_forget(&s->kept, KEPT_DELTAS, name);
    }
}

static err_t find_wants(struct server *s, struct wants *w, struct why *why) {
    const char *name;
    json_t *v;
    *w = (struct wants){0};
    if (s->deltas_fd < 0)
        return E_OK;
    forget_gone(s);
    err_t e = s->options->autoload ? want_files(s, w, why) : E_OK;
    json_object_foreach(s->kept.names[KEPT_DELTAS], name, v) {
        if (!e && json_is_string(v))
            e = add_want(w, name, strlen(name), json_string_value(v));
    }
    if (!e && w->n)
        qsort(w->list, (size_t)w->n, sizeof *w->list, by_name);
    return e;
}

void folder_open(struct server *s) {
    struct wants w;
    struct why why = {""};
    err_t e = find_wants(s, &w, &why);
    if (e)
        log_error("tenant", "why=\"%s\"", why.text[0] ? why.text : err_sentence(e));
    for (int i = 0; !e && i < w.n; i++) {
        struct load *l = load_new(s, w.list[i].name, w.list[i].path);
        if (l)
            load_now(l);
    }
    wants_free(&w);
}

/* --- reloading ------------------------------------------------------------------------------ */

/* All or nothing: a key file with a mistake must lock nobody out and let nobody in. */
static void reload_keys(struct server *s) {
    struct auth public_keys, admin_keys = {0};
    struct why why = {""};
    err_t e = auth_open(&public_keys, s->options->api_key_file, &why);
    if (!e)
        e = auth_open(&admin_keys, s->options->admin_key_file, &why);
    if (e) {
        auth_close(&public_keys);
        log_error("reload", "note=\"the keys stay as they were\" why=\"%s\"",
                  why.text[0] ? why.text : err_sentence(e));
        return;
    }
    auth_close(&s->public_keys);
    auth_close(&s->admin_keys);
    s->public_keys = public_keys;
    s->admin_keys = admin_keys;
}

static void reloaded(struct server *s) {
    struct folder *f = &s->folder;
    log_info("reload", "added=%d replaced=%d removed=%d failed=%d tenants=%d us=%lld", f->added,
             f->replaced, f->removed, f->failed, s->registry.n,
             (long long)(mono_us() - f->start_us));
    if (!s->draining)
        sdnotify("READY=1\nSTATUS=Serving.");
    f->reloading = false;
    if (f->again && !s->draining)
        folder_reload(s);
}

static void loaded(struct load *l, struct served *m, bool replaced) {
    struct folder *f = &l->server->folder;
    f->failed += m == NULL && l->error;
    f->replaced += m && replaced;
    f->added += m && !replaced;
    if (--f->left == 0)
        reloaded(l->server);
}

/* The admin API may have decided otherwise since the directory was read. */
static bool still_wanted(const struct load *l) {
    const struct kept *k = &l->server->kept;
    const char *path = kept_get(k, KEPT_DELTAS, l->name);
    return path ? strcmp(path, l->path) == 0 : !kept_removed(k, KEPT_DELTAS, l->name);
}

/* The stamp that the file has now; false: there is no file. */
static bool stamp_of(const struct server *s, const char *path, struct file_stamp *stamp) {
    int fd = -1;
    struct why why;
    if (load_open_beneath(s->deltas_fd, path, &fd, stamp, &why))
        return false;
    close(fd);
    return true;
}

static const struct want *find_want(const struct wants *w, const char *name) {
    struct want key = {.name = (char *)(uintptr_t)name};
    return w->n ? bsearch(&key, w->list, (size_t)w->n, sizeof key, by_name) : NULL;
}

static void remove_gone(struct server *s, const struct wants *w) {
    for (int i = s->registry.n - 1; i >= 0; i--) {
        struct served *m = s->registry.tenants[i];
        const struct want *want = find_want(w, m->name);
        struct file_stamp stamp;
        if (!m->path || (want && stamp_of(s, want->path, &stamp)))
            continue;
        log_info("tenant", "op=remove name=%s note=\"its file is gone\"", m->name);
        s->folder.removed++;
        registry_remove(&s->registry, m->name);
    }
}

static bool is_current(const struct server *s, const struct want *want) {
    const struct served *m = registry_find(&s->registry, want->name);
    struct file_stamp now;
    return m && m->path && strcmp(m->name, want->name) == 0 && strcmp(m->path, want->path) == 0 &&
           stamp_of(s, want->path, &now) && now.inode == m->stamp.inode &&
           now.bytes == m->stamp.bytes && now.changed_ns == m->stamp.changed_ns;
}

void folder_reload(struct server *s) {
    struct folder *f = &s->folder;
    if (f->reloading) {
        f->again = true;
        return;
    }
    struct wants w;
    struct why why = {""};
    char notice[128];
    *f = (struct folder){.reloading = true, .start_us = mono_us()};
    snprintf(notice, sizeof notice, "RELOADING=1\nMONOTONIC_USEC=%lld\nSTATUS=Reloading.",
             (long long)f->start_us);
    sdnotify(notice);
    reload_keys(s);
    f->left = 1; /* this function */
    err_t e = find_wants(s, &w, &why);
    if (e) {
        log_error("reload", "why=\"%s\"", why.text[0] ? why.text : err_sentence(e));
        f->failed++;
    } else {
        remove_gone(s, &w);
    }
    for (int i = 0; !e && i < w.n; i++) {
        struct load *l =
            is_current(s, &w.list[i]) ? NULL : load_new(s, w.list[i].name, w.list[i].path);
        if (!l)
            continue;
        l->wanted = still_wanted;
        l->done = loaded;
        f->left++;
        load_start(l);
    }
    wants_free(&w);
    if (--f->left == 0)
        reloaded(s);
}
