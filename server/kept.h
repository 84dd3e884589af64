/* What the admin API changed, kept over restarts in the file of --state: tenants that it registered
 * or removed, aliases that it set or took away. Beside that file the start has the deltas directory
 * (folder.c) and --aliases; what is kept here goes before them.
 *
 * The file is JSON: {"format":1,"deltas":{NAME:PATH|null},"aliases":{NAME:TARGET|null}}; null:
 * removed. Each change writes it anew beside itself and puts it in its place, so that a crash
 * leaves the old one or the new one; a worker writes, and the call is answered when the disk has
 * it. Without --state the changes are known until the end (a reload minds them). Loop thread. */
#ifndef SERVER_KEPT_H
#define SERVER_KEPT_H

#include <jansson.h>
#include <stdbool.h>

#include "config/err.h"

struct exchange;
struct registry;
struct save;
struct server;

enum kept_kind { KEPT_DELTAS, KEPT_ALIASES, KEPT_KINDS };

struct kept {
    const char *path;          /* borrowed; NULL: no file */
    json_t *names[KEPT_KINDS]; /* owned objects */
    struct save *saves;        /* to be written, in order; the first is under way */
};

/* Reads the file; none yet is fine. `path` may be NULL or "". Errors: E_CONFIG (damaged, or cannot
 * be written), E_NOMEM. kept_close in any case. */
err_t kept_open(struct kept *k, const char *path, struct why *why);
void kept_close(struct kept *k);
/* Reads the text of such a file. Errors: E_CONFIG, E_NOMEM. */
err_t kept_read(struct kept *k, const char *text, size_t n, struct why *why);
/* The path or target kept for the name; NULL: nothing, or removed. Borrowed. */
const char *kept_get(const struct kept *k, enum kept_kind kind, const char *name);
bool kept_removed(const struct kept *k, enum kept_kind kind, const char *name);
/* value NULL: the name was removed. */
void kept_set(struct kept *k, enum kept_kind kind, const char *name, const char *value);
/* As if the name had never been set or removed. */
void kept_forget(struct kept *k, enum kept_kind kind, const char *name);
/* Sets and takes away the aliases that are kept. One that cannot be set is logged. */
void kept_apply_aliases(struct kept *k, struct registry *r);
/* Writes the file, then answers with the tree (given); x may be NULL. */
void kept_reply(struct server *s, struct exchange *x, int status, json_t *tree);

#endif
