/* The difference of two matrices into a tenant file: read in blocks of rows, fitted, written. A
 * matrix is never in memory whole unless it gets one scale for all of it. */
#ifndef COMPRESS_DIFF_H
#define COMPRESS_DIFF_H

#include "compress/planes.h"
#include "compress/report.h"
#include "compress/tenant_write.h"

/* Where rows of a matrix [n, k] come from, in FP32. */
struct rows {
    err_t (*read)(void *arg, float *dst, int64_t first, int64_t n_rows, struct why *why);
    void *arg;
    int32_t n, k;
};

/* Rows of a checkpoint's tensor: struct checkpoint_rows is the arg. */
struct checkpoint_rows {
    const struct checkpoint *c;
    const char *name; /* "....weight" */
    int32_t k;        /* set by rows_of_checkpoint */
};
struct rows rows_of_checkpoint(struct checkpoint_rows *r, int32_t n, int32_t k);
/* The matrix that a checkpoint's lm_head is: its own, or the embedding when tied. */
const char *head_tensor(const struct model_config *c);

struct diff_options {
    int32_t n_planes;     /* of the linears */
    bool per_row;         /* one scale per row, else per matrix */
    bool embed_dense;     /* changed embeddings whole, not as planes */
    int32_t embed_planes; /* with row scales */
};

/* A linear: absent when equal, else planes. */
err_t diff_write_part(struct tenant_writer *w, const char *part, struct rows base, struct rows fine,
                      const struct diff_options *o, struct report_row *report, struct why *why);

/* The whole matrix in FP16. */
err_t diff_write_dense(struct tenant_writer *w, const char *part, struct rows fine,
                       struct why *why);

/* embed or head, whose fine matrix may have more or fewer rows than the base's. Rows beyond the
 * base are kept exactly; the others are absent when equal; exact rows when those cost no more bits
 * than planes would; else planes, or the whole matrix with embed_dense. */
err_t diff_write_vocab(struct tenant_writer *w, const char *part, struct rows base,
                       struct rows fine, const struct diff_options *o, struct report_row *report,
                       struct why *why);

/* All norms, whole. norms: [2L + 1, D] of base and fine-tune. */
err_t diff_write_norms(struct tenant_writer *w, const struct model_shape *s, const float *base,
                       const float *fine, struct report_row *report, struct why *why);

/* Adds to the report how far two matrices are apart, as diff_write_part does. */
err_t diff_measure(struct rows base, struct rows fine, struct report_row *report, struct why *why);
/* Planes as tensors of a part. */
err_t diff_write_planes(struct tenant_writer *w, const char *part, const struct planes *p,
                        struct why *why);
/* Adds the sum of squares of all rows. */
err_t diff_energy(struct rows rows, double *energy, struct why *why);

/* FP32 to FP16; E_FORMAT naming `what` where a value does not fit. */
err_t diff_to_half(uint16_t *dst, const float *src, size_t n, const char *what, struct why *why);

#endif
