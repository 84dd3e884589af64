#include "compress/llama_tenant.h"

#include <string.h>

#include "compress/merge.h"

struct tenant_source {
    struct llama_files base;
    const struct tenant_file *file;
};

/* Rows that the base does not have come in as anything: the tenant's own win. */
static err_t tenant_rows(void *arg, int32_t i, int32_t first, int32_t n, float *out,
                         struct why *why) {
    struct tenant_source *s = arg;
    const struct model_shape *base = &s->base.files->config.shape;
    int32_t n_linears = base->n_layers * N_PARTS;
    struct llama_source from = llama_source_files(&s->base);
    if (i < n_linears) {
        err_t e = from.rows(from.arg, i, first, n, out, why);
        if (!e)
            merge_rows(out, &s->file->delta[i], first, n,
                       part_cols(base, (enum part)(i % N_PARTS)));
        return e;
    }
    int32_t common = first >= base->vocab ? 0 : base->vocab - first < n ? base->vocab - first : n;
    memset(out, 0, (size_t)n * (size_t)base->dim * sizeof *out);
    err_t e = common ? from.rows(from.arg, i, first, common, out, why) : 0;
    if (!e)
        merge_vocab_rows(out, i == n_linears ? &s->file->embed : &s->file->head, first, n,
                         base->vocab, base->dim);
    return e;
}

static err_t tenant_norms(void *arg, float *out, struct why *why) {
    (void)why;
    const struct tenant_source *s = arg;
    const struct model_shape *shape = &s->base.files->config.shape;
    memcpy(out, s->file->norm,
           (size_t)(2 * shape->n_layers + 1) * (size_t)shape->dim * sizeof *out);
    return 0;
}

err_t llama_of_tenant(struct llama *m, struct train *t, const struct checkpoint *base,
                      const struct tenant_file *file, struct progress *p, struct why *why) {
    struct tenant_source s = {{base, true}, file};
    /* Merging takes all cores already. */
    struct llama_source from = {
        .one_by_one = true, .rows = tenant_rows, .norms = tenant_norms, .arg = &s};
    return llama_load(m, t, &file->meta.config, from, p, why);
}
