/* What the pages name is there: every link, and of the tour every file and function. */
#include <glob.h>
#include <unistd.h>

#include "tests/check.h"

static char *read_page(const char *path) {
    static char text[1 << 18];
    FILE *f = fopen(path, "r");
    if (!f)
        test_skip("%s is not here: run from the repository's root", path);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return text;
}

/* Links of a page, from where it stands; addresses elsewhere are not asked. */
static int check_links(const char *page) {
    int n = 0;
    int folder = (int)(strrchr(page, '/') ? strrchr(page, '/') - page + 1 : 0);
    for (char *at = read_page(page); (at = strstr(at, "](")); n++) {
        char path[512];
        at += 2;
        int length = (int)strcspn(at, "#)");
        snprintf(path, sizeof path, "%.*s%.*s", folder, page, length, at);
        if (length && strncmp(at, "http", 4) != 0 && access(path, F_OK) != 0)
            test_fail(__FILE__, __LINE__, "%s links to %.*s, which is not there", page, length, at);
    }
    return n;
}

TEST(docs_links_lead_somewhere) {
    glob_t pages;
    int n = 0;
    CHECK_EQ(glob("*.md", 0, NULL, &pages), 0);
    CHECK_EQ(glob("*/*.md", GLOB_APPEND, NULL, &pages), 0);
    CHECK_EQ(glob("docs/decisions/*.md", GLOB_APPEND, NULL, &pages), 0);
    for (size_t i = 0; i < pages.gl_pathc; i++)
        n += check_links(pages.gl_pathv[i]);
    CHECK(n > 50);
    globfree(&pages);
}

/* Whether a file of this name, in any folder, holds the word (NULL: any). */
static int stands_in(const char *name, const char *word) {
    static const char *const where[] = {"", "*/", "*/*/", "*/*/*/"};
    int found = 0;
    for (size_t i = 0; !found && i < sizeof where / sizeof *where; i++) {
        char pattern[256];
        glob_t files;
        snprintf(pattern, sizeof pattern, "%s%s", where[i], name);
        if (glob(pattern, 0, NULL, &files) != 0)
            continue;
        for (size_t k = 0; !found && k < files.gl_pathc; k++)
            found = !word || strstr(read_page(files.gl_pathv[k]), word);
        globfree(&files);
    }
    return found;
}

TEST(docs_tour_names_files_and_functions_that_are_there) {
    static char tour[1 << 18];
    int n_files = 0, n_functions = 0;
    snprintf(tour, sizeof tour, "%s", read_page("docs/tour.md"));
    for (char *at = strchr(tour, '`'), *end; at; at = strchr(end + 1, '`')) {
        char file[128], word[128];
        end = strchr(at + 1, '`');
        CHECK(end);
        *end = 0;
        if (sscanf(at, "`%127[a-z0-9_*./] : %126[a-z_]", file, word) == 2) {
            strcat(word, "(");
            if (!stands_in(file, word))
                test_fail(__FILE__, __LINE__, "no %s has a function %s", file, word);
            n_functions++;
        } else if (at[1] != '/' && strchr(at, '.') &&
                   strspn(at + 1, "abcdefghijklmnopqrstuvwxyz0123456789_*./") == strlen(at + 1)) {
            if (!stands_in(at + 1, NULL))
                test_fail(__FILE__, __LINE__, "there is no file %s", at + 1);
            n_files++;
        }
    }
    CHECK(n_files > 60 && n_functions > 10);
}
