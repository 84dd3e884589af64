/* bitdeltad: options -> base -> tokenizer -> registry -> loop. The only place that exits. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "config/log.h"
#include "server/json.h"
#include "server/loop.h"
#include "server/sdnotify.h"
#include "server/server.h"

/* sysexits(3), as deploy/bitdeltad.service knows them. */
enum { EXIT_USAGE = 64, EXIT_DATA = 65, EXIT_INPUT = 66, EXIT_DEVICE = 70, EXIT_CONFIG = 78 };

static int exit_code(err_t e) {
    switch (e) {
    case E_OK:
        return 0;
    case E_USAGE:
        return EXIT_USAGE;
    case E_CONFIG:
        return EXIT_CONFIG;
    case E_IO:
    case E_PATH:
        return EXIT_INPUT;
    case E_FORMAT:
    case E_UNSUPPORTED:
    case E_INVAL:
        return EXIT_DATA;
    default:
        return EXIT_DEVICE;
    }
}

/* libmicrohttpd found its own state broken: nothing after that can be trusted. */
static void on_panic(void *cls, const char *file, unsigned line, const char *reason) {
    (void)cls;
    log_error("mhd", "panic=%s:%u reason=%s", file, line, reason ? reason : "");
    _exit(EXIT_DEVICE);
}

/* Connections are twice our limit at most, plus files and the pool's own. */
static void raise_file_limit(void) {
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

static err_t open_deltas(struct server *s, struct why *why) {
    const char *dir = s->options->deltas;
    if (!dir || !*dir)
        return E_OK;
    s->deltas_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->deltas_fd < 0)
        return why_set(why, E_CONFIG, "--deltas %s: %s", dir, strerror(errno));
    return E_OK;
}

/* The base's model id is its folder's name unless it is given one. */
static err_t open_registry(struct server *s, struct why *why) {
    const char *name = s->options->name;
    char *path = realpath(s->options->base, NULL);
    if (!name || !*name)
        name = path ? basename(path) : "base";
    err_t e = registry_open(&s->registry, name, engine_base_info(s->engine), s->tokenizer, why);
    free(path);
    return e;
}

static err_t open_model(struct server *s, struct why *why) {
    const struct options *o = s->options;
    const struct engine_options options = {
        .base_dir = o->base,
        .device = o->device,
        .threads = (int32_t)o->threads,
        .kv_tokens = (int32_t)o->kv_tokens,
        .max_batch_tokens = (int32_t)o->max_batch_tokens,
        .max_seqs = (int32_t)o->max_seqs,
        .max_queue = (int32_t)o->max_queue,
        .extra_vocab = (int32_t)o->extra_vocab,
        .max_tenant_bytes = (size_t)o->tenant_memory,
    };
    sdnotify("STATUS=Loading the base model.");
    if (access(o->base, R_OK | X_OK) != 0)
        return why_set(why, E_IO, "--base %s: %s", o->base, strerror(errno));
    err_t e = tokenizer_open(&s->tokenizer, o->base, why);
    if (!e)
        e = engine_open(&s->engine, &options, why);
    if (!e)
        e = open_registry(s, why);
    if (!e)
        log_info("engine", "base=%s print=%s %s", s->registry.base->name,
                 s->registry.base->fingerprint, engine_describe(s->engine));
    return e;
}

static void close_all(struct server *s) {
    registry_close(&s->registry);
    kept_close(&s->kept);
    if (s->engine)
        engine_close(s->engine);
    tokenizer_close(s->tokenizer);
    auth_close(&s->public_keys);
    auth_close(&s->admin_keys);
    metrics_free(&s->metrics);
    if (s->deltas_fd >= 0)
        close(s->deltas_fd);
}

static err_t serve(const struct options *o, struct why *why) {
    struct server *s = calloc(1, sizeof *s);
    if (!s)
        return why_set(why, E_NOMEM, "no memory");
    s->options = o;
    s->deltas_fd = -1;
    metrics_init(&s->metrics);
    playground_init(&s->playground);
    err_t e = auth_open(&s->public_keys, o->api_key_file, why);
    if (!e)
        e = auth_open(&s->admin_keys, o->admin_key_file, why);
    if (!e)
        e = open_deltas(s, why);
    if (!e)
        e = open_model(s, why);
    if (!e)
        e = kept_open(&s->kept, o->state, why);
    if (!e)
        folder_open(s);
    if (!e)
        e = registry_read_aliases(&s->registry, o->aliases, why);
    if (!e)
        kept_apply_aliases(&s->kept, &s->registry);
    if (!e) {
        e = loop_open(s, why);
        if (!e)
            e = loop_run(s);
        loop_close(s);
    }
    close_all(s);
    free(s);
    return e;
}

int main(int argc, char **argv) {
    struct options options = {0};
    struct why why = {""};
    bool done = false;
    json_object_seed(0); /* against hash flooding; before any thread uses jansson */
    err_t e = options_load(&options, argc, argv, &done, &why);
    if (!e && !done) {
        log_set_level(options.log_level);
        signal(SIGPIPE, SIG_IGN);
        signal(SIGHUP, isatty(STDIN_FILENO) ? SIG_DFL : SIG_IGN); /* until the loop takes it */
        MHD_set_panic_func(on_panic, NULL);
        raise_file_limit();
        e = serve(&options, &why);
    }
    if (e)
        fprintf(stderr, "bitdeltad: %s\n", why.text[0] ? why.text : err_sentence(e));
    options_free(&options);
    return exit_code(e);
}
