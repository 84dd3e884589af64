/* The fused matrix product: base and deltas of all tenants in one pass. A work item ("unit") is up
 * to 256 output rows: it reads the base's rows once for all rows of the step, then each tenant's
 * signs and low rank for its own rows, and writes the sum. Units are independent, so which thread
 * runs one does not matter.
 *
 *   y = W x (or y + W x),  then per plane in order  y = y + row * acc  (kernels/delta.h),
 *   then  y = y + (B u),  u = A x */
#include "kernels/cpu/cpu.h"

enum { UNIT_MIN = 32 }; /* output rows: two tiles, and whole cache lines of output */

struct unit_job {
    const struct cpu *c;
    const struct product *p;
};

/* One (part, output rows) of a product. */
struct unit {
    const struct product *p;
    const struct product_part *part;
    int32_t n0, n, t0, t1; /* output rows of the part; rows of the step */
};

static int32_t min32(int32_t a, int32_t b) {
    return a < b ? a : b;
}
static int32_t max32(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* Output rows of the unit that this share has. */
static int32_t share_rows(const struct unit *u, const struct share *s) {
    return max32(0, min32(u->n, s->n_out - u->n0));
}

/* Appends the share's rows inside the unit to the pointer lists; gives the new count. */
static int32_t list_rows(const struct unit *u, const struct share *s, struct scratch *sc,
                         int32_t n) {
    int32_t lo = max32(s->first, u->t0), hi = min32(s->first + s->n, u->t1);
    for (int32_t t = lo; t < hi; t++, n++) {
        sc->x[n] = u->p->x + (size_t)t * u->p->ldx;
        sc->y[n] = u->p->out + (size_t)t * u->p->ldo + (size_t)(u->part->out0 + u->n0);
    }
    return n;
}

static void base_rows(const struct cpu *c, const struct unit *u, const struct share *s, int32_t n_x,
                      struct scratch *sc) {
    struct matmul_args a = {.w = s->w + (size_t)u->n0 * (size_t)u->p->k,
                            .n_out = share_rows(u, s),
                            .k = u->p->k,
                            .n_x = n_x,
                            .x = sc->x,
                            .y = sc->y,
                            .add = u->p->add};
    if (n_x > 0 && a.n_out > 0)
        c->isa->matmul(&a);
}

/* Shares with the same matrix (mostly all: the base's) are one product. */
static void unit_base(const struct cpu *c, const struct unit *u, struct scratch *sc) {
    const struct share *share = u->part->share, *common = NULL;
    for (int32_t i = 0; i < u->p->n_shares; i++)
        if (!share[i].delta || !share[i].delta->dense) {
            common = &share[i];
            break;
        }
    int32_t n = 0;
    for (int32_t i = 0; common && i < u->p->n_shares; i++)
        if (share[i].w == common->w && share[i].n_out == common->n_out)
            n = list_rows(u, &share[i], sc, n);
    if (common)
        base_rows(c, u, common, n, sc);
    for (int32_t i = 0; i < u->p->n_shares; i++)
        if (!common || share[i].w != common->w || share[i].n_out != common->n_out)
            base_rows(c, u, &share[i], list_rows(u, &share[i], sc, 0), sc);
}

/* First tile of the unit's rows in the plane. */
static const uint32_t *unit_bits(const struct unit *u, const struct plane *plane) {
    return plane->bits +
           (size_t)(u->n0 / TILE_ROWS) * (size_t)tiles_of(u->p->k, TILE_COLS) * (TILE_BYTES / 4);
}

/* How many planes from `i` on see the same x: those without column scales, up to DELTA_PLANES. */
static int32_t planes_together(const struct delta *d, int32_t i) {
    int32_t n = 1;
    while (!d->plane[i].col && n < DELTA_PLANES && i + n < d->n_planes && !d->plane[i + n].col)
        n++;
    return n;
}

/* First tiles of the planes from `plane` of share `share` on that go together, or of the first ones
 * that follow; returns their number, 0 at the end. */
static int32_t list_bits(const struct unit *u, int32_t share, int32_t plane,
                         const uint32_t *bits[DELTA_PLANES]) {
    for (; share < u->p->n_shares; share++, plane = 0) {
        const struct share *s = &u->part->share[share];
        bool here = s->first < u->t1 && s->first + s->n > u->t0 && share_rows(u, s) > 0;
        if (!here || !s->delta || s->delta->dense || plane >= s->delta->n_planes)
            continue;
        int32_t n = planes_together(s->delta, plane);
        for (int32_t i = 0; i < n; i++)
            bits[i] = unit_bits(u, &s->delta->plane[plane + i]);
        return n;
    }
    return 0;
}

/* Adds planes [i, i + n) of a share to its rows x[0..n_x), and fetches what comes after them. */
static void unit_planes(const struct cpu *c, const struct unit *u, int32_t share, int32_t i,
                        int32_t n, int32_t n_x, struct scratch *sc) {
    const struct share *s = &u->part->share[share];
    const uint32_t *bits[DELTA_PLANES], *after[DELTA_PLANES] = {NULL};
    int32_t k = u->p->k, n_out = share_rows(u, s), n_tiles = tiles_of(n_out, TILE_ROWS);
    list_bits(u, share, i, bits);
    list_bits(u, share, i + n, after);
    for (int32_t c0 = 0; c0 < n_x; c0 += DELTA_ROWS) {
        struct delta_args a = {.tile_stride = (size_t)tiles_of(k, TILE_COLS) * (TILE_BYTES / 4),
                               .n_planes = n,
                               .n_tiles = n_tiles,
                               .n_x = min32(n_x - c0, DELTA_ROWS),
                               .x = sc->x + c0,
                               .col = s->delta->plane[i].col,
                               .acc = sc->delta};
        int32_t n_acc = a.n_x * n_tiles * TILE_ROWS;
        for (int32_t j = 0; j < n * n_acc; j++)
            sc->delta[j] = 0;
        for (a.k0 = 0; a.k0 < k; a.k0 += TILE_COLS) {
            a.n_k = min32(k - a.k0, TILE_COLS);
            for (int32_t p = 0; p < n; p++)
                a.bits[p] = bits[p] + (size_t)(a.k0 / TILE_COLS) * (TILE_BYTES / 4);
            for (int32_t p = 0; p < DELTA_PLANES; p++)
                a.next[p] = a.k0 + TILE_COLS >= k ? after[p]
                            : p < n               ? a.bits[p] + TILE_BYTES / 4
                                                  : NULL;
            c->isa->delta_block(&a, sc);
        }
        for (int32_t p = 0; p < n; p++)
            c->isa->add_scaled(s->delta->plane[i + p].row + u->n0, sc->delta + p * n_acc, a.n_x,
                               n_tiles * TILE_ROWS, n_out, sc->y + c0);
    }
}

/* Asks for the first tiles of the first planes before the base product, which takes long enough for
 * them to arrive. Fetching goes on from there tile by tile. */
static void unit_fetch(const struct unit *u) {
    size_t stride = (size_t)tiles_of(u->p->k, TILE_COLS) * (TILE_BYTES / 4);
    const uint32_t *bits[DELTA_PLANES];
    int32_t n = list_bits(u, 0, 0, bits);
    for (int32_t p = 0; p < n; p++)
        for (int32_t t = 0; t * TILE_ROWS < u->n; t++)
            for (int32_t i = 0; i < TILE_BYTES; i += 64)
                __builtin_prefetch((const char *)(bits[p] + (size_t)t * stride) + i, 0, 2);
}

static void unit_delta(const struct cpu *c, const struct unit *u, int32_t share,
                       struct scratch *sc) {
    const struct share *s = &u->part->share[share];
    int32_t n_out = share_rows(u, s), n_x = list_rows(u, s, sc, 0);
    const struct delta *d = s->delta;
    if (!d || d->dense || n_x == 0 || n_out == 0)
        return;
    for (int32_t i = 0, n; i < d->n_planes; i += n) {
        n = planes_together(d, i);
        unit_planes(c, u, share, i, n, n_x, sc);
    }
    if (d->rank > 0) {
        const float *low = s->u + (size_t)(max32(s->first, u->t0) - s->first) * (size_t)d->rank;
        for (int32_t i = 0; i < n_x; i++)
            sc->x[i] = low + (size_t)i * (size_t)d->rank;
        struct matmul_args a = {.w = d->b + (size_t)u->n0 * (size_t)d->rank,
                                .n_out = n_out,
                                .k = d->rank,
                                .n_x = n_x,
                                .x = sc->x,
                                .y = sc->y,
                                .add = true};
        c->isa->matmul(&a);
    }
}

static void run_unit(void *arg, int32_t item, int32_t thread) {
    const struct unit_job *job = arg;
    const struct product_part *part = job->p->part;
    struct scratch *sc = &job->c->scratch[thread];
    for (; item >= tiles_of(part->n_out, part->unit); part++)
        item -= tiles_of(part->n_out, part->unit);
    struct unit u = {.p = job->p, .part = part, .n0 = item * part->unit};
    u.n = min32(part->unit, part->n_out - u.n0);
    for (u.t0 = 0; u.t0 < job->p->n_rows; u.t0 = u.t1) {
        u.t1 = min32(u.t0 + UNIT_TOKENS, job->p->n_rows);
        unit_fetch(&u);
        unit_base(job->c, &u, sc);
        for (int32_t i = 0; i < job->p->n_shares; i++)
            unit_delta(job->c, &u, i, sc);
    }
}

/* u = A x of share `item`, all parts counted through. */
static void run_lowrank(void *arg, int32_t item, int32_t thread) {
    const struct unit_job *job = arg;
    const struct product *p = job->p;
    const struct share *s = &p->part[item / p->n_shares].share[item % p->n_shares];
    struct scratch *sc = &job->c->scratch[thread];
    for (int32_t c0 = 0; s->u && c0 < s->n; c0 += UNIT_TOKENS) {
        struct matmul_args a = {.w = s->delta->a,
                                .n_out = s->delta->rank,
                                .k = p->k,
                                .n_x = min32(s->n - c0, UNIT_TOKENS),
                                .x = sc->x,
                                .y = sc->y};
        for (int32_t i = 0; i < a.n_x; i++) {
            sc->x[i] = p->x + (size_t)(s->first + c0 + i) * p->ldx;
            sc->y[i] = s->u + (size_t)(c0 + i) * (size_t)s->delta->rank;
        }
        job->c->isa->matmul(&a);
    }
}

void product_run(struct cpu *c, struct product *p, float *lowrank) {
    struct unit_job job = {c, p};
    bool any = false;
    int32_t n_out = 0, n_units = 0;
    for (int32_t i = 0; i < p->n_parts; i++) {
        n_out += p->part[i].n_out;
        for (int32_t j = 0; j < p->n_shares; j++) {
            struct share *s = &p->part[i].share[j];
            bool low = s->delta && !s->delta->dense && s->delta->rank > 0;
            s->u = low ? lowrank : NULL;
            lowrank += low ? (size_t)s->n * (size_t)s->delta->rank : 0;
            any |= low;
        }
    }
    if (any)
        pool_run(c->pool, run_lowrank, &job, p->n_parts * p->n_shares);
    /* A few units a thread, so that a core that is busy elsewhere does not hold up the rest; large
     * units share the tables of a column block among more rows. */
    int32_t unit = tiles_of(n_out, 3 * pool_threads(c->pool));
    unit = min32(UNIT_ROWS, max32(UNIT_MIN, tiles_of(unit, UNIT_MIN) * UNIT_MIN));
    for (int32_t i = 0; i < p->n_parts; i++) {
        p->part[i].unit = unit;
        n_units += tiles_of(p->part[i].n_out, unit);
    }
    pool_run(c->pool, run_unit, &job, n_units);
}

void cpu_linear(struct kernels *k, int32_t layer, enum linear which) {
    struct cpu *c = cpu_of(k);
    const struct step *step = c->step;
    struct product p = {.n_parts = linear_n_parts(which),
                        .n_shares = step->n_groups,
                        .n_rows = step->n_rows,
                        .add = which == LINEAR_O || which == LINEAR_DOWN};
    p.x = which == LINEAR_O ? c->ctx : which == LINEAR_DOWN ? c->act : c->x;
    p.ldx = which == LINEAR_O ? c->ld_ctx : which == LINEAR_DOWN ? c->ld_act : c->ld_h;
    p.out = which == LINEAR_QKV ? c->qkv : which == LINEAR_GATE_UP ? c->gate_up : c->h;
    p.ldo = which == LINEAR_QKV ? c->ld_qkv : which == LINEAR_GATE_UP ? c->ld_gate_up : c->ld_h;
    const uint16_t *w = base_linear(c, layer, which);
    int32_t out0 = 0;
    for (int32_t i = 0; i < p.n_parts; i++) {
        enum part part = linear_first_part(which) + (enum part)i;
        struct product_part *pp = &p.part[i];
        p.k = part_cols(&c->shape, part);
        *pp = (struct product_part){
            .n_out = part_rows(&c->shape, part), .out0 = out0, .share = c->share + i * c->max_rows};
        for (int32_t j = 0; j < step->n_groups; j++) {
            const struct row_group *g = &step->group[j];
            const struct delta *d =
                g->tenant->delta ? &g->tenant->delta[layer * N_PARTS + (int32_t)part] : NULL;
            pp->share[j] = (struct share){
                .first = g->first,
                .n = g->n,
                .n_out = pp->n_out,
                .w = d && d->dense ? d->dense : w + (size_t)out0 * (size_t)p.k,
                .delta = d,
            };
        }
        out0 += pp->n_out;
    }
    /* A x goes where nothing lives now: gate|up is empty until its own product, and act until
     * SwiGLU. cpu_bind_tenant checked the room. */
    product_run(c, &p, which == LINEAR_GATE_UP ? c->act : c->gate_up);
}
