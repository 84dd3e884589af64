/* A tenant in the making: for every matrix of the model what the tenant stores of its difference
 * (nothing, exact rows, all of it, or sign planes with scales and a low-rank pair), the weights
 * that follow from it, merged right before they are used, and one step of learning from the
 * gradients of those weights.
 *
 * Learnt are the logarithms of row and column scales, the low-rank pair, the norms, and the signs:
 * a sign is that of a hidden real number which moves against the gradient of its weight (the
 * straight-through estimator) and starts at the difference itself in units of its scale, so
 * doubtful signs turn first. The difference is taken in FP32 from the stored dtypes against the
 * base as it is served (FP16), one matrix at a time. Owner and caller: the tool's main thread. */
#ifndef COMPRESS_STUDENT_H
#define COMPRESS_STUDENT_H

#include "compress/budget.h"
#include "compress/llama.h"

enum student_kind { STUDENT_BASE, STUDENT_DENSE, STUDENT_ROWS, STUDENT_PLANES };

struct student_matrix {
    enum student_kind kind;
    int32_t n, k; /* N: rows that base and fine-tune both have; further rows of the fine-tune are
                     kept exactly */
    int32_t n_planes, rank, n_rows;
    struct train_plane plane[MAX_PLANES];
    struct train_vector a, b; /* [rank, K], [N, rank] */
    float a_size, b_size;     /* root mean squares at the start: the unit of their learning */
    int32_t *row_id;          /* [n_rows] exact rows, ascending; host, owned */
    /* What planes and pair are added to: base's matrix (borrowed), or one of the model's shape that
     * holds the exact rows (owned). */
    struct train_weights ground;
    bool owns_ground;
    bool has_learnt;     /* ground's exact rows have moved from the fine-tune's */
    void *merged;        /* ground, planes and pair together, of ground's shape, or NULL; owned */
    bool is_merged;      /* it is what they are now */
    double base, change; /* sums of squares: of the base, of the difference */
    uint64_t zeros;      /* differences that are exactly 0 */
};

struct student {
    struct train *t;
    struct llama model;                         /* the weights as the tenant will have them */
    const struct llama *base;                   /* borrowed */
    const struct checkpoint *base_files, *fine; /* borrowed */
    struct student_matrix *matrix;              /* [model.n_matrices] owned */
    struct train_vector norm;                   /* [2L + 1, D]; x is model.norm */
    struct train_weights merged;                /* room for the largest matrix */
    float *grad;                                /* gradients of scales and pairs */
    float *work;                                /* the largest matrix in FP32, or NULL */
    struct llama_files fine_files;              /* what the reader reads */
    struct llama_reader reader;                 /* of the fine-tune, with: */
    float *block;                               /* rows of the base, LLAMA_BLOCK numbers */
    float *sums;                                /* [3, rows of any matrix] */
};

/* choice [n_matrices]: how each matrix is stored (of tied models that of the embedding counts for
 * both). exact and whole are for embedding and lm_head: the changed rows; all of them.
 * Rows beyond the base's vocabulary are exact in any case, and a matrix that did not change is the
 * base's whatever is chosen. Base and fine-tune have the same shape, but the fine-tune's vocabulary
 * may be wider or narrower: the student predicts over the fine-tune's rows. Signs, least-squares
 * scales and pairs are found from the weights alone. Errors with a sentence: E_NOMEM, E_IO,
 * E_FORMAT, E_UNSUPPORTED. Free with student_free, also after an error. p: NULL for none. */
err_t student_open(struct student *s, struct train *t, const struct llama *base,
                   const struct checkpoint *base_files, const struct checkpoint *fine,
                   const struct budget_choice *choice, struct progress *p, struct why *why);
void student_free(struct student *s);
/* Bits stored for the linears, per weight of theirs, with scales at 16 bits. */
double student_bits_per_weight(const struct student *s);
/* Gives up, or takes again, the FP32 room for one matrix that differences are worked on in:
 * student_open ends with it given up. */
err_t student_work(struct student *s, bool wanted, struct why *why);
/* From now on merged weights are kept between a step's forward and backward pass, of as many
 * matrices as fit into half of the memory that is free; until student_keep_no_more, student_learn
 * alone may change the student. */
void student_keep(struct student *s);
void student_keep_no_more(struct student *s);
/* d: device [N, K] = fine-tune - base of one matrix. */
err_t student_difference(struct student *s, int32_t i_matrix, float *d, struct why *why);
/* What the planes and the pair of a matrix add to its ground; valid while the student is. */
struct train_delta student_delta(const struct student *s, int32_t i_matrix);
/* Takes the pair's numbers as they are for the unit of its learning. E_NOMEM. */
err_t student_size_pair(struct student *s, int32_t i_matrix);

/* Step sizes; 0 leaves that kind of number as it is. */
struct student_rates {
    float scale;    /* of the scales' logarithms */
    float bit;      /* in units of the scale */
    float low_rank; /* in units of the factor's root mean square */
    float norm;
    int32_t t; /* number of this step, from 1 */
};
/* Where a gradient came from: grad = dy' x, x [rows, K], dy [rows, rows of the model's matrix],
 * device. dy NULL: unknown. */
struct student_flow {
    int32_t rows; /* at most STUDENT_MAX_ROWS */
    const float *x, *dy;
};
enum { STUDENT_MAX_ROWS = 4096 };
/* One step against the gradient, device [rows of the model's matrix, K]. */
void student_learn(struct student *s, int32_t i_matrix, const float *grad,
                   const struct student_flow *flow, const struct student_rates *r);
/* Whether any step changes this matrix: for llama_sink.wants. */
bool student_learns(const struct student *s, int32_t i_matrix);
void student_learn_norms(struct student *s, const float *grad, const struct student_rates *r);

#endif
