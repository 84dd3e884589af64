/* Manual pages of manual.h, in mdoc(7), as `mandoc -T lint` and `groff -ww` like them: a sentence a
 * line, no line beyond 80 columns. */
#include "config/manual.h"

#include <ctype.h>
#include <string.h>

enum { WIDTH = 76 };

/* The day that stands on the pages: when what they say was last looked through as a whole. */
static const char date[] = "November 22, 2026";

/* One word of text with what roff takes for its own. */
static void put_word(FILE *f, const char *word, size_t n, bool first) {
    if (first && (*word == '.' || *word == '\''))
        fputs("\\&", f);
    for (size_t i = 0; i < n; i++)
        switch (word[i]) {
        case '\\':
            fputs("\\e", f);
            break;
        case '`':
            fputs("\\(ga", f);
            break;
        case '^':
            fputs("\\(ha", f);
            break;
        case '~':
            fputs("\\(ti", f);
            break;
        case '-': /* options are to be copied: minus signs, no hyphens */
            fputs((i + 1 < n && word[i + 1] == '-') || (i && word[i - 1] == '-') ? "\\-" : "-", f);
            break;
        default:
            fputc(word[i], f);
        }
}

/* Text as lines: broken at width and after every sentence. */
static void put_text(FILE *f, const char *text) {
    size_t column = 0;
    bool sentence_ended = false;
    while (*(text += strspn(text, " \n"))) {
        size_t n = strcspn(text, " \n");
        if (column && (sentence_ended || column + 1 + n > WIDTH)) {
            fputc('\n', f);
            column = 0;
        } else if (column) {
            fputc(' ', f);
            column++;
        }
        put_word(f, text, n, column == 0);
        column += n;
        char last = text[n - 1], before = n > 1 ? text[n - 2] : 0;
        sentence_ended = strchr(".?!", last) || (last == ')' && before && strchr(".?!", before));
        text += n;
    }
    if (column)
        fputc('\n', f);
}

/* Paragraphs, apart by blank lines. */
static void put_paragraphs(FILE *f, const char *text) {
    for (bool first = true; *(text += strspn(text, "\n")); first = false) {
        const char *end = strstr(text, "\n\n");
        size_t n = end ? (size_t)(end - text) : strlen(text);
        char paragraph[4096];
        snprintf(paragraph, sizeof paragraph, "%.*s", (int)n, text);
        if (!first)
            fputs(".Pp\n", f);
        put_text(f, paragraph);
        text += n;
    }
}

/* Lines as they are. */
static void put_lines(FILE *f, const char *text) {
    size_t margin = strspn(text, " ");
    fputs(".Bd -literal -offset indent\n", f);
    while (*text) {
        size_t n = strcspn(text, "\n");
        if (n > margin)
            put_word(f, text + margin, n - margin, true);
        fputc('\n', f);
        text += n + (text[n] == '\n');
    }
    fputs(".Ed\n", f);
}

static void put_synopsis(FILE *f, const struct manual *m, const struct manual_command *c) {
    fprintf(f, ".Sh SYNOPSIS\n.Nm %s\n", m->program);
    if (c->name)
        fprintf(f, ".Cm %s\n", c->name);
    for (int i = 0; i < c->n_options; i++) {
        const struct manual_option *o = &c->option[i];
        if (!o->name || (!c->name && !o->required)) /* the daemon's are too many to be read here */
            continue;
        char flag[64];
        if (o->letter)
            snprintf(flag, sizeof flag, "Fl %c", o->letter);
        else
            snprintf(flag, sizeof flag, "Fl -%s", o->name);
        fprintf(f, ".%s%s%s%s\n", o->required ? "" : "Op ", flag, o->value ? " Ar " : "",
                o->value ? o->value : "");
    }
    if (!c->name)
        fputs(".Op Ar OPTIONS\n", f);
    if (c->operand)
        fprintf(f, ".%sAr %s\n", c->operand_is_optional ? "Op " : "", c->operand);
}

static void put_option(FILE *f, const struct manual_option *o) {
    fputs(".It ", f);
    if (o->letter)
        fprintf(f, "Fl %c , ", o->letter);
    fprintf(f, "Fl -%s", o->name);
    if (o->kind == MANUAL_TRUTH)
        fprintf(f, " , Fl -no-%s", o->name);
    else if (o->value)
        fprintf(f, " Ar %s", o->value);
    fputc('\n', f);
    char text[2048];
    bool sentence = isupper((unsigned char)*o->help);
    snprintf(text, sizeof text, "%s%s", o->help, sentence ? "" : ".");
    text[0] = (char)toupper((unsigned char)text[0]);
    put_text(f, text);
    if (o->note) {
        snprintf(text, sizeof text, "(%s)", o->note);
        put_text(f, text);
    }
}

static void put_options(FILE *f, const struct manual_command *c) {
    bool open = false;
    if (c->name && c->n_options)
        fputs("The options are:\n", f);
    for (int i = 0; i < c->n_options; i++) {
        const struct manual_option *o = &c->option[i];
        if (!o->name) {
            fprintf(f, "%s.Ss %s\n", open ? ".El\n" : "", o->help);
            open = false;
            continue;
        }
        if (!open)
            fputs(".Bl -tag -width Ds\n", f);
        open = true;
        put_option(f, o);
    }
    if (open)
        fputs(".El\n", f);
}

static void put_head(FILE *f, const char *name, int section, const char *summary) {
    fprintf(f, ".\\\" Made from the program's own tables; do not edit.\n.Dd %s\n.Dt ", date);
    for (const char *p = name; *p; p++)
        fputc(toupper((unsigned char)*p), f);
    fprintf(f, " %d\n.Os\n.Sh NAME\n.Nm %s\n.Nd %s\n", section, name, summary);
}

/* The page of a program that is its commands. */
static void put_overview(FILE *f, const struct manual *m) {
    put_head(f, m->program, m->section, m->summary);
    fprintf(f, ".Sh SYNOPSIS\n.Nm\n.Ar COMMAND\n.Op Ar OPTIONS\n.Nm\n.Ar COMMAND\n.Fl -help\n.Nm\n"
               ".Fl -version\n.Sh DESCRIPTION\n");
    put_paragraphs(f, m->about);
    fputs(".Pp\nThe commands, each with a page of its own, are:\n.Bl -tag -width Ds\n", f);
    for (int i = 0; i < m->n_commands; i++) {
        char text[256];
        snprintf(text, sizeof text, "%s.", m->command[i].summary);
        text[0] = (char)toupper((unsigned char)text[0]);
        fprintf(f, ".It Xr %s-%s %d\n", m->program, m->command[i].name, m->section);
        put_text(f, text);
    }
    fprintf(f, ".El\n%s.Sh SEE ALSO\n.Xr bitdelta 5 ,\n.Xr bitdeltad 8\n", m->rest);
}

void manual_print_page(FILE *f, const struct manual *m, const struct manual_command *c) {
    char name[128];
    if (!c) {
        put_overview(f, m);
        return;
    }
    snprintf(name, sizeof name, "%s%s%s", m->program, c->name ? "-" : "", c->name ? c->name : "");
    put_head(f, name, m->section, c->summary);
    put_synopsis(f, m, c);
    fputs(".Sh DESCRIPTION\n", f);
    put_paragraphs(f, c->about);
    fputs(c->name ? ".Pp\n" : ".Sh OPTIONS\n", f);
    put_options(f, c);
    fputs(m->rest, f);
    if (c->examples) {
        fputs(".Sh EXAMPLES\n", f);
        put_lines(f, c->examples);
    }
    if (c->name)
        fprintf(f, ".Sh SEE ALSO\n.Xr %s %d ,\n.Xr bitdelta 5 ,\n.Xr bitdeltad 8\n", m->program,
                m->section);
    else
        fputs(".Sh SEE ALSO\n.Xr bitdelta 1 ,\n.Xr bitdelta 5 ,\n.Xr systemd.service 5\n", f);
}

bool manual_print(FILE *f, const struct manual *m, const struct manual_command *c,
                  const char *word) {
    if (strcmp(word, "--print-man") == 0)
        manual_print_page(f, m, c);
    else if (strcmp(word, "--print-bash") == 0)
        manual_print_bash(f, m);
    else if (strcmp(word, "--print-zsh") == 0)
        manual_print_zsh(f, m);
    else if (strcmp(word, "--print-fish") == 0)
        manual_print_fish(f, m);
    else
        return false;
    return true;
}
