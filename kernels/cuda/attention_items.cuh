/* The work of attention_narrow.cu as a list of items, numbered by tickets, and the workspace in
 * which they leave what attention_merge.cu adds up. An item is a split of at most KV_SPLIT keys,
 * cut at multiples of KV_SPLIT, of one KV head of one sequence for SLOTS slots; a slot is a pair of
 * a row and a query head. What an item is depends on its sequence alone. Tickets go by sequence,
 * split, KV head, slots: items that share keys run side by side. */
#ifndef KERNELS_CUDA_ATTENTION_ITEMS_CUH
#define KERNELS_CUDA_ATTENTION_ITEMS_CUH

#include "kernels/cuda/attention_kv.cuh"

namespace {

enum { SLOTS = 8 };

struct item {
    int32_t first, n, position, first_page; /* the sequence's; n = 0: no more items */
    int32_t window;                         /* keys that a row sees, or 0: all before it */
    int32_t kv, slot, n_slots, split;
    int32_t page, last_page; /* of the split that the slots see, from the sequence's first */
    int32_t last_key;        /* that any of them sees */
    int32_t number;          /* of the first page, in the block's order */
};

__host__ __device__ int most_splits(int max_context) {
    return (max_context + KV_SPLIT - 1) / KV_SPLIT;
}
/* Where the workspace's parts start. */
struct workspace {
    int32_t *next;  /* queue */
    float2 *sums;   /* [max_narrow H][splits] max, sum */
    float *partial; /* [max_narrow H][splits][E] */

    /* Split 0 of a row and head. */
    __device__ size_t at(const attention_args &a, int row, int head) const {
        return ((size_t)row * a.n_heads + head) * most_splits(a.max_context);
    }
};
__device__ workspace workspace_of(const attention_args &a) {
    workspace w;
    w.next = (int32_t *)a.workspace;
    w.sums = (float2 *)(w.next + 4);
    w.partial = (float *)(w.sums + (size_t)a.max_narrow * a.n_heads * most_splits(a.max_context));
    return w;
}

__device__ int window_start(int position, int window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}
/* The splits that a row sees something of. */
struct splits {
    int first, n;
};
__device__ splits splits_of(int position, int window) {
    int first = window_start(position, window) / KV_SPLIT;
    return {first, position / KV_SPLIT - first + 1};
}

/* What items are made of; in shared memory, from the step's tables. */
struct sequence {
    gpu_seq rows;
    int32_t window;
};
struct plan {
    int32_t *prefix; /* [n_seqs + 1] items of the sequences before i */
    sequence *seq;   /* [n_seqs] */
    int n_seqs;
};

__device__ int tiles_of_slots(const gpu_seq &s, int group) {
    return (s.n * group + SLOTS - 1) / SLOTS;
}

/* Fills the plan; one warp. Reads the step's tables alone. */
__device__ void make_plan(const attention_args &a, plan &p, int lane) {
    int group = a.n_heads / a.n_kv_heads, before = 0;
    for (int first = 0; first < p.n_seqs; first += 32) {
        int i = first + lane, n = 0;
        if (i < p.n_seqs) {
            const gpu_seq s = a.step.seq[i];
            int window = a.step.row[s.first].tenant->sliding_window;
            int lo = window_start(s.position, window), hi = s.position + s.n - 1;
            n = (hi / KV_SPLIT - lo / KV_SPLIT + 1) * a.n_kv_heads * tiles_of_slots(s, group);
            p.seq[i] = {s, window};
        }
        int up_to = n;
        for (int d = 1; d < 32; d *= 2) {
            int v = __shfl_up_sync(~0u, up_to, d);
            up_to += lane >= d ? v : 0;
        }
        if (i < p.n_seqs)
            p.prefix[i] = before + up_to - n;
        before += __shfl_sync(~0u, up_to, 31);
    }
    if (lane == 0)
        p.prefix[p.n_seqs] = before;
    __syncwarp();
}

/* The sequence in which ticket stands: the last with prefix <= ticket. */
__device__ int find_seq(const int32_t *prefix, int n, int ticket) {
    int lo = 0;
    while (n > 1) {
        int half = n / 2;
        if (prefix[lo + half] <= ticket)
            lo += half;
        n -= half;
    }
    return lo;
}

/* Makes an item of a ticket; false: its slots see nothing of that split. */
__device__ bool make_item(const attention_args &a, const plan &p, int ticket, item &it) {
    int i = find_seq(p.prefix, p.n_seqs, ticket), group = a.n_heads / a.n_kv_heads;
    const gpu_seq s = p.seq[i].rows;
    int window = p.seq[i].window, tiles = tiles_of_slots(s, group), rest = ticket - p.prefix[i];
    int tile = rest % tiles;
    rest /= tiles;
    it.first = s.first, it.n = s.n, it.position = s.position, it.first_page = s.first_page;
    it.window = window;
    it.kv = rest % a.n_kv_heads;
    it.slot = tile * SLOTS;
    it.n_slots = min(SLOTS, s.n * group - it.slot);
    it.split = rest / a.n_kv_heads + window_start(s.position, window) / KV_SPLIT;
    int first_row = it.slot / group, last_row = (it.slot + it.n_slots - 1) / group;
    int lo = window_start(s.position + first_row, window), hi = s.position + last_row;
    int from = max(lo, it.split * KV_SPLIT);
    it.last_key = min(hi, it.split * KV_SPLIT + KV_SPLIT - 1);
    it.page = from / KV_PAGE_TOKENS, it.last_page = it.last_key / KV_PAGE_TOKENS;
    return from <= it.last_key;
}

} // namespace

#endif
