/* docs/api.md says of every field what happens to it; here each row's example goes through the
 * parser, and no field or error code of the code is missing on the page. */
#include <jansson.h>

#include "config/err.h"
#include "server/completions.h"
#include "server/surface.h"
#include "tests/check.h"

static const char *read_page(const char *path) {
    static char text[2][1 << 17];
    static int turn;
    char *page = text[turn++ % 2];
    FILE *f = fopen(path, "r");
    if (!f)
        test_skip("%s is not here: run from the repository's root", path);
    page[fread(page, 1, sizeof text[0] - 1, f)] = 0;
    fclose(f);
    return page;
}

/* What params_read makes of a request whose field has this value. */
static void check_row(const char *field, const char *word, const char *value) {
    char body[512];
    const char *about = NULL;
    struct why why = {""};
    struct params p;
    const char *model = strcmp(field, "model") == 0 ? "" : "\"model\": \"m\",";
    const char *prompt = strcmp(field, "prompt") == 0 ? "" : "\"prompt\": \"x\",";
    const char *stream = strcmp(field, "stream_options") == 0 ? "\"stream\": true," : "";
    snprintf(body, sizeof body, "{%s%s%s\"%s\": %s}", model, prompt, stream, field, value);
    err_t e = params_read(&p, &surface_completions, body, strlen(body), &about, &why);
    if (strcmp(word, "refused") == 0) {
        if (e != E_UNSUPPORTED || !about || strcmp(about, field) != 0)
            test_fail(__FILE__, __LINE__, "%s is not refused: %s", body, e ? why.text : "taken");
        return;
    }
    if (e)
        test_fail(__FILE__, __LINE__, "%s is refused: %s", body, why.text);
    CHECK_EQ(p.n_unknown, strcmp(word, "ignored") == 0);
    params_free(&p);
}

TEST(api_page_says_what_happens_to_every_field) {
    int rows = 0;
    char field[64], word[16], value[128];
    for (const char *line = read_page("docs/api.md"); *line; line += *line == '\n') {
        if (sscanf(line, "| `%63[a-z_]` | %15[a-z] | `%127[^`]` |", field, word, value) == 3) {
            CHECK(strstr("supported refused ignored", word) != NULL);
            check_row(field, word, value);
            rows++;
        }
        line += strcspn(line, "\n");
    }
    CHECK(rows > 40);
}

static void check_table(const struct field *list, int n) {
    const char *page = read_page("docs/api.md");
    for (int i = 0; i < n; i++) {
        char cell[80];
        snprintf(cell, sizeof cell, "| `%s` | ", list[i].name);
        CHECK_HAS(page, cell);
    }
}

TEST(api_page_leaves_out_no_field_of_the_parser) {
    check_table(fields_common, n_fields_common);
    check_table(surface_completions.fields, surface_completions.n_fields);
}

TEST(api_page_lists_every_error_a_client_can_meet) {
    const char *page = read_page("docs/api.md");
    for (int e = 1; e < ERR_INDEX_END; e++) {
        char cell[128];
        if (-e == E_CONFIG || -e == E_USAGE || -e == E_CANCELLED) /* of the start; of no reply */
            continue;
        snprintf(cell, sizeof cell, "| %d | `%s` | %s |", err_http_status(-e), err_code(-e),
                 err_sentence(-e));
        CHECK_HAS(page, cell);
    }
}
