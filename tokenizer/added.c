/* Added tokens and the search for them; see added.h. The search narrows a range of the sorted
 * contents byte by byte, so its cost per place is the match's length, however many tokens share
 * a beginning. */
#include "tokenizer/added.h"

#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/vocab.h"

err_t added_put(struct added *a, const struct added_token *token, struct why *why) {
    if (token->n == 0 || token->n > VOCAB_MAX_PIECE_BYTES)
        return why_set(why, E_FORMAT, "added token %d has %zu bytes; 1 to %d are supported",
                       token->id, token->n, VOCAB_MAX_PIECE_BYTES);
    if (((size_t)a->n & ((size_t)a->n - 1)) == 0) { /* full at every power of two */
        size_t cap = a->n ? 2 * (size_t)a->n : 1;
        struct added_token *grown = realloc(a->tokens, cap * sizeof *grown);
        if (!grown)
            return why_set(why, E_NOMEM, "no memory for %d added tokens", a->n);
        a->tokens = grown;
    }
    char *content = malloc(token->n + 1);
    if (!content)
        return why_set(why, E_NOMEM, "no memory for %d added tokens", a->n);
    memcpy(content, token->content, token->n);
    content[token->n] = 0;
    a->tokens[a->n] = *token;
    a->tokens[a->n].content = content;
    /* Chat markup is often added without the special flag; in a user's text it must stay text.
     * A word (no brackets, no bars) is ordinary vocabulary. */
    a->tokens[a->n].markup = token->special || strpbrk(content, "<>[]{}|") != NULL;
    a->n++;
    return E_OK;
}

err_t added_read(struct added *a, const json_t *array, int32_t vocab, struct why *why) {
    size_t i;
    json_t *entry;
    if (array && !json_is_array(array))
        return why_set(why, E_FORMAT, "added_tokens is not an array");
    json_array_foreach(array, i, entry) {
        const json_t *id = json_object_get(entry, "id"), *text = json_object_get(entry, "content");
        if (!json_is_integer(id) || !json_is_string(text))
            return why_set(why, E_FORMAT, "added token number %zu lacks an id or a content", i);
        if (json_integer_value(id) < 0 || json_integer_value(id) >= vocab)
            return why_set(why, E_FORMAT,
                           "added token number %zu has id %lld; the vocabulary ends at %d", i,
                           (long long)json_integer_value(id), vocab - 1);
        struct added_token token = {
            .content = (char *)json_string_value(text),
            .n = json_string_length(text),
            .id = (int32_t)json_integer_value(id),
            .special = json_is_true(json_object_get(entry, "special")),
            .lstrip = json_is_true(json_object_get(entry, "lstrip")),
            .rstrip = json_is_true(json_object_get(entry, "rstrip")),
            .single_word = json_is_true(json_object_get(entry, "single_word")),
            .normalized = json_is_true(json_object_get(entry, "normalized")),
        };
        err_t e = added_put(a, &token, why);
        if (e)
            return e;
    }
    return E_OK;
}

static int compare_contents(const void *left, const void *right) {
    const struct added_token *a = left, *b = right;
    int c = memcmp(a->content, b->content, a->n < b->n ? a->n : b->n);
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

static int compare_ids(const void *left, const void *right, void *tokens) {
    const struct added_token *t = tokens;
    int32_t a = t[*(const int32_t *)left].id, b = t[*(const int32_t *)right].id;
    return (a > b) - (a < b);
}

err_t added_seal(struct added *a, struct why *why) {
    a->by_id = calloc((size_t)a->n + 1, sizeof *a->by_id);
    if (!a->by_id)
        return why_set(why, E_NOMEM, "no memory for %d added tokens", a->n);
    if (a->n > 0)
        qsort(a->tokens, (size_t)a->n, sizeof *a->tokens, compare_contents);
    for (int32_t i = 0; i < a->n; i++)
        a->by_id[i] = i;
    qsort_r(a->by_id, (size_t)a->n, sizeof *a->by_id, compare_ids, a->tokens);
    for (int32_t i = 1; i < a->n; i++) {
        if (compare_contents(&a->tokens[i - 1], &a->tokens[i]) == 0)
            return why_set(why, E_FORMAT, "the added tokens %d and %d have the same content",
                           a->tokens[i - 1].id, a->tokens[i].id);
        if (a->tokens[a->by_id[i - 1]].id == a->tokens[a->by_id[i]].id)
            return why_set(why, E_FORMAT, "two added tokens have the id %d",
                           a->tokens[a->by_id[i]].id);
    }
    int32_t i = 0;
    for (int byte = 0; byte < 256; byte++) {
        a->first[byte] = i;
        while (i < a->n && (unsigned char)a->tokens[i].content[0] == byte)
            i++;
    }
    a->first[256] = a->n;
    return E_OK;
}

void added_free(struct added *a) {
    for (int32_t i = 0; i < a->n; i++)
        free(a->tokens[i].content);
    free(a->tokens);
    free(a->by_id);
    memset(a, 0, sizeof *a);
}

const struct added_token *added_by_id(const struct added *a, int32_t id) {
    int32_t low = 0, high = a->n;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        const struct added_token *t = &a->tokens[a->by_id[middle]];
        if (t->id == id)
            return t;
        if (t->id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const struct added_token *added_by_content(const struct added *a, const char *content, size_t n) {
    struct added_token key = {.content = (char *)content, .n = n};
    return a->n ? bsearch(&key, a->tokens, (size_t)a->n, sizeof key, compare_contents) : NULL;
}

/* First index in low..high whose byte number `depth` is >= byte. All in the range share the bytes
 * before and are longer than depth. */
static int32_t lower_bound(const struct added *a, int32_t low, int32_t high, size_t depth,
                           int byte) {
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if ((unsigned char)a->tokens[middle].content[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whether the token counts where it stands at text[at]. */
static bool counts(const struct added_search *s, const struct added_token *t, size_t at) {
    if (!(s->which & (t->normalized ? ADDED_NORMALIZED : ADDED_RAW)))
        return false;
    return !t->markup || (s->markup && !(s->trusted && memchr(s->trusted + at, 0, t->n)));
}

/* The longest token that starts exactly at text[at]. */
static const struct added_token *match_at(const struct added *a, const struct added_search *s,
                                          size_t at) {
    int byte = (unsigned char)s->text[at];
    int32_t low = a->first[byte], high = a->first[byte + 1];
    const struct added_token *found = NULL;
    for (size_t depth = 1; low < high; depth++) {
        if (a->tokens[low].n == depth) { /* the shortest sorts first */
            if (counts(s, &a->tokens[low], at))
                found = &a->tokens[low];
            low++;
        }
        if (at + depth >= s->n)
            break;
        byte = (unsigned char)s->text[at + depth];
        low = lower_bound(a, low, high, depth, byte);
        high = lower_bound(a, low, high, depth, byte + 1);
    }
    return found;
}

const struct added_token *added_find(const struct added *a, const struct added_search *s,
                                     size_t from, size_t *at) {
    const char *text = s->text;
    for (size_t i = from; a->n > 0 && i < s->n; i++) {
        const struct added_token *t = match_at(a, s, i);
        if (!t)
            continue;
        bool alone = (i == 0 || text[i - 1] == ' ') && (i + t->n == s->n || text[i + t->n] == ' ');
        if (!t->single_word || alone) {
            *at = i;
            return t;
        }
        i += t->n - 1; /* inside a word it is text, and so are its parts */
    }
    return NULL;
}
