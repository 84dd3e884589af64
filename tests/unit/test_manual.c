/* Manual pages and completions: that the formatters find no fault in the pages, that every option
 * of the tables is on them, and what the shells offer when they are asked. */
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compress/command.h"
#include "config/option_row.h"
#include "tests/check.h"

static char output[1 << 18];

/* Runs a line of sh with $B, the folder of the programs; what it printed is in `output`. */
static int sh(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int sh(const char *format, ...) {
    char self[512], line[8192];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    CHECK(n > 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    setenv("B", self, 1);
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    FILE *f = popen(line, "r");
    CHECK(f);
    size_t got = fread(output, 1, sizeof output - 1, f);
    output[got] = 0;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void need(const char *program) {
    if (sh("command -v %s", program))
        test_skip("%s is not installed", program);
}

static const char *const commands[] = {"compress", "import-diff", "import-lora", "inspect",
                                       "verify",   "eval",        "export",      "chat"};
enum { N_COMMANDS = sizeof commands / sizeof *commands };
static const struct command *const tables[N_COMMANDS] = {
    &command_compress, &command_import_diff, &command_import_lora, &command_inspect,
    &command_verify,   &command_eval,        &command_export,      &command_chat};

/* The pages, one after the other, as files of the test's folder. */
static void write_pages(void) {
    CHECK_EQ(sh("mkdir -p %s/man && cd %s/man && $B/bitdeltad --print-man > bitdeltad.8 && "
                "$B/bitdelta --print-man > bitdelta.1",
                test_tmp(), test_tmp()),
             0);
    for (int i = 0; i < N_COMMANDS; i++)
        CHECK_EQ(sh("$B/bitdelta %s --print-man > %s/man/bitdelta-%s.1", commands[i], test_tmp(),
                    commands[i]),
                 0);
    CHECK_EQ(sh("cp docs/bitdelta.5 %s/man", test_tmp()), 0);
}

TEST(manual_pages_are_clean_for_mandoc) {
    need("mandoc");
    write_pages();
    /* Pages that are not installed yet are none of its business. */
    sh("mandoc -T lint %s/man/* 2>/dev/null | grep -v 'referenced manual not found'", test_tmp());
    CHECK_STR(output, "");
}

TEST(manual_pages_are_clean_for_groff) {
    need("groff");
    write_pages();
    sh("for page in %s/man/*; do groff -ww -mdoc -z -Tutf8 $page 2>&1; done", test_tmp());
    CHECK_STR(output, "");
}

TEST(manual_pages_have_every_option) {
    char wanted[128];
    CHECK_EQ(sh("$B/bitdeltad --print-man"), 0);
    for (int i = 0; i < option_n_rows; i++)
        if (option_rows[i].name) {
            snprintf(wanted, sizeof wanted, ".It Fl -%s", option_rows[i].name);
            CHECK_HAS(output, wanted);
        }
    for (int i = 0; i < N_COMMANDS; i++) {
        CHECK_EQ(sh("$B/bitdelta %s --print-man", commands[i]), 0);
        for (const struct option *o = tables[i]->option; o->name; o++) {
            snprintf(wanted, sizeof wanted, "Fl -%s", o->name + 2);
            CHECK_HAS(output, wanted);
        }
    }
    CHECK_EQ(sh("$B/bitdelta --print-man"), 0);
    for (int i = 0; i < N_COMMANDS; i++)
        CHECK_HAS(output, commands[i]);
}

/* The first cells of the tables of docs/format.md stand on the file's page. */
TEST(manual_page_of_the_file_has_what_the_format_has) {
    static char page[1 << 16];
    CHECK_EQ(sh("sed 's/ Ns //g; s/Ar P/P/g' docs/bitdelta.5"), 0);
    memcpy(page, output, sizeof page);
    CHECK_EQ(
        sh("sed -n 's/^| `\\([^|]*\\)` |.*/\\1/p' docs/format.md | sed 's/`, `/\\n/g; s/` \\.\\. "
           "`/\\n/g'"),
        0);
    int n = 0;
    for (char *name = strtok(output, "\n"); name; name = strtok(NULL, "\n"), n++)
        CHECK_HAS(page, name);
    CHECK(n >= 19); /* as many as there are today */
}

/* --- shells --------------------------------------------------------------------------------- */

/* What bash offers for words[1 ..], the last of which is being typed; one a line, sorted. */
static const char *bash_offers(const char *program, const char *words) {
    CHECK_EQ(
        sh("cd %s && bash -c 'source <($B/%s --print-bash); COMP_WORDS=(%s %s); "
           "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _%s; printf \"%%s\\n\" \"${COMPREPLY[@]}\"' "
           "| sort",
           test_tmp(), program, program, words, program),
        0);
    return output;
}

TEST(completion_of_bash_offers_what_comes_next) {
    need("bash");
    CHECK_EQ(sh("cd %s && mkdir -p 'some folder' && touch some.bitdelta", test_tmp()), 0);
    CHECK_STR(bash_offers("bitdelta", "imp"), "import-diff\nimport-lora\n");
    CHECK_STR(bash_offers("bitdelta", "--v"), "--version\n");
    CHECK_STR(bash_offers("bitdelta", "chat --t"), "--temperature\n--tenant\n--top-p\n");
    CHECK_STR(bash_offers("bitdelta", "compress --method \"\""),
              "bitdelta\ndelta-come\nfit\nsvd\n");
    CHECK_STR(bash_offers("bitdelta", "compress --method = f"), "fit\n");
    CHECK_STR(bash_offers("bitdelta", "compress --base so"), "some folder\n");
    CHECK_STR(bash_offers("bitdelta", "compress -o some."), "some.bitdelta\n");
    CHECK_STR(bash_offers("bitdelta", "inspect some."), "some.bitdelta\n");
    CHECK_STR(bash_offers("bitdelta", "import-lora so"), "some folder\n");
    CHECK_STR(bash_offers("bitdelta", "compress --bits \"\""), "\n");
    CHECK_STR(bash_offers("bitdeltad", "--playg"), "--playground\n");
    CHECK_STR(bash_offers("bitdeltad", "--no-play"), "--no-playground\n");
    CHECK_STR(bash_offers("bitdeltad", "--playground = \"\""), "false\ntrue\n");
    CHECK_STR(bash_offers("bitdeltad", "--device c"), "cpu\ncuda\n");
    CHECK_STR(bash_offers("bitdeltad", "--log-level = \"\""), "debug\nerror\ninfo\nwarn\n");
    CHECK_STR(bash_offers("bitdeltad", "--deltas so"), "some folder\n");
}

TEST(completion_of_bash_knows_every_option) {
    need("bash");
    char wanted[128];
    bash_offers("bitdeltad", "--");
    for (int i = 0; i < option_n_rows; i++)
        if (option_rows[i].name) {
            snprintf(wanted, sizeof wanted, "--%s\n", option_rows[i].name);
            CHECK_HAS(output, wanted);
        }
    for (int i = 0; i < N_COMMANDS; i++) {
        char words[64];
        snprintf(words, sizeof words, "%s --", commands[i]);
        bash_offers("bitdelta", words);
        for (const struct option *o = tables[i]->option; o->name; o++) {
            snprintf(wanted, sizeof wanted, "%s\n", o->name);
            CHECK_HAS(output, wanted);
        }
    }
}

/* The function is run with the words as zsh's completion system sets them; what it hands to
 * _arguments is printed in its place. */
TEST(completion_of_zsh_describes_what_comes_next) {
    need("zsh");
    static const char stubs[] = "_arguments() { print -rl -- \"$@\" }; "
                                "_describe() { print -rl -- \"${commands[@]}\" }";
    CHECK_EQ(sh("$B/bitdelta --print-zsh > %s/_bitdelta; $B/bitdeltad --print-zsh > %s/_bitdeltad; "
                "for f in %s/_*; do zsh -n $f || exit 1; done",
                test_tmp(), test_tmp(), test_tmp()),
             0);
    CHECK_EQ(sh("zsh -fc '%s; words=(bitdelta \"\"); CURRENT=2; source %s/_bitdelta'", stubs,
                test_tmp()),
             0);
    CHECK_HAS(output, "import-lora:make a tenant file from a PEFT LoRA adapter\n");
    CHECK_EQ(sh("zsh -fc '%s; words=(bitdelta compress \"\"); CURRENT=3; source %s/_bitdelta'",
                stubs, test_tmp()),
             0);
    CHECK_HAS(output, "--base=[the base model]:DIR:_files -/\n");
    CHECK_HAS(output, ":value:(fit bitdelta svd delta-come)\n");
    CHECK_HAS(output, "-o+:FILE:_files\n");
    CHECK_EQ(sh("zsh -fc '%s; words=(bitdelta eval \"\"); CURRENT=3; source %s/_bitdelta'", stubs,
                test_tmp()),
             0);
    CHECK_HAS(output, "*--tenant=["); /* several, each of several words */
    CHECK_HAS(output, "]:*-*:FILE...:_files\n");
    CHECK_EQ(sh("zsh -fc '%s; words=(bitdelta verify \"\"); CURRENT=3; source %s/_bitdelta'", stubs,
                test_tmp()),
             0);
    CHECK_HAS(output, "*:FILE...:_files\n");
    CHECK_EQ(sh("zsh -fc '%s; words=(bitdeltad \"\"); CURRENT=2; source %s/_bitdeltad'", stubs,
                test_tmp()),
             0);
    CHECK_HAS(output, ":value:(auto cpu cuda)\n");
    CHECK_HAS(output, "--no-playground\n");
}

TEST(completion_of_fish_offers_what_comes_next) {
    need("fish");
    setenv("HOME", test_tmp(), 1);
    CHECK_EQ(
        sh("cd %s && $B/bitdelta --print-fish > a.fish && fish --no-config -c 'source a.fish; "
           "complete -C \"bitdelta imp\"; complete -C \"bitdelta compress --meth\"; complete -C "
           "\"bitdelta compress --method \"'",
           test_tmp()),
        0);
    CHECK_HAS(output, "import-diff\tmake a tenant file from a published BitDelta diff.pt\n");
    CHECK_HAS(output, "--method\tfit (default), or to compare");
    CHECK_HAS(output, "\nbitdelta\tfit (default)");
    CHECK_EQ(
        sh("cd %s && $B/bitdeltad --print-fish > d.fish && fish --no-config -c 'source d.fish; "
           "complete -C \"bitdeltad --no-p\"; complete -C \"bitdeltad --log-level \"'",
           test_tmp()),
        0);
    CHECK_HAS(output, "--no-playground");
    CHECK_HAS(output, "warn\t");
}
