/* Fine-tunes that differ from their base in more than weights: what is stored otherwise, added or
 * given up. Each is fitted, written and read back, and gives the logits that the fit ended with;
 * the tool makes a file of it that verifies and that is nearer to the fine-tune than its start. */
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "compress/fine_tune.h"
#include "compress/fit.h"
#include "compress/llama_tenant.h"
#include "compress/student_write.h"
#include "tests/check.h"
#include "tests/unit/make_model.h"
#include "tests/unit/run_tool.h"

enum { STEPS = 3, MATRICES = 64, LENGTH = 24, ROWS = 96 };

static void tune(const char *name, float *x, size_t n, void *arg) {
    (void)arg;
    unsigned seed = 31 + (unsigned)strlen(name) * 7;
    for (size_t i = 0; i < n; i++)
        x[i] += 0.04f * test_gauss(&seed);
}

struct pair {
    char base_dir[300], fine_dir[300], out[300];
    struct checkpoint base_files;
    struct fine_tune fine_files;
    struct train *t;
    struct llama base, fine;
};

static void open_pair(struct pair *p) {
    struct why why = {""};
    struct llama_files base = {&p->base_files, true}, fine = {&p->fine_files.checkpoint, false};
    CHECK_OK(train_cpu_open(&p->t, 2, &why), why);
    CHECK_OK(checkpoint_open(&p->base_files, p->base_dir, &why), why);
    CHECK_OK(fine_tune_open(&p->fine_files, p->fine_dir, &p->base_files, &why), why);
    CHECK_OK(
        llama_load(&p->base, p->t, &p->base_files.config, llama_source_files(&base), NULL, &why),
        why);
    CHECK_OK(llama_load(&p->fine, p->t, &fine.files->config, llama_source_files(&fine), NULL, &why),
             why);
}

static void close_pair(struct pair *p) {
    llama_free(&p->base), llama_free(&p->fine);
    fine_tune_close(&p->fine_files), checkpoint_close(&p->base_files);
    p->t->ops->close(p->t);
}

/* A few steps, then what would be written. */
static void fit_student(struct pair *p, struct student *s) {
    struct why why = {""};
    struct budget_choice choice[MATRICES];
    int32_t n = p->base.n_matrices;
    CHECK(n <= MATRICES);
    for (int32_t i = 0; i < n; i++)
        choice[i] =
            (struct budget_choice){.planes = i < n - 2 ? 1 : 2, .rank = 2, .scales = SCALES_BOTH};
    CHECK_OK(student_open(s, p->t, &p->base, &p->base_files, &p->fine_files.checkpoint, choice,
                          NULL, &why),
             why);
    struct lesson own = {.row_bytes = (size_t)p->fine.config.shape.dim * p->t->ops->weight_bytes},
                  none = {.row_bytes = own.row_bytes};
    struct sample_options drawn = {.temperature = 1, .seed = 3};
    CHECK_OK(sample_documents(&p->fine, 12, LENGTH, &drawn, &own, &why), why);
    struct fit_options o = {
        .steps = STEPS,
        .rows = ROWS,
        .max_length = LENGTH,
        .kl_weight = 1,
        .rates = {.scale = 0.01f, .bit = 0.005f, .low_rank = 0.005f, .norm = 0.001f}};
    struct fit_report r = {0};
    CHECK_OK(fit_run(s, &p->fine, &own, &none, &o, &r, &why), why);
    CHECK_EQ(r.step, STEPS);
    CHECK_OK(student_round(s, &why), why);
    lesson_free(&own);
}

static void write_student(struct pair *p, struct student *s) {
    struct why why = {""};
    struct tenant_writer *w;
    struct report report = {0};
    unsigned char digest[SHA256_BYTES];
    char fingerprint[SHA256_HEX];
    json_t *config = json_loads(p->fine_files.checkpoint.config_json, 0, NULL),
           *none = json_object();
    CHECK_OK(checkpoint_fingerprint(&p->base_files, digest, NULL, NULL, &why), why);
    sha256_hex(digest, fingerprint);
    CHECK_OK(tenant_writer_open(&w, p->out, &why), why);
    CHECK_OK(student_write(s, w, &report, &why), why);
    struct tenant_header h = {.base_fingerprint = fingerprint,
                              .base_vocab = p->base_files.config.shape.vocab,
                              .config = config,
                              .tokenizer = none,
                              .generation = none,
                              .made = none,
                              .quality = none};
    CHECK_OK(tenant_writer_end(w, &h, NULL, &why), why);
    json_decref(config), json_decref(none);
}

/* Logits [LENGTH, V] of a sequence that has the vocabulary's first and last ids. */
static float *logits_of(const struct llama *m) {
    struct why why = {""};
    struct llama_tape *tape;
    int32_t id[LENGTH], start[2] = {0, LENGTH}, vocab = m->config.shape.vocab;
    for (int32_t i = 0; i < LENGTH; i++)
        id[i] = i % 2 ? (i * 7 + 1) % vocab : vocab - 1 - i / 2;
    struct llama_batch b = {LENGTH, 1, id, start};
    size_t n = LENGTH * (size_t)vocab;
    float *out = malloc(n * sizeof *out), *device;
    CHECK_OK(m->t->ops->take(m->t, n * sizeof *out, (void **)&device), why);
    CHECK_OK(llama_tape_open(&tape, m, LENGTH, false, &why), why);
    llama_forward(m, &b, tape, device);
    m->t->ops->get(m->t, out, device, n * sizeof *out);
    CHECK_OK(m->t->ops->settle(m->t, &why), why);
    llama_tape_close(tape);
    m->t->ops->give(m->t, device);
    return out;
}

/* How far logits are from the student's: mean square, of its own. */
static double apart(const float *x, const float *y, size_t n) {
    double sum = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)y[i];
        CHECK(isfinite(d));
        sum += d * d, size += (double)y[i] * (double)y[i];
    }
    return sum / size;
}

static void check_file(struct pair *p) {
    struct why why = {""};
    struct student s;
    struct tenant_file file;
    struct llama back;
    open_pair(p);
    fit_student(p, &s);
    float *said = logits_of(&s.model), *wanted = logits_of(&p->fine);
    write_student(p, &s);
    int fd = open(p->out, O_RDONLY);
    CHECK_OK(tenant_file_read(&file, fd, p->out, &p->base_files.config, NULL, &why), why);
    close(fd);
    CHECK_OK(llama_of_tenant(&back, p->t, &p->base_files, &file, NULL, &why), why);
    CHECK_EQ(back.config.shape.vocab, p->fine.config.shape.vocab);
    float *read = logits_of(&back);
    size_t n = LENGTH * (size_t)back.config.shape.vocab;
    CHECK(apart(read, said, n) < 1e-9);
    CHECK(apart(read, wanted, n) < 0.5); /* three steps: near, not there */
    free(said), free(wanted), free(read);
    llama_free(&back);
    tenant_file_free(&file);
    student_free(&s);
    close_pair(p);
}

static double number_of(const json_t *root, const char *when, const char *what) {
    const json_t *quality = json_object_get(root, "quality");
    return json_number_value(json_object_get(json_object_get(quality, when), what));
}

static void check_tool(struct pair *p) {
    json_error_t error;
    unlink(p->out);
    TOOL_OK("compress --steps 2 --bits 2.2 --json --device cpu --base %s --finetuned %s -o %s",
            p->base_dir, p->fine_dir, p->out);
    CHECK_HAS(tool_output, "{");
    json_t *root = json_loads(strchr(tool_output, '{'), JSON_DISABLE_EOF_CHECK, &error);
    double nothing = number_of(root, "base", "kl"), fitted = number_of(root, "fitted", "kl");
    CHECK(isfinite(nothing) && fitted > 0 && fitted < 0.25 * nothing);
    json_decref(root);
    TOOL_OK("verify --base %s %s", p->base_dir, p->out);
}

static int n_variants;
static int in_shards; /* bits: 1: the base, 2: the fine-tune */

/* base, fine: all but what the test sets itself. */
static void check_variant(struct make_model base, struct make_model fine) {
    struct pair p = {0};
    snprintf(p.base_dir, sizeof p.base_dir, "%s/base", test_tmp());
    snprintf(p.fine_dir, sizeof p.fine_dir, "%s/fine", test_tmp());
    snprintf(p.out, sizeof p.out, "%s/t.bitdelta", test_tmp());
    base.scale = fine.scale = 0.2f;
    fine.change = tune;
    make_model(p.base_dir, base);
    make_model(p.fine_dir, fine);
    if (in_shards & 1)
        make_shards(p.base_dir);
    if (in_shards & 2)
        make_shards(p.fine_dir);
    check_file(&p);
    if (n_variants++ == 0) /* of each test: whole fits take their time */
        check_tool(&p);
}

TEST_LIMIT(variant_of_every_dtype_on_either_side, 240) {
    static const enum st_dtype dtype[] = {ST_F16, ST_BF16, ST_F32};
    for (int i = 0; i < 9; i++)
        if (i % 3 != i / 3) /* the others are the other tests' */
            check_variant((struct make_model){.dtype = dtype[i / 3]},
                          (struct make_model){.dtype = dtype[i % 3]});
}

TEST_LIMIT(variant_with_tied_embeddings_on_either_side, 120) {
    check_variant((struct make_model){.tied = true}, (struct make_model){.tied = false});
    check_variant((struct make_model){.tied = false}, (struct make_model){.tied = true});
    check_variant((struct make_model){.tied = true}, (struct make_model){.tied = true});
}

TEST_LIMIT(variant_with_more_tokens, 120) {
    check_variant((struct make_model){.vocab = 48}, (struct make_model){.vocab = 51});
    check_variant((struct make_model){.vocab = 48, .tied = true},
                  (struct make_model){.vocab = 64, .tied = true});
    check_variant((struct make_model){.vocab = 48, .tied = true}, (struct make_model){.vocab = 64});
}

TEST_LIMIT(variant_with_fewer_tokens, 120) {
    check_variant((struct make_model){.vocab = 48}, (struct make_model){.vocab = 45});
    check_variant((struct make_model){.vocab = 64}, (struct make_model){.vocab = 48});
    check_variant((struct make_model){.vocab = 48, .tied = true},
                  (struct make_model){.vocab = 45, .tied = true});
    check_variant((struct make_model){.vocab = 48}, (struct make_model){.vocab = 45, .tied = true});
    check_variant((struct make_model){.vocab = 48, .tied = true}, (struct make_model){.vocab = 45});
}

TEST_LIMIT(variant_with_another_reach_and_rope, 120) {
    check_variant((struct make_model){.context = 32}, (struct make_model){.context = 64});
    check_variant((struct make_model){0},
                  (struct make_model){.context = 32, .extra_config = ",\"rope_theta\":500000.0"});
    check_variant((struct make_model){0},
                  (struct make_model){.context = 256,
                                      .extra_config = ",\"rope_scaling\":{\"type\":\"linear\","
                                                      "\"factor\":4.0}"});
    check_variant((struct make_model){0},
                  (struct make_model){
                      .context = 128,
                      .extra_config = ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
                                      "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                                      "\"original_max_position_embeddings\":32}"});
}

TEST_LIMIT(variant_with_other_names_and_files_and_all_at_once, 120) {
    check_variant((struct make_model){.dtype = ST_BF16, .tied = true},
                  (struct make_model){.dtype = ST_F32,
                                      .vocab = 45,
                                      .bare = true,
                                      .file = "weights.safetensors",
                                      .extra_config = ",\"rope_theta\":500000.0"});
    check_variant((struct make_model){.dtype = ST_F32, .bare = true},
                  (struct make_model){.dtype = ST_BF16, .vocab = 64, .tied = true});
    in_shards = 1;
    check_variant((struct make_model){.dtype = ST_BF16}, (struct make_model){.bare = true});
    in_shards = 3;
    check_variant((struct make_model){.bare = true}, (struct make_model){.dtype = ST_F32});
}
