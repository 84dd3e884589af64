/* `bitdelta`: makes, imports, inspects, checks and exports tenant files, offline; `chat` alone
 * talks to the server, which is another program. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "compress/describe.h"
#include "config/options.h"

/* sysexits.h's values where it has one. */
enum {
    EXIT_OK = 0,
    EXIT_CHECK_FAILED = 1,
    EXIT_BAD_USAGE = 64,
    EXIT_BAD_DATA = 65,
    EXIT_BUG = 70,
    EXIT_AGAIN = 75, /* interrupted: the same call goes on */
};

static const struct command *const commands[] = {
    &command_compress, &command_import_diff, &command_import_lora, &command_inspect,
    &command_verify,   &command_eval,        &command_export,      &command_chat,
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void help(FILE *to) {
    fputs("bitdelta: fine-tunes of a base model as files of 1-bit weight differences\n\n"
          "A tenant file (NAME.bitdelta) holds what a full fine-tune changes in its base: the sign "
          "of every\nweight's difference, a scale per row, and everything else that differs. "
          "bitdeltad serves many of\nthem on top of one base.\n\n"
          "Usage: bitdelta COMMAND [OPTIONS]     bitdelta COMMAND --help\n\nCommands:\n",
          to);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(to, "  %-12s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\nA first tenant, made, looked at and checked:\n"
          "  bitdelta compress --base llama-7b --finetuned my-chat-7b -o chat.bitdelta\n"
          "  bitdelta inspect chat.bitdelta\n"
          "  bitdelta verify --base llama-7b chat.bitdelta\n\n"
          "Exit codes: 0 done, 1 the check failed, 64 wrong usage, 65 bad input or no answer, 70 "
          "internal\nerror, 75 interrupted: the same call goes on\n",
          to);
}

static int exit_code(const struct command *c, err_t e) {
    switch (e) {
    case E_OK:
        return EXIT_OK;
    case E_USAGE:
        return EXIT_BAD_USAGE;
    case E_CANCELLED:
        return EXIT_AGAIN;
    case E_NOMEM:
    case E_INTERNAL:
        return EXIT_BUG;
    default:
        return c->is_check ? EXIT_CHECK_FAILED : EXIT_BAD_DATA;
    }
}

int main(int argc, char **argv) {
    json_object_seed(0); /* before any object, so that hostile keys cannot be chosen to collide */
    if (argc < 2) {
        help(stderr);
        return EXIT_BAD_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        help(stdout);
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("bitdelta %s\n", options_version());
        return EXIT_OK;
    }
    if (argc == 2 && describe_print(commands, N_COMMANDS, NULL, argv[1]))
        return EXIT_OK;
    for (int i = 0; i < N_COMMANDS; i++) {
        const struct command *c = commands[i];
        if (strcmp(argv[1], c->name) != 0)
            continue;
        if (argc == 3 && describe_print(commands, N_COMMANDS, c, argv[2]))
            return EXIT_OK;
        for (int j = 2; j < argc && strcmp(argv[j], "--") != 0; j++)
            if (strcmp(argv[j], "--help") == 0 || strcmp(argv[j], "-h") == 0) {
                command_help(c);
                return EXIT_OK;
            }
        struct why why = {{0}};
        struct args a;
        err_t e = args_parse(&a, c, argc - 2, argv + 2, &why);
        if (!e)
            e = c->run(&a, &why);
        if (e)
            fprintf(stderr, "bitdelta %s: %s\n", c->name, why.text[0] ? why.text : err_sentence(e));
        if (e == E_USAGE)
            fprintf(stderr, "Try: bitdelta %s --help\n", c->name);
        return exit_code(c, e);
    }
    fprintf(stderr, "bitdelta: there is no command \"%.64s\"; see bitdelta --help\n", argv[1]);
    return EXIT_BAD_USAGE;
}
