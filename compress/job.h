/* The base of a command: opened, fingerprinted, and what every command that writes a tenant does
 * before and after with it. */
#ifndef COMPRESS_JOB_H
#define COMPRESS_JOB_H

#include "compress/command.h"
#include "compress/report.h"
#include "compress/tenant_write.h"

struct job_base {
    struct checkpoint checkpoint;
    char fingerprint[SHA256_HEX];
};

/* Opens the folder and hashes it. */
err_t job_base_open(struct job_base *b, const char *dir, struct why *why);
/* Hashes a base whose checkpoint is open, with a progress bar. */
err_t job_base_hash(struct job_base *b, struct why *why);
void job_base_close(struct job_base *b);
/* All norms of a checkpoint, [2L + 1, D] in FP32; given to the caller (free). */
err_t job_norms(const struct checkpoint *c, float **out, struct why *why);

/* The last part of a path, for "made": where things lie on one machine is nobody's business. */
const char *job_name_of(const char *path);

/* What a tenant says about its text side: config.json, generation_config.json and the tokenizer's
 * additions of the folder it comes from, as JSON for struct tenant_header. */
struct job_texts {
    json_t *config, *generation, *tokenizer; /* owned */
};
/* c: the fine-tune; texts are checked against the base's tokenizer model. */
err_t job_texts_read(struct job_texts *t, const struct job_base *base, const char *dir,
                     const char *config_json, const char *generation_json, struct why *why);
void job_texts_free(struct job_texts *t);

/* Writes the header, reads the finished file back with every check the server makes, and prints the
 * report (as JSON with `json`). Frees w in any case. made, quality (NULL: nothing was measured):
 * borrowed. */
err_t job_finish(const struct job_base *b, struct tenant_writer *w, const char *path,
                 const struct job_texts *texts, json_t *made, json_t *quality,
                 const struct report *report, bool json, struct why *why);

#endif
