/* The operators over a pass. For narrow rows the whole forward is launched from here, into a graph
 * for each bucket of rows, once; the engine's own calls of the operators then find nothing to do
 * for them and launch the wide pass. */
#include "kernels/cuda/cuda.h"

/* ---- the narrow forward ---------------------------------------------------------------------- */

static struct attention_args attention_of(const struct cuda *c, const struct tables *t,
                                          int32_t layer) {
    struct attention_args a = {};
    a.step = tables_step(t);
    a.a = c->a;
    a.layer = layer;
    a.n_pages = c->n_pages;
    a.n_heads = c->shape.n_heads;
    a.n_kv_heads = c->shape.n_kv_heads;
    a.head_dim = c->shape.head_dim;
    a.max_narrow = SLICE_ROWS;
    a.max_context = c->max_context;
    a.kv = c->kv;
    a.workspace = c->attention_workspace;
    a.n_thread_blocks = c->n_thread_blocks;
    return a;
}

/* The product of one table: its input, W and the deltas, dense parts. */
static void product(struct cuda *c, int32_t table, float *y, int32_t ld_y, bool add,
                    int32_t max_rows, bool dense) {
    struct linear_args l = {};
    int32_t head = base_embed(&c->shape);
    l.shape = table == head ? c->head_shape : c->linear_shape[table % N_LINEARS];
    l.base = table == head ? c->head : c->linear[table];
    l.y = y;
    l.ld_y = ld_y;
    l.add = add;
    l.n_thread_blocks = c->n_thread_blocks;
    if (table < head) {
        const struct linear_shape *next =
            table + 1 == head ? &c->head_shape : &c->linear_shape[(table + 1) % N_LINEARS];
        l.next = {table + 1 == head ? c->head : c->linear[table + 1],
                  next->first_tile[next->n_parts], tiles_of(next->n_k, TILE_COLS)};
    }
    cuda_note(c, produce_launch(c->jobs, &c->a, table, max_rows, &l, c->stream), "produce");
    cuda_note(c, linear_launch(&l, max_rows, c->stream), "linear");
    if (dense)
        cuda_note(c, linear_dense_launch(&l, max_rows, c->stream), "linear dense");
}

/* lm_head and sampling of logits first .. of a pass whose tables are t. */
static void head(struct cuda *c, const struct tables *t, int32_t slice, const char *samples,
                 int32_t max_logits, bool dense, struct sampled *out) {
    product(c, base_embed(&c->shape), c->logits, c->ld_logits, false, max_logits, dense);
    cuda_note(c, own_logits_launch(c->jobs, c->logits, c->ld_logits, max_logits, c->stream),
              "own logits");
    struct sample_args s = {};
    s.logits = c->logits;
    s.ld = c->ld_logits;
    s.n_logits = (const int32_t *)(t->device + t->n_logits + (size_t)slice * 16);
    s.rows = (const struct sample_row *)samples;
    s.out = out;
    s.workspace = c->sample_workspace;
    cuda_note(c, sample_launch(&s, max_logits, c->stream), "sample");
}

static void narrow_start(struct cuda *c, int32_t max_rows) {
    const struct tables *t = &c->narrow;
    struct gpu_step s = tables_step(t);
    cuda_note(c, job_tables_launch(c->jobs, &s, 0, c->stream), "jobs");
    cuda_note(c,
              job_tables_head_launch(c->jobs, &s, (const int32_t *)(t->device + t->row_of_logit), 0,
                                     c->stream),
              "head's jobs");
    cuda_note(c,
              embed_launch(&s, &c->a, c->embed, c->shape.dim, c->shape.vocab, max_rows, c->stream),
              "embed");
}

static void narrow_layer(struct cuda *c, int32_t layer, int32_t max_rows, bool dense) {
    const struct gpu_activations *a = &c->a;
    int32_t table = layer * N_LINEARS;
    struct attention_args at = attention_of(c, &c->narrow, layer);
    product(c, table + LINEAR_QKV, a->qkv, a->ld_qkv, false, max_rows, dense);
    cuda_note(c, rope_append_narrow(&at, max_rows, c->stream), "rope");
    cuda_note(c, attention_narrow(&at, max_rows, c->stream), "attention");
    product(c, table + LINEAR_O, a->h, a->ld_h, true, max_rows, dense);
    product(c, table + LINEAR_GATE_UP, a->gate_up, a->ld_gate_up, false, max_rows, dense);
    product(c, table + LINEAR_DOWN, a->h, a->ld_h, true, max_rows, dense);
}

/* ---- graphs ----------------------------------------------------------------------------------
 * Launching a graph costs the host about a microsecond a kernel, before the first of them starts.
 * So a forward is three graphs: the first is short, and the device works on it while the host
 * launches the second, and so on. */

static int32_t first_layer(const struct cuda *c, int32_t part) {
    static const int32_t layer[GRAPH_PARTS] = {0, 1, 5};
    int32_t n = c->shape.n_layers;
    return part == GRAPH_PARTS || layer[part] > n ? n : layer[part];
}

static void narrow_part(struct cuda *c, int32_t part, int32_t max_rows, bool dense) {
    const struct tables *t = &c->narrow;
    if (part == 0)
        narrow_start(c, max_rows);
    for (int32_t layer = first_layer(c, part); layer < first_layer(c, part + 1); layer++)
        narrow_layer(c, layer, max_rows, dense);
    if (part == GRAPH_PARTS - 1)
        head(c, t, 0, t->device + t->sample, max_rows, dense, c->sampled);
}

static err_t capture(struct cuda *c, int32_t part, int32_t max_rows, bool dense,
                     cudaGraphExec_t *out) {
    cudaGraph_t graph = NULL;
    CUDA_NOTE(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal));
    narrow_part(c, part, max_rows, dense);
    CUDA_NOTE(c, cudaStreamEndCapture(c->stream, &graph));
    if (!c->error)
        CUDA_NOTE(c, cudaGraphInstantiate(out, graph, 0));
    if (!c->error)
        CUDA_NOTE(c, cudaGraphUpload(*out, c->stream));
    if (graph)
        cudaGraphDestroy(graph);
    return c->error;
}

err_t graphs_open(struct cuda *c) {
    err_t e = E_OK;
    for (int32_t b = 0; !e && b < BUCKETS; b++)
        for (int32_t v = 0; v < VARIANTS; v++)
            for (int32_t p = 0; !e && p < GRAPH_PARTS; p++)
                e = capture(c, p, 1 << b, v > 0, &c->graph[b][v][p]);
    return e;
}

void graphs_close(struct cuda *c) {
    for (int32_t i = 0; i < BUCKETS * VARIANTS * GRAPH_PARTS; i++)
        if ((&c->graph[0][0][0])[i])
            cudaGraphExecDestroy((&c->graph[0][0][0])[i]);
}

/* Results go to memory of the host as they are made: 176 bytes a row. */
static __global__ void deliver_kernel(const struct sampled *from, struct sampled *to, int32_t n) {
    const int32_t words = (int32_t)(sizeof(struct sampled) / 4);
    for (int32_t i = (int32_t)threadIdx.x; i < n * words; i += (int32_t)blockDim.x)
        ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
}

static void deliver(struct cuda *c, const struct sampled *from, int32_t n) {
    if (n > 0)
        deliver_kernel<<<1, 512, 0, c->stream>>>(from, c->results + c->n_results, n);
    CUDA_NOTE(c, cudaGetLastError());
    c->n_results += n;
}

err_t narrow_pass(struct cuda *c) {
    const struct gpu_counts *n = &c->pass.counts;
    int32_t bucket = 0;
    while (1 << bucket < n->n_narrow)
        bucket++;
    err_t e = pass_send(c, &c->narrow);
    if (e)
        return e;
    for (int32_t p = 0; p < GRAPH_PARTS; p++)
        CUDA_NOTE(c, cudaGraphLaunch(c->graph[bucket][c->pass.dense][p], c->stream));
    deliver(c, c->sampled, n->n_logits);
    pass_clear(&c->pass);
    return c->error;
}

/* ---- the wide pass --------------------------------------------------------------------------- */

static bool idle(const struct cuda *c) {
    return c->error || !c->step || !c->pass.counts.n_wide;
}

void cuda_embed(struct kernels *k) {
    struct cuda *c = cuda_of(k);
    if (idle(c))
        return;
    struct gpu_step s = tables_step(&c->wide);
    cuda_note(c,
              embed_launch(&s, &c->a, c->embed, c->shape.dim, c->shape.vocab, c->pass.counts.n_wide,
                           c->stream),
              "embed");
}

void cuda_norm(struct kernels *k, int32_t layer, enum norm which) {
    struct cuda *c = cuda_of(k);
    if (idle(c))
        return;
    struct gpu_step s = tables_step(&c->wide);
    cuda_note(c,
              prefill_norm(c->prefill, &s, &c->a, 2 * layer + (which == NORM_FFN), c->shape.dim, 0,
                           c->pass.counts.n_wide, c->stream),
              "norm");
}

static struct prefill_linear wide_linear(const struct cuda *c, int32_t layer, enum linear which) {
    const struct gpu_activations *a = &c->a;
    struct prefill_linear l = {};
    l.shape = c->linear_shape[which];
    l.base = c->linear[layer * N_LINEARS + which];
    l.first_part = layer * N_PARTS + linear_first_part(which);
    l.groups = c->pass.merge;
    l.n_groups = c->pass.counts.n_wide_groups;
    l.y = which == LINEAR_QKV ? a->qkv16 : which == LINEAR_GATE_UP ? a->gate_up16 : NULL;
    l.residual = l.y ? NULL : a->h;
    l.ld_y = which == LINEAR_QKV ? a->ld_qkv : which == LINEAR_GATE_UP ? a->ld_gate_up : a->ld_h;
    return l;
}

void cuda_linear(struct kernels *k, int32_t layer, enum linear which) {
    struct cuda *c = cuda_of(k);
    if (idle(c))
        return;
    struct prefill_linear l = wide_linear(c, layer, which);
    if (which == LINEAR_O)
        cuda_note(c,
                  prefill_take(c->prefill, c->a.ctx16, c->a.ld_ctx, l.shape.n_k,
                               c->pass.counts.n_wide, c->stream),
                  "wide input");
    cuda_note(c, prefill_linear_launch(c->prefill, &l, c->stream), "wide linear");
}

void cuda_rope_append(struct kernels *k, int32_t layer) {
    struct cuda *c = cuda_of(k);
    if (idle(c))
        return;
    struct attention_args a = attention_of(c, &c->wide, layer);
    cuda_note(c, rope_append_wide(&a, c->pass.counts.n_wide, c->stream), "wide rope");
}

void cuda_attention(struct kernels *k, int32_t layer) {
    struct cuda *c = cuda_of(k);
    if (idle(c))
        return;
    struct attention_args a = attention_of(c, &c->wide, layer);
    cuda_note(c, attention_wide(&a, c->pass.counts.n_wide_seqs, c->pass.longest, c->stream),
              "wide attention");
}

void cuda_swiglu(struct kernels *k) {
    struct cuda *c = cuda_of(k);
    if (!idle(c))
        cuda_note(
            c,
            prefill_swiglu(c->prefill, &c->a, c->shape.ffn_dim, c->pass.counts.n_wide, c->stream),
            "wide swiglu");
}

/* Logits of wide rows are computed like narrow ones, a slice at a time. */
void cuda_head(struct kernels *k) {
    struct cuda *c = cuda_of(k);
    if (idle(c))
        return;
    const struct tables *t = &c->wide;
    struct gpu_step s = tables_step(t);
    int32_t n_logits = c->pass.counts.n_logits;
    for (int32_t first = 0; !c->error && first < n_logits; first += SLICE_ROWS) {
        int32_t n = n_logits - first < SLICE_ROWS ? n_logits - first : SLICE_ROWS;
        cuda_note(c,
                  job_tables_head_launch(c->jobs, &s,
                                         (const int32_t *)(t->device + t->row_of_logit), first,
                                         c->stream),
                  "head's jobs");
        head(c, t, first / SLICE_ROWS, t->device + c->pass.sample_at[first / SLICE_ROWS], n,
             c->pass.dense, c->sampled);
        deliver(c, c->sampled, n);
    }
}
