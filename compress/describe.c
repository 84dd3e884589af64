#include "compress/describe.h"

#include <stdio.h>
#include <string.h>

#include "config/manual.h"

enum { MAX_COMMANDS = 16 };

static const char rest[] = ".Sh EXIT STATUS\n"
                           ".Bl -tag -width 64x -compact\n"
                           ".It 0\n"
                           "Done.\n"
                           ".It 1\n"
                           "The check failed.\n"
                           ".It 64\n"
                           "The command line is not valid.\n"
                           ".It 65\n"
                           "The input is not good, or no answer came.\n"
                           ".It 70\n"
                           "Memory ran out, or an internal error.\n"
                           ".El\n";

/* What the name of a value says about it. */
static enum manual_kind kind_of(const char *value) {
    if (!value)
        return MANUAL_SWITCH;
    if (strcmp(value, "DIR") == 0 || strcmp(value, "FOLDER") == 0)
        return MANUAL_FOLDER;
    if (strcmp(value, "FILE") == 0 || strchr(value, '.'))
        return MANUAL_FILE;
    return strchr(value, '|') ? MANUAL_WORDS : MANUAL_TEXT;
}

bool describe_print(const struct command *const *commands, int n, const struct command *one,
                    const char *word) {
    struct manual_option option[MAX_COMMANDS][MAX_OPTIONS];
    struct manual_command list[MAX_COMMANDS], *page = NULL;
    for (int i = 0; i < n && i < MAX_COMMANDS; i++) {
        const struct command *c = commands[i];
        list[i] = (struct manual_command){.name = c->name,
                                          .summary = c->summary,
                                          .about = c->about,
                                          .operand = c->operand,
                                          .operand_is_optional = c->operand_is_optional,
                                          .operand_kind = kind_of(c->operand),
                                          .examples = c->examples,
                                          .option = option[i]};
        for (const struct option *o = c->option; o < c->option + MAX_OPTIONS && o->name; o++)
            option[i][list[i].n_options++] =
                (struct manual_option){.kind = kind_of(o->value),
                                       .name = o->name + 2,
                                       .letter = strcmp(o->name, "--output") == 0 ? 'o' : 0,
                                       .required = o->required,
                                       .value = o->value,
                                       .help = o->help};
        if (c == one)
            page = &list[i];
    }
    struct manual m = {
        .program = "bitdelta",
        .section = 1,
        .summary = "fine-tunes of a base model as files of 1-bit weight differences",
        .about = "A tenant file holds what a full fine-tune changes in its base: the sign of every "
                 "weight's difference, a scale per row, and everything else that differs. "
                 "bitdeltad serves many of them on top of one base.",
        .rest = rest,
        .command = list,
        .n_commands = n};
    return manual_print(stdout, &m, page, word);
}
