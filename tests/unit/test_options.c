/* Properties: the later source wins; every fault names its place and what would be right; what is
 * printed of the table is whole and parses back. */
#include "config/options.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/option_row.h"
#include "tests/check.h"

/* options_load over these words; ends with NULL. */
static err_t load(struct options *o, bool *done, struct why *why, char *const *words) {
    char *argv[16] = {"bitdeltad"};
    int argc = 1;
    while (words[argc - 1]) {
        argv[argc] = words[argc - 1];
        argc++;
    }
    return options_load(o, argc, argv, done, why);
}
#define LOAD(o, done, why, ...) load(o, done, why, (char *[]){__VA_ARGS__, NULL})

static char *write_config(const char *text) {
    static char path[256];
    snprintf(path, sizeof path, "%s/bitdeltad.conf", test_tmp());
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
    return path;
}

TEST(options_later_sources_win) {
    struct options o;
    struct why why = {""};
    bool done;
    CHECK_OK(LOAD(&o, &done, &why, "--base", "b"), why);
    CHECK(!done);
    CHECK_EQ(o.max_seqs, 64); /* default */
    CHECK_EQ(o.max_body, 4 << 20);
    CHECK_STR(o.listen, "127.0.0.1:8000");
    CHECK_STR(o.name, "");
    CHECK(o.autoload);
    CHECK_EQ(o.log_level, LOG_LEVEL_INFO);
    options_free(&o);

    char *path = write_config("max-seqs = 5 # a few\nmax-queue = 6\nmax-body = 7k\nbase = f\n"
                              "autoload = no\nname = \"a # b\"\n");
    CHECK_OK(LOAD(&o, &done, &why, "--config", path), why);
    CHECK_EQ(o.max_seqs, 5); /* file */
    CHECK_EQ(o.max_body, 7 * 1024);
    CHECK_STR(o.name, "a # b");
    CHECK(!o.autoload);
    options_free(&o);

    setenv("BITDELTAD_MAX_SEQS", "8", 1);
    setenv("BITDELTAD_MAX_QUEUE", "9", 1);
    setenv("BITDELTAD_NAME", "", 1); /* empty: unset */
    setenv("BITDELTAD_CONFIG", path, 1);
    CHECK_OK(LOAD(&o, &done, &why, "--max-queue=10", "--autoload", "--log-level", "debug"), why);
    CHECK_EQ(o.max_seqs, 8);   /* environment over file */
    CHECK_EQ(o.max_queue, 10); /* command line over environment */
    CHECK_STR(o.name, "a # b");
    CHECK_STR(o.base, "f");
    CHECK(o.autoload);
    CHECK_EQ(o.log_level, LOG_LEVEL_DEBUG);
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    options_print(&o, f);
    fclose(f);
    CHECK_HAS(text, "max-queue = 10 ");
    CHECK_HAS(text, "# command line\n");
    CHECK_HAS(text, "# BITDELTAD_MAX_SEQS\n");
    CHECK_HAS(text, "bitdeltad.conf:3\n");
    CHECK_HAS(text, "name = \"a # b\"");
    struct options again; /* what is printed is a configuration file */
    CHECK_OK(options_init(&again, &why), why);
    CHECK_OK(options_parse_file(&again, "printed", text, n, &why), why);
    for (int i = 0; i < OPTION_COUNT; i++)
        if (i != OPTION_config)
            CHECK_STR(again.text[i], o.text[i]);
    options_free(&again);
    free(text);
    options_free(&o);
}

TEST(options_last_word_of_the_command_line_wins) {
    struct options o;
    struct why why = {""};
    bool done;
    CHECK_OK(LOAD(&o, &done, &why, "--base=b", "--max-seqs", "3", "--max-seqs=4", "--no-autoload"),
             why);
    CHECK_EQ(o.max_seqs, 4);
    CHECK(!o.autoload);
    options_free(&o);
}

TEST(options_faults_of_a_file_name_file_and_line) {
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"\n# x\nkv-token = 5\n", ":3: unknown option 'kv-token' (did you mean kv-tokens?)"},
        {"kv-tokens 5\n", ":1: not 'name = value'"},
        {"kv-tokens = many\n", ":1: kv-tokens: \"many\" is not a whole number"},
        {"kv-tokens =\n", ":1: kv-tokens: \"\" is not a whole number"},
        {"kv-tokens = -1\n", "not a whole number"},
        {"kv-tokens = 1.5\n", "not a whole number"},
        {"kv-tokens = 2000000000\n", "not in the range 0 to 1000000000 tokens"},
        {"max-seqs = 0\n", "not in the range 1 to 4096 sequences"},
        {"max-seqs = 64k\n", "not a whole number"},
        {"max-body = 1x\n", "65536, 64k, 4M, 2G"},
        {"max-body = 99999999999999999999\n", "not a whole number"},
        {"max-body = 999999999T\n", "not in the range"},
        {"idle-timeout = 5m\n", "whole number of seconds"},
        {"autoload = maybe\n", "\"maybe\" is neither true nor false"},
        {"device = tpu\n", "\"tpu\" is none of auto|cpu|cuda"},
        {"device = auto|cpu\n", "is none of"},
        {"log-level = loud\n", "is none of error|warn|info|debug"},
        {"listen = 8000\n", "is not HOST:PORT"},
        {"listen = host:\n", "is not HOST:PORT"},
        {"listen = host:65536\n", "is not HOST:PORT"},
        {"listen = ::1:80\n", "stands in brackets: [::1]:80"},
        {"admin = unix:\n", "after unix:"},
        {"max-seqs = 1\nmax-seqs = 2\n", ":2: 'max-seqs' stands in line 1 already"},
        {"[server]\n", "no sections"},
        {"config = other\n", "a file cannot set 'config'"},
        {"no-autoload = true\n", "a file cannot set 'no-autoload'"},
        {"name = \"open\n", "starts with \" ends with it"},
        {"name = \"a\" b\n", "starts with \" ends with it"},
        {"name = a\001b\n", ":1: a control byte (0x01)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct options o;
        struct why why = {""};
        bool done;
        CHECK_EQ(LOAD(&o, &done, &why, "--base=b", "--config", write_config(cases[i].text)),
                 E_CONFIG);
        CHECK_HAS(why.text, "bitdeltad.conf:");
        CHECK_HAS(why.text, cases[i].part);
    }
}

TEST(options_good_lines_of_a_file) {
    static const char text[] = "\xef\xbb\xbf# comment\r\n\r\n  max-seqs\t=  9  # few\r\n"
                               "deltas = /a b/c#d\nlisten = [::1]:0\nadmin=unix:/run/x\n"
                               "idle-timeout = 20s\nmax-body = 1m\nname = \"\"\nbase=x=y";
    struct options o;
    struct why why = {""};
    CHECK_OK(options_init(&o, &why), why);
    CHECK_OK(options_parse_file(&o, "f", text, sizeof text - 1, &why), why);
    CHECK_EQ(o.max_seqs, 9);
    CHECK_STR(o.deltas, "/a b/c#d");
    CHECK_STR(o.listen, "[::1]:0");
    CHECK_STR(o.admin, "unix:/run/x");
    CHECK_EQ(o.idle_timeout, 20);
    CHECK_EQ(o.max_body, 1 << 20);
    CHECK_STR(o.name, "");
    CHECK_STR(o.base, "x=y");
    options_free(&o);
}

TEST(options_faults_of_the_command_line_are_usage_errors) {
    static const struct {
        const char *words[3];
        const char *part;
    } cases[] = {
        {{"--bas", "x"}, "unknown option --bas (did you mean base?)"},
        {{"--frobnicate=5"}, "unknown option --frobnicate; see --help"},
        {{"folder"}, "'folder' is no option"},
        {{"-x"}, "'-x' is no option"},
        {{"--"}, "'--' is no option"},
        {{"--kv-tokens"}, "--kv-tokens lacks its value"},
        {{"--kv-tokens", "--base"}, "--kv-tokens lacks its value"},
        {{"--kv-tokens", "x"}, "--kv-tokens: \"x\" is not a whole number"},
        {{"--no-kv-tokens"}, "unknown option --no-kv-tokens"},
        {{"--no-autoload=1"}, "unknown option --no-autoload"},
        {{"--autoload=perhaps"}, "--autoload: \"perhaps\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct options o;
        struct why why = {""};
        bool done;
        CHECK_EQ(load(&o, &done, &why, (char *const *)(size_t)cases[i].words), E_USAGE);
        CHECK_HAS(why.text, cases[i].part);
    }
}

TEST(options_faults_of_the_environment_and_of_the_whole) {
    struct options o;
    struct why why = {""};
    bool done;
    CHECK_EQ(LOAD(&o, &done, &why, "--max-seqs=1"), E_CONFIG);
    CHECK_HAS(why.text, "--base is missing");
    CHECK_HAS(why.text, "BITDELTAD_BASE");
    CHECK_EQ(LOAD(&o, &done, &why, "--base=b", "--admin", "127.0.0.1:8000"), E_CONFIG);
    CHECK_HAS(why.text, "the same address");
    CHECK_OK(LOAD(&o, &done, &why, "--base=b", "--admin=[::]:0", "--listen=[::]:0"), why);
    options_free(&o);
    CHECK_EQ(LOAD(&o, &done, &why, "--base=b", "--config", "/nowhere/at.all"), E_CONFIG);
    CHECK_HAS(why.text, "/nowhere/at.all: cannot open: No such file");
    CHECK_EQ(LOAD(&o, &done, &why, "--base=b", "--config", "/"), E_CONFIG);
    CHECK_HAS(why.text, "/: not a regular file");
    setenv("BITDELTAD_KV_TOKENS", "many", 1);
    CHECK_EQ(LOAD(&o, &done, &why, "--base=b"), E_CONFIG);
    CHECK_HAS(why.text, "BITDELTAD_KV_TOKENS: \"many\"");
}

/* Runs options_load with stdout in a file; the text it printed. */
static char *printed(err_t *e, struct why *why, char *const *words) {
    static char text[65536];
    struct options o;
    bool done = false;
    char path[256];
    snprintf(path, sizeof path, "%s/out", test_tmp());
    fflush(stdout);
    int saved = dup(1), fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(saved >= 0 && fd >= 0 && dup2(fd, 1) == 1);
    *e = load(&o, &done, why, words);
    fflush(stdout);
    CHECK(dup2(saved, 1) == 1);
    if (!*e) {
        CHECK(done);
        options_free(&o);
    }
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    CHECK(n >= 0);
    text[n] = 0;
    close(fd);
    close(saved);
    return text;
}
#define PRINTED(e, why, ...) printed(e, why, (char *[]){__VA_ARGS__, NULL})

TEST(options_help_and_pages_list_every_option) {
    static const char *const actions[] = {"--help", "--print-options-md"};
    for (int a = 0; a < 2; a++) {
        err_t e;
        struct why why = {""};
        char *text = PRINTED(&e, &why, (char *)(size_t)actions[a]);
        CHECK_OK(e, why);
        for (int i = 0; i < option_n_rows; i++) {
            char wanted[80];
            if (!option_rows[i].name) {
                CHECK_HAS(text, option_rows[i].help);
                continue;
            }
            snprintf(wanted, sizeof wanted, "--%s%s", option_rows[i].name, a ? "`" : "");
            CHECK_HAS(text, wanted);
        }
        for (const char *line = text; a == 0 && *line; line += strcspn(line, "\n") + 1)
            CHECK(strcspn(line, "\n") <= 80);
    }
}

TEST(options_version_is_printed) {
    err_t e;
    struct why why = {""};
    CHECK_HAS(PRINTED(&e, &why, "--version"), "bitdeltad ");
    CHECK_OK(e, why);
}

TEST(options_check_config_asks_for_files_and_folders) {
    err_t e;
    struct why why = {""};
    char *dir = strdup(test_tmp());
    CHECK(dir != NULL);
    setenv("BITDELTAD_KV_TOKEN", "5", 1);
    char *text = PRINTED(&e, &why, "--base", dir, "--check-config", "--print-config");
    CHECK_OK(e, why);
    CHECK_HAS(text, "# note: the environment variable BITDELTAD_KV_TOKEN names no option");
    CHECK_HAS(text, "# the configuration is valid");
    CHECK_HAS(text, "base = ");
    PRINTED(&e, &why, "--base", "/nowhere", "--check-config");
    CHECK_EQ(e, E_CONFIG);
    CHECK_HAS(why.text, "--base /nowhere: No such file");
    PRINTED(&e, &why, "--base", write_config(""), "--check-config");
    CHECK_HAS(why.text, "is not a folder");
    PRINTED(&e, &why, "--base", dir, "--admin-key-file", dir, "--check-config");
    CHECK_HAS(why.text, "is a folder, not a file");
    free(dir);
}

static char *generated(void (*print)(FILE *)) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    print(f);
    fclose(f);
    return text;
}

static void check_page(const char *path, void (*print)(FILE *)) {
    static char page[65536];
    FILE *f = fopen(path, "r");
    if (!f)
        test_skip("%s is not here: run from the repository's root", path);
    page[fread(page, 1, sizeof page - 1, f)] = 0;
    fclose(f);
    char *text = generated(print);
    if (strcmp(page, text) != 0)
        test_fail(__FILE__, __LINE__, "%s is not what the table gives: run make docs", path);
    free(text);
}

TEST(options_page_and_example_are_those_of_the_table) {
    check_page("docs/options.md", options_print_markdown);
    check_page("deploy/bitdeltad.conf.example", options_print_example);
}

TEST(options_example_file_says_the_defaults) {
    char *text = generated(options_print_example), *to = text;
    for (char *p = text; *p; p++) /* take the # of every '#name =' away */
        if (!(*p == '#' && (p == text || p[-1] == '\n') && p[1] >= 'a' && p[1] <= 'z'))
            *to++ = *p;
    *to = 0;
    struct options o, preset;
    struct why why = {""};
    CHECK_OK(options_init(&o, &why), why);
    CHECK_OK(options_init(&preset, &why), why);
    CHECK_OK(options_parse_file(&o, "example", text, strlen(text), &why), why);
    for (int i = 0; i < OPTION_COUNT; i++) {
        CHECK_STR(o.text[i], preset.text[i]);
        CHECK(i == OPTION_config || o.source[i] == OPTION_FROM_FILE);
    }
    options_free(&o);
    options_free(&preset);
    free(text);
}
