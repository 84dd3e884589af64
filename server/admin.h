/* The admin API: POST /admin/deltas {"name","path"}, GET /admin/deltas[/{name}], DELETE
 * /admin/deltas/{name}. A file is opened beneath the deltas directory only, without following any
 * link, and read by a worker thread, one at a time. Loop thread. */
#ifndef SERVER_ADMIN_H
#define SERVER_ADMIN_H

#include "config/err.h"

struct exchange;
struct server;

void admin_put(struct server *s, struct exchange *x);
void admin_list(struct server *s, struct exchange *x);
void admin_one(struct server *s, struct exchange *x);
void admin_delete(struct server *s, struct exchange *x);

/* Opens `path` beneath the directory `root` for reading: a regular file, no links, no "..".
 * *fd is given to the caller. Errors: E_PATH, E_IO. */
err_t admin_open_beneath(int root, const char *path, int *fd, struct why *why);
/* At start, before the loop runs: registers every NAME.bitdelta of the directory, in the order of
 * their names. A file that does not load is logged and skipped. */
void admin_autoload(struct server *s);

#endif
