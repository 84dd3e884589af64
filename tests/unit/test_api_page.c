/* docs/api.md says of every field what happens to it; here each row's example goes through the
 * parser, and no field or error code of the code is missing on the page. */
#include <jansson.h>

#include "config/err.h"
#include "server/chat.h"
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
static void check_row(const struct surface *surface, const char *field, const char *word,
                      const char *value) {
    char body[512];
    const char *about = NULL;
    struct why why = {""};
    struct params p;
    bool chat = surface == &surface_chat;
    const char *must = chat ? "messages" : "prompt";
    const char *model = strcmp(field, "model") == 0 ? "" : "\"model\": \"m\",";
    const char *prompt = strcmp(field, must) == 0 ? ""
                         : chat ? "\"messages\": [{\"role\": \"user\", \"content\": \"x\"}],"
                                : "\"prompt\": \"x\",";
    const char *with = strcmp(field, "stream_options") == 0 ? "\"stream\": true,"
                       : strcmp(field, "top_logprobs") == 0 ? "\"logprobs\": true,"
                       : strcmp(field, "continue_final_message") == 0
                           ? "\"add_generation_prompt\": "
                             "false,"
                           : "";
    snprintf(body, sizeof body, "{%s%s%s\"%s\": %s}", model, prompt, with, field, value);
    err_t e = params_read(&p, surface, body, strlen(body), &about, &why);
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
    int rows = 0, chat_rows = 0;
    const struct surface *surface = &surface_completions;
    char field[64], word[16], value[128];
    for (const char *line = read_page("docs/api.md"); *line; line += *line == '\n') {
        if (strncmp(line, "## ", 3) == 0) /* a section is about one of the two */
            surface =
                strncmp(line, "## POST /v1/chat/", 17) == 0 ? &surface_chat : &surface_completions;
        if (sscanf(line, "| `%63[a-z_]` | %15[a-z] | `%127[^`]` |", field, word, value) == 3) {
            CHECK(strstr("supported refused ignored", word) != NULL);
            check_row(surface, field, word, value);
            rows++;
            chat_rows += surface == &surface_chat;
        }
        line += strcspn(line, "\n");
    }
    CHECK(rows > 40 && chat_rows >= surface_chat.n_fields);
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
    check_table(surface_chat.fields, surface_chat.n_fields);
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
