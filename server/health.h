/* GET /health (is the process worth keeping), /ready (may it get traffic), /version. Loop thread.
 */
#ifndef SERVER_HEALTH_H
#define SERVER_HEALTH_H

struct exchange;
struct server;

void health_handle(struct server *s, struct exchange *x);
void ready_handle(struct server *s, struct exchange *x);
void version_handle(struct server *s, struct exchange *x);

#endif
