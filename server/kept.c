#include "server/kept.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/file.h"
#include "config/json.h"
#include "config/log.h"
#include "server/load.h"
#include "server/server.h"

enum { FORMAT = 1, MAX_FILE_BYTES = 64 << 20, MAX_DEPTH = 4, MAX_VALUES = 1 << 20 };
static const char *const kind_names[KEPT_KINDS] = {"deltas", "aliases"};

/* One writing of the file. */
struct save {
    struct save *next;
    struct server *server;
    struct exchange *x; /* NULL: nobody waits for it any more */
    int status;
    json_t *tree; /* the answer */
    char *text;   /* what the file will hold */
    size_t n_text;
    err_t error;
    struct why why;
    uv_work_t work;
};

/* --- the file ------------------------------------------------------------------------------- */

static err_t read_kind(struct kept *k, int kind, json_t *names, struct why *why) {
    const char *name;
    json_t *v;
    if (names && !json_is_object(names))
        return why_set(why, E_CONFIG, "\"%s\" is not an object", kind_names[kind]);
    json_object_foreach(names, name, v) {
        size_t n = json_string_length(v);
        if (!registry_name_ok(name))
            return why_set(why, E_CONFIG, "\"%s\" holds a name that is none", kind_names[kind]);
        if (!json_is_null(v) &&
            (!json_is_string(v) || n == 0 || n >= (kind == KEPT_DELTAS ? LOAD_PATH_BYTES : 256) ||
             strlen(json_string_value(v)) != n))
            return why_set(why, E_CONFIG, "%s of \"%s\" is neither a text nor null", name,
                           kind_names[kind]);
    }
    return names && json_object_update(k->names[kind], names) ? E_NOMEM : E_OK;
}

err_t kept_read(struct kept *k, const char *text, size_t n, struct why *why) {
    json_t *tree = NULL;
    err_t e = json_parse(&tree, text, n, "the file", MAX_DEPTH, MAX_VALUES, why);
    if (e == E_FORMAT)
        e = E_CONFIG;
    if (!e && !json_is_object(tree))
        e = why_set(why, E_CONFIG, "not a JSON object");
    else if (!e && json_integer_value(json_object_get(tree, "format")) != FORMAT)
        e = why_set(why, E_CONFIG, "not of format %d", FORMAT);
    for (int i = 0; !e && i < KEPT_KINDS; i++)
        e = read_kind(k, i, json_object_get(tree, kind_names[i]), why);
    json_decref(tree);
    return e;
}

/* malloc'ed; NULL without memory. */
static char *file_text(const struct kept *k, size_t *n) {
    json_t *tree =
        json_pack("{s:i,s:O,s:O}", "format", FORMAT, kind_names[KEPT_DELTAS], k->names[KEPT_DELTAS],
                  kind_names[KEPT_ALIASES], k->names[KEPT_ALIASES]);
    char *text = tree ? json_dumps(tree, JSON_INDENT(1) | JSON_SORT_KEYS) : NULL;
    json_decref(tree);
    *n = text ? strlen(text) : 0;
    return text;
}

static bool write_whole(int fd, const char *text, size_t n) {
    while (n) {
        ssize_t put = write(fd, text, n);
        if (put < 0 && errno != EINTR)
            return false;
        text += put > 0 ? put : 0;
        n -= put > 0 ? (size_t)put : 0;
    }
    return fsync(fd) == 0;
}

/* A rename is on the disk when its folder is. */
static bool sync_folder(const char *path) {
    char copy[4096];
    snprintf(copy, sizeof copy, "%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool done = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    return done;
}

static err_t write_file(const char *path, const char *text, size_t n, struct why *why) {
    char beside[4096];
    if (snprintf(beside, sizeof beside, "%s.new", path) >= (int)sizeof beside)
        return why_set(why, E_CONFIG, "the path is too long");
    int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool done = fd >= 0 && write_whole(fd, text, n);
    if (fd >= 0 && close(fd) != 0)
        done = false;
    if (done)
        done = rename(beside, path) == 0 && sync_folder(path);
    return done ? E_OK : why_set(why, E_CONFIG, "cannot be written: %s", strerror(errno));
}

err_t kept_open(struct kept *k, const char *path, struct why *why) {
    *k = (struct kept){.path = path && *path ? path : NULL};
    for (int i = 0; i < KEPT_KINDS; i++)
        if (!(k->names[i] = json_object()))
            return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    if (!k->path)
        return E_OK;
    char *found = NULL;
    size_t n = 0;
    err_t e = file_read(k->path, MAX_FILE_BYTES, &found, &n, why);
    if (e && !(e == E_IO && errno == ENOENT))
        return why_prefix(why, e == E_NOMEM ? e : E_CONFIG, "--state");
    e = found ? kept_read(k, found, n, why) : E_OK;
    free(found);
    /* Better now than when the first change has nowhere to go. */
    char *text = e ? NULL : file_text(k, &n);
    if (!e)
        e = text ? write_file(k->path, text, n, why) : E_NOMEM;
    free(text);
    return e ? why_prefix(why, e, "--state %s", k->path) : E_OK;
}

void kept_close(struct kept *k) {
    for (int i = 0; i < KEPT_KINDS; i++)
        json_decref(k->names[i]);
    *k = (struct kept){0};
}

/* --- names ---------------------------------------------------------------------------------- */

const char *kept_get(const struct kept *k, enum kept_kind kind, const char *name) {
    return json_string_value(json_object_get(k->names[kind], name));
}

bool kept_removed(const struct kept *k, enum kept_kind kind, const char *name) {
    return json_is_null(json_object_get(k->names[kind], name));
}

void kept_set(struct kept *k, enum kept_kind kind, const char *name, const char *value) {
    json_object_set_new(k->names[kind], name, value ? json_string(value) : json_null());
}

void kept_forget(struct kept *k, enum kept_kind kind, const char *name) {
    json_object_del(k->names[kind], name);
}

void kept_apply_aliases(struct kept *k, struct registry *r) {
    const char *name;
    json_t *v;
    void *next;
    json_object_foreach_safe(k->names[KEPT_ALIASES], next, name, v) {
        struct why why = {""};
        bool replaced = false;
        if (json_is_string(v) && registry_alias(r, name, json_string_value(v), &replaced, &why))
            log_warn("state", "alias=%s why=\"%s\"", name, why.text);
        else if (json_is_null(v) && !registry_unalias(r, name))
            kept_forget(k, KEPT_ALIASES, name); /* --aliases has it no more */
    }
}

/* --- writing while serving ------------------------------------------------------------------ */

static void work_save(uv_work_t *w) {
    struct save *save = w->data;
    save->error = write_file(save->server->kept.path, save->text, save->n_text, &save->why);
}

static void start_save(struct server *s);

static void after_save(uv_work_t *w, int status) {
    struct save *save = w->data;
    struct server *s = save->server;
    struct exchange *x = save->x;
    (void)status;
    if (save->error)
        log_error("state", "why=\"%s %s\"", s->kept.path, save->why.text);
    if (x)
        x->on_gone = NULL;
    if (x && save->error) {
        struct why why;
        why_set(&why, E_INTERNAL, "This is done, but a restart will undo it: --state %s.",
                save->why.text);
        http_reply_error(x, E_INTERNAL, NULL, &why);
    } else if (x) {
        http_reply_json(x, save->status, json_incref(save->tree));
    }
    s->kept.saves = save->next;
    json_decref(save->tree);
    free(save->text);
    free(save);
    if (s->kept.saves)
        start_save(s);
}

static void start_save(struct server *s) {
    uv_queue_work(&s->loop, &s->kept.saves->work, work_save, after_save);
}

static void on_gone(struct exchange *x) {
    struct save *save = x->work;
    save->x = NULL;
}

void kept_reply(struct server *s, struct exchange *x, int status, json_t *tree) {
    struct save *save = s->kept.path ? calloc(1, sizeof *save) : NULL;
    if (save)
        save->text = file_text(&s->kept, &save->n_text);
    if (!save || !save->text) {
        if (x && s->kept.path)
            http_reply_error(x, E_NOMEM, NULL, NULL);
        else if (x)
            http_reply_json(x, status, json_incref(tree));
        json_decref(tree);
        free(save);
        return;
    }
    save->server = s;
    save->x = x;
    save->status = status;
    save->tree = tree;
    save->work.data = save;
    if (x) {
        x->work = save;
        x->on_gone = on_gone;
    }
    struct save **last = &s->kept.saves;
    while (*last)
        last = &(*last)->next;
    *last = save;
    if (s->kept.saves == save)
        start_save(s);
}
