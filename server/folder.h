/* The deltas directory as a whole: what of it is served from the start, and what a reload (SIGHUP)
 * brings up to date without a restart: keys, files that came, changed or went. What the admin API
 * registered or removed (kept.c) goes before the directory. Loop thread. */
#ifndef SERVER_FOLDER_H
#define SERVER_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

struct server;

/* A reload under way. */
struct folder {
    bool reloading, again; /* again: asked for once more meanwhile */
    int left;              /* files not yet read */
    int added, replaced, removed, failed;
    int64_t start_us;
};

/* At start, before the loop runs: registers every NAME.bitdelta of the directory (unless told not
 * to) and what the admin API had registered, in the order of their names. A file that does not load
 * is logged and skipped. */
void folder_open(struct server *s);
/* Reads the key files again, removes tenants whose file is gone, loads those whose file is new or
 * another one by now. Requests that run end on the bits they started with; a file or a key file
 * that cannot be read is logged and leaves what was served. Goes on in the background. */
void folder_reload(struct server *s);

#endif
