/* What jobs.cu makes and producer.cu, own.cu read: for each row of a slice and each linear what is
 * to be made of the row, beside the linear's own tables. Private to these files. */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rows.h"

enum {
    MAX_PHASES = MAX_PLANES,
    MAX_SETS = MAX_PLANES * MAX_PARTS, /* column scales of one row in one linear */
};

/* One row of one table; device memory. */
struct row_work {
    const float *norm; /* [K] weights of the norm before this linear */
    float eps;
    int32_t source; /* row of the step */
    /* Set i of this row stands at first_set + i * set_stride; x is multiplied by col[i], or stands
     * as it is where col[i] is NULL. */
    int32_t n_sets, first_set, set_stride;
    int32_t n_u; /* elements of u; those of a part are [first_u, first_u + rank) */
    int32_t rank[MAX_PARTS], first_u[MAX_PARTS];
    const __half *a[MAX_PARTS];     /* [rank, K] */
    const struct vocab_matrix *own; /* the head's: exact rows; else NULL */
    int32_t vocab;                  /* the head's: ids that this tenant has */
    int32_t reserved;
    const float *col[MAX_SETS];
};

/* Device addresses of one table. */
struct job_table {
    struct linear_batch *batch;
    struct linear_job *jobs;    /* [phases][jobs] */
    struct linear_pair *pairs;  /* [jobs] */
    struct linear_dense *dense; /* [n_dense] */
    struct row_work *row;       /* [SLICE_ROWS] */
};

struct job_tables {
    struct model_shape shape;
    int32_t n_tables;      /* L * N_LINEARS + 1 */
    int32_t max_blocks;    /* of 256 columns, of any linear */
    int32_t ld_u;          /* ranks that a row can have in a linear */
    struct job_table base; /* of table 0; the others stand at the strides below */
    __half *x;             /* linear_input.x */
    struct linear_planes *planes;
    float *u;    /* [SLICE_ROWS][ld_u] */
    void *block; /* all of the above; owned */
    size_t bytes;
};

static inline __host__ __device__ struct job_table table_at(const struct job_table &base, int i) {
    return {base.batch + i, base.jobs + (size_t)i * MAX_PHASES * SLICE_ROWS,
            base.pairs + (size_t)i * SLICE_ROWS, base.dense + (size_t)i * SLICE_ROWS,
            base.row + (size_t)i * SLICE_ROWS};
}
/* The linear of a table; the head counts as a linear of its own after all layers. */
static inline struct linear_shape table_shape(const struct model_shape *s, int32_t table) {
    int32_t rows[MAX_PARTS] = {s->vocab};
    if (table == s->n_layers * N_LINEARS)
        return linear_shape_of(1, rows, s->dim);
    enum linear which = (enum linear)(table % N_LINEARS);
    enum part first = linear_first_part(which);
    for (int32_t i = 0; i < linear_n_parts(which); i++)
        rows[i] = part_rows(s, (enum part)(first + i));
    return linear_shape_of(linear_n_parts(which), rows, part_cols(s, first));
}

/* Lets the producers' kernels have a row in shared memory; part of job_tables_open. */
err_t produce_setup(const struct job_tables *t);

/* Launches so that the kernel may start before the one before it has ended (grid_wait), where the
 * device has that. */
template <typename... Params, typename... Args>
static inline err_t launch_early(void (*kernel)(Params...), dim3 grid, unsigned threads,
                                 unsigned shared_bytes, bool early, cudaStream_t stream,
                                 Args... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute attribute[1];
    attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[0].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = attribute;
    config.numAttrs = early && code_arch() >= 900;
    return cudaLaunchKernelEx(&config, kernel, args...) == cudaSuccess ? E_OK : E_DEVICE;
}

#endif
