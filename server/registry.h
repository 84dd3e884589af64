/* What can be named in `model`: the base and the tenants. A name maps to a `served`: a tenant
 * handle with its tokenizer, counted, so that a request keeps what it started with while the name
 * moves on to other bits or goes away. A tenant that nobody uses may be away: its name, tokenizer
 * and figures stay, its bits are read again when it is asked for (residency.c). Loop thread only.
 */
#ifndef SERVER_REGISTRY_H
#define SERVER_REGISTRY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "tokenizer/tokenizer.h"

enum {
    REGISTRY_NAME_BYTES = 65,
    REGISTRY_PRINT_BYTES = 64, /* "bd-" + 16 hex of the content hash + "-" + generation */
};

/* What tells one state of a file from another without reading it. */
struct file_stamp {
    uint64_t inode;
    int64_t bytes, changed_ns;
};

struct served {
    int refs;
    char name[256]; /* the base's name may be longer than a tenant's */
    char fingerprint[REGISTRY_PRINT_BYTES];
    struct tenant *tenant;             /* one reference; NULL: the base, or away */
    bool away;                         /* no request may be given to the engine */
    int64_t used_us;                   /* when it was last asked for */
    const struct tenant_info *info;    /* the engine's for the base, else `facts` */
    struct tenant_info facts;          /* its texts are owned */
    json_t *generation;                /* owned; generation_config.json, NULL: none */
    struct tokenizer *own_tokenizer;   /* owned; NULL: the base's */
    const struct tokenizer *tokenizer; /* the one to use */
    char *path;                        /* owned; beneath the deltas directory; NULL: unknown */
    struct file_stamp stamp;           /* of the file when it was read */
};

/* A second name: whoever asks for `name` gets what `target` names at that moment. */
struct alias {
    char name[REGISTRY_NAME_BYTES], target[256];
};

struct registry {
    struct served *base;     /* owned reference */
    struct served **tenants; /* [n], owned references, by name */
    int n, cap;
    struct alias *aliases; /* [n_aliases] owned, by name */
    int n_aliases, cap_aliases;
};

/* [A-Za-z0-9][A-Za-z0-9._:-]{0,63} */
bool registry_name_ok(const char *name);

err_t registry_open(struct registry *r, const char *base_name, const struct tenant_info *info,
                    const struct tokenizer *t, struct why *why);
void registry_close(struct registry *r);
/* The base's hash may become known after the start. */
void registry_refresh_base(struct registry *r, const struct tenant_info *info);

/* By the name of the base, of a tenant or of an alias, or "base:NAME" with the base's name in front
 * of one of these. Borrowed; NULL: no such name. served_ref to keep it. */
struct served *registry_find(const struct registry *r, const char *name);
/* Puts `tenant` (the reference is given, on failure too) under `name` in place of what stood there.
 * A tenant of the same content as one served already becomes another name for that one.
 * *replaced says whether the name existed; *out is borrowed. Errors: E_INVAL (bad name, base's
 * name), E_FORMAT (its tokenizer additions), E_NOMEM. */
err_t registry_put(struct registry *r, const char *name, struct tenant *tenant,
                   const struct tokenizer *base, bool *replaced, struct served **out,
                   struct why *why);
bool registry_remove(struct registry *r, const char *name); /* false: no such tenant */

/* Lets `name` stand for `target`, in place of what it stood for; *replaced says whether it did. The
 * target is the base or a tenant, never an alias; it need not be served yet. A tenant's name cannot
 * become an alias, nor the other way round. Errors: E_INVAL, E_NOMEM. */
err_t registry_alias(struct registry *r, const char *name, const char *target, bool *replaced,
                     struct why *why);
bool registry_unalias(struct registry *r, const char *name); /* false: no such alias */
/* Aliases of the text "NAME=TARGET, NAME=TARGET". Errors: E_CONFIG. */
err_t registry_read_aliases(struct registry *r, const char *text, struct why *why);

/* Notes which file it was read from; without memory it stays unknown, and a reload passes it by. */
void served_came_from(struct served *s, const char *path, const struct file_stamp *stamp);
/* Takes the memory of the tenant that has been asked for longest ago and is in no request, and
 * sends it away with all names of the same bits; never `but`. Borrowed; NULL: there is none. */
struct served *registry_evict(struct registry *r, const char *but);
/* Brings m back if its bits are there under another name. */
bool registry_adopt(const struct registry *r, struct served *m);
struct served *served_ref(struct served *s);
void served_unref(struct served *s); /* NULL is fine */

#endif
