/* The admin API of tenants: POST /admin/deltas {"name","path"}, GET /admin/deltas[/{name}], DELETE
 * /admin/deltas/{name}. Loop thread. */
#ifndef SERVER_ADMIN_H
#define SERVER_ADMIN_H

struct exchange;
struct server;

void admin_put(struct server *s, struct exchange *x);
void admin_list(struct server *s, struct exchange *x);
void admin_one(struct server *s, struct exchange *x);
void admin_delete(struct server *s, struct exchange *x);

#endif
