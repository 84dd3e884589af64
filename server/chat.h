/* POST /v1/chat/completions, as a surface: a conversation goes through the model's chat template
 * (tokenizer/chat.h), the answer comes back as a message. */
#ifndef SERVER_CHAT_H
#define SERVER_CHAT_H

struct exchange;
struct server;

extern const struct surface surface_chat;
void chat_handle(struct server *s, struct exchange *x);

#endif
