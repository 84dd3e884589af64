/* `bitdelta verify`: every check that the server makes before it serves a tenant, from the outside.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "compress/job.h"

static void print(const char *path, const struct tenant_file *t, err_t e, const struct why *why,
                  bool json) {
    if (!json) {
        if (!e)
            printf("%s: good; content hash %s, base %.16s...\n", path, t->meta.hash,
                   t->meta.base_fingerprint);
        return;
    }
    json_t *out = e ? json_pack("{s:s, s:b, s:s, s:s}", "file", path, "ok", 0, "code", err_code(e),
                                "error", why->text)
                    : json_pack("{s:s, s:b, s:s, s:s}", "file", path, "ok", 1, "content_hash",
                                t->meta.hash, "base_fingerprint", t->meta.base_fingerprint);
    json_dumpf(out, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(out);
}

static err_t run(const struct args *a, struct why *why) {
    const char *path = a->operand[0];
    struct why own = {{0}};
    struct job_base base;
    err_t e = job_base_open(&base, arg(a, "--base"), why);
    if (e)
        return e;
    struct tenant_file t = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        e = why_set(&own, E_IO, "%s: cannot open: %s", path, strerror(errno));
    else
        e = tenant_file_read(&t, fd, path, &base.checkpoint.config, base.fingerprint, &own);
    print(path, &t, e, &own, arg(a, "--json"));
    if (e)
        *why = own;
    tenant_file_free(&t);
    if (fd >= 0)
        close(fd);
    job_base_close(&base);
    return e;
}

const struct command command_verify = {
    .name = "verify",
    .summary = "check a tenant file whole, against its base",
    .operand = "FILE",
    .about =
        "Checks that the file was made for exactly this base, the SHA-256 of every tensor and\n"
        "of the whole, every shape, that scales are finite and padding is zero. Exit code 0:\n"
        "bitdeltad will serve it. Exit code 1: it will not, and the sentence says why.\n",
    .option = {{"--base", "DIR", true, "the base model"},
               {"--json", NULL, false, "print the result as JSON"}},
    .examples = "  bitdelta verify --base llama-7b chat.bitdelta\n",
    .is_check = true,
    .run = run,
};
