/* A tenant in the making: for every matrix of the model what the tenant stores of its difference
 * (nothing, exact rows, all of it, or sign planes with scales and a low-rank pair), the dense
 * weights that follow from it, and one step of learning from the gradients of those weights.
 *
 * Learnt are the logarithms of row and column scales, the low-rank pair, the norms, and the signs:
 * a sign is that of a hidden real number which moves against the gradient of its weight (the
 * straight-through estimator) and starts at the difference itself in units of its scale, so
 * doubtful signs turn first. Owner and caller: the tool's main thread. */
#ifndef COMPRESS_STUDENT_H
#define COMPRESS_STUDENT_H

#include "compress/llama.h"

enum student_kind { STUDENT_BASE, STUDENT_DENSE, STUDENT_ROWS, STUDENT_PLANES };

/* Numbers that Adam moves; n 0: there are none. */
struct param {
    float *x, *m, *v; /* [n]: value, running means of the gradient and of its square; owned */
    size_t n;
};

struct student_plane {
    struct param row, col; /* logarithms of the scales: row [N], or [1] for all; col [K], or none */
    struct param bit;      /* [N, K]; the sign of x is the bit, >= 0 is +1 */
    float *col_scale;      /* [K] e^col, or ones; owned */
};

struct student_matrix {
    enum student_kind kind;
    int32_t n, k; /* N: rows that base and fine-tune both have; further rows are kept exactly */
    int32_t n_planes, rank, n_rows;
    struct student_plane plane[MAX_PLANES];
    struct param a, b; /* [rank, K], [N, rank] */
    int32_t *row_id;   /* [n_rows] exact rows, ascending; owned */
};

struct student {
    struct llama model;                 /* the weights as the tenant will have them; owned */
    const struct llama *base, *teacher; /* borrowed; teacher: the fine-tune */
    struct student_matrix *matrix;      /* [model.n_matrices] owned */
    struct param norm;                  /* [2L + 1, D] */
    float *scratch;                     /* floats of the largest matrix; owned */
    int32_t *rank;                      /* [n_matrices] of the linears' pairs; owned */
    float *part;                        /* [blocks of the tallest matrix, widest K]; owned */
};

/* What a tenant may hold. */
struct student_plan {
    int32_t planes;                   /* of the linears, 1 .. MAX_PLANES */
    int32_t vocab_planes, vocab_rank; /* of embedding and lm_head */
    double pair_bits; /* for low-rank pairs in the linears: bits per weight, over all of them */
    bool scalar;      /* one scale for a whole matrix, its mean difference; no column scales */
    bool dense_vocab; /* embedding and lm_head whole, as the published method keeps them */
};

/* Base and fine-tune have the same shape, but the fine-tune's vocabulary may be wider. Signs,
 * least-squares scales and low-rank pairs are found from the weights alone. E_NOMEM with a
 * sentence. Free with student_free, also after an error. */
err_t student_open(struct student *s, const struct gemm *g, const struct llama *base,
                   const struct llama *teacher, const struct student_plan *plan, struct why *why);
void student_free(struct student *s);
/* Bits stored for the linears, per weight of theirs, with scales at 16 bits. */
double student_bits_per_weight(const struct student *s);
/* Sets the model's weights of one matrix from what the tenant holds of it. */
void student_set_weights(struct student *s, const struct gemm *g, int32_t i_matrix);

/* Step sizes; 0 leaves that kind of number as it is. */
struct student_rates {
    float scale;       /* of the scales' logarithms */
    bool scale_itself; /* `scale` is of the scales, not of their logarithms (the published way) */
    float bit;         /* in units of the scale */
    float low_rank;    /* in units of the factor's root mean square */
    float norm;
    int32_t t; /* number of this step, from 1 */
};
/* One step against the gradient [rows of the model's matrix, K]; sets the weights anew. */
void student_learn(struct student *s, const struct gemm *g, int32_t i_matrix, const float *grad,
                   const struct student_rates *r);
void student_learn_norms(struct student *s, const float *grad, const struct student_rates *r);

#endif
