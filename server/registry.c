#include "server/registry.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "config/log.h"

enum { MAX_TENANTS = 100000, MAX_ALIASES = 100000 };

bool registry_name_ok(const char *name) {
    static const char alnum[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    static const char all[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._:-";
    size_t n = strlen(name);
    return n >= 1 && n < REGISTRY_NAME_BYTES && strspn(name, alnum) >= 1 && strspn(name, all) == n;
}

static void set_info(struct served *s, const struct tenant_info *info) {
    s->info = info;
    snprintf(s->fingerprint, sizeof s->fingerprint, "bd-%.16s-%" PRIu64,
             info->hash[0] ? info->hash : "unknown", info->generation);
}

static struct served *served_new(const char *name, struct tenant *tenant,
                                 const struct tenant_info *info) {
    struct served *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->refs = 1;
    snprintf(s->name, sizeof s->name, "%s", name);
    s->tenant = tenant;
    s->used_us = mono_us();
    s->generation = info->generation_json ? json_loads(info->generation_json, 0, NULL) : NULL;
    if (tenant) { /* outlives it */
        s->facts = *info;
        s->facts.made_json = info->made_json ? strdup(info->made_json) : NULL;
        s->facts.quality_json = info->quality_json ? strdup(info->quality_json) : NULL;
        s->facts.tokenizer_json = s->facts.generation_json = NULL;
        info = &s->facts;
    }
    set_info(s, info);
    return s;
}

struct served *served_ref(struct served *s) {
    s->refs++;
    return s;
}

void served_unref(struct served *s) {
    if (!s || --s->refs)
        return;
    tokenizer_close(s->own_tokenizer);
    json_decref(s->generation);
    tenant_unref(s->tenant);
    free(s->path);
    free((char *)(uintptr_t)s->facts.made_json);
    free((char *)(uintptr_t)s->facts.quality_json);
    free(s);
}

void served_came_from(struct served *s, const char *path, const struct file_stamp *stamp) {
    free(s->path);
    s->path = strdup(path);
    s->stamp = *stamp;
}

/* A template that cannot be used takes chats alone; whoever registers the model should know. */
static void note_template(const struct served *s) {
    const char *bad = tokenizer_facts(s->tokenizer)->chat_error;
    if (bad)
        log_warn("tenant", "name=%s note=\"no chats: %s\"", s->name, bad);
}

err_t registry_open(struct registry *r, const char *base_name, const struct tenant_info *info,
                    const struct tokenizer *t, struct why *why) {
    *r = (struct registry){0};
    r->base = served_new(base_name, NULL, info);
    if (!r->base)
        return why_set(why, E_NOMEM, "no memory for the registry");
    r->base->tokenizer = t;
    if (t)
        note_template(r->base);
    return E_OK;
}

void registry_refresh_base(struct registry *r, const struct tenant_info *info) {
    if (r->base->info != info)
        set_info(r->base, info);
}

void registry_close(struct registry *r) {
    for (int i = 0; i < r->n; i++)
        served_unref(r->tenants[i]);
    free(r->tenants);
    free(r->aliases);
    served_unref(r->base);
    *r = (struct registry){0};
}

/* Index of the first tenant whose name is not below `name`. */
static int place_of(const struct registry *r, const char *name) {
    int low = 0, high = r->n;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (strcmp(r->tenants[middle]->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct served *find_tenant(const struct registry *r, const char *name) {
    int i = place_of(r, name);
    return i < r->n && strcmp(r->tenants[i]->name, name) == 0 ? r->tenants[i] : NULL;
}

static struct served *find_served(const struct registry *r, const char *name) {
    return strcmp(name, r->base->name) == 0 ? r->base : find_tenant(r, name);
}

/* Index of the first alias whose name is not below `name`. */
static int alias_place(const struct registry *r, const char *name) {
    int low = 0, high = r->n_aliases;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (strcmp(r->aliases[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct alias *find_alias(const struct registry *r, const char *name) {
    int i = alias_place(r, name);
    bool found = i < r->n_aliases && strcmp(r->aliases[i].name, name) == 0;
    return found ? &r->aliases[i] : NULL;
}

/* *known: there is such a name; an alias of what is gone is one, and names nothing. */
static struct served *find_any(const struct registry *r, const char *name, bool *known) {
    struct served *s = find_served(r, name);
    const struct alias *alias = s ? NULL : find_alias(r, name);
    *known = s || alias;
    return alias ? find_served(r, alias->target) : s;
}

struct served *registry_find(const struct registry *r, const char *name) {
    bool known;
    struct served *s = find_any(r, name, &known);
    size_t n = strlen(r->base->name);
    if (!known && strncmp(name, r->base->name, n) == 0 && name[n] == ':')
        s = find_any(r, name + n + 1, &known);
    return s;
}

/* --- aliases -------------------------------------------------------------------------------- */

static err_t reserve_alias(struct registry *r, struct why *why) {
    if (r->n_aliases < r->cap_aliases)
        return E_OK;
    if (r->n_aliases == MAX_ALIASES)
        return why_set(why, E_NOMEM, "No more than %d aliases.", MAX_ALIASES);
    int cap = r->cap_aliases ? 2 * r->cap_aliases : 16;
    struct alias *grown = realloc(r->aliases, (size_t)cap * sizeof *grown);
    if (!grown)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    r->aliases = grown;
    r->cap_aliases = cap;
    return E_OK;
}

err_t registry_alias(struct registry *r, const char *name, const char *target, bool *replaced,
                     struct why *why) {
    if (!registry_name_ok(name))
        return why_set(why, E_INVAL,
                       "An alias is 1 to 64 of A-Z a-z 0-9 . _ : - and starts with a letter or "
                       "digit.");
    if (find_served(r, name))
        return why_set(why, E_INVAL, "'%s' is the name of a model already.", name);
    if (strcmp(target, r->base->name) != 0 && !registry_name_ok(target))
        return why_set(why, E_INVAL, "The target of an alias is the name of the base or a tenant.");
    if (strcmp(name, target) == 0 || find_alias(r, target))
        return why_set(why, E_INVAL, "The target of an alias cannot be an alias.");
    struct alias *alias = find_alias(r, name);
    *replaced = alias != NULL;
    err_t e = alias ? E_OK : reserve_alias(r, why);
    if (e)
        return e;
    if (!alias) {
        int i = alias_place(r, name);
        alias = &r->aliases[i];
        memmove(alias + 1, alias, (size_t)(r->n_aliases - i) * sizeof *alias);
        r->n_aliases++;
        snprintf(alias->name, sizeof alias->name, "%s", name);
    }
    snprintf(alias->target, sizeof alias->target, "%s", target);
    return E_OK;
}

bool registry_unalias(struct registry *r, const char *name) {
    struct alias *alias = find_alias(r, name);
    if (!alias)
        return false;
    int i = (int)(alias - r->aliases);
    r->n_aliases--;
    memmove(alias, alias + 1, (size_t)(r->n_aliases - i) * sizeof *alias);
    return true;
}

err_t registry_read_aliases(struct registry *r, const char *text, struct why *why) {
    while (text && *text) {
        char name[REGISTRY_NAME_BYTES], target[256];
        bool replaced = false;
        int n = 0;
        if (sscanf(text, " %64[^ =,] = %255[^ =,] %n", name, target, &n) != 2 || n == 0 ||
            (text[n] && text[n] != ','))
            return why_set(why, E_CONFIG, "--aliases: \"%.60s\" is not NAME=TARGET, ...", text);
        err_t e = registry_alias(r, name, target, &replaced, why);
        if (!e && replaced)
            e = why_set(why, E_CONFIG, "%s stands there twice", name);
        if (e)
            return why_prefix(why, E_CONFIG, "--aliases");
        text += n + (text[n] == ',');
    }
    return E_OK;
}

/* --- tenants -------------------------------------------------------------------------------- */

static err_t reserve(struct registry *r, struct why *why) {
    if (r->n < r->cap)
        return E_OK;
    if (r->n == MAX_TENANTS)
        return why_set(why, E_NOMEM, "No more than %d tenants.", MAX_TENANTS);
    int cap = r->cap ? 2 * r->cap : 64;
    struct served **grown = realloc(r->tenants, (size_t)cap * sizeof *grown);
    if (!grown)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    r->tenants = grown;
    r->cap = cap;
    return E_OK;
}

/* The same bits under a second name share memory. */
static struct tenant *share_equal(const struct registry *r, struct tenant *tenant) {
    const char *hash = tenant_info(tenant)->hash;
    for (int i = 0; i < r->n; i++)
        if (r->tenants[i]->tenant && strcmp(r->tenants[i]->info->hash, hash) == 0) {
            struct tenant *same = tenant_ref(r->tenants[i]->tenant);
            tenant_unref(tenant);
            return same;
        }
    return tenant;
}

/* The same bits read again are the same to whoever looks. */
static void keep_identity(struct served *s, const struct served *before) {
    if (strcmp(s->facts.hash, before->facts.hash) != 0)
        return;
    s->facts.generation = before->facts.generation;
    s->facts.loaded_unix_s = before->facts.loaded_unix_s;
    set_info(s, &s->facts);
}

err_t registry_put(struct registry *r, const char *name, struct tenant *tenant,
                   const struct tokenizer *base, bool *replaced, struct served **out,
                   struct why *why) {
    err_t e = E_OK;
    struct served *s = NULL;
    if (!registry_name_ok(name))
        e = why_set(why, E_INVAL,
                    "A name is 1 to 64 of A-Z a-z 0-9 . _ : - and starts with a "
                    "letter or digit.");
    else if (strcmp(name, r->base->name) == 0)
        e = why_set(why, E_INVAL, "That name is the base model's.");
    else if (find_alias(r, name))
        e = why_set(why, E_INVAL, "That name is an alias; remove it first.");
    if (!e)
        e = reserve(r, why);
    if (e)
        goto out;
    tenant = share_equal(r, tenant);
    s = served_new(name, tenant, tenant_info(tenant));
    if (!s) {
        e = why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
        goto out;
    }
    tenant = NULL; /* s has it now */
    e = tokenizer_extend(&s->own_tokenizer, base, tenant_info(s->tenant)->tokenizer_json,
                         s->info->vocab, why);
    if (e)
        goto out;
    s->tokenizer = s->own_tokenizer;
    note_template(s);
    int i = place_of(r, name);
    *replaced = i < r->n && strcmp(r->tenants[i]->name, name) == 0;
    if (*replaced) {
        keep_identity(s, r->tenants[i]);
        served_unref(r->tenants[i]);
    } else {
        memmove(r->tenants + i + 1, r->tenants + i, (size_t)(r->n - i) * sizeof *r->tenants);
        r->n++;
    }
    r->tenants[i] = s;
    *out = s;
    s = NULL;
out:
    served_unref(s);
    tenant_unref(tenant);
    return e;
}

/* Whether no name of these bits is in a request, or `but`. */
static bool is_idle(const struct registry *r, const struct tenant *tenant, const char *but) {
    for (int i = 0; i < r->n; i++) {
        const struct served *m = r->tenants[i];
        if (m->tenant == tenant && (m->refs > 1 || !m->path || strcmp(m->name, but) == 0))
            return false;
    }
    return true;
}

struct served *registry_evict(struct registry *r, const char *but) {
    struct served *oldest = NULL;
    for (int i = 0; i < r->n; i++) {
        struct served *m = r->tenants[i];
        if (m->tenant && (!oldest || m->used_us < oldest->used_us) && is_idle(r, m->tenant, but))
            oldest = m;
    }
    const struct tenant *gone = oldest ? oldest->tenant : NULL;
    for (int i = 0; gone && i < r->n; i++) {
        struct served *m = r->tenants[i];
        if (m->tenant != gone)
            continue;
        m->away = true;
        tenant_unref(m->tenant);
        m->tenant = NULL;
    }
    return oldest;
}

bool registry_adopt(const struct registry *r, struct served *m) {
    for (int i = 0; i < r->n && m->away; i++)
        if (r->tenants[i]->tenant && strcmp(r->tenants[i]->facts.hash, m->facts.hash) == 0) {
            m->tenant = tenant_ref(r->tenants[i]->tenant);
            m->away = false;
        }
    return !m->away;
}

bool registry_remove(struct registry *r, const char *name) {
    int i = place_of(r, name);
    if (i == r->n || strcmp(r->tenants[i]->name, name) != 0)
        return false;
    served_unref(r->tenants[i]);
    r->n--;
    memmove(r->tenants + i, r->tenants + i + 1, (size_t)(r->n - i) * sizeof *r->tenants);
    return true;
}
