/* The admin API's aliases: POST /admin/aliases {"name","target"}, GET /admin/aliases, DELETE
 * /admin/aliases/{name}. They last as long as the process; --aliases sets them at start. Loop
 * thread. */
#ifndef SERVER_ALIAS_H
#define SERVER_ALIAS_H

struct exchange;
struct server;

void alias_put(struct server *s, struct exchange *x);
void alias_list(struct server *s, struct exchange *x);
void alias_delete(struct server *s, struct exchange *x);

#endif
