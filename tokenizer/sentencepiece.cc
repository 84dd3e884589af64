// libsentencepiece as C functions; see sentencepiece.h. The one C++ file of the project: no
// exception leaves it, nothing is kept but the processor, and no call is made with an id that was
// not checked.
#include "tokenizer/sentencepiece.h"

#include <sentencepiece_processor.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <string_view>
#include <vector>

struct sp {
    sentencepiece::SentencePieceProcessor processor;
    int32_t n_pieces = 0;
};

extern "C" {

err_t sp_open(struct sp **out, const void *model, size_t n, struct why *why) {
    *out = nullptr;
    struct sp *s = nullptr;
    try {
        s = new struct sp;
        auto status = s->processor.LoadFromSerializedProto({static_cast<const char *>(model), n});
        if (!status.ok()) {
            delete s;
            return why_set(why, E_FORMAT, "not a SentencePiece model: %s", status.error_message());
        }
        s->n_pieces = s->processor.GetPieceSize();
        *out = s;
        return E_OK;
    } catch (const std::bad_alloc &) {
        delete s;
        return why_set(why, E_NOMEM, "no memory for the SentencePiece model");
    } catch (...) {
        delete s;
        return why_set(why, E_FORMAT, "not a SentencePiece model: the library gave up on it");
    }
}

void sp_close(struct sp *s) {
    delete s;
}

int32_t sp_size(const struct sp *s) {
    return s->n_pieces;
}

const char *sp_piece(const struct sp *s, int32_t id, size_t *n, enum sp_kind *kind) {
    if (id < 0 || id >= s->n_pieces)
        return nullptr;
    try {
        const auto &p = s->processor;
        const std::string &piece = p.IdToPiece(id);
        *n = piece.size();
        *kind = p.IsUnknown(id)   ? SP_UNKNOWN
                : p.IsControl(id) ? SP_CONTROL
                : p.IsByte(id)    ? SP_BYTE
                : p.IsUnused(id)  ? SP_UNUSED
                                  : SP_NORMAL;
        return piece.c_str();
    } catch (...) {
        return nullptr;
    }
}

int32_t sp_unk(const struct sp *s) {
    try {
        return s->processor.unk_id();
    } catch (...) {
        return -1;
    }
}

err_t sp_ids_add(struct sp_ids *ids, int32_t id) {
    if (ids->n == ids->cap_max)
        return E_CONTEXT;
    if (ids->n == ids->cap) {
        size_t cap = ids->cap < 64 ? 64 : 2 * ids->cap;
        void *grown = std::realloc(ids->v, cap * sizeof *ids->v);
        if (!grown)
            return E_NOMEM;
        ids->v = static_cast<int32_t *>(grown);
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
    return E_OK;
}

err_t sp_encode(const struct sp *s, const char *text, size_t n, struct sp_ids *ids) {
    try {
        std::vector<int> found;
        if (!s->processor.Encode(std::string_view(text, n), &found).ok())
            return E_INTERNAL;
        for (int id : found) {
            err_t e = sp_ids_add(ids, id);
            if (e)
                return e;
        }
        return E_OK;
    } catch (const std::bad_alloc &) {
        return E_NOMEM;
    } catch (...) {
        return E_INTERNAL;
    }
}

err_t sp_decode(const struct sp *s, const int32_t *ids, size_t n, char **text, size_t *n_text) {
    try {
        for (size_t i = 0; i < n; i++)
            if (ids[i] < 0 || ids[i] >= s->n_pieces)
                return E_TOKEN_RANGE;
        std::string out;
        if (!s->processor.Decode(std::vector<int>(ids, ids + n), &out).ok())
            return E_INTERNAL;
        *text = static_cast<char *>(std::malloc(out.size() + 1));
        if (!*text)
            return E_NOMEM;
        std::memcpy(*text, out.c_str(), out.size() + 1);
        *n_text = out.size();
        return E_OK;
    } catch (const std::bad_alloc &) {
        return E_NOMEM;
    } catch (...) {
        return E_INTERNAL;
    }
}

} // extern "C"
