/* POST /v1/chat/completions, as a surface: a conversation goes through the model's chat template
 * (tokenizer/chat.h), the answer comes back as a message. */
#ifndef SERVER_CHAT_H
#define SERVER_CHAT_H

#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

struct exchange;
struct params;
struct served;
struct server;

extern const struct surface surface_chat;
/* The ids of the conversation in p (read by surface_chat), as p's prompt 0. Any thread. Errors:
 * E_UNSUPPORTED (no template, or not a usable one), E_CONTEXT (more bytes or ids), E_INVAL. */
err_t chat_ids(struct params *p, const struct served *m, size_t max_bytes, int32_t max_ids,
               const char **field, struct why *why);
void chat_handle(struct server *s, struct exchange *x);

#endif
