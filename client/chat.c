#include "client/chat.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "client/call.h"
#include "client/line.h"
#include "client/spoken.h"
#include "config/clock.h"
#include "config/utf8.h"

enum {
    RAW_TOKENS = 256,         /* the completions API's own 16 is for programs */
    MAX_INPUT_BYTES = 4 << 20 /* as large as the server takes a body by default */
};

struct session {
    const struct chat_options *options;
    struct caller *caller;
    char tenant[256];
    bool raw;
    int interrupt_fd;           /* SIGINT, while there is a session; else -1 */
    bool terminal;              /* stdout is one: control characters are not passed on to it */
    bool line_is_open;          /* stdout stands behind text */
    json_t *messages;           /* the conversation so far, the system's message included */
    struct line_reader *reader; /* of a session; owned */
};

/* --- showing -------------------------------------------------------------------------------- */

static void note(const char *sentence) {
    fprintf(stderr, "[%s]\n", sentence);
}

/* A model may write anything, also what a terminal takes for commands. */
static void show(void *arg, const char *text, size_t n) {
    struct session *s = arg;
    if (n)
        s->line_is_open = text[n - 1] != '\n';
    if (!s->terminal) {
        fwrite(text, 1, n, stdout);
    } else {
        uint32_t c;
        for (size_t at = 0, length; at < n; at += length ? length : 1) {
            length = utf8_next(text + at, n - at, &c);
            bool harmless = length && c != 0x7f && !(c >= 0x80 && c < 0xa0) &&
                            (c >= ' ' || c == '\n' || c == '\t');
            if (harmless)
                fwrite(text + at, 1, length, stdout);
            else
                fputs(UTF8_REPLACEMENT_TEXT, stdout);
        }
    }
    fflush(stdout);
}

static void end_line(struct session *s) {
    if (s->line_is_open) {
        putchar('\n');
        fflush(stdout);
    }
    s->line_is_open = false;
}

static void show_stats(const struct spoken *a) {
    double first = a->first_us ? (double)(a->first_us - a->sent_us) / 1e3 : 0;
    fprintf(stderr,
            "[%zu tokens, the first after %.0f ms, %.1f tokens/s, %.2f s in all, ended by %s]\n",
            a->n_tokens, first, spoken_rate(a), (double)(mono_us() - a->sent_us) / 1e6,
            !*a->finish                        ? "you"
            : strcmp(a->finish, "length") == 0 ? "max_tokens"
            : strcmp(a->finish, "stop") == 0   ? "the tenant"
                                               : a->finish);
}

/* --- asking --------------------------------------------------------------------------------- */

static json_t *message(const char *role, const char *text, size_t n) {
    return json_pack("{s:s,s:s%}", "role", role, "content", text, n);
}

/* The request for `prompt`; in a conversation with what was said before. */
static json_t *request(const struct session *s, const char *prompt) {
    const struct chat_options *o = s->options;
    json_t *body = json_pack("{s:s,s:b,s:{s:b,s:b}}", "model", s->tenant, "stream", 1,
                             "stream_options", "include_usage", 1, "continuous_usage_stats", 1);
    if (s->raw) {
        json_object_set_new(body, "prompt", json_string(prompt));
    } else {
        json_t *messages = json_copy(s->messages);
        json_array_append_new(messages, message("user", prompt, strlen(prompt)));
        json_object_set_new(body, "messages", messages);
    }
    int32_t most = o->max_tokens ? o->max_tokens : s->raw ? (int32_t)RAW_TOKENS : 0;
    if (most)
        json_object_set_new(body, "max_tokens", json_integer(most));
    if (o->temperature >= 0)
        json_object_set_new(body, "temperature", json_real(o->temperature));
    if (o->top_p >= 0)
        json_object_set_new(body, "top_p", json_real(o->top_p));
    if (o->seed >= 0)
        json_object_set_new(body, "seed", json_integer(o->seed));
    return body;
}

static err_t take_bytes(void *arg, const char *bytes, size_t n) {
    return spoken_feed(arg, bytes, n);
}

/* What an answer leaves behind: the two turns, also of an answer that was stopped. */
static void remember(struct session *s, const char *prompt, const struct spoken *a) {
    json_array_append_new(s->messages, message("user", prompt, strlen(prompt)));
    json_array_append_new(s->messages,
                          message("assistant", a->text.n ? a->text.bytes : "", a->text.n));
}

/* One prompt and its answer. E_CANCELLED: the person stopped it. */
static err_t ask(struct session *s, const char *prompt, struct why *why) {
    struct spoken a = {.show = show, .arg = s, .sent_us = mono_us()};
    json_t *body =
        utf8_valid_prefix(prompt, strlen(prompt)) == strlen(prompt) ? request(s, prompt) : NULL;
    if (!body)
        return why_set(why, E_INVAL, "the text is not UTF-8");
    err_t e = call_post(s->caller, s->raw ? "/v1/completions" : "/v1/chat/completions", body,
                        take_bytes, &a, note, why);
    end_line(s);
    if (e == E_NO_ROUTE)
        why_set(why, e, "this server has no chat API; --raw sends the text as it is");
    else if (e && a.why.text[0])
        *why = a.why;
    else if (!e && !a.whole)
        e = why_set(why, E_IO, "the connection was lost after %zu tokens; the answer is not whole",
                    a.n_tokens);
    if ((!e || e == E_CANCELLED) && !s->raw)
        remember(s, prompt, &a);
    if ((!e || e == E_CANCELLED) && s->options->stats)
        show_stats(&a);
    json_decref(body);
    spoken_free(&a);
    return e;
}

/* --- finding the tenant --------------------------------------------------------------------- */

/* "base, chat, math", as far as there is room. */
static void list_models(struct session *s, char *out, size_t cap) {
    json_t *root = NULL, *model;
    size_t i, n = 0;
    out[0] = 0;
    if (call_get(s->caller, "/v1/models", NULL, &root, NULL))
        return;
    json_array_foreach(json_object_get(root, "data"), i, model) {
        const char *id = json_string_value(json_object_get(model, "id"));
        int wrote = id ? snprintf(out + n, cap - n, "%s%s", n ? ", " : "", id) : 0;
        if (wrote < 0 || (size_t)wrote >= cap - n) {
            snprintf(out + n, cap - n, "%s", cap - n > 5 ? ", ..." : "");
            break;
        }
        n += (size_t)wrote;
    }
    json_decref(root);
}

/* Makes `name` the one that is talked to; how is said by its chat template. */
static err_t take_tenant(struct session *s, const char *name, struct why *why) {
    char known[300];
    json_t *info = NULL;
    err_t e = call_get(s->caller, "/t/%s/tokenizer_info", name, &info, why);
    if (e == E_NO_MODEL) {
        list_models(s, known, sizeof known);
        return why_set(why, e, "there is no tenant \"%.64s\"; there is: %s", name, known);
    }
    if (e)
        return e;
    bool has_template = json_is_string(json_object_get(info, "chat_template"));
    json_decref(info);
    if (strlen(name) >= sizeof s->tenant)
        return why_set(why, E_INVAL, "a tenant's name is shorter");
    strcpy(s->tenant, name);
    s->raw = s->options->raw || !has_template;
    if (s->raw && !s->options->raw) {
        char sentence[400];
        snprintf(sentence, sizeof sentence,
                 "%s has no chat template: the text goes to it as it is, each one alone", name);
        note(sentence);
        if (s->options->system)
            return why_set(why, E_INVAL, "without a template there is no place for --system");
    }
    return E_OK;
}

static err_t begin_conversation(struct session *s) {
    json_decref(s->messages);
    s->messages = json_array();
    const char *system = s->options->system;
    if (system && !s->raw)
        json_array_append_new(s->messages, message("system", system, strlen(system)));
    return s->messages ? E_OK : E_NOMEM;
}

/* --- a session ------------------------------------------------------------------------------ */

static bool was_interrupted(const struct session *s) {
    struct signalfd_siginfo info;
    return read(s->interrupt_fd, &info, sizeof info) > 0;
}

/* Lines that end with a backslash go on in the next; NULL as line_read. */
static char *read_prompt(struct session *s, bool *ended) {
    char *whole = NULL;
    size_t n = 0;
    for (bool more = true; more;) {
        char *line = line_read(s->reader, whole ? ". " : "> ", ended);
        if (!line) {
            free(whole);
            return NULL;
        }
        size_t length = strlen(line);
        if (length)
            line_keep(s->reader, line);
        more = length && line[length - 1] == '\\';
        if (more)
            line[length - 1] = '\n';
        char *grown = realloc(whole, n + length + 1);
        if (grown) {
            memcpy(grown + n, line, length + 1);
            whole = grown;
            n += length;
        }
        free(line);
    }
    return whole;
}

static void help(void) {
    fputs("  /new            forget what was said\n"
          "  /tenant NAME    talk to another one, from the beginning\n"
          "  /quit           leave, as Ctrl-D does\n"
          "A line that ends with \\ goes on in the next. Ctrl-C stops an answer.\n",
          stderr);
}

/* Lines that begin with a slash are for us. Returns whether the session goes on. */
static bool command(struct session *s, const char *line) {
    struct why why = {{0}};
    err_t e = E_OK;
    if (strcmp(line, "/quit") == 0)
        return false;
    if (strcmp(line, "/new") == 0)
        e = begin_conversation(s);
    else if (strncmp(line, "/tenant ", 8) == 0 && !(e = take_tenant(s, line + 8, &why)))
        e = begin_conversation(s);
    else if (!e)
        help();
    if (e)
        note(why.text[0] ? why.text : err_sentence(e));
    return true;
}

static err_t talk(struct session *s) {
    fprintf(stderr, "%s on %s%s. /help says what else there is; Ctrl-D leaves.\n", s->tenant,
            s->options->url, s->raw ? ", text as it is" : "");
    for (bool goes_on = true; goes_on;) {
        struct why why = {{0}};
        bool ended = false;
        char *line = read_prompt(s, &ended);
        if (!line) {
            fputc('\n', stderr);
            goes_on = !ended;
        } else if (line[0] == '/') {
            goes_on = command(s, line);
        } else if (*line) {
            err_t e = ask(s, line, &why);
            if (e == E_CANCELLED) {
                was_interrupted(s);
                note("stopped");
            } else if (e) {
                note(why.text);
            }
        }
        free(line);
    }
    return E_OK;
}

/* All of stdin, malloc'ed, without the one line end that echo and editors put there. */
static err_t read_all(char **out, struct why *why) {
    char *text = malloc(MAX_INPUT_BYTES + 1);
    size_t n = text ? fread(text, 1, MAX_INPUT_BYTES + 1, stdin) : 0;
    *out = text;
    if (!text)
        return why_set(why, E_NOMEM, "no memory");
    if (n > MAX_INPUT_BYTES || memchr(text, 0, n))
        return why_set(why, E_INVAL, "stdin is no text of at most %d bytes", MAX_INPUT_BYTES);
    n -= n && text[n - 1] == '\n';
    text[n] = 0;
    return n ? E_OK : why_set(why, E_INVAL, "there is no prompt: stdin is empty");
}

static err_t run_once(struct session *s, struct why *why) {
    char *text = NULL;
    const char *prompt = s->options->prompt;
    err_t e = prompt && strcmp(prompt, "-") != 0 ? E_OK : read_all(&text, why);
    e = e ? e : ask(s, text ? text : prompt, why);
    free(text);
    return e;
}

err_t chat_run(const struct chat_options *o, struct why *why) {
    struct session s = {.options = o, .interrupt_fd = -1, .terminal = isatty(STDOUT_FILENO)};
    bool is_session = !o->prompt && isatty(STDIN_FILENO);
    sigset_t interrupt, before;
    err_t e = E_OK;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    if (is_session) {
        sigprocmask(SIG_BLOCK, &interrupt, &before);
        s.interrupt_fd = signalfd(-1, &interrupt, SFD_NONBLOCK | SFD_CLOEXEC);
        e = line_open(&s.reader, s.interrupt_fd);
    }
    e = e ? e : caller_open(&s.caller, o->url, o->key, s.interrupt_fd, why);
    if (!e && !o->tenant) {
        char known[300];
        json_t *probe = NULL;
        e = call_get(s.caller, "/v1/models", NULL, &probe, why);
        json_decref(probe);
        if (!e) {
            list_models(&s, known, sizeof known);
            e = why_set(why, E_USAGE, "say to whom: --tenant NAME, one of %s", known);
        }
    }
    e = e ? e : take_tenant(&s, o->tenant, why);
    e = e ? e : begin_conversation(&s);
    if (!e)
        e = is_session ? talk(&s) : run_once(&s, why);
    caller_close(s.caller);
    json_decref(s.messages);
    line_close(s.reader);
    if (is_session) {
        close(s.interrupt_fd);
        sigprocmask(SIG_SETMASK, &before, NULL);
    }
    return e;
}
