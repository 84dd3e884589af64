/* POST /tokenize, POST /detokenize, GET /tokenizer_info: the tokenizer of a model (of the base
 * where no model is named). The work is done by worker threads. Loop thread. */
#ifndef SERVER_TOKENIZE_H
#define SERVER_TOKENIZE_H

struct exchange;
struct server;

void tokenize_handle(struct server *s, struct exchange *x);
void detokenize_handle(struct server *s, struct exchange *x);
void tokenizer_info_handle(struct server *s, struct exchange *x);

#endif
