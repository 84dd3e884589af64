/* Completions of manual.h for bash, zsh and fish. What an option takes decides what is offered:
 * folders, files, words, or nothing. */
#include <string.h>

#include "config/manual.h"

/* The first sentence of a help text without its stop, for lists that show one line each; `special`
 * characters get a backslash. */
static void put_short(FILE *f, const char *text, const char *special) {
    for (const char *p = text; *p && strncmp(p, ". ", 2) != 0 && !(*p == '.' && !p[1]); p++)
        if (*p == '\'' && !strchr(special, '\''))
            fputs("'\\''", f);
        else
            fprintf(f, "%s%c", strchr(special, *p) ? "\\" : "", *p);
}

/* "auto|cpu" as "auto cpu". */
static void put_words(FILE *f, const char *words) {
    for (; *words; words++)
        fputc(*words == '|' ? ' ' : *words, f);
}

static const char *words_of(const struct manual_option *o) {
    return o->kind == MANUAL_TRUTH ? "true|false" : o->value;
}

/* --- bash ----------------------------------------------------------------------------------- */

static void bash_offer(FILE *f, enum manual_kind kind, const char *words) {
    switch (kind) {
    case MANUAL_FILE:
    case MANUAL_FOLDER:
        fprintf(f,
                "compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -%c -- "
                "\"$cur\")",
                kind == MANUAL_FILE ? 'f' : 'd');
        break;
    case MANUAL_WORDS:
    case MANUAL_TRUTH:
        fputs("mapfile -t COMPREPLY < <(compgen -W '", f);
        put_words(f, words);
        fputs("' -- \"$cur\")", f);
        break;
    default:
        fputs("COMPREPLY=()", f);
    }
}

/* After an option, its value. */
static void bash_values(FILE *f, const struct manual_command *c) {
    for (int i = 0; i < c->n_options; i++) {
        const struct manual_option *o = &c->option[i];
        /* A truth takes its value behind "=" alone. */
        if (!o->name || o->kind == MANUAL_SWITCH)
            continue;
        fprintf(f, "    '%s --%s%s'", c->name ? c->name : "", o->name,
                o->kind == MANUAL_TRUTH ? " =" : "");
        if (o->kind != MANUAL_TRUTH)
            fprintf(f, " | '%s --%s ='", c->name ? c->name : "", o->name);
        if (o->letter)
            fprintf(f, " | '%s -%c'", c->name ? c->name : "", o->letter);
        fputs(") ", f);
        bash_offer(f, o->kind,
                   o->kind == MANUAL_WORDS || o->kind == MANUAL_TRUTH ? words_of(o) : "");
        fputs("; return ;;\n", f);
    }
}

static void bash_names(FILE *f, const struct manual_command *c) {
    fprintf(f, "    '%s') words='", c->name ? c->name : "");
    for (int i = 0; i < c->n_options; i++) {
        const struct manual_option *o = &c->option[i];
        if (!o->name)
            continue;
        fprintf(f, "--%s ", o->name);
        if (o->kind == MANUAL_TRUTH)
            fprintf(f, "--no-%s ", o->name);
    }
    fputs("--help'", f);
    if (c->operand) {
        fputs("; [[ $cur == -* ]] || { ", f);
        bash_offer(f, c->operand_kind, "");
        fputs("; return; }", f);
    }
    fputs(" ;;\n", f);
}

void manual_print_bash(FILE *f, const struct manual *m) {
    bool commands = m->command[0].name != NULL;
    fprintf(f,
            "# Completion of %s for bash, made by: %s --print-bash\n"
            "_%s() {\n"
            "    local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command= "
            "words=\n"
            "    COMPREPLY=()\n"
            "    # bash cuts words at \"=\": --name=value comes as three.\n"
            "    if [[ $cur == = ]]; then\n"
            "        cur= before+=' ='\n"
            "    elif [[ $before == = ]]; then\n"
            "        before=\"${COMP_WORDS[COMP_CWORD - 2]} =\"\n"
            "    fi\n",
            m->program, m->program, m->program);
    if (commands)
        fputs("    ((COMP_CWORD > 1)) && command=${COMP_WORDS[1]}\n", f);
    fputs("    case \"$command $before\" in\n", f);
    for (int i = 0; i < m->n_commands; i++)
        bash_values(f, &m->command[i]);
    fputs("    esac\n    case $command in\n", f);
    for (int i = 0; i < m->n_commands; i++)
        bash_names(f, &m->command[i]);
    if (commands) {
        fputs("    '') words='", f);
        for (int i = 0; i < m->n_commands; i++)
            fprintf(f, "%s ", m->command[i].name);
        fputs("--help --version' ;;\n", f);
    }
    fprintf(f,
            "    esac\n"
            "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
            "}\n"
            "complete -F _%s %s\n",
            m->program, m->program);
}

/* --- zsh ------------------------------------------------------------------------------------ */

static void zsh_action(FILE *f, enum manual_kind kind, const char *words) {
    switch (kind) {
    case MANUAL_FILE:
        fputs("_files", f);
        break;
    case MANUAL_FOLDER:
        fputs("_files -/", f);
        break;
    case MANUAL_WORDS:
    case MANUAL_TRUTH:
        fputc('(', f);
        put_words(f, words);
        fputc(')', f);
        break;
    default:
        break; /* something that cannot be guessed */
    }
}

static void zsh_option(FILE *f, const struct manual_option *o) {
    static const char special[] = "[]:\\";
    bool truth = o->kind == MANUAL_TRUTH;
    bool many = o->value && strstr(o->value, "..."); /* every word up to the next option */
    fprintf(f, " \\\n        '%s--%s%s[", many ? "*" : "", o->name,
            truth                      ? "=-"
            : o->kind != MANUAL_SWITCH ? "="
                                       : "");
    put_short(f, o->help, special);
    fputc(']', f);
    if (o->kind != MANUAL_SWITCH) {
        fputs(truth ? "::" : many ? ":*-*:" : ":", f);
        if (many)
            fputs(o->value, f); /* put_short takes a last dot for a sentence's */
        else
            put_short(f, o->kind == MANUAL_WORDS || truth ? "value" : o->value, special);
        fputc(':', f);
        zsh_action(f, o->kind, words_of(o));
    }
    fputc('\'', f);
    if (truth)
        fprintf(f, " \\\n        '--no-%s'", o->name);
    if (o->letter) {
        fprintf(f, " \\\n        '-%c+:%s:", o->letter, o->value);
        zsh_action(f, o->kind, o->value);
        fputc('\'', f);
    }
}

static void zsh_arguments(FILE *f, const struct manual_command *c) {
    fputs("_arguments", f);
    for (int i = 0; i < c->n_options; i++)
        if (c->option[i].name)
            zsh_option(f, &c->option[i]);
    fputs(" \\\n        '--help[say what there is]'", f);
    if (c->operand) {
        fprintf(f, " \\\n        '%s:%s:", strstr(c->operand, "...") ? "*" : "1", c->operand);
        zsh_action(f, c->operand_kind, "");
        fputc('\'', f);
    }
    fputc('\n', f);
}

void manual_print_zsh(FILE *f, const struct manual *m) {
    fprintf(f, "#compdef %s\n# Completion of %s for zsh, made by: %s --print-zsh\n_%s() {\n",
            m->program, m->program, m->program, m->program);
    if (!m->command[0].name) {
        fputs("    ", f);
        zsh_arguments(f, &m->command[0]);
    } else {
        fputs("    local -a commands=(\n", f);
        for (int i = 0; i < m->n_commands; i++) {
            fprintf(f, "        '%s:", m->command[i].name);
            put_short(f, m->command[i].summary, ":\\");
            fputs("'\n", f);
        }
        fputs("    )\n"
              "    if ((CURRENT == 2)); then\n"
              "        _describe -t commands command commands\n"
              "        _arguments '--help[say what there is]' '--version[print the version]'\n"
              "        return\n"
              "    fi\n"
              "    local command=$words[2]\n"
              "    shift words\n"
              "    ((CURRENT--))\n"
              "    case $command in\n",
              f);
        for (int i = 0; i < m->n_commands; i++) {
            fprintf(f, "    %s)\n        ", m->command[i].name);
            zsh_arguments(f, &m->command[i]);
            fputs("        ;;\n", f);
        }
        fputs("    esac\n", f);
    }
    fprintf(f, "}\n_%s \"$@\"\n", m->program);
}

/* --- fish ----------------------------------------------------------------------------------- */

static void fish_value(FILE *f, enum manual_kind kind, const char *words) {
    switch (kind) {
    case MANUAL_FILE:
        fputs(" -r -F", f);
        break;
    case MANUAL_FOLDER:
        fputs(" -x -a '(__fish_complete_directories)'", f);
        break;
    case MANUAL_WORDS:
        fputs(" -x -a '", f);
        put_words(f, words);
        fputc('\'', f);
        break;
    case MANUAL_TEXT:
        fputs(" -x", f);
        break;
    default:
        break;
    }
}

static void fish_command(FILE *f, const char *program, const struct manual_command *c) {
    char line[256];
    if (c->name)
        snprintf(line, sizeof line, "complete -c %s -n '__fish_seen_subcommand_from %s'", program,
                 c->name);
    else
        snprintf(line, sizeof line, "complete -c %s", program);
    for (int i = 0; i < c->n_options; i++) {
        const struct manual_option *o = &c->option[i];
        if (!o->name)
            continue;
        fprintf(f, "%s -l %s", line, o->name);
        if (o->letter)
            fprintf(f, " -s %c", o->letter);
        fish_value(f, o->kind, o->value);
        fputs(" -d '", f);
        put_short(f, o->help, "'\\");
        fputs("'\n", f);
        if (o->kind == MANUAL_TRUTH)
            fprintf(f, "%s -l no-%s\n", line, o->name);
    }
    fprintf(f, "%s -l help -d 'say what there is'\n", line);
    if (c->operand && c->operand_kind == MANUAL_FILE)
        fprintf(f, "%s -F\n", line);
    else if (c->operand && c->operand_kind == MANUAL_FOLDER)
        fprintf(f, "%s -a '(__fish_complete_directories)'\n", line);
}

void manual_print_fish(FILE *f, const struct manual *m) {
    fprintf(f, "# Completion of %s for fish, made by: %s --print-fish\ncomplete -c %s -f\n",
            m->program, m->program, m->program);
    for (int i = 0; i < m->n_commands; i++) {
        const struct manual_command *c = &m->command[i];
        if (c->name) {
            fprintf(f, "complete -c %s -n __fish_use_subcommand -a %s -d '", m->program, c->name);
            put_short(f, c->summary, "'\\");
            fputs("'\n", f);
        }
        fish_command(f, m->program, c);
    }
    if (m->command[0].name)
        fprintf(f,
                "complete -c %s -n __fish_use_subcommand -l help -d 'say what there is'\n"
                "complete -c %s -n __fish_use_subcommand -l version -d 'print the version'\n",
                m->program, m->program);
}
