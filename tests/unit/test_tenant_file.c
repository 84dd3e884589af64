/* A tenant file is written by the tool and read by the engine's reader; the values are checked
 * against the two checkpoints by the formula of docs/format.md, written here a second time. */
#include <fcntl.h>
#include <math.h>
#include <unistd.h>

#include "compress/tenant_write.h"
#include "engine/tenant_file.h"
#include "kernels/f16.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

/* Adds noise, so that the model is a fine-tune of the one with the same seed. */
static void tune(const char *name, float *x, size_t n, void *arg) {
    unsigned seed = 99 + (unsigned)strlen(name);
    for (size_t i = 0; i < n; i++)
        x[i] += *(float *)arg * test_gauss(&seed);
}

struct pair {
    char base_dir[300], fine_dir[300], path[300];
    struct checkpoint base, fine;
    char fingerprint[SHA256_HEX];
    struct tenant_file t;
    int fd;
};

/* Base and fine-tune of one seed; the tenant file in p->path is read into p->t. */
static void open_pair(struct pair *p, struct make_model base, struct make_model fine,
                      const char *options) {
    struct why why;
    snprintf(p->base_dir, sizeof p->base_dir, "%s/base", test_tmp());
    snprintf(p->fine_dir, sizeof p->fine_dir, "%s/fine", test_tmp());
    snprintf(p->path, sizeof p->path, "%s/t.bitdelta", test_tmp());
    make_model(p->base_dir, base);
    make_model(p->fine_dir, fine);
    TOOL_OK("compress --instant --base %s --finetuned %s -o %s %s", p->base_dir, p->fine_dir,
            p->path, options);
    CHECK_OK(checkpoint_open(&p->base, p->base_dir, &why), why);
    CHECK_OK(checkpoint_open(&p->fine, p->fine_dir, &why), why);
    unsigned char digest[SHA256_BYTES];
    CHECK_OK(checkpoint_fingerprint(&p->base, digest, NULL, NULL, &why), why);
    sha256_hex(digest, p->fingerprint);
    p->fd = open(p->path, O_RDONLY);
    CHECK_OK(tenant_file_read(&p->t, p->fd, p->path, &p->base.config, p->fingerprint, &why), why);
}

static void close_pair(struct pair *p) {
    tenant_file_free(&p->t);
    checkpoint_close(&p->base);
    checkpoint_close(&p->fine);
    close(p->fd);
}

static float *load(const struct checkpoint *c, const char *name, size_t n) {
    struct why why;
    float *x = malloc(n * sizeof *x);
    CHECK_OK(checkpoint_read_f32(c, name, x, n, &why), why);
    return x;
}

/* Element (n, k) of the delta, by the tile layout as the PTX ISA draws it. */
static double delta_at(const struct delta *d, int32_t n, int32_t k, int32_t cols) {
    double sum = 0;
    for (int32_t p = 0; p < d->n_planes; p++) {
        int32_t tiles = (cols + 255) / 256, w = k % 256 / 32, r = n % 16;
        size_t at = ((size_t)(n / 16) * (size_t)tiles + (size_t)(k / 256)) * 128;
        at += (size_t)((r % 8 * 4 + w % 4) * 4 + (w / 4 * 2 + r / 8));
        int sign = d->plane[p].bits[at] >> k % 32 & 1 ? 1 : -1;
        sum += sign * (double)d->plane[p].row[n] * (d->plane[p].col ? d->plane[p].col[k] : 1.0);
    }
    return sum;
}

TEST(tenant_one_plane_is_the_sign_times_the_mean_of_each_row) {
    struct pair p;
    float amount = 0.004f;
    open_pair(&p, (struct make_model){.dim = 264, .heads = 4},
              (struct make_model){.dim = 264, .heads = 4, .change = tune, .arg = &amount}, "");
    const struct model_shape *s = &p.base.config.shape;
    for (int32_t i = 0; i < s->n_layers * N_PARTS; i++) {
        enum part part = (enum part)(i % N_PARTS);
        int32_t n = part_rows(s, part), k = part_cols(s, part);
        char name[128];
        part_name(name, sizeof name, i / N_PARTS, part);
        strcat(name, ".weight");
        float *b = load(&p.base, name, (size_t)n * (size_t)k),
              *f = load(&p.fine, name, (size_t)n * (size_t)k);
        CHECK_EQ(p.t.delta[i].n_planes, 1);
        for (int32_t r = 0; r < n; r++) {
            double mean = 0;
            for (int32_t c = 0; c < k; c++)
                mean += fabs((double)f[r * k + c] - b[r * k + c]) / k;
            for (int32_t c = 0; c < k; c++) {
                double d = (double)f[r * k + c] - b[r * k + c];
                CHECK_NEAR(delta_at(&p.t.delta[i], r, c, k), d >= 0 ? mean : -mean, 0, 1e-5);
            }
        }
        free(b);
        free(f);
    }
    for (int32_t i = 0; i <= 2 * s->n_layers; i++) {
        char name[128];
        norm_name(name, sizeof name, s, i);
        float *f = load(&p.fine, name, (size_t)s->dim);
        CHECK_EQ(memcmp(p.t.norm + i * s->dim, f, (size_t)s->dim * 4), 0);
        free(f);
    }
    CHECK_EQ(p.t.meta.config.n_eos, 2);
    CHECK_HAS(p.t.meta.made_json, "bitdelta compress");
    close_pair(&p);
}

TEST(tenant_matrix_scale_is_the_mean_of_the_matrix_expanded_to_rows) {
    struct pair p;
    float amount = 0.004f;
    open_pair(&p, (struct make_model){0}, (struct make_model){.change = tune, .arg = &amount},
              "--scale matrix");
    float *b = load(&p.base, "model.layers.1.mlp.down_proj.weight", 40 * 72),
          *f = load(&p.fine, "model.layers.1.mlp.down_proj.weight", 40 * 72);
    double mean = 0;
    for (int i = 0; i < 40 * 72; i++)
        mean += fabs((double)f[i] - b[i]) / (40 * 72);
    const struct delta *d = &p.t.delta[N_PARTS + PART_DOWN];
    for (int r = 0; r < 40; r++)
        CHECK_NEAR(d->plane[0].row[r], mean, 0, 1e-5);
    CHECK(p.t.head.delta.plane[3].bits != NULL);
    free(b);
    free(f);
    close_pair(&p);
}

TEST(tenant_each_plane_more_brings_the_fit_closer) {
    double last = 1;
    static const int counts[] = {1, 2, 3, 5, 8};
    for (int i = 0; i < 5; i++) {
        int bits = counts[i];
        struct pair p;
        char options[32];
        float amount = 0.004f;
        snprintf(options, sizeof options, "--bits %d", bits);
        open_pair(&p, (struct make_model){.dim = 128, .ffn = 256},
                  (struct make_model){.dim = 128, .ffn = 256, .change = tune, .arg = &amount},
                  options);
        float *b = load(&p.base, "model.layers.0.mlp.up_proj.weight", 256 * 128),
              *f = load(&p.fine, "model.layers.0.mlp.up_proj.weight", 256 * 128);
        double lost = 0, all = 0;
        for (int r = 0; r < 256; r++)
            for (int c = 0; c < 128; c++) {
                double d = (double)f[r * 128 + c] - b[r * 128 + c];
                double e = d - delta_at(&p.t.delta[PART_UP], r, c, 128);
                lost += e * e;
                all += d * d;
            }
        CHECK_EQ(p.t.delta[PART_UP].n_planes, bits);
        /* A Gaussian loses 0.363 of its energy to one sign; 4 levels at best 0.118 (Lloyd-Max). */
        if (bits == 1)
            CHECK_NEAR(lost / all, 0.363, 0.02, 0);
        if (bits == 2)
            CHECK_NEAR(lost / all, 0.118, 0.012, 0);
        if (!(lost / all < 0.5 * last))
            test_fail(__FILE__, __LINE__, "%d planes lose %g, fewer %g", bits, lost / all, last);
        last = lost / all;
        free(b);
        free(f);
        close_pair(&p);
    }
}
