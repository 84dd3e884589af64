#include "compress/job.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/json.h"
#include "tokenizer/tokenizer.h"

enum { MAX_DEPTH = 32, MAX_VALUES = 1 << 20 };

err_t job_base_hash(struct job_base *b, struct why *why) {
    struct progress p;
    unsigned char digest[SHA256_BYTES] = {0};
    progress_begin(&p, "hash base");
    err_t e = checkpoint_fingerprint(&b->checkpoint, digest, progress_show, &p, why);
    progress_end(&p);
    sha256_hex(digest, b->fingerprint);
    return e;
}

err_t job_base_open(struct job_base *b, const char *dir, struct why *why) {
    memset(b, 0, sizeof *b);
    err_t e = checkpoint_open(&b->checkpoint, dir, why);
    e = e ? e : job_base_hash(b, why);
    if (e)
        job_base_close(b);
    return e;
}

void job_base_close(struct job_base *b) {
    checkpoint_close(&b->checkpoint);
}

err_t job_norms(const struct checkpoint *c, float **out, struct why *why) {
    const struct model_shape *s = &c->config.shape;
    int32_t n = 2 * s->n_layers + 1;
    *out = malloc((size_t)n * (size_t)s->dim * sizeof **out);
    if (!*out)
        return why_set(why, E_NOMEM, "%s: not enough memory for its norms", c->dir);
    err_t e = E_OK;
    for (int32_t i = 0; !e && i < n; i++) {
        char name[128];
        norm_name(name, sizeof name, s, i);
        e = checkpoint_read_f32(c, name, *out + (size_t)i * (size_t)s->dim, (size_t)s->dim, why);
    }
    if (e) {
        free(*out);
        *out = NULL;
    }
    return e;
}

const char *job_name_of(const char *path) {
    const char *name = path;
    for (const char *p = path; *p; p++)
        if (p[0] == '/' && p[1] && p[1] != '/')
            name = p + 1;
    return name;
}

/* ---- texts ----------------------------------------------------------------------------------- */

static err_t parse_object(json_t **out, const char *text, const char *label, struct why *why) {
    err_t e = json_parse(out, text, strlen(text), label, MAX_DEPTH, MAX_VALUES, why);
    if (!e && !json_is_object(*out))
        e = why_set(why, E_FORMAT, "%s: not a JSON object", label);
    return e;
}

/* Lets the tokenizer itself say whether the additions fit the base and the vocabulary. */
static err_t check_tokenizer(const struct job_base *base, const json_t *additions, int32_t vocab,
                             struct why *why) {
    char path[4096], json_path[4096];
    snprintf(path, sizeof path, "%s/tokenizer.model", base->checkpoint.dir);
    snprintf(json_path, sizeof json_path, "%s/tokenizer.json", base->checkpoint.dir);
    if (access(path, F_OK) != 0 && access(json_path, F_OK) != 0)
        return E_OK; /* a base without either serves token ids only */
    struct tokenizer *own = NULL, *extended = NULL;
    char *text = json_dumps(additions, JSON_COMPACT);
    err_t e = text ? tokenizer_open(&own, base->checkpoint.dir, why)
                   : why_set(why, E_NOMEM, "not enough memory for the tokenizer");
    if (!e)
        e = tokenizer_extend(&extended, own, text, vocab, why);
    if (!e)
        tokenizer_close(extended);
    if (own)
        tokenizer_close(own);
    free(text);
    return e;
}

err_t job_texts_read(struct job_texts *t, const struct job_base *base, const char *dir,
                     const char *config_json, const char *generation_json, struct why *why) {
    memset(t, 0, sizeof *t);
    char *additions = NULL;
    struct model_config c;
    err_t e = parse_object(&t->config, config_json, "config.json", why);
    if (!e)
        e = model_config_from_json(&c, t->config, "config.json", why);
    if (!e)
        e = parse_object(&t->generation, generation_json, "generation_config.json", why);
    if (!e)
        e = tokenizer_additions(dir, &additions, why);
    if (!e)
        e = parse_object(&t->tokenizer, additions, "tokenizer", why);
    if (!e)
        e = check_tokenizer(base, t->tokenizer, c.shape.vocab, why);
    free(additions);
    if (e)
        job_texts_free(t);
    return e ? why_prefix(why, e, "%s", dir) : E_OK;
}

void job_texts_free(struct job_texts *t) {
    json_decref(t->config);
    json_decref(t->generation);
    json_decref(t->tokenizer);
    memset(t, 0, sizeof *t);
}

/* ---- the end --------------------------------------------------------------------------------- */

static err_t read_back(const struct job_base *b, const char *path, size_t *bytes, struct why *why) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return why_set(why, E_IO, "%s: cannot open: %s", path, strerror(errno));
    struct tenant_file t;
    err_t e = tenant_file_read(&t, fd, path, &b->checkpoint.config, b->fingerprint, why);
    *bytes = t.file_bytes;
    tenant_file_free(&t);
    close(fd);
    return e ? why_prefix(why, e, "the file just written does not read back") : E_OK;
}

err_t job_finish(const struct job_base *b, struct tenant_writer *w, const char *path,
                 const struct job_texts *texts, json_t *made, json_t *quality,
                 const struct report *report, bool json, struct why *why) {
    char hash[SHA256_HEX];
    size_t bytes = 0;
    json_t *nothing = json_object();
    struct tenant_header h = {.base_fingerprint = b->fingerprint,
                              .base_vocab = b->checkpoint.config.shape.vocab,
                              .config = texts->config,
                              .tokenizer = texts->tokenizer,
                              .generation = texts->generation,
                              .made = made,
                              .quality = quality ? quality : nothing};
    err_t e = tenant_writer_end(w, &h, hash, why);
    json_decref(nothing);
    if (!e)
        e = read_back(b, path, &bytes, why);
    if (e)
        return e;
    if (json) {
        json_t *out = json_pack("{s:s, s:s, s:s, s:I, s:o}", "file", path, "content_hash", hash,
                                "base_fingerprint", b->fingerprint, "bytes", (json_int_t)bytes,
                                "matrices", report_json(report, (double)bytes));
        if (quality)
            json_object_set(out, "quality", quality);
        json_dumpf(out, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(out);
    } else {
        report_print(report, (double)bytes);
        if (quality)
            putchar('\n');
        report_quality(quality);
        printf("\n%s: %zu bytes, content hash %.16s..., read back and verified\n", path, bytes,
               hash);
    }
    return E_OK;
}
