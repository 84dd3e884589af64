/* The tables of jobs: from the tenants of a slice's rows to what every linear of the step reads.
 *
 * One block of 64 threads makes one table, a thread a row. Rows side by side with one tenant are a
 * run; a run is cut into jobs of linear_job_rows rows. What a thread needs of its tenant is read
 * once (row -> tenant -> delta: three dependent loads, which is the time that the launch takes);
 * places come from ballots and one scan, so the tables are the same for the same rows.
 *
 * Bytes: 224 a part and tenant read, 64 a job and phase and up to 310 a row written. */
#include "kernels/cuda/rows.cuh"

namespace {

struct tables_args {
    struct job_table base;
    struct gpu_step step;
    const int32_t *row_of_logit; /* the head's */
    int32_t first_row, n_layers, dim;
    int32_t part_rows[N_LINEARS][MAX_PARTS];
    uint8_t job_rows[SLICE_ROWS + 1]; /* linear_job_rows of each number of rows */
};

/* The matrices of one table as one row's tenant has them. */
struct parts {
    const struct delta *delta[MAX_PARTS];
    const uint16_t *dense[MAX_PARTS];
    int n;
};

/* Shared memory of a block. */
struct board {
    const struct gpu_tenant *tenant[SLICE_ROWS];
    const float *col[SLICE_ROWS][MAX_SETS];
    uint32_t starts[2], jobs[2], dense[2];
    int sets[2]; /* of either warp */
    int n_phases;
};

__device__ uint64_t ballot64(bool yes, uint32_t (&to)[2]) {
    uint32_t b = __ballot_sync(~0u, yes);
    if (threadIdx.x % 32 == 0)
        to[threadIdx.x / 32] = b;
    __syncthreads();
    return (uint64_t)to[1] << 32 | to[0];
}

__device__ struct parts parts_of(const struct gpu_tenant *t, int table, bool head) {
    struct parts p = {};
    if (head) {
        p.n = 1;
        p.delta[0] = &t->head.delta;
        p.dense[0] = t->head.dense;
        return p;
    }
    int which = table % N_LINEARS;
    int first = which == LINEAR_QKV       ? PART_Q
                : which == LINEAR_O       ? PART_O
                : which == LINEAR_GATE_UP ? PART_GATE
                                          : PART_DOWN;
    p.n = which == LINEAR_QKV ? 3 : which == LINEAR_GATE_UP ? 2 : 1;
    for (int i = 0; i < p.n && t->delta; i++) {
        p.delta[i] = t->delta + table / N_LINEARS * N_PARTS + first + i;
        p.dense[i] = p.delta[i]->dense;
    }
    return p;
}

/* The planes that part i of a tenant adds. */
__device__ int planes_of(const struct parts &p, int i) {
    return i < p.n && p.delta[i] && !p.dense[i] ? p.delta[i]->n_planes : 0;
}
__device__ int rank_of(const struct parts &p, int i) {
    return i < p.n && p.delta[i] && !p.dense[i] ? max(p.delta[i]->rank, 0) : 0;
}
/* u of a part starts at 16 bytes. */
__device__ int next_u(int first, int rank) {
    return (first + rank + 3) / 4 * 4;
}

/* Sets of this row in all rows before it in the slice: sum over lower threads. */
__device__ int scan64(int n, struct board &b) {
    int lane = threadIdx.x % 32, sum = n;
    for (int d = 1; d < 32; d <<= 1) {
        int below = __shfl_up_sync(~0u, sum, d);
        sum += lane >= d ? below : 0;
    }
    if (lane == 31)
        b.sets[threadIdx.x / 32] = sum;
    __syncthreads();
    return sum - n + (threadIdx.x >= 32 ? b.sets[0] : 0);
}

/* What the producer makes of this row. */
__device__ void write_row(const tables_args &a, const struct parts &p, int table, bool head,
                          const struct gpu_tenant *t, struct row_work *w) {
    int norm = head ? 2 * a.n_layers : table / N_LINEARS * 2 + (table % N_LINEARS / 2);
    w->norm = t->norm + (size_t)norm * a.dim;
    w->eps = t->norm_eps;
    w->vocab = t->vocab;
    w->own = head ? &t->head : NULL;
    int n_u = 0;
    for (int i = 0; i < MAX_PARTS; i++) {
        int rank = rank_of(p, i);
        w->a[i] = rank ? (const __half *)p.delta[i]->a : NULL;
        w->rank[i] = rank;
        w->first_u[i] = n_u;
        n_u = next_u(n_u, rank);
    }
    w->n_u = n_u;
}

/* The set of these column scales among the row's. */
__device__ int set_of(const struct board &b, int n_sets, const float *col) {
    int set = 0;
    while (set < n_sets && b.col[threadIdx.x][set] != col)
        set++;
    return set;
}

__device__ void write_job(const struct parts &p, int row, int n_rows, int first_set, int job,
                          int n_jobs, int n_phases, const struct board &b, int n_sets,
                          const struct job_table &to) {
    for (int plane = 0; plane < n_phases; plane++) {
        struct linear_job j = {};
        j.first_row = (int16_t)row;
        j.n_rows = (int16_t)n_rows;
#pragma unroll
        for (int i = 0; i < MAX_PARTS; i++)
            if (plane < planes_of(p, i)) {
                const struct plane *of = &p.delta[i]->plane[plane];
                j.bits[i] = of->bits;
                j.row[i] = of->row;
                j.first_set[i] = first_set + set_of(b, n_sets, of->col) * n_rows;
            }
        to.jobs[(size_t)plane * n_jobs + job] = j;
    }
    struct linear_pair pair = {};
    int n_u = 0;
#pragma unroll
    for (int i = 0; i < MAX_PARTS; i++) {
        int rank = rank_of(p, i);
        pair.b[i] = rank ? (const __half *)p.delta[i]->b : NULL;
        pair.rank[i] = rank;
        pair.first_u[i] = n_u;
        n_u = next_u(n_u, rank);
    }
    to.pairs[job] = pair;
}

/* The dense parts of the run of rows that starts here. */
__device__ void write_dense(const struct parts &p, const int32_t (&n_out)[MAX_PARTS], int row,
                            int n_rows, struct linear_dense *to) {
    struct linear_dense d = {};
#pragma unroll
    for (int i = 0; i < MAX_PARTS; i++)
        if (i < p.n && p.dense[i]) {
            d.w[i] = (const __half *)p.dense[i];
            d.n_out[i] = n_out[i];
        }
    d.first_row = row;
    d.n_rows = n_rows;
    *to = d;
}

__global__ void __launch_bounds__(SLICE_ROWS) tables_kernel(const tables_args a, int first_table) {
    __shared__ struct board b;
    int table = first_table + blockIdx.x, r = threadIdx.x;
    bool head = a.row_of_logit != NULL;
    struct job_table to = table_at(a.base, table);
    int total = head ? a.step.counts->n_logits : a.step.counts->n_narrow;
    int n = min(max(total - a.first_row, 0), (int)SLICE_ROWS);

    const struct gpu_tenant *t = NULL;
    struct parts p = {};
    int source = 0, n_sets = 0, n_phases = 0;
    uint32_t dense = 0;
    bool changes = false;
    if (r < n) {
        source = head ? a.row_of_logit[a.first_row + r] : a.first_row + r;
        t = a.step.row[source].tenant;
        p = parts_of(t, table, head);
        for (int i = 0; i < p.n; i++) {
            int planes = planes_of(p, i);
            dense |= p.dense[i] ? 1u << i : 0;
            changes |= planes > 0 || rank_of(p, i) > 0;
            n_phases = max(n_phases, planes);
            for (int plane = 0; plane < planes; plane++) {
                const float *col = p.delta[i]->plane[plane].col;
                if (set_of(b, n_sets, col) == n_sets)
                    b.col[r][n_sets++] = col;
            }
        }
    }
    b.tenant[r] = t;
    if (r == 0)
        b.n_phases = 0;
    __syncthreads();

    /* The run this row is in: from its first row to the next run's. */
    uint64_t starts = ballot64(r < n && (r == 0 || b.tenant[r - 1] != t), b.starts);
    uint64_t up_to = (uint64_t)2 << r, own = starts & (up_to - 1), after = starts & ~(up_to - 1);
    int first = own ? 63 - __clzll((long long)own) : 0;
    int end = after ? __ffsll((long long)after) - 1 : n;
    int each = a.job_rows[n];
    int in_job = each ? (r - first) % each : 0, job_rows = min(each, end - (r - in_job));
    bool job = changes && in_job == 0;
    uint64_t jobs = ballot64(job, b.jobs);
    uint64_t denses = ballot64(dense && r == first, b.dense);
    int n_jobs = __popcll(jobs), index = __popcll(jobs & (((uint64_t)1 << r) - 1));
    /* A tenant with pairs alone still needs a phase: its sums start there, from zero. */
    if (job)
        atomicMax(&b.n_phases, max(n_phases, 1));
    int set =
        scan64(job ? n_sets * job_rows : 0, b); /* of the rows before; the job's if it starts */
    n_phases = b.n_phases;

    __shared__ int first_set[SLICE_ROWS];
    first_set[r] = set;
    __syncthreads();
    if (job)
        write_job(p, r, job_rows, set, index, n_jobs, n_phases, b, n_sets, to);
    if (dense && r == first) {
        int32_t n_out[MAX_PARTS];
        for (int i = 0; i < MAX_PARTS; i++)
            n_out[i] = head ? t->vocab : a.part_rows[table % N_LINEARS][i];
        write_dense(p, n_out, r, end - r, to.dense + __popcll(denses & (((uint64_t)1 << r) - 1)));
    }
    if (r < n) {
        struct row_work *w = to.row + r;
        write_row(a, p, table, head, t, w);
        w->source = source;
        w->n_sets = n_sets;
        w->first_set = first_set[r - in_job] + in_job;
        w->set_stride = job_rows;
        for (int i = 0; i < n_sets; i++)
            w->col[i] = b.col[r][i];
    }
    to.batch->has_delta[r] = changes;
    to.batch->dense[r] = (uint8_t)dense;
    if (r == 0) {
        to.batch->n_rows = n;
        to.batch->n_jobs = n_jobs;
        to.batch->n_phases = n_phases;
        to.batch->n_dense = __popcll(denses);
    }
}

int32_t max32(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* Takes `bytes` at the end of what is laid out; NULL block: only counts. */
void *lay(char *block, size_t *at, size_t bytes) {
    void *p = block ? block + *at : NULL;
    *at += (bytes + 255) / 256 * 256;
    return p;
}

void lay_out(struct job_tables *t, char *block) {
    size_t at = 0, tables = (size_t)t->n_tables, rows = SLICE_ROWS;
    size_t sets = 0;
    for (int32_t i = t->n_tables - 1; i >= 0 && i >= t->n_tables - 1 - N_LINEARS; i--) {
        struct linear_shape s = table_shape(&t->shape, i);
        size_t n = (size_t)(s.n_parts * MAX_PLANES * tiles_of(s.n_k, TILE_COLS));
        sets = n > sets ? n : sets;
    }
    t->base.batch = (struct linear_batch *)lay(block, &at, tables * sizeof *t->base.batch);
    t->base.jobs =
        (struct linear_job *)lay(block, &at, tables * MAX_PHASES * rows * sizeof *t->base.jobs);
    t->base.pairs = (struct linear_pair *)lay(block, &at, tables * rows * sizeof *t->base.pairs);
    t->base.dense = (struct linear_dense *)lay(block, &at, tables * rows * sizeof *t->base.dense);
    t->base.row = (struct row_work *)lay(block, &at, tables * rows * sizeof *t->base.row);
    t->x = (__half *)lay(block, &at, linear_x_bytes(t->max_blocks, SLICE_ROWS));
    t->planes = (struct linear_planes *)lay(block, &at, rows * sets * sizeof *t->planes);
    t->u = (float *)lay(block, &at, rows * (size_t)t->ld_u * sizeof *t->u);
    t->bytes = at;
}

} // namespace

err_t job_tables_open(struct job_tables **out, const struct model_shape *shape) {
    struct job_tables *t = (struct job_tables *)calloc(1, sizeof *t);
    if (!t)
        return E_NOMEM;
    t->shape = *shape;
    t->n_tables = shape->n_layers * N_LINEARS + 1;
    for (int32_t i = t->n_tables - 1; i >= 0 && i >= t->n_tables - 1 - N_LINEARS; i--) {
        struct linear_shape s = table_shape(shape, i);
        int32_t ranks = 0; /* a pair of more than half its matrix's rank is refused on load */
        for (int32_t p = 0; p < s.n_parts; p++)
            ranks += (s.part_rows[p] < s.n_k ? s.part_rows[p] : s.n_k) / 2 + 3;
        t->ld_u = max32(t->ld_u, ranks / 4 * 4);
        t->max_blocks = max32(t->max_blocks, tiles_of(s.n_k, TILE_COLS));
        if (s.n_k % 4) { /* rows are read 16 bytes at a time */
            free(t);
            return E_UNSUPPORTED;
        }
    }
    lay_out(t, NULL);
    if (cudaMalloc(&t->block, t->bytes) != cudaSuccess) {
        free(t);
        cudaGetLastError(); /* not enough memory is no sticky error */
        return E_NOMEM;
    }
    lay_out(t, (char *)t->block);
    err_t e = cudaMemset(t->block, 0, t->bytes) == cudaSuccess ? produce_setup(t) : E_DEVICE;
    if (e) {
        job_tables_close(t);
        return e;
    }
    *out = t;
    return E_OK;
}

void job_tables_close(struct job_tables *t) {
    if (!t)
        return;
    cudaFree(t->block);
    free(t);
}

size_t job_tables_bytes(const struct job_tables *t) {
    return t->bytes;
}

static struct tables_args tables_args_of(const struct job_tables *t, const struct gpu_step *s,
                                         const int32_t *row_of_logit, int32_t first_row) {
    struct tables_args a = {t->base,           *s,           row_of_logit, first_row,
                            t->shape.n_layers, t->shape.dim, {},           {}};
    for (int32_t i = 0; i < N_LINEARS; i++)
        memcpy(a.part_rows[i], table_shape(&t->shape, i).part_rows, sizeof a.part_rows[i]);
    for (int32_t i = 0; i <= SLICE_ROWS; i++)
        a.job_rows[i] = (uint8_t)linear_job_rows(i);
    return a;
}

err_t job_tables_launch(struct job_tables *t, const struct gpu_step *s, int32_t first_row,
                        cudaStream_t stream) {
    return launch_early(tables_kernel, dim3((unsigned)(t->n_tables - 1)), SLICE_ROWS, 0, false,
                        stream, tables_args_of(t, s, NULL, first_row), 0);
}

err_t job_tables_head_launch(struct job_tables *t, const struct gpu_step *s,
                             const int32_t *row_of_logit, int32_t first_logit,
                             cudaStream_t stream) {
    return launch_early(tables_kernel, dim3(1), SLICE_ROWS, 0, false, stream,
                        tables_args_of(t, s, row_of_logit, first_logit), t->n_tables - 1);
}
