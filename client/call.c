#include "client/call.h"

#include <curl/curl.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config/clock.h"
#include "config/json.h"

enum {
    MAX_REPLY_BYTES = 16 << 20, /* of a document or an error; streams are not kept */
    CONNECT_MS = 10000,
    MAX_TRIES = 5,
    MAX_RETRY_S = 60,
};

struct caller {
    CURL *easy;
    CURLM *multi;
    struct curl_slist *headers; /* owned; holds the key */
    char *url;                  /* owned; without a slash at its end */
    const char *shown;          /* url as it was given; borrowed */
    int interrupt_fd;
};

/* A reply coming in. */
struct reply {
    struct caller *caller;
    call_data_fn *data; /* NULL: everything is kept */
    void *arg;
    err_t e; /* of data */
    char *kept;
    size_t n_kept;
    long status, retry_s;
};

static bool is_loopback(const char *url) {
    const char *host = strstr(url, "://") + 3;
    static const char *const names[] = {"localhost", "127.", "[::1]"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strncasecmp(host, names[i], strlen(names[i])) == 0)
            return true;
    return false;
}

err_t caller_open(struct caller **out, const char *url, const char *key, int interrupt_fd,
                  struct why *why) {
    bool local = strncmp(url, "unix:", 5) == 0;
    if (!local && strncasecmp(url, "http://", 7) != 0 && strncasecmp(url, "https://", 8) != 0)
        return why_set(why, E_USAGE, "\"%.80s\" is no address: http://HOST:PORT or unix:PATH", url);
    struct caller *c = calloc(1, sizeof *c);
    if (!c)
        return why_set(why, E_NOMEM, "no memory");
    c->easy = curl_easy_init();
    c->multi = curl_multi_init();
    c->url = strdup(local ? "http://localhost" : url);
    c->shown = url;
    c->interrupt_fd = interrupt_fd;
    c->headers = curl_slist_append(NULL, "Content-Type: application/json");
    char *line = NULL;
    if (key && *key && asprintf(&line, "Authorization: Bearer %s", key) > 0) {
        curl_slist_append(c->headers, line);
        OPENSSL_cleanse(line, strlen(line));
    }
    free(line);
    if (!c->easy || !c->multi || !c->url || !c->headers) {
        caller_close(c);
        return why_set(why, E_NOMEM, "no memory");
    }
    for (size_t n = strlen(c->url); n && c->url[n - 1] == '/'; n--)
        c->url[n - 1] = 0;
    if (local)
        curl_easy_setopt(c->easy, CURLOPT_UNIX_SOCKET_PATH, url + 5);
    if (local || is_loopback(url)) /* the environment's proxy is for the world outside */
        curl_easy_setopt(c->easy, CURLOPT_PROXY, "");
    *out = c;
    return E_OK;
}

void caller_close(struct caller *c) {
    if (!c)
        return;
    curl_easy_cleanup(c->easy);
    curl_multi_cleanup(c->multi);
    for (struct curl_slist *h = c->headers; h; h = h->next)
        OPENSSL_cleanse(h->data, strlen(h->data));
    curl_slist_free_all(c->headers);
    free(c->url);
    free(c);
}

static size_t on_data(char *bytes, size_t size, size_t n, void *arg) {
    struct reply *r = arg;
    n *= size;
    if (r->status == 0)
        curl_easy_getinfo(r->caller->easy, CURLINFO_RESPONSE_CODE, &r->status);
    if (r->data && r->status == 200) {
        r->e = r->data(r->arg, bytes, n);
        return r->e ? 0 : n;
    }
    char *grown = n <= MAX_REPLY_BYTES - r->n_kept ? realloc(r->kept, r->n_kept + n + 1) : NULL;
    if (!grown) {
        r->e = E_NOMEM;
        return 0;
    }
    memcpy(grown + r->n_kept, bytes, n);
    r->kept = grown;
    r->n_kept += n;
    return n;
}

/* Runs the prepared handle to its end, or until the descriptor says stop. */
static err_t perform(struct caller *c, CURLcode *code) {
    err_t e = E_OK;
    *code = CURLE_OK;
    curl_multi_add_handle(c->multi, c->easy);
    for (int running = 1; running && !e;) {
        struct curl_waitfd stop = {.fd = c->interrupt_fd, .events = CURL_WAIT_POLLIN};
        if (curl_multi_perform(c->multi, &running) != CURLM_OK)
            e = E_INTERNAL;
        else if (running && curl_multi_poll(c->multi, &stop, c->interrupt_fd >= 0, 1000, NULL))
            e = E_INTERNAL;
        else if (stop.revents)
            e = E_CANCELLED;
    }
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(c->multi, &left));)
        if (m->msg == CURLMSG_DONE)
            *code = m->data.result;
    curl_multi_remove_handle(c->multi, c->easy); /* cuts a call that still runs */
    return e;
}

/* What went wrong below HTTP. */
static err_t transport(const struct caller *c, CURLcode code, struct why *why) {
    switch (code) {
    case CURLE_COULDNT_CONNECT:
        return why_set(why, E_IO,
                       "nothing answers at %.160s. Start the daemon there (bitdeltad --base DIR "
                       "--deltas DIR), or say where it is with --url",
                       c->shown);
    case CURLE_COULDNT_RESOLVE_HOST:
        return why_set(why, E_IO, "the host of %.160s is not known", c->shown);
    case CURLE_OPERATION_TIMEDOUT:
        return why_set(why, E_IO, "%.160s did not take the connection in %d s", c->shown,
                       CONNECT_MS / 1000);
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_PARTIAL_FILE:
        return why_set(why, E_IO, "the connection to %.160s was lost before the answer was whole",
                       c->shown);
    default:
        return why_set(why, E_IO, "%.160s: %s", c->shown, curl_easy_strerror(code));
    }
}

/* What a status other than 200 means, in the server's own words where it has some. */
static err_t refusal(const struct reply *r, struct why *why) {
    json_t *root = NULL;
    err_t e = E_INVAL;
    json_parse(&root, r->kept ? r->kept : "", r->n_kept, "", 16, 1000, NULL);
    const json_t *error = json_object_get(root, "error");
    const char *said = json_string_value(json_object_get(error, "message"));
    const char *word = json_string_value(json_object_get(error, "code"));
    if (r->status == 401)
        e = why_set(why, E_UNAUTHORIZED,
                    "the server wants an API key that it knows: put it into BITDELTA_API_KEY or "
                    "name a file that holds it with --api-key-file");
    else if (r->status == 404 && word && strcmp(word, "unknown_url") == 0)
        e = why_set(why, E_NO_ROUTE, "%s", said ? said : "No such address.");
    else if (said)
        e = why_set(why, r->status == 404 ? E_NO_MODEL : E_INVAL, "%s", said);
    else
        e = why_set(why, E_INVAL, "%.160s answered with status %ld; is it a bitdeltad?",
                    r->caller->shown, r->status);
    json_decref(root);
    return e;
}

/* One request. r->status is 0 where no answer came. */
static err_t try_call(struct caller *c, const char *path, const char *body, struct reply *r,
                      struct why *why) {
    char *url = NULL;
    CURLcode code;
    if (asprintf(&url, "%s%s", c->url, path) < 0)
        return why_set(why, E_NOMEM, "no memory");
    curl_easy_setopt(c->easy, CURLOPT_URL, url);
    curl_easy_setopt(c->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c->easy, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c->easy, CURLOPT_WRITEDATA, r);
    if (body)
        curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, body);
    else
        curl_easy_setopt(c->easy, CURLOPT_HTTPGET, 1L);
    err_t e = perform(c, &code);
    curl_off_t retry = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &r->status);
    curl_easy_getinfo(c->easy, CURLINFO_RETRY_AFTER, &retry);
    r->retry_s = retry > MAX_RETRY_S ? MAX_RETRY_S : retry > 0 ? (long)retry : 1;
    if (!e && r->e)
        e = r->e == E_NOMEM ? why_set(why, E_NOMEM, "the reply is too large") : r->e;
    else if (!e && code != CURLE_OK)
        e = transport(c, code, why);
    else if (e == E_INTERNAL)
        why_set(why, e, "libcurl fails");
    free(url);
    return e;
}

/* Sleeps, unless the descriptor says stop. */
static err_t pause_for(struct caller *c, long seconds) {
    for (int64_t until = mono_us() + seconds * 1000000, left; (left = until - mono_us()) > 0;) {
        struct curl_waitfd stop = {.fd = c->interrupt_fd, .events = CURL_WAIT_POLLIN};
        curl_multi_poll(c->multi, &stop, c->interrupt_fd >= 0, (int)(left / 1000) + 1, NULL);
        if (stop.revents)
            return E_CANCELLED;
    }
    return E_OK;
}

static err_t call(struct caller *c, const char *path, const char *body, struct reply *r,
                  void (*note)(const char *sentence), struct why *why) {
    for (int i_try = 1;; i_try++) {
        r->status = 0;
        r->n_kept = 0;
        err_t e = try_call(c, path, body, r, why);
        if (e || r->status == 200)
            return e;
        if ((r->status != 429 && r->status != 503) || i_try == MAX_TRIES)
            return refusal(r, why);
        char sentence[96];
        snprintf(sentence, sizeof sentence, "the server %s; again in %ld s (try %d of %d)",
                 r->status == 429 ? "is full" : "cannot take it now", r->retry_s * i_try, i_try + 1,
                 (int)MAX_TRIES);
        if (note)
            note(sentence);
        e = pause_for(c, r->retry_s * i_try);
        if (e)
            return e;
    }
}

err_t call_post(struct caller *c, const char *path, const json_t *body, call_data_fn *data,
                void *arg, void (*note)(const char *sentence), struct why *why) {
    struct reply r = {.caller = c, .data = data, .arg = arg};
    char *text = json_dumps(body, JSON_COMPACT);
    if (!text)
        return why_set(why, E_INVAL, "the text is not UTF-8");
    err_t e = call(c, path, text, &r, note, why);
    free(text);
    free(r.kept);
    return e;
}

err_t call_get(struct caller *c, const char *path, const char *name, json_t **out,
               struct why *why) {
    struct reply r = {.caller = c};
    char *whole = NULL, *escaped = name ? curl_easy_escape(c->easy, name, 0) : NULL;
    const char *at = name ? strstr(path, "%s") : NULL;
    err_t e = E_OK;
    if ((name && !escaped) ||
        asprintf(&whole, "%.*s%s%s", at ? (int)(at - path) : (int)strlen(path), path,
                 at ? escaped : "", at ? at + 2 : "") < 0)
        e = why_set(why, E_NOMEM, "no memory");
    if (!e)
        e = call(c, whole, NULL, &r, NULL, why);
    if (!e)
        e = json_parse(out, r.kept ? r.kept : "", r.n_kept, "the server's reply", 32, 1 << 20, why);
    curl_free(escaped);
    free(whole);
    free(r.kept);
    return e;
}
