/* `bitdelta verify`: every check that the server makes before it serves a tenant, from the outside.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "compress/job.h"

static json_t *result_json(const char *path, const struct tenant_file *t, err_t e,
                           const struct why *why) {
    return e ? json_pack("{s:s, s:b, s:s, s:s}", "file", path, "ok", 0, "code", err_code(e),
                         "error", why->text)
             : json_pack("{s:s, s:b, s:s, s:s}", "file", path, "ok", 1, "content_hash",
                         t->meta.hash, "base_fingerprint", t->meta.base_fingerprint);
}

static err_t verify(const struct job_base *base, const char *path, bool json, json_t *results,
                    struct why *why) {
    struct tenant_file t = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    err_t e =
        fd < 0 ? why_set(why, E_IO, "%s: cannot open: %s", path, strerror(errno))
               : tenant_file_read(&t, fd, path, &base->checkpoint.config, base->fingerprint, why);
    json_array_append_new(results, result_json(path, &t, e, why));
    if (!json && !e)
        printf("%s: good; content hash %s, base %.16s...\n", path, t.meta.hash,
               t.meta.base_fingerprint);
    tenant_file_free(&t);
    if (fd >= 0)
        close(fd);
    return e;
}

/* Of several files every one is looked at; the sentence of the first that is bad is the command's.
 */
static err_t run(const struct args *a, struct why *why) {
    struct job_base base;
    err_t e = job_base_open(&base, arg(a, "--base"), why);
    if (e)
        return e;
    json_t *results = json_array();
    for (int32_t i = 0; i < a->n_many; i++) {
        struct why own = {{0}};
        err_t bad = verify(&base, a->many[i], arg(a, "--json"), results, &own);
        if (bad && e)
            fprintf(stderr, "bitdelta verify: %s\n", own.text);
        else if (bad)
            *why = own, e = bad;
    }
    if (arg(a, "--json")) {
        json_dumpf(a->n_many == 1 ? json_array_get(results, 0) : results, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(results);
    job_base_close(&base);
    return e;
}

const struct command command_verify = {
    .name = "verify",
    .summary = "check tenant files whole, against their base",
    .operand = "FILE...",
    .about =
        "Checks that each file was made for exactly this base, the SHA-256 of every tensor and\n"
        "of the whole, every shape, that scales are finite and padding is zero. Exit code 0:\n"
        "bitdeltad will serve them. Exit code 1: not all, and a sentence for each says why.\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--json", NULL, false, "print the result as JSON, of several files a list"}},
    .examples =
        "  bitdelta verify --base llama-7b chat.bitdelta\n"
        "  bitdelta verify --base llama-7b deltas/*.bitdelta && rsync deltas/ host:/srv/deltas/\n",
    .is_check = true,
    .run = run,
};
