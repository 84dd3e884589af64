#include "compress/pickle.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_VALUES = 1 << 22, /* a 70B model's diff has 30,000 */
    MAX_TEXT = 64 << 20,
    MAX_TENSORS = 1 << 18,
};

enum kind {
    KIND_MARK,
    KIND_NONE,
    KIND_BOOL,
    KIND_INT,
    KIND_TEXT,
    KIND_TUPLE,
    KIND_DICT,
    KIND_GLOBAL,
    KIND_STORAGE,
    KIND_TENSOR,
};

static const char *const kind_names[] = {"mark",  "None", "bool",   "int",     "text",
                                         "tuple", "dict", "global", "storage", "tensor"};

enum global { REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT, STORAGE_TYPES };

/* The whitelist: all a published diff.pt needs. */
static const struct {
    const char *module, *name;
    enum st_dtype dtype; /* of a storage type */
} globals[] = {
    [REBUILD_TENSOR] = {"torch._utils", "_rebuild_tensor_v2", ST_N},
    [REBUILD_PARAMETER] = {"torch._utils", "_rebuild_parameter", ST_N},
    [ORDERED_DICT] = {"collections", "OrderedDict", ST_N},
    [STORAGE_TYPES] = {"torch", "IntStorage", ST_I32},
    {"torch", "FloatStorage", ST_F32},
    {"torch", "BFloat16Storage", ST_BF16},
    {"torch", "HalfStorage", ST_F16},
};
enum { N_GLOBALS = sizeof globals / sizeof *globals };

struct value {
    enum kind kind;
    int64_t number;   /* INT, BOOL; GLOBAL: its index; TENSOR: index of tensor; STORAGE: dtype */
    const char *text; /* TEXT: in the pickle; STORAGE: its key */
    uint64_t size;    /* TEXT, STORAGE key: bytes; TUPLE: items */
    int32_t first;    /* TUPLE: first of its items in items[] */
    uint64_t storage_size;
};

struct entry {
    int32_t dict, key, value;
};

struct reader {
    const unsigned char *at, *end, *start;
    const char *label;
    struct why *why;
    /* All growable arrays are bounded by MAX_VALUES; elements are indices, never pointers. */
    struct value *value;
    int32_t n_values, cap_values;
    int32_t *stack, n_stack, cap_stack;
    int32_t *memo, cap_memo; /* -1: unset */
    int32_t *item, n_items, cap_items;
    struct entry *entry;
    int32_t n_entries, cap_entries;
    struct pt_tensor *tensor;
    int32_t n_tensors, cap_tensors;
};

static err_t refuse(struct reader *r, const char *what) {
    return why_set(r->why, E_FORMAT, "%s: at byte %zu of its pickle: %s", r->label,
                   (size_t)(r->at - r->start), what);
}

/* Makes room for one more element of an array; E_FORMAT past the cap. */
static err_t grow(struct reader *r, void *array, int32_t n, int32_t *cap, size_t size) {
    if (n < *cap)
        return E_OK;
    if (n >= MAX_VALUES)
        return refuse(r, "more values than any model needs");
    int32_t wanted = *cap ? 2 * *cap : 256;
    void *bigger = realloc(*(void **)array, (size_t)wanted * size);
    if (!bigger)
        return why_set(r->why, E_NOMEM, "%s: not enough memory for its pickle", r->label);
    *(void **)array = bigger;
    *cap = wanted;
    return E_OK;
}

/* ---- stack and values ------------------------------------------------------------------------ */

static err_t push_index(struct reader *r, int32_t index) {
    err_t e = grow(r, &r->stack, r->n_stack, &r->cap_stack, sizeof *r->stack);
    if (!e)
        r->stack[r->n_stack++] = index;
    return e;
}

static err_t push(struct reader *r, struct value v) {
    err_t e = grow(r, &r->value, r->n_values, &r->cap_values, sizeof *r->value);
    if (e)
        return e;
    r->value[r->n_values] = v;
    return push_index(r, r->n_values++);
}

static err_t push_number(struct reader *r, enum kind kind, int64_t number) {
    return push(r, (struct value){.kind = kind, .number = number});
}

/* Pops one value of a kind. Values live in the arena until the end, so the pointer stays good until
 * the next push. */
static err_t pop(struct reader *r, enum kind kind, int32_t *index) {
    if (!r->n_stack)
        return refuse(r, "an opcode finds the stack empty");
    *index = r->stack[--r->n_stack];
    if (r->value[*index].kind != kind)
        return why_set(r->why, E_FORMAT, "%s: at byte %zu of its pickle: a %s where a %s belongs",
                       r->label, (size_t)(r->at - r->start), kind_names[r->value[*index].kind],
                       kind_names[kind]);
    return E_OK;
}

static const struct value *item(const struct reader *r, const struct value *tuple, uint64_t i) {
    return &r->value[r->item[tuple->first + (int32_t)i]];
}

/* Takes the topmost n values off the stack as a tuple. */
static err_t push_tuple(struct reader *r, int32_t n) {
    if (r->n_stack < n)
        return refuse(r, "an opcode finds the stack too short");
    struct value v = {.kind = KIND_TUPLE, .size = (uint64_t)n, .first = r->n_items};
    for (int32_t i = 0; i < n; i++) {
        err_t e = grow(r, &r->item, r->n_items, &r->cap_items, sizeof *r->item);
        if (e)
            return e;
        int32_t index = r->stack[r->n_stack - n + i];
        if (r->value[index].kind == KIND_MARK)
            return refuse(r, "a tuple reaches over a mark");
        r->item[r->n_items++] = index;
    }
    r->n_stack -= n;
    return push(r, v);
}

/* How many values lie above the topmost mark; -1: no mark. */
static int32_t above_mark(const struct reader *r) {
    for (int32_t i = r->n_stack; i-- > 0;)
        if (r->value[r->stack[i]].kind == KIND_MARK)
            return r->n_stack - i - 1;
    return -1;
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* The tuple (module "storage", type, key, location, elements) that names a member of the archive.
 */
static err_t make_storage(struct reader *r) {
    int32_t index;
    err_t e = pop(r, KIND_TUPLE, &index);
    if (e)
        return e;
    const struct value *t = &r->value[index];
    if (t->size != 5)
        return refuse(r, "a persistent id that is not a storage of five items");
    const struct value *tag = item(r, t, 0), *type = item(r, t, 1), *key = item(r, t, 2),
                       *size = item(r, t, 4);
    bool fits = tag->kind == KIND_TEXT && tag->size == 7 && memcmp(tag->text, "storage", 7) == 0 &&
                type->kind == KIND_GLOBAL && type->number >= STORAGE_TYPES &&
                key->kind == KIND_TEXT && key->size > 0 &&
                key->size < sizeof((struct pt_tensor *)0)->storage && size->kind == KIND_INT &&
                size->number >= 0;
    for (uint64_t i = 0; fits && i < key->size; i++)
        fits = key->text[i] >= '0' && key->text[i] <= '9';
    if (!fits)
        return refuse(r, "a persistent id that does not describe a storage");
    return push(r, (struct value){.kind = KIND_STORAGE,
                                  .number = globals[type->number].dtype,
                                  .text = key->text,
                                  .size = key->size,
                                  .storage_size = (uint64_t)size->number});
}

/* Sizes and strides; every index must lie in the storage. */
static err_t set_shape(struct reader *r, struct pt_tensor *t, const struct value *size,
                       const struct value *stride) {
    if (size->size > PT_MAX_DIMS || size->size != stride->size)
        return refuse(r, "a tensor of more than 4 dimensions, or with other strides than sizes");
    uint64_t last = t->offset;
    bool empty = false;
    t->n_dims = (int32_t)size->size;
    for (int32_t i = 0; i < t->n_dims; i++) {
        const struct value *d = item(r, size, (uint64_t)i), *s = item(r, stride, (uint64_t)i);
        if (d->kind != KIND_INT || s->kind != KIND_INT || d->number < 0 || s->number < 0 ||
            d->number > INT32_MAX)
            return refuse(r, "a tensor's size or stride is not a whole number of its range");
        t->dim[i] = d->number;
        t->stride[i] = s->number;
        uint64_t reach;
        empty = empty || d->number == 0;
        if (d->number > 0 &&
            (__builtin_mul_overflow((uint64_t)d->number - 1, (uint64_t)s->number, &reach) ||
             __builtin_add_overflow(last, reach, &last)))
            return refuse(r, "a tensor's strides reach past the end of memory");
    }
    if (!empty && last >= t->storage_size)
        return refuse(r, "a tensor reaches past the end of its storage");
    return E_OK;
}

/* (storage, offset, size, stride, requires_grad, hooks[, metadata]) */
static err_t make_tensor(struct reader *r, const struct value *t) {
    if (t->size < 6 || t->size > 7 || item(r, t, 0)->kind != KIND_STORAGE ||
        item(r, t, 1)->kind != KIND_INT || item(r, t, 1)->number < 0 ||
        item(r, t, 2)->kind != KIND_TUPLE || item(r, t, 3)->kind != KIND_TUPLE)
        return refuse(r, "a tensor is not made of storage, offset, size and stride");
    if (r->n_tensors >= MAX_TENSORS)
        return refuse(r, "more tensors than any model has");
    err_t e = grow(r, &r->tensor, r->n_tensors, &r->cap_tensors, sizeof *r->tensor);
    if (e)
        return e;
    const struct value *storage = item(r, t, 0);
    struct pt_tensor *out = &r->tensor[r->n_tensors];
    memset(out, 0, sizeof *out);
    memcpy(out->storage, storage->text, storage->size);
    out->dtype = (enum st_dtype)storage->number;
    out->storage_size = storage->storage_size;
    out->offset = (uint64_t)item(r, t, 1)->number;
    e = set_shape(r, out, item(r, t, 2), item(r, t, 3));
    return e ? e : push_number(r, KIND_TENSOR, r->n_tensors++);
}

/* REDUCE: what calling a whitelisted name would have made. */
static err_t reduce(struct reader *r) {
    int32_t args, global;
    err_t e = pop(r, KIND_TUPLE, &args);
    if (!e)
        e = pop(r, KIND_GLOBAL, &global);
    if (e)
        return e;
    const struct value *t = &r->value[args];
    switch (r->value[global].number) {
    case REBUILD_TENSOR:
        return make_tensor(r, t);
    case REBUILD_PARAMETER: /* (tensor, requires_grad, hooks) */
        if (t->size != 3 || item(r, t, 0)->kind != KIND_TENSOR)
            return refuse(r, "a parameter is not made of a tensor");
        return push_index(r, r->item[t->first]);
    case ORDERED_DICT:
        if (t->size)
            return refuse(r, "an OrderedDict with arguments");
        return push_number(r, KIND_DICT, 0);
    default:
        return refuse(r, "a storage type is called");
    }
}

/* ---- opcodes --------------------------------------------------------------------------------- */

static err_t take(struct reader *r, size_t n, const unsigned char **bytes) {
    if ((size_t)(r->end - r->at) < n)
        return refuse(r, "the pickle ends in the middle of an opcode");
    *bytes = r->at;
    r->at += n;
    return E_OK;
}

static err_t take_number(struct reader *r, size_t n, int64_t *out) {
    const unsigned char *b = NULL;
    err_t e = take(r, n, &b);
    uint64_t x = 0;
    for (size_t i = 0; !e && i < n; i++)
        x |= (uint64_t)b[i] << 8 * i;
    *out = (int64_t)x;
    return e;
}

/* Both lines of a GLOBAL, which are ASCII and end with a newline. */
static err_t take_line(struct reader *r, const char **text, size_t *n) {
    const unsigned char *newline = memchr(r->at, '\n', (size_t)(r->end - r->at));
    if (!newline)
        return refuse(r, "a name does not end");
    *text = (const char *)r->at;
    *n = (size_t)(newline - r->at);
    r->at = newline + 1;
    return E_OK;
}

static err_t op_global(struct reader *r) {
    const char *module = "", *name = "";
    size_t n_module = 0, n_name = 0;
    err_t e = take_line(r, &module, &n_module);
    if (!e)
        e = take_line(r, &name, &n_name);
    for (int i = 0; !e && i < N_GLOBALS; i++)
        if (strlen(globals[i].module) == n_module && strlen(globals[i].name) == n_name &&
            memcmp(globals[i].module, module, n_module) == 0 &&
            memcmp(globals[i].name, name, n_name) == 0)
            return push_number(r, KIND_GLOBAL, i);
    return e ? e
             : why_set(r->why, E_UNSUPPORTED,
                       "%s: its pickle asks for %.*s.%.*s, which is not part of a diff.pt; such a "
                       "file may be an attack, and nothing of it was run",
                       r->label, n_module < 64 ? (int)n_module : 64, module,
                       n_name < 64 ? (int)n_name : 64, name);
}

static err_t op_text(struct reader *r) {
    int64_t n;
    const unsigned char *bytes = NULL;
    err_t e = take_number(r, 4, &n);
    if (!e)
        e = take(r, (size_t)n, &bytes);
    return e ? e
             : push(r, (struct value){
                           .kind = KIND_TEXT, .text = (const char *)bytes, .size = (uint64_t)n});
}

/* Little-endian two's complement of up to 8 bytes; torch uses it for sizes above 2^31. */
static err_t op_long(struct reader *r) {
    int64_t n, x;
    err_t e = take_number(r, 1, &n);
    if (!e && n > 8)
        return refuse(r, "a number of more than 64 bits");
    if (!e)
        e = take_number(r, (size_t)n, &x);
    if (!e && n && n < 8 && x >> (8 * n - 1) & 1)
        x -= (int64_t)1 << 8 * n;
    return e ? e : push_number(r, KIND_INT, n ? x : 0);
}

static err_t op_put(struct reader *r, size_t n_bytes) {
    int64_t at;
    err_t e = take_number(r, n_bytes, &at);
    if (e)
        return e;
    if (!r->n_stack || at >= MAX_VALUES)
        return refuse(r, "a memo entry out of range");
    while (r->cap_memo <= at) { /* doubling: a high number costs at most MAX_VALUES entries */
        int32_t old = r->cap_memo;
        e = grow(r, &r->memo, old, &r->cap_memo, sizeof *r->memo);
        if (e)
            return e;
        for (int32_t i = old; i < r->cap_memo; i++)
            r->memo[i] = -1;
    }
    r->memo[at] = r->stack[r->n_stack - 1];
    return E_OK;
}

static err_t op_get(struct reader *r, size_t n_bytes) {
    int64_t at;
    err_t e = take_number(r, n_bytes, &at);
    if (e)
        return e;
    if (at >= r->cap_memo || r->memo[at] < 0)
        return refuse(r, "a memo entry that was never set");
    return push_index(r, r->memo[at]);
}

/* Stores the topmost n values as pairs in the dict below them. */
static err_t set_items(struct reader *r, int32_t n, int32_t below) {
    if (n < 0 || n % 2 || r->n_stack < n + below + 1)
        return refuse(r, "items that are not pairs, or have no dict");
    int32_t first = r->n_stack - n, dict = r->stack[first - below - 1];
    if (r->value[dict].kind != KIND_DICT)
        return refuse(r, "items are stored in something that is no dict");
    if (r->n_entries + n / 2 > MAX_TENSORS)
        return refuse(r, "more entries than any model has tensors");
    for (int32_t i = first; i < first + n; i += 2) {
        err_t e = grow(r, &r->entry, r->n_entries, &r->cap_entries, sizeof *r->entry);
        if (e)
            return e;
        r->entry[r->n_entries++] = (struct entry){dict, r->stack[i], r->stack[i + 1]};
    }
    r->n_stack = first - below;
    return E_OK;
}

static err_t step(struct reader *r, int op) {
    int64_t x;
    err_t e = E_OK;
    switch (op) {
    case 0x80: /* PROTO */
        e = take_number(r, 1, &x);
        return !e && x != 2 ? refuse(r, "a pickle protocol other than 2") : e;
    case '(':
        return push_number(r, KIND_MARK, 0);
    case 'N':
        return push_number(r, KIND_NONE, 0);
    case 0x88:
    case 0x89:
        return push_number(r, KIND_BOOL, op == 0x88);
    case 'J':
        e = take_number(r, 4, &x);
        return e ? e : push_number(r, KIND_INT, (int32_t)x);
    case 'K':
    case 'M':
        e = take_number(r, op == 'K' ? 1 : 2, &x);
        return e ? e : push_number(r, KIND_INT, x);
    case 0x8a:
        return op_long(r);
    case 'X':
        return op_text(r);
    case 'c':
        return op_global(r);
    case ')':
        return push_tuple(r, 0);
    case 0x85:
    case 0x86:
    case 0x87:
        return push_tuple(r, op - 0x84);
    case 't': {
        int32_t n = above_mark(r);
        if (n < 0)
            return refuse(r, "a tuple without a mark");
        e = push_tuple(r, n);
        if (e)
            return e;
        r->stack[r->n_stack - 2] = r->stack[r->n_stack - 1]; /* over the mark */
        r->n_stack--;
        return E_OK;
    }
    case '}':
        return push_number(r, KIND_DICT, 0);
    case 's':
        return set_items(r, 2, 0);
    case 'u':
        return set_items(r, above_mark(r), 1);
    case 'q':
    case 'r':
        return op_put(r, op == 'q' ? 1 : 4);
    case 'h':
    case 'j':
        return op_get(r, op == 'h' ? 1 : 4);
    case 'Q':
        return make_storage(r);
    case 'R':
        return reduce(r);
    default:
        return why_set(r->why, E_UNSUPPORTED,
                       "%s: at byte %zu of its pickle: opcode 0x%02x is not part of a diff.pt",
                       r->label, (size_t)(r->at - r->start) - 1, op);
    }
}

/* ---- the result ------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct pt_tensor *)a)->name, ((const struct pt_tensor *)b)->name);
}

/* The dict on top of the stack must map texts to tensors. */
static err_t collect(struct reader *r, struct pt_tensors *out) {
    int32_t root;
    if (r->n_stack != 1)
        return refuse(r, "it does not end with one value");
    err_t e = pop(r, KIND_DICT, &root);
    if (e)
        return e;
    out->tensor = calloc((size_t)r->n_entries + 1, sizeof *out->tensor);
    if (!out->tensor)
        return why_set(r->why, E_NOMEM, "%s: not enough memory for its tensors", r->label);
    for (int32_t i = 0; i < r->n_entries; i++) {
        const struct value *key = &r->value[r->entry[i].key], *v = &r->value[r->entry[i].value];
        if (r->entry[i].dict != root)
            continue;
        if (key->kind != KIND_TEXT || key->size > PT_MAX_NAME || memchr(key->text, 0, key->size))
            return refuse(r, "the dict has a key that is no tensor name");
        if (v->kind != KIND_TENSOR)
            return why_set(r->why, E_FORMAT, "%s: \"%.*s\" is not a tensor", r->label,
                           (int)key->size, key->text);
        struct pt_tensor *t = &out->tensor[out->n];
        *t = r->tensor[v->number];
        t->name = strndup(key->text, key->size);
        if (!t->name)
            return why_set(r->why, E_NOMEM, "%s: not enough memory for its tensors", r->label);
        out->n++;
    }
    qsort(out->tensor, (size_t)out->n, sizeof *out->tensor, by_name);
    for (int32_t i = 1; i < out->n; i++)
        if (by_name(&out->tensor[i - 1], &out->tensor[i]) == 0)
            return why_set(r->why, E_FORMAT, "%s: tensor %s is there twice", r->label,
                           out->tensor[i].name);
    return E_OK;
}

err_t pickle_read(struct pt_tensors *out, const unsigned char *text, size_t n, const char *label,
                  struct why *why) {
    struct reader r = {.at = text, .start = text, .end = text + n, .label = label, .why = why};
    memset(out, 0, sizeof *out);
    if (n > MAX_TEXT)
        return why_set(why, E_FORMAT, "%s: its pickle has %zu bytes; at most %d are read", label, n,
                       MAX_TEXT);
    err_t e = E_OK;
    bool stopped = false;
    while (!e && !stopped) {
        const unsigned char *op = NULL;
        e = take(&r, 1, &op);
        if (!e && *op == '.')
            stopped = true;
        else if (!e)
            e = step(&r, *op);
    }
    if (!e)
        e = collect(&r, out);
    free(r.value);
    free(r.stack);
    free(r.memo);
    free(r.item);
    free(r.entry);
    free(r.tensor);
    return e;
}

void pt_tensors_free(struct pt_tensors *t) {
    for (int32_t i = 0; i < t->n; i++)
        free(t->tensor[i].name);
    free(t->tensor);
    memset(t, 0, sizeof *t);
}
