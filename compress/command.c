#include "compress/command.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/clock.h"

static const struct option *find(const struct option *table, const char *name, size_t n) {
    for (const struct option *o = table; o < table + MAX_OPTIONS && o->name; o++)
        if (strlen(o->name) == n && strncmp(o->name, name, n) == 0)
            return o;
    return NULL;
}

static bool takes_many(const char *value) {
    size_t n = value ? strlen(value) : 0;
    return n > 3 && strcmp(value + n - 3, "...") == 0;
}

static err_t add_many(struct args *a, const char *name, const char *word, struct why *why) {
    if (a->n_many == MAX_MANY)
        return why_set(why, E_USAGE, "%s takes at most %d", name, MAX_MANY);
    a->many[a->n_many++] = word;
    return E_OK;
}

/* The words of an option of many, `first` and those behind it up to the next option. */
static err_t take_words(struct args *a, const struct option *o, const char *first, int argc,
                        char **argv, int *i, struct why *why) {
    err_t e = add_many(a, o->name, first, why);
    while (!e && *i + 1 < argc && argv[*i + 1][0] != '-')
        e = add_many(a, o->name, argv[++*i], why);
    return e;
}

/* One option at argv[*i], with its value in the same word (--x=v) or in the next. */
static err_t parse_option(struct args *a, const struct command *c, int argc, char **argv, int *i,
                          struct why *why) {
    const char *word = argv[*i], *equals = strchr(word, '=');
    size_t n = equals ? (size_t)(equals - word) : strlen(word);
    const struct option *o =
        strcmp(word, "-o") == 0 ? find(c->option, "--output", 8) : find(c->option, word, n);
    if (!o)
        return why_set(why, E_USAGE, "%s has no option %.64s", c->name, word);
    const char **to = &a->value[o - c->option];
    if (*to && !takes_many(o->value))
        return why_set(why, E_USAGE, "%s is given twice", o->name);
    if (!o->value) {
        if (equals)
            return why_set(why, E_USAGE, "%s takes no value", o->name);
        *to = "";
        return E_OK;
    }
    *to = equals ? equals + 1 : *i + 1 < argc ? argv[++*i] : NULL;
    if (!*to || !**to)
        return why_set(why, E_USAGE, "%s needs a value: %s", o->name, o->value);
    return takes_many(o->value) ? take_words(a, o, *to, argc, argv, i, why) : E_OK;
}

err_t args_parse(struct args *a, const struct command *c, int argc, char **argv, struct why *why) {
    memset(a, 0, sizeof *a);
    a->option = c->option;
    int n_operands = 0, wanted = c->operand ? 1 : 0;
    bool options_end = false;
    for (int i = 0; i < argc; i++) {
        if (!options_end && strcmp(argv[i], "--") == 0) {
            options_end = true;
        } else if (!options_end && argv[i][0] == '-' && argv[i][1]) {
            err_t e = parse_option(a, c, argc, argv, &i, why);
            if (e)
                return e;
        } else if (takes_many(c->operand)) {
            a->operand[0] = n_operands++ ? a->operand[0] : argv[i];
            err_t e = add_many(a, c->name, argv[i], why);
            if (e)
                return e;
        } else if (n_operands == wanted) {
            return why_set(why, E_USAGE, "%s does not know what to do with \"%.64s\"", c->name,
                           argv[i]);
        } else {
            a->operand[n_operands++] = argv[i];
        }
    }
    for (const struct option *o = c->option; o < c->option + MAX_OPTIONS && o->name; o++)
        if (o->required && !a->value[o - c->option])
            return why_set(why, E_USAGE, "%s needs %s %s", c->name, o->name, o->value);
    if (n_operands < wanted && !c->operand_is_optional)
        return why_set(why, E_USAGE, "%s needs %s", c->name, c->operand);
    return E_OK;
}

const char *arg(const struct args *a, const char *name) {
    return a->value[find(a->option, name, strlen(name)) - a->option];
}

err_t arg_int(const struct args *a, const char *name, int32_t lo, int32_t hi, int32_t absent,
              int32_t *out, struct why *why) {
    const char *text = arg(a, name);
    *out = absent;
    if (!text)
        return E_OK;
    char *end;
    errno = 0;
    long x = strtol(text, &end, 10);
    if (errno || *end || x < lo || x > hi)
        return why_set(why, E_USAGE, "%s must be a whole number in %d..%d, not \"%.32s\"", name, lo,
                       hi, text);
    *out = (int32_t)x;
    return E_OK;
}

err_t arg_double(const struct args *a, const char *name, double lo, double hi, double absent,
                 double *out, struct why *why) {
    const char *text = arg(a, name);
    *out = absent;
    if (!text)
        return E_OK;
    char *end;
    double x = strtod(text, &end);
    if (*end || !(x >= lo && x <= hi)) /* a NaN is outside */
        return why_set(why, E_USAGE, "%s must be a number in %g..%g, not \"%.32s\"", name, lo, hi,
                       text);
    *out = x;
    return E_OK;
}

void command_help(const struct command *c) {
    printf("bitdelta %s: %s\n\nUsage: bitdelta %s", c->name, c->summary, c->name);
    for (const struct option *o = c->option; o < c->option + MAX_OPTIONS && o->name; o++)
        if (o->required)
            printf(" %s %s", o->name, o->value);
    bool optional = c->operand_is_optional;
    printf(" [OPTIONS]%s%s%s%s\n\n%s\nOptions:\n", c->operand ? " " : "", optional ? "[" : "",
           c->operand ? c->operand : "", optional ? "]" : "", c->about);
    for (const struct option *o = c->option; o < c->option + MAX_OPTIONS && o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s%s", strcmp(o->name, "--output") == 0 ? "-o, " : "",
                 o->name, o->value ? " " : "", o->value ? o->value : "");
        if (strlen(left) > 22)
            printf("  %s\n  %-22s %s\n", left, "", o->help);
        else
            printf("  %-22s %s\n", left, o->help);
    }
    printf("\nExamples:\n%s", c->examples);
}

void progress_begin(struct progress *p, const char *what) {
    *p = (struct progress){.what = what, .began_us = mono_us(), .on = isatty(STDERR_FILENO)};
}

void progress_show(void *arg_p, uint64_t done, uint64_t total) {
    struct progress *p = arg_p;
    if (!p->on || mono_us() - p->drawn_us < 100000)
        return;
    p->drawn_us = mono_us();
    char bar[31];
    double part = total ? (double)done / (double)total : 1;
    for (int i = 0; i < 30; i++)
        bar[i] = i < (int)(part * 30) ? '#' : '.';
    bar[30] = 0;
    double spent = (double)(mono_us() - p->began_us) / 1e6;
    fprintf(stderr, "\r%-12s [%s] %3.0f %%", p->what, bar, 100 * part);
    if (spent > 1 && part > 0.01) /* sooner it would be a guess */
        fprintf(stderr, "  %.0f s left  ", spent * (1 - part) / part);
}

void progress_end(struct progress *p) {
    if (p->on)
        fprintf(stderr, "\r%72s\r", "");
}
