#include "server/admin.h"

#include <dirent.h>
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
#include "server/json.h"
#include "server/route.h"
#include "server/server.h"

enum { MAX_PATH_BYTES = 1024 };
static const char suffix[] = ".bitdelta";

/* One file on its way in. The list s->loads holds them in the order they came; the first is being
 * read. */
struct load {
    struct load *next;
    struct server *server;
    struct exchange *x; /* NULL: the client left; the tenant is registered all the same */
    char name[REGISTRY_NAME_BYTES], path[MAX_PATH_BYTES];
    struct tenant *tenant;
    err_t error;
    struct why why;
    int64_t start_us;
    uv_work_t work;
};

err_t admin_open_beneath(int root, const char *path, int *fd, struct why *why) {
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
    *fd = (int)opened;
    return E_OK;
}

static json_t *parse_or_empty(const char *text) {
    json_t *object = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    return object ? object : json_object();
}

static json_t *describe(const struct served *m) {
    const struct tenant_info *i = m->info;
    return json_pack("{s:s,s:s,s:I,s:s,s:I,s:I,s:f,s:i,s:i,s:I,s:o,s:o}", "name", m->name, "hash",
                     i->hash, "generation", (json_int_t)i->generation, "fingerprint",
                     m->fingerprint, "bytes", (json_int_t)i->bytes, "file_bytes",
                     (json_int_t)i->file_bytes, "bits_per_weight", i->bits_per_weight,
                     "max_model_len", (int)i->context, "vocab", (int)i->vocab, "loaded",
                     (json_int_t)i->loaded_unix_s, "made", parse_or_empty(i->made_json), "quality",
                     parse_or_empty(i->quality_json));
}

/* --- adding and replacing ------------------------------------------------------------------- */

static void read_file(struct load *l) {
    int fd = -1;
    l->error = admin_open_beneath(l->server->deltas_fd, l->path, &fd, &l->why);
    if (l->error)
        return;
    l->error = engine_tenant_load(l->server->engine, fd, l->name, &l->tenant, &l->why);
    close(fd);
}

/* Registers what was read; *replaced and *out as registry_put. */
static err_t register_tenant(struct load *l, bool *replaced, struct served **out) {
    struct server *s = l->server;
    if (!l->error)
        l->error =
            registry_put(&s->registry, l->name, l->tenant, s->tokenizer, replaced, out, &l->why);
    l->tenant = NULL;
    if (l->error) {
        s->metrics.tenant_load_failures++;
        log_warn("tenant", "op=load name=%s error=%s why=\"%s\"", l->name, err_code(l->error),
                 l->why.text);
        return l->error;
    }
    s->metrics.tenant_loads++;
    log_info("tenant", "op=%s name=%s print=%s bytes=%zu us=%lld", *replaced ? "replace" : "add",
             l->name, (*out)->fingerprint, (*out)->info->bytes,
             (long long)(mono_us() - l->start_us));
    return E_OK;
}

static void work_read(uv_work_t *w) {
    read_file(w->data);
}

static void start_next(struct server *s);

static void after_read(uv_work_t *w, int status) {
    struct load *l = w->data;
    struct server *s = l->server;
    struct served *m = NULL;
    bool replaced = false;
    (void)status;
    err_t e = register_tenant(l, &replaced, &m);
    if (l->x) {
        l->x->on_gone = NULL;
        if (e)
            http_reply_error(l->x, e, e == E_INVAL ? "name" : "path", &l->why);
        else
            http_reply_json(l->x, replaced ? 200 : 201, describe(m));
    }
    s->loads = l->next;
    free(l);
    start_next(s);
}

static void start_next(struct server *s) {
    if (s->loads)
        uv_queue_work(&s->loop, &s->loads->work, work_read, after_read);
}

static void on_gone(struct exchange *x) {
    struct load *l = x->work;
    l->x = NULL;
}

/* The two strings of the body. */
static err_t read_body(struct load *l, const struct buf *body, const char **field) {
    json_t *object = NULL;
    err_t e = json_read_object(body->data ? body->data : "", body->n, &object, &l->why);
    if (e)
        return e;
    const char *name = json_string_value(json_object_get(object, "name"));
    json_t *path_value = json_object_get(object, "path");
    const char *path = json_string_value(path_value);
    *field = "name";
    if (!name || !registry_name_ok(name))
        e = why_set(&l->why, E_INVAL,
                    "'name' must be 1 to 64 of A-Z a-z 0-9 . _ : - and start "
                    "with a letter or digit.");
    else if (strcmp(name, l->server->registry.base->name) == 0)
        e = why_set(&l->why, E_INVAL, "That name is the base model's.");
    else
        snprintf(l->name, sizeof l->name, "%s", name);
    if (!e) {
        *field = "path";
        size_t n = json_string_length(path_value);
        if (!path || n == 0 || n >= sizeof l->path || strlen(path) != n)
            e = why_set(&l->why, E_INVAL,
                        "'path' must be a path of 1 to %d bytes, relative to the "
                        "deltas directory.",
                        MAX_PATH_BYTES - 1);
        else
            memcpy(l->path, path, n + 1);
    }
    json_decref(object);
    return e;
}

void admin_put(struct server *s, struct exchange *x) {
    const char *field = NULL;
    struct load *l = s->draining ? NULL : calloc(1, sizeof *l);
    if (!l) {
        http_reply_error(x, s->draining ? E_DRAINING : E_NOMEM, NULL, NULL);
        return;
    }
    l->server = s;
    err_t e = read_body(l, &x->body, &field);
    if (e) {
        http_reply_error(x, e, field, &l->why);
        free(l);
        return;
    }
    l->x = x;
    l->work.data = l;
    l->start_us = mono_us();
    x->work = l;
    x->on_gone = on_gone;
    struct load **last = &s->loads;
    while (*last)
        last = &(*last)->next;
    *last = l;
    if (s->loads == l)
        start_next(s);
}

/* --- the rest ------------------------------------------------------------------------------- */

void admin_list(struct server *s, struct exchange *x) {
    json_t *data = json_array();
    for (int i = 0; i < s->registry.n; i++)
        json_array_append_new(data, describe(s->registry.tenants[i]));
    http_reply_json(x, 200, json_pack("{s:s,s:o}", "object", "list", "data", data));
}

void admin_one(struct server *s, struct exchange *x) {
    struct served *m = registry_find(&s->registry, route_rest(x));
    if (m && m->tenant)
        http_reply_json(x, 200, describe(m));
    else
        http_reply_error(x, E_NO_MODEL, "name", NULL);
}

void admin_delete(struct server *s, struct exchange *x) {
    const char *name = route_rest(x);
    if (!registry_remove(&s->registry, name)) {
        http_reply_error(x, E_NO_MODEL, "name", NULL);
        return;
    }
    log_info("tenant", "op=remove name=%s", name);
    http_reply_json(x, 200, json_pack("{s:s,s:b}", "name", name, "deleted", 1));
}

static int is_delta(const struct dirent *d) {
    size_t n = strlen(d->d_name);
    return n > sizeof suffix - 1 && strcmp(d->d_name + n - (sizeof suffix - 1), suffix) == 0;
}

void admin_autoload(struct server *s) {
    struct dirent **list = NULL;
    int n = s->deltas_fd >= 0 ? scandirat(s->deltas_fd, ".", &list, is_delta, alphasort) : 0;
    for (int i = 0; i < n; i++) {
        struct load l = {.server = s, .start_us = mono_us()};
        struct served *m = NULL;
        bool replaced = false;
        size_t n_name = strlen(list[i]->d_name) - (sizeof suffix - 1);
        snprintf(l.path, sizeof l.path, "%s", list[i]->d_name);
        if (n_name < sizeof l.name) {
            memcpy(l.name, list[i]->d_name, n_name);
            read_file(&l);
        } else {
            l.error = why_set(&l.why, E_INVAL, "The name is too long.");
        }
        register_tenant(&l, &replaced, &m);
        free(list[i]);
    }
    free(list);
}
