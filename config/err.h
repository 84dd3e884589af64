/* The one list of errors (config/err.def) and the sentence that goes with a failure.
 * Convention everywhere: err_t 0 is success, every other value is negative and stands in err.def.
 */
#ifndef CONFIG_ERR_H
#define CONFIG_ERR_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int err_t;

enum err_index {
    ERR_INDEX_OK,
#define ERR(name, status, type, code, sentence) ERR_INDEX_##name,
#include "config/err.def"
#undef ERR
    ERR_INDEX_END
};

enum {
    E_OK = 0,
#define ERR(name, status, type, code, sentence) E_##name = -ERR_INDEX_##name,
#include "config/err.def"
#undef ERR
};

/* What a failure has to tell a person: one sentence, at most 511 bytes of printable UTF-8 (other
 * bytes in what it quotes become '?'), never prompt text or keys. */
struct why {
    char text[512];
};

/* Writes the sentence (printf style) into `why` (NULL: dropped) and returns `e`. */
err_t why_set(struct why *why, err_t e, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts "prefix: " (printf style) in front of the sentence already in `why`; returns `e`. */
err_t why_prefix(struct why *why, err_t e, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

int err_http_status(err_t e);
const char *err_type(err_t e);     /* OpenAI error.type */
const char *err_code(err_t e);     /* OpenAI error.code */
const char *err_sentence(err_t e); /* the default sentence */

#ifdef __cplusplus
}
#endif

#endif
