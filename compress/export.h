/* What `bitdelta export` is made of: the merged checkpoint, and the adapter of a low-rank tenant.
 * One thread. */
#ifndef COMPRESS_EXPORT_H
#define COMPRESS_EXPORT_H

#include "compress/job.h"

struct export_job {
    const struct job_base *base;
    const struct tenant_file *t;
    const char *dir; /* exists */
};

/* Matrix number i of the tenant in file order: the linears, then embedding and lm_head. */
struct export_matrix {
    char part[128], base_name[160], name[160]; /* name: of its tensor, "....weight" */
    int32_t n, k, base_n;                      /* rows here and in the base */
    const struct delta *delta;                 /* linears */
    const struct vocab_matrix *vocab;
};
/* False past the end; a tied lm_head is not there. */
bool export_matrix_at(const struct export_job *j, int32_t i, struct export_matrix *m);
/* Writes the next tensor, FP16 [n, k]: base + tenant. */
err_t export_write_merged(const struct export_job *j, const struct export_matrix *m,
                          struct st_writer *w, struct why *why);
/* model.safetensors: every matrix merged, and the norms. */
err_t export_weights(const struct export_job *j, struct why *why);

/* adapter_config.json and adapter_model.safetensors, from which import-lora makes the same tenant
 * again: pairs as pairs, dense and rows as modules_to_save. E_UNSUPPORTED, naming it, where
 * something is neither. */
err_t export_peft(const struct export_job *j, struct why *why);

err_t export_json(const char *dir, const char *name, const json_t *value, struct why *why);

#endif
