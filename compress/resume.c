#include "compress/resume.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/clock.h"

enum {
    MAX_LOOK = 1 << 16,
    MAX_PATH = 4096,
    CHUNK = 1 << 20,
    EVERY_US = 60 * 1000 * 1000,
    BYTES_A_US = 500
};
static const char magic[16] = "bitdelta fit 1\n";

err_t resume_open(struct resume *r, const char *path, struct why *why) {
    *r = (struct resume){.saved_us = mono_us()};
    if (strlen(path) + 32 > MAX_PATH)
        return why_set(why, E_PATH, "The output's path is too long.");
    if (asprintf(&r->folder, "%s.partial", path) < 0) {
        r->folder = NULL;
        return why_set(why, E_NOMEM, "not enough memory");
    }
    return 0;
}

void resume_close(struct resume *r) {
    free(r->folder);
    *r = (struct resume){0};
}

void resume_remove(const char *path) {
    static const char *const file[] = {"/text", "/fit", "/looks", "/new", ""};
    char name[MAX_PATH];
    for (size_t i = 0; i < sizeof file / sizeof *file; i++) {
        snprintf(name, sizeof name, "%s.partial%s", path, file[i]);
        if (*file[i])
            unlink(name);
        else
            rmdir(name);
    }
}

bool resume_is_due(const struct resume *r, const struct student *s) {
    int64_t cost = r->cost_us;
    for (int32_t i = 0; !r->cost_us && i < s->model.n_matrices; i++) /* a guess before the first */
        cost += (int64_t)s->matrix[i].n_planes *
                (int64_t)s->t->ops->signs_bytes(s->t, s->matrix[i].n, s->matrix[i].k) / BYTES_A_US;
    return mono_us() - r->saved_us >= (10 * cost > EVERY_US ? 10 * cost : EVERY_US);
}

err_t resume_add_weights(struct sha256 *key, const struct checkpoint *c, struct why *why) {
    const struct model_shape *s = &c->config.shape;
    struct llama_files files = {c, false};
    struct llama_source from = llama_source_files(&files);
    int32_t n_linears = s->n_layers * N_PARTS, widest = s->dim;
    for (int p = 0; p < N_PARTS; p++)
        widest = part_cols(s, (enum part)p) > widest ? part_cols(s, (enum part)p) : widest;
    size_t n_norm = (size_t)(2 * s->n_layers + 1) * (size_t)s->dim,
           room = n_norm > (size_t)widest ? n_norm : (size_t)widest;
    float *x = malloc(room * sizeof *x);
    err_t e = x ? from.norms(from.arg, x, why) : why_set(why, E_NOMEM, "not enough memory");
    if (!e)
        sha256_add(key, x, n_norm * sizeof *x);
    for (int32_t i = 0; !e && i < n_linears + (c->config.tied ? 1 : 2); i++) {
        bool part = i < n_linears;
        int32_t n = part ? part_rows(s, (enum part)(i % N_PARTS)) : s->vocab,
                k = part ? part_cols(s, (enum part)(i % N_PARTS)) : s->dim;
        for (int32_t row = 0; !e && row < 3; row++) {
            e = from.rows(from.arg, i, (n - 1) / 2 * row, 1, x, why);
            if (!e)
                sha256_add(key, x, (size_t)k * sizeof *x);
        }
    }
    free(x);
    return e;
}

/* ---- files: magic, key, content, hash of all before ------------------------------------------ */

struct kept {
    FILE *f;
    struct sha256 hash; /* while writing */
    err_t error;
    char path[MAX_PATH];
};

static void put(struct kept *k, const void *data, size_t n) {
    if (k->error)
        return;
    sha256_add(&k->hash, data, n);
    if (n && fwrite(data, 1, n, k->f) != n)
        k->error = E_IO;
}
static bool get(struct kept *k, void *data, size_t n) {
    if (!k->error && n && fread(data, 1, n, k->f) != n)
        k->error = E_FORMAT;
    return !k->error;
}

static err_t begin(struct kept *k, const struct resume *r, const unsigned char *key,
                   struct why *why) {
    *k = (struct kept){0};
    mkdir(r->folder, 0777);
    snprintf(k->path, sizeof k->path, "%s/new", r->folder);
    k->f = fopen(k->path, "wb");
    if (!k->f)
        return why_set(why, E_IO, "%s cannot be written: %s", k->path, strerror(errno));
    err_t e = sha256_init(&k->hash);
    if (e) {
        fclose(k->f);
        return why_set(why, e, "not enough memory");
    }
    put(k, magic, sizeof magic);
    put(k, key, SHA256_BYTES);
    return 0;
}

/* The finished file takes its name's place, or there is none. */
static err_t end(struct kept *k, const struct resume *r, const char *name, struct why *why) {
    unsigned char digest[SHA256_BYTES];
    char path[MAX_PATH];
    sha256_end(&k->hash, digest);
    snprintf(path, sizeof path, "%s/%s", r->folder, name);
    bool good = !k->error && fwrite(digest, 1, sizeof digest, k->f) == sizeof digest &&
                fflush(k->f) == 0 && fsync(fileno(k->f)) == 0;
    int why_not = errno;
    good = fclose(k->f) == 0 && good && rename(k->path, path) == 0;
    if (good)
        return 0;
    unlink(k->path);
    return why_set(why, E_IO, "%s cannot be written: %s", path, strerror(why_not));
}

/* Whether the file is whole and has the key; left open behind the key. */
static bool find(struct kept *k, const struct resume *r, const char *name,
                 const unsigned char *key) {
    unsigned char head[sizeof magic + SHA256_BYTES], digest[SHA256_BYTES], said[SHA256_BYTES];
    *k = (struct kept){0};
    snprintf(k->path, sizeof k->path, "%s/%s", r->folder, name);
    k->f = fopen(k->path, "rb");
    struct stat st;
    char *chunk = malloc(CHUNK);
    bool good = k->f && chunk && fstat(fileno(k->f), &st) == 0 &&
                st.st_size >= (off_t)(sizeof head + sizeof digest) &&
                fread(head, 1, sizeof head, k->f) == sizeof head &&
                memcmp(head, magic, sizeof magic) == 0 &&
                memcmp(head + sizeof magic, key, SHA256_BYTES) == 0 && !sha256_init(&k->hash);
    if (good) {
        off_t left = st.st_size - (off_t)(sizeof head + sizeof digest);
        sha256_add(&k->hash, head, sizeof head);
        while (good && left > 0) {
            size_t n = left < CHUNK ? (size_t)left : CHUNK;
            good = fread(chunk, 1, n, k->f) == n;
            sha256_add(&k->hash, chunk, n);
            left -= (off_t)n;
        }
        sha256_end(&k->hash, digest);
        good = good && fread(said, 1, sizeof said, k->f) == sizeof said &&
               memcmp(said, digest, sizeof said) == 0 &&
               fseek(k->f, (long)sizeof head, SEEK_SET) == 0;
    }
    free(chunk);
    if (!good && k->f)
        fclose(k->f);
    return good;
}

/* ---- text ------------------------------------------------------------------------------------ */

err_t resume_write_text(struct resume *r, struct lesson *const *lesson, int32_t n,
                        struct why *why) {
    struct kept k;
    err_t e = begin(&k, r, r->text_key, why);
    if (e)
        return e;
    for (int32_t i = 0; i < n; i++) {
        const struct lesson *l = lesson[i];
        put(&k, &l->text.n_seqs, sizeof l->text.n_seqs);
        for (int32_t s = 0; s < l->text.n_seqs; s++) {
            int32_t length = corpus_length(&l->text, s);
            put(&k, &length, sizeof length);
            put(&k, l->text.id + l->text.start[s], (size_t)length * sizeof *l->text.id);
            put(&k, l->stream + l->text.start[s] * l->row_bytes,
                (size_t)(length - 1) * l->row_bytes);
        }
    }
    return end(&k, r, "text", why);
}

static bool read_lesson(struct kept *k, struct lesson *l) {
    int32_t n_seqs = 0, n = 0, *id = NULL;
    char *stream = NULL;
    get(k, &n_seqs, sizeof n_seqs);
    for (int32_t s = 0; !k->error && s < n_seqs; s++) {
        if (!get(k, &n, sizeof n) || n < 1) {
            k->error = E_FORMAT;
            break;
        }
        int32_t *more = realloc(id, (size_t)n * sizeof *id);
        id = more ? more : id;
        char *rows = realloc(stream, (size_t)n * l->row_bytes + 1);
        stream = rows ? rows : stream;
        if (!more || !rows) {
            k->error = E_NOMEM;
            break;
        }
        if (get(k, id, (size_t)n * sizeof *id) && get(k, stream, (size_t)(n - 1) * l->row_bytes))
            k->error = lesson_add(l, id, n, stream);
    }
    free(id), free(stream);
    return !k->error;
}

err_t resume_read_text(struct resume *r, struct lesson *const *lesson, int32_t n, bool *found,
                       struct why *why) {
    struct kept k;
    *found = find(&k, r, "text", r->text_key);
    if (!*found)
        return 0;
    for (int32_t i = 0; i < n && read_lesson(&k, lesson[i]); i++)
        ;
    fclose(k.f);
    return k.error ? why_set(why, k.error, "%s cannot be read; remove it to start anew", k.path)
                   : 0;
}

/* ---- looks ----------------------------------------------------------------------------------- */

struct look {
    unsigned char key[SHA256_BYTES];
    int32_t bytes; /* of the quality's JSON, which follows */
};

/* The next look and its text (freed by the caller), or NULL at the end. */
static char *next_look(struct kept *k, struct look *l) {
    char *text = NULL;
    if (get(k, l, sizeof *l) && l->bytes > 0 && l->bytes <= MAX_LOOK)
        text = malloc((size_t)l->bytes);
    if (text && !get(k, text, (size_t)l->bytes)) {
        free(text);
        text = NULL;
    }
    return text;
}

json_t *resume_look(const struct resume *r) {
    struct kept k;
    struct look l;
    json_t *found = NULL;
    if (!find(&k, r, "looks", r->text_key))
        return NULL;
    for (char *text; !found && (text = next_look(&k, &l)); free(text))
        if (memcmp(l.key, r->fit_key, sizeof l.key) == 0)
            found = json_loadb(text, (size_t)l.bytes, 0, NULL);
    fclose(k.f);
    return found;
}

void resume_add_look(struct resume *r, const json_t *quality) {
    struct kept old, k;
    struct look l;
    struct why why;
    char *text, *now = json_dumps(quality, JSON_COMPACT);
    bool more = find(&old, r, "looks", r->text_key);
    if (now && begin(&k, r, r->text_key, &why) == E_OK) {
        for (; more && (text = next_look(&old, &l)); free(text)) {
            put(&k, &l, sizeof l);
            put(&k, text, (size_t)l.bytes);
        }
        l.bytes = (int32_t)strlen(now);
        memcpy(l.key, r->fit_key, sizeof l.key);
        put(&k, &l, sizeof l);
        put(&k, now, (size_t)l.bytes);
        end(&k, r, "looks", &why);
    }
    if (more)
        fclose(old.f);
    free(now);
}

/* ---- the fit --------------------------------------------------------------------------------- */

/* Everything of a student that learning changes, piece by piece: a walk that saves and loads. */
struct walk {
    struct kept *k;
    struct student *s;
    bool loads;
    void *room; /* bytes of the largest piece */
};

static void carry(struct walk *w, void *data, size_t n) {
    if (w->loads)
        get(w->k, data, n);
    else
        put(w->k, data, n);
}

/* x, m and v lie one behind the other. */
static void carry_vector(struct walk *w, const struct train_vector *v) {
    size_t bytes = 3 * v->n * sizeof(float);
    if (!w->loads && v->n)
        w->s->t->ops->get(w->s->t, w->room, v->x, bytes);
    carry(w, w->room, bytes);
    if (w->loads && v->n && !w->k->error)
        w->s->t->ops->put(w->s->t, v->x, w->room, bytes);
}

static void carry_signs(struct walk *w, const struct student_matrix *x,
                        const struct train_plane *p) {
    struct train *t = w->s->t;
    if (!w->loads)
        t->ops->signs_save(t, p->signs, x->n, x->k, w->room);
    carry(w, w->room, t->ops->signs_bytes(t, x->n, x->k));
    if (w->loads && !w->k->error)
        t->ops->signs_load(t, p->signs, x->n, x->k, w->room);
}

static void carry_student(struct walk *w) {
    carry_vector(w, &w->s->norm);
    for (int32_t i = 0; i < w->s->model.n_matrices && !w->k->error; i++) {
        struct student_matrix *x = &w->s->matrix[i];
        for (int32_t p = 0; p < x->n_planes; p++) {
            carry_vector(w, &x->plane[p].row), carry_vector(w, &x->plane[p].col);
            carry_signs(w, x, &x->plane[p]);
        }
        carry_vector(w, &x->a), carry_vector(w, &x->b);
        carry(w, &x->a_size, sizeof x->a_size), carry(w, &x->b_size, sizeof x->b_size);
    }
}

/* How each matrix is stored, which must be the same for a student to be loaded. */
static void describe(const struct student *s, int32_t *out) {
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        const struct student_matrix *x = &s->matrix[i];
        *out++ = (int32_t)x->kind, *out++ = x->n_planes, *out++ = x->rank;
        *out++ = (int32_t)x->plane[0].row.n, *out++ = (int32_t)x->plane[0].col.n;
    }
}
enum { DESCRIBE_INTS = 5 };

static size_t largest_piece(const struct student *s) {
    size_t most = 3 * s->norm.n * sizeof(float);
    for (int32_t i = 0; i < s->model.n_matrices; i++) {
        const struct student_matrix *x = &s->matrix[i];
        size_t longest = x->a.n > x->b.n ? x->a.n : x->b.n, signs = 0;
        for (int32_t p = 0; p < x->n_planes; p++) {
            longest = x->plane[p].row.n > longest ? x->plane[p].row.n : longest;
            longest = x->plane[p].col.n > longest ? x->plane[p].col.n : longest;
            signs = s->t->ops->signs_bytes(s->t, x->n, x->k);
        }
        most = 3 * longest * sizeof(float) > most ? 3 * longest * sizeof(float) : most;
        most = signs > most ? signs : most;
    }
    return most;
}

/* Memory of both ways: a piece, and two descriptions. */
static err_t walk_open(struct walk *w, struct student *s, struct kept *k, bool loads,
                       int32_t **ints, struct why *why) {
    size_t n = DESCRIBE_INTS * (size_t)s->model.n_matrices;
    *w = (struct walk){k, s, loads, malloc(largest_piece(s))};
    *ints = calloc(2 * n, sizeof **ints);
    return w->room && *ints ? 0 : why_set(why, E_NOMEM, "not enough memory to keep the fit");
}

err_t resume_write_fit(struct resume *r, struct student *s, const struct fit_report *at,
                       struct why *why) {
    struct kept k;
    struct walk w;
    int32_t *ints;
    int64_t began = mono_us();
    err_t e = walk_open(&w, s, &k, false, &ints, why);
    e = e ? e : s->t->ops->settle(s->t, why);
    e = e ? e : begin(&k, r, r->fit_key, why);
    if (!e) {
        describe(s, ints);
        put(&k, ints, DESCRIBE_INTS * (size_t)s->model.n_matrices * sizeof *ints);
        put(&k, at, sizeof *at);
        carry_student(&w);
        e = end(&k, r, "fit", why);
    }
    free(w.room), free(ints);
    r->saved_us = mono_us();
    r->cost_us = r->saved_us - began;
    return e;
}

err_t resume_read_fit(struct resume *r, struct student *s, struct fit_report *at, bool *found,
                      struct why *why) {
    struct kept k;
    struct walk w = {0};
    int32_t *ints = NULL;
    size_t n = DESCRIBE_INTS * (size_t)s->model.n_matrices;
    *found = find(&k, r, "fit", r->fit_key);
    if (!*found)
        return 0;
    err_t e = walk_open(&w, s, &k, true, &ints, why);
    if (!e) {
        describe(s, ints);
        *found = get(&k, ints + n, n * sizeof *ints) && memcmp(ints, ints + n, n * 4) == 0;
        if (*found && get(&k, at, sizeof *at))
            carry_student(&w);
    }
    if (!e && *found && k.error)
        e = why_set(why, k.error, "%s cannot be read; remove it to start anew", k.path);
    fclose(k.f);
    free(w.room), free(ints);
    return e;
}
