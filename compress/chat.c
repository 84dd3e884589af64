/* `bitdelta chat`: the command line in front of client/chat.h. */
#include "client/chat.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compress/command.h"
#include "config/file.h"

enum { MAX_KEY_BYTES = 4096 };

static const char default_url[] = "http://127.0.0.1:8000";

/* The variable, or NULL where it is unset or empty. */
static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* A number in [lo, hi]; -1 when the option was not given. */
static err_t real(const struct args *a, const char *name, double hi, double *out, struct why *why) {
    const char *text = arg(a, name);
    *out = -1;
    if (!text)
        return E_OK;
    char *end;
    double x = strtod(text, &end);
    if (*end || !(x >= 0 && x <= hi))
        return why_set(why, E_USAGE, "%s must be a number in 0..%g, not \"%.32s\"", name, hi, text);
    *out = x;
    return E_OK;
}

/* The first line of the file that is no comment, as the daemon's own key files have them. *text is
 * given; it holds the key. */
static err_t read_key(const char *path, char **text, size_t *n, const char **key, struct why *why) {
    err_t e = file_read(path, MAX_KEY_BYTES, text, n, why);
    if (e)
        return e;
    for (char *line = strtok(*text, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        line += strspn(line, " \t");
        line[strcspn(line, " \t")] = 0;
        if (*line && *line != '#') {
            *key = line;
            return E_OK;
        }
    }
    return why_set(why, E_FORMAT, "%s: holds no key", path);
}

static err_t run(const struct args *a, struct why *why) {
    struct chat_options o = {
        .url = arg(a, "--url") ? arg(a, "--url") : variable("BITDELTA_URL"),
        .key = variable("BITDELTA_API_KEY"),
        .tenant = arg(a, "--tenant"),
        .prompt = a->operand[0],
        .system = arg(a, "--system"),
        .raw = arg(a, "--raw") != NULL,
        .stats = arg(a, "--stats") != NULL,
    };
    char *key_text = NULL;
    size_t n_key = 0;
    int32_t seed = -1;
    o.url = o.url ? o.url : default_url;
    err_t e = real(a, "--temperature", 2, &o.temperature, why);
    e = e ? e : real(a, "--top-p", 1, &o.top_p, why);
    e = e ? e : arg_int(a, "--max-tokens", 1, 1 << 24, 0, &o.max_tokens, why);
    e = e ? e : arg_int(a, "--seed", 0, INT32_MAX, -1, &seed, why);
    o.seed = seed;
    if (!e && o.system && o.raw)
        e = why_set(why, E_USAGE, "--system needs a chat template, --raw goes without");
    if (!e && arg(a, "--api-key-file"))
        e = read_key(arg(a, "--api-key-file"), &key_text, &n_key, &o.key, why);
    e = e ? e : chat_run(&o, why);
    if (key_text)
        OPENSSL_cleanse(key_text, n_key);
    free(key_text);
    return e;
}

const struct command command_chat = {
    .name = "chat",
    .summary = "talk to a tenant of a running bitdeltad",
    .operand = "PROMPT",
    .operand_is_optional = true,
    .about =
        "With PROMPT (\"-\": from stdin), or with stdin that is no terminal, prints one answer.\n"
        "Otherwise a session: what was said is remembered, Ctrl-C stops an answer, Ctrl-D leaves,\n"
        "/help lists what else there is. Answers go to stdout, everything else to stderr.\n\n"
        "A tenant with a chat template is talked to through it. Any other one, or --raw, gets the\n"
        "text as it is and goes on from there; each text stands alone.\n\n"
        "The server is --url, or BITDELTA_URL, or http://127.0.0.1:8000. Its key, where it wants\n"
        "one, is BITDELTA_API_KEY or stands in a file; never on the command line, which every\n"
        "user of the machine can read.\n",
    .option = {{"--tenant", "NAME", false, "whom to talk to; without it, says who is there"},
               {"--url", "URL", false, "where it is: http://HOST:PORT, https://HOST or unix:PATH"},
               {"--system", "TEXT", false, "a system message in front of the conversation"},
               {"--raw", NULL, false, "no chat template: the text as it is"},
               {"--temperature", "X", false, "0 to 2; 0 always takes the likeliest token"},
               {"--top-p", "X", false, "0 to 1"},
               {"--max-tokens", "N", false, "longest answer (--raw: 256)"},
               {"--seed", "N", false, "makes draws repeatable"},
               {"--stats", NULL, false, "tokens, time to the first, tokens/s after each answer"},
               {"--api-key-file", "FILE", false, "holds the key of the server"}},
    .examples =
        "  bitdelta chat --tenant chat\n"
        "  bitdelta chat --tenant math --raw --temperature 0 $'Q: 12 + 30 = ?\\nA:'\n"
        "  git diff | bitdelta chat --tenant reviewer --system 'Review this patch.' --stats\n",
    .run = run,
};
