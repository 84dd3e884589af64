/* Attention of narrow rows over the pages of the KV pool (attention.h).
 *
 *   o = sum_t e^(q.k_t / sqrt E) v_t / sum_t e^(q.k_t / sqrt E),  t the keys that the row may see
 *
 * Bytes: 4 E' + 8 for each key, KV head and sequence, whatever the number of rows and query heads
 * up to eight; partial sums of rows with more than one split, 4 E + 8 each, come on top. FLOPs: 4 E
 * a key and query head, eight times that in the tensor cores. Bound: device memory.
 *
 * A block takes items (attention_items.cuh) one after the other and streams their pages through one
 * ring. Its warps have a part each and meet at barriers only:
 *     one   takes tickets, makes items, starts the bulk copy of each page;
 *     one   brings an item's queries into the tensor cores' order;
 *     nine  take the pages in turn, whatever item they are of: a page's scores, its softmax, its
 *           product with the values, on its own, as if there were no other page;
 *     four  add up an item's pages, in their order, each for two of its slots, and hand the result
 *           on.
 * Rows of more than one split are added up by a kernel of their own (attention_merge.cu): a meeting
 * of blocks, and who comes last does the rest, took 8 us at the end of this one.
 *
 * All lanes that read or write arrive: it costs nothing, and racecheck follows it. Barriers know
 * two laps apart only by their parity: whoever waits has seen the lap before. */
#include "kernels/cuda/attention_page.cuh"
#include "kernels/cuda/launch.h"

namespace {

enum {
    STATIC_TICKETS = 2, /* of a block, before it takes them from the queue */
    MOST_SHARED = 227 << 10,
};
/* What stands in a stage. */
struct page_of {
    int32_t item, first_key; /* number in the block's order, or -1: no more pages */
};

/* The block's shared memory: rings of pages (a block of the pool each, as it stands), of items with
 * their queries, of pages' sums. */
template <int STEPS> struct layout {
    static constexpr int stage_bytes = 128 * 16 * STEPS + KV_SCALE_BYTES;
    /* A stage, and a place for sums, belong to one of the warps that take pages. */
    static constexpr int PAGE_WARPS = STEPS == 16 ? 4 : 9, SUMS = PAGE_WARPS;
    static constexpr int ITEMS = STEPS == 16 ? 4 : 6;
    static constexpr int COPY_WARP = PAGE_WARPS, QUERY_WARP = COPY_WARP + 1,
                         FIRST_ADD_WARP = QUERY_WARP + 1,
                         THREADS = (FIRST_ADD_WARP + ADD_WARPS) * 32;
    static constexpr int item_bytes =
        query_bytes(STEPS) + SLOTS * (int)sizeof(slot) + (int)sizeof(item);
    static constexpr int fixed_bytes = ITEMS * (item_bytes + 24) + SUMS * (sum_bytes(STEPS) + 16) +
                                       MOST_NARROW * ((int)sizeof(sequence) + 4) + 8;
    static constexpr int page_bytes = stage_bytes + 16 + (int)sizeof(page_of);
    static constexpr int fit = (MOST_SHARED - fixed_bytes) / page_bytes / PAGE_WARPS;
    static constexpr int STAGES = PAGE_WARPS * (fit < 2 ? fit : 2);
    static constexpr int bytes = fixed_bytes + STAGES * page_bytes;
    static_assert(STAGES > 0, "");

    char *stage, *query, *sum;
    uint64_t *copied, *free;        /* [STAGES] */
    uint64_t *summed, *added;       /* [SUMS] */
    uint64_t *made, *ready, *ended; /* [ITEMS]: item stands, its queries do, both are done with */
    page_of *page;                  /* [STAGES] */
    item *items;                    /* [ITEMS] */
    slot *slots;                    /* [ITEMS][SLOTS] */
    plan p;

    __device__ layout(char *shared, int n_seqs) {
        stage = shared;
        query = stage + STAGES * stage_bytes;
        sum = query + ITEMS * query_bytes(STEPS);
        copied = (uint64_t *)(sum + SUMS * sum_bytes(STEPS)), free = copied + STAGES;
        summed = free + STAGES, added = summed + SUMS;
        made = added + SUMS, ready = made + ITEMS, ended = ready + ITEMS;
        page = (page_of *)(ended + ITEMS);
        items = (item *)(page + STAGES);
        slots = (slot *)(items + ITEMS);
        p.seq = (sequence *)(slots + ITEMS * SLOTS);
        p.prefix = (int32_t *)(p.seq + MOST_NARROW);
        p.n_seqs = n_seqs;
    }
    __device__ void init_barriers() {
        for (int i = 0; i < STAGES; i++)
            barrier_init(copied + i, 1), barrier_init(free + i, 32);
        for (int i = 0; i < SUMS; i++)
            barrier_init(summed + i, 32), barrier_init(added + i, 32 * ADD_WARPS);
        for (int i = 0; i < ITEMS; i++)
            barrier_init(made + i, 1), barrier_init(ready + i, 32),
                barrier_init(ended + i, 32 * ADD_WARPS);
        barrier_init_fence();
    }
};

/* The n-th use of ring[SIZE]'s entry: filled, and free to be filled. */
template <int SIZE> __device__ void wait_filled(uint64_t *ring, int n) {
    barrier_wait(ring + n % SIZE, n / SIZE & 1);
}
template <int SIZE> __device__ void wait_free(uint64_t *ring, int n) {
    barrier_wait(ring + n % SIZE, (n / SIZE & 1) ^ 1);
}

/* ---- the warp that brings pages -------------------------------------------------------------- */

/* Lane 0: starts the copy of a page; of the last one, only the groups of tokens that are there. */
[[maybe_unused]] __device__ void copy_page(const attention_args &a, const item &it, int page,
                                           int id, char *to, uint64_t *copied, uint64_t policy) {
    int e = a.head_dim, tokens = min(KV_PAGE_TOKENS, it.last_key + 1 - page * KV_PAGE_TOKENS);
    const char *block = kv_block(a, id, it.kv);
    uint32_t bytes = (tokens + KV_GROUP - 1) / KV_GROUP * 16 * kv_padded(e);
    barrier_arrive_expect(copied, KV_SCALE_BYTES + 2 * bytes);
    if (tokens > KV_PAGE_TOKENS - KV_GROUP) {
        bulk_copy(to, block, KV_SCALE_BYTES + 2 * bytes, copied, policy);
        return;
    }
    bulk_copy(to, block, KV_SCALE_BYTES + bytes, copied, policy);
    bulk_copy(to + kv_values_at(e), block + kv_values_at(e), bytes, copied, policy);
}

template <int STEPS>
__device__ void bring_pages(const attention_args &a, const layout<STEPS> &l, int lane) {
    using L = layout<STEPS>;
    uint64_t policy = policy_evict_first();
    int n_tickets = l.p.prefix[l.p.n_seqs], ticket = blockIdx.x, taken = 0, i = 0, n = 0;
    bool waited = false; /* for the kernels before this one: until then, only old pages are read */
    for (int k = 1; ticket < n_tickets; k++) {
        item it;
        bool any = make_item(a, l.p, ticket, it);
        if (!any)
            it.page = 1, it.last_page = 0;
        int my_page =
            any && lane <= it.last_page - it.page ? a.step.page[it.first_page + it.page + lane] : 0;
        if (any) {
            wait_free<L::ITEMS>(l.ended, i);
            if (lane == 0) {
                it.number = n;
                l.items[i % L::ITEMS] = it;
                barrier_arrive(l.made + i % L::ITEMS);
            }
        }
        for (int page = it.page; page <= it.last_page; page++, n++) {
            /* A ticket is taken late, so that all blocks end together, but while pages leave. */
            bool take = k >= STATIC_TICKETS && page == max(it.page, it.last_page - 1);
            if (!waited && (take || (page + 1) * KV_PAGE_TOKENS > it.position))
                grid_wait(), waited = true;
            if (take && lane == 0)
                taken = atomicAdd((int32_t *)a.workspace, 1);
            wait_free<L::STAGES>(l.free, n);
            int id = __shfl_sync(~0u, my_page, page - it.page), at = n % L::STAGES;
            if (lane == 0) {
                l.page[at] = {i, page * KV_PAGE_TOKENS};
                copy_page(a, it, page, id, l.stage + at * L::stage_bytes, l.copied + at, policy);
            }
        }
        if (k >= STATIC_TICKETS && !any) {
            if (!waited)
                grid_wait(), waited = true;
            if (lane == 0)
                taken = atomicAdd((int32_t *)a.workspace, 1);
        }
        i += any;
        ticket = k < STATIC_TICKETS ? k * gridDim.x + blockIdx.x
                                    : STATIC_TICKETS * gridDim.x + __shfl_sync(~0u, taken, 0);
    }
    wait_free<L::ITEMS>(l.ended, i);
    if (lane == 0) {
        l.items[i % L::ITEMS].n = 0;
        barrier_arrive(l.made + i % L::ITEMS);
    }
    for (int last = n + L::PAGE_WARPS; n < last; n++) {
        wait_free<L::STAGES>(l.free, n);
        if (lane == 0) {
            l.page[n % L::STAGES].item = -1;
            barrier_arrive(l.copied + n % L::STAGES);
        }
    }
}

/* ---- the warp that brings queries ------------------------------------------------------------ */

template <int STEPS>
__device__ void bring_queries(const attention_args &a, const layout<STEPS> &l, int lane) {
    using L = layout<STEPS>;
    grid_wait();
    for (int i = 0;; i++) {
        int at = i % L::ITEMS;
        wait_filled<L::ITEMS>(l.made, i);
        const item it = l.items[at];
        if (it.n == 0)
            return;
        bring_query<STEPS>(a, it, (uint4 *)(l.query + at * query_bytes(STEPS)),
                           l.slots + at * SLOTS, lane);
        barrier_arrive(l.ready + at);
    }
}

/* ---- the warps that have a page each --------------------------------------------------------- */

template <int STEPS>
__device__ void sum_pages(const attention_args &a, const layout<STEPS> &l, int warp, int lane) {
    using L = layout<STEPS>;
    uint32_t magic = kv_magic(a);
    for (int n = warp;; n += L::PAGE_WARPS) {
        uint64_t *free = l.free + n % L::STAGES;
        wait_filled<L::STAGES>(l.copied, n);
        const page_of page = l.page[n % L::STAGES];
        if (page.item < 0)
            return;
        int at = page.item % L::ITEMS;
        wait_filled<L::ITEMS>(l.ready, page.item);
        sum_page<STEPS>(
            a, l.stage + n % L::STAGES * L::stage_bytes, page.first_key,
            l.query + at * query_bytes(STEPS), l.slots + at * SLOTS, magic,
            (float *)(l.sum + n % L::SUMS * sum_bytes(STEPS)), lane, [&] { barrier_arrive(free); },
            [&] { wait_free<L::SUMS>(l.added, n); });
        barrier_arrive(l.summed + n % L::SUMS);
    }
}

/* ---- the warps that add up ------------------------------------------------------------------- */

template <int STEPS>
__device__ void add_pages(const attention_args &a, const layout<STEPS> &l, int warp, int lane) {
    using L = layout<STEPS>;
    grid_wait();
    for (int i = 0;; i++) {
        wait_filled<L::ITEMS>(l.made, i);
        const item it = l.items[i % L::ITEMS];
        if (it.n == 0)
            return;
        total<STEPS> s[OWN_SLOTS];
        start_totals(s);
        int n = it.number;
        for (int page = it.page; page <= it.last_page; page++, n++) {
            wait_filled<L::SUMS>(l.summed, n);
            add_page(s, (const float *)(l.sum + n % L::SUMS * sum_bytes(STEPS)), it.n_slots, warp,
                     lane);
            barrier_arrive(l.added + n % L::SUMS);
        }
        barrier_arrive(l.ended + i % L::ITEMS);
        end_item(a, it, s, warp, lane);
    }
}

/* STEPS: of 16 columns. 16 serves every head size, the others just their own. */
template <int STEPS>
__global__ void __launch_bounds__(layout<STEPS>::THREADS, 1)
    attention_narrow_kernel(const __grid_constant__ attention_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) char shared[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    grid_launch_next();
    layout<STEPS> l(shared, a.step.counts->n_narrow_seqs);
    if (l.p.n_seqs == 0) {
        grid_wait(); /* who waits for this kernel waits for those before it */
        return;
    }
    if (threadIdx.x == 0)
        l.init_barriers();
    __syncthreads();
    if (warp < l.PAGE_WARPS) {
        sum_pages(a, l, warp, lane);
    } else if (warp == l.COPY_WARP) {
        make_plan(a, l.p, lane);
        bring_pages(a, l, lane);
    } else if (warp == l.QUERY_WARP) {
        bring_queries(a, l, lane);
    } else {
        add_pages(a, l, warp - l.FIRST_ADD_WARP, lane);
    }
#endif
}

struct variant {
    int32_t steps, threads, shared_bytes;
    void (*kernel)(attention_args);
};
template <int STEPS> constexpr struct variant make_variant() {
    return {STEPS, layout<STEPS>::THREADS, layout<STEPS>::bytes, attention_narrow_kernel<STEPS>};
}
const struct variant variants[] = {make_variant<4>(), make_variant<5>(), make_variant<6>(),
                                   make_variant<8>(), make_variant<16>()};

} // namespace

size_t attention_workspace_bytes(int32_t max_narrow, int32_t max_context, int32_t n_heads,
                                 int32_t head_dim) {
    size_t slots = (size_t)max_narrow * (size_t)n_heads;
    return 16 + slots * (size_t)most_splits(max_context) * (8 + (size_t)head_dim * 4);
}

err_t attention_setup(void) {
    if (!code_is_hopper())
        return attention_plain_setup();
    for (const struct variant &v : variants)
        if (cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 v.shared_bytes) != cudaSuccess)
            return E_DEVICE;
    err_t err = attention_wide_setup();
    return err ? err : attention_plain_setup();
}

err_t attention_narrow(const struct attention_args *a, int32_t max_rows, cudaStream_t stream) {
    if (max_rows < 1 || max_rows > a->max_narrow || max_rows > MOST_NARROW || a->head_dim % 2 ||
        a->head_dim > MOST_HEAD_DIM || a->n_heads % a->n_kv_heads || a->n_thread_blocks < 1)
        return E_INVAL;
    if (!code_is_hopper())
        return attention_plain_narrow(a, max_rows, stream);
    const struct variant *v = variants;
    while (v->steps < 16 && v->steps * 16 != kv_padded(a->head_dim))
        v++;
    err_t err = launch_early(v->kernel, dim3((unsigned)a->n_thread_blocks), v->threads,
                             (size_t)v->shared_bytes, stream, *a);
    return err ? err : attention_merge(a, max_rows, stream);
}
