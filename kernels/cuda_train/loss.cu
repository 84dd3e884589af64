/* KL divergence, logit error and likelihood with their gradient: a block has a row, the rows'
 * numbers are added on the host in their order. */
#include <cstdlib>

#include "kernels/cuda_train/cuda_train.h"
#include "kernels/cuda_train/reduce.cuh"

enum { LOSS_THREADS = 512 };

struct row_loss {
    double kl, mse, nll, teacher_nll;
    int32_t has_target, agrees;
};

struct distil_args {
    int32_t vocab;
    const float *student, *teacher;
    const int32_t *target;
    float kl_weight, mse_weight, grad_scale;
    float *grad;
    struct row_loss *row;
};

struct soft {
    float off; /* log p = x - off */
    int32_t best;
};
static __device__ struct soft soften(const float *x, int32_t n) {
    struct top best = block_top(x, n);
    float sum = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += LOSS_THREADS)
        sum += expf(x[i] - best.value);
    return {best.value + logf(block_sum(sum)), best.at};
}

__global__ void distil_kernel(struct distil_args a) {
    size_t at = (size_t)blockIdx.x * (size_t)a.vocab;
    const float *y = a.student + at, *t = a.teacher + at;
    struct soft sy = soften(y, a.vocab), st = soften(t, a.vocab);
    int32_t target = a.target ? a.target[blockIdx.x] : -1;
    struct row_loss row = {0, 0, 0, 0, target >= 0, sy.best == st.best};
    if (target >= 0 && threadIdx.x == 0) {
        row.nll = (double)sy.off - (double)y[target];
        row.teacher_nll = (double)st.off - (double)t[target];
    }
    __syncthreads(); /* grad may lie where y lies */
    float kl = 0, mse = 0, pull = 2 * a.mse_weight / (float)a.vocab;
    for (int32_t i = (int32_t)threadIdx.x; i < a.vocab; i += LOSS_THREADS) {
        float lt = t[i] - st.off, ly = y[i] - sy.off, p = expf(lt), d = y[i] - t[i];
        kl += p * (lt - ly);
        mse += d * d;
        if (a.grad)
            a.grad[at + (size_t)i] = ((expf(ly) - p) * a.kl_weight + pull * d) * a.grad_scale;
    }
    row.kl = (double)block_sum(kl);
    row.mse = (double)block_sum(mse) / (double)a.vocab;
    if (threadIdx.x == 0)
        a.row[blockIdx.x] = row;
}

void cuda_train_distil(struct train *t, int32_t rows, int32_t vocab, const float *student,
                       const float *teacher, const int32_t *target, float kl_weight,
                       float mse_weight, float grad_scale, float *grad, struct train_loss *sum) {
    struct cuda_train *c = cuda_train_of(t);
    size_t bytes = (size_t)rows * sizeof(struct row_loss);
    struct row_loss *on_device = (struct row_loss *)cuda_train_scratch(c, SCRATCH_ROWS, bytes);
    if (!on_device || !rows)
        return;
    struct distil_args a = {vocab,      student,    teacher, target,   kl_weight,
                            mse_weight, grad_scale, grad,    on_device};
    distil_kernel<<<(unsigned)rows, LOSS_THREADS, 0, c->stream>>>(a);
    cuda_train_launched(c, "distil");
    struct row_loss *row = (struct row_loss *)malloc(bytes);
    if (!row) {
        cuda_train_fail(c, E_NOMEM, "there is no memory for the sums of a loss");
        return;
    }
    cuda_train_get(t, row, on_device, bytes);
    for (int32_t i = 0; !c->error && i < rows; i++) {
        sum->kl += row[i].kl, sum->mse += row[i].mse;
        sum->nll += row[i].nll, sum->teacher_nll += row[i].teacher_nll;
        sum->n_rows++;
        sum->n_targets += row[i].has_target;
        sum->n_agree += row[i].agrees;
    }
    free(row);
}
