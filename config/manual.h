/* A program's command line as data, and what is made of it: manual pages in mdoc(7), completions
 * for bash, zsh and fish. The tables that the parsers read fill this in, so no page can say what is
 * not parsed. */
#ifndef CONFIG_MANUAL_H
#define CONFIG_MANUAL_H

#include <stdbool.h>
#include <stdio.h>

enum manual_kind {
    MANUAL_SWITCH, /* takes no value */
    MANUAL_TRUTH,  /* may take true or false, and has a "no-" form */
    MANUAL_TEXT,
    MANUAL_FILE,
    MANUAL_FOLDER,
    MANUAL_WORDS, /* one of the words of `value`, with | between */
};

/* An option, or (name NULL) the title of those that follow. Texts are borrowed throughout. */
struct manual_option {
    enum manual_kind kind;
    const char *name; /* without the dashes */
    char letter;      /* a short form, 0: none */
    bool required;
    const char *value; /* "DIR", "auto|cpu", "FILE..." for several; of a switch NULL */
    const char *note;  /* "default: 64 sequences", or NULL */
    const char *help;
};

struct manual_command {
    const char *name;            /* NULL: the program itself has the options */
    const char *summary, *about; /* about: paragraphs, apart by blank lines */
    const char *operand;         /* NULL: none */
    bool operand_is_optional;
    enum manual_kind operand_kind; /* what completes it */
    const char *examples;          /* lines, or NULL */
    const struct manual_option *option;
    int n_options;
};

struct manual {
    const char *program;
    int section;
    const char *summary, *about;
    const char *rest; /* further sections, mdoc already */
    const struct manual_command *command;
    int n_commands; /* 1 with a NULL name, or as many as there are */
};

/* Prints what `word` asks for ("--print-man", "--print-bash", "--print-zsh", "--print-fish"); the
 * page is the command's where one is given. False: it asks for nothing of this. */
bool manual_print(FILE *f, const struct manual *m, const struct manual_command *c,
                  const char *word);

void manual_print_page(FILE *f, const struct manual *m, const struct manual_command *c);
void manual_print_bash(FILE *f, const struct manual *m);
void manual_print_zsh(FILE *f, const struct manual *m);
void manual_print_fish(FILE *f, const struct manual *m);

#endif
