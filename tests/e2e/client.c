#include "tests/e2e/client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"

enum { START_MS = 30000, CALL_MS = 20000 };

static char *read_file(const char *path) {
    FILE *f = fopen(path, "re");
    char *text = calloc(1, 1 << 20);
    if (f && text) {
        size_t n = fread(text, 1, (1 << 20) - 1, f);
        text[n] = 0;
    }
    if (f)
        fclose(f);
    return text;
}

static const char *beside(const char *name) {
    static char path[512];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
    path[n > 0 ? n : 0] = 0;
    char *slash = strrchr(path, '/');
    snprintf(slash ? slash + 1 : path, 64, "%s", name);
    return path;
}

const char *client_base(void) {
    return access("demo/base/config.json", R_OK) == 0 ? "demo/base" : test_model("base");
}

const char *client_delta(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "demo/tenants/%s.bitdelta", name);
    if (access(path, R_OK) == 0)
        return path;
    snprintf(path, sizeof path, "%s/%s.bitdelta", test_tmp(), name);
    if (access(path, R_OK) == 0)
        return path;
    char command[2048];
    snprintf(command, sizeof command,
             "'%s' compress --instant --base '%s' --finetuned '%s' -o '%s' >/dev/null 2>&1",
             beside("bitdelta"), test_model("base"), test_model(name), path);
    if (system(command) != 0)
        test_skip("no tenant file %s and no tool that makes it", name);
    return path;
}

void client_copy(const char *from, const char *to) {
    char buffer[65536];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ssize_t n;
    if (in < 0 || out < 0)
        test_fail(__FILE__, __LINE__, "cannot copy %s to %s", from, to);
    while ((n = read(in, buffer, sizeof buffer)) > 0)
        if (write(out, buffer, (size_t)n) != n)
            test_fail(__FILE__, __LINE__, "cannot write %s", to);
    close(in);
    close(out);
}

/* --- the daemon ----------------------------------------------------------------------------- */

static void run_daemon(const struct daemon *d, const char *arguments) {
    char *argv[64], text[4096], admin[300];
    int argc = 0, log = open(d->log, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    snprintf(admin, sizeof admin, "unix:%s", d->admin);
    snprintf(text, sizeof text, "%s", arguments);
    const char *const fixed[] = {
        beside("bitdeltad"), "--base", client_base(), "--listen", "127.0.0.1:0",
        "--admin",           admin,    "--device",    "cpu"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        argv[argc++] = (char *)(uintptr_t)fixed[i];
    for (char *word = strtok(text, " "); word && argc < 63; word = strtok(NULL, " "))
        argv[argc++] = word;
    argv[argc] = NULL;
    if (d->files_limit) {
        struct rlimit r = {(rlim_t)d->files_limit, (rlim_t)d->files_limit};
        setrlimit(RLIMIT_NOFILE, &r);
    }
    dup2(log, STDERR_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO); /* SIGHUP means something else on a terminal */
    execv(argv[0], argv);
    _exit(127);
}

void daemon_start(struct daemon *d, const char *arguments) {
    static int n_started;
    snprintf(d->log, sizeof d->log, "%s/daemon-%d.log", test_tmp(), n_started);
    snprintf(d->admin, sizeof d->admin, "%s/admin-%d.sock", test_tmp(), n_started++);
    client_base(); /* may skip; not in the child */
    if (access(beside("bitdeltad"), X_OK) != 0)
        test_skip("%s has not been built", beside("bitdeltad"));
    d->pid = fork();
    if (d->pid == 0)
        run_daemon(d, arguments);
    for (int64_t until = mono_us() + START_MS * 1000LL; mono_us() < until; usleep(5000)) {
        char *log = read_file(d->log);
        char *at_port = strstr(log, "public=127.0.0.1:");
        bool ready = at_port && strstr(log, "stage=ready");
        if (ready)
            d->port = atoi(at_port + strlen("public=127.0.0.1:"));
        free(log);
        if (ready)
            return;
        if (!daemon_lives(d))
            break;
    }
    char *log = read_file(d->log);
    test_fail(__FILE__, __LINE__, "the daemon did not start: %.1500s", log);
}

bool daemon_lives(const struct daemon *d) {
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)d->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
}

int daemon_stop(struct daemon *d, int signal, int limit_ms) {
    if (signal)
        kill(d->pid, signal);
    for (int64_t until = mono_us() + limit_ms * 1000LL; mono_us() < until; usleep(2000)) {
        int status = 0;
        if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
            int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
            if (code >= 1000 ||
                code == 1) { /* a sanitizer's report, for whoever reads the failure */
                char *log = read_file(d->log);
                fprintf(stderr, "%.8000s\n", log);
                free(log);
            }
            return code;
        }
    }
    test_fail(__FILE__, __LINE__, "the daemon did not end within %d ms", limit_ms);
}

bool daemon_logged(const struct daemon *d, const char *text) {
    for (int i = 0; i < 100; i++, usleep(10000)) {
        char *log = read_file(d->log);
        bool found = strstr(log, text) != NULL;
        free(log);
        if (found)
            return true;
    }
    return false;
}

void daemon_must_serve(const struct daemon *d) {
    struct answer a = client_call(d, "GET", "/health", NULL, NULL);
    CHECK_EQ(a.status, 200);
    answer_free(&a);
}

double daemon_metric(const struct daemon *d, const char *name) {
    struct answer a = client_admin(d, "GET", "/metrics", NULL, NULL);
    CHECK_EQ(a.status, 200);
    double value = -1;
    size_t n = strlen(name);
    for (char *line = strtok(a.body, "\n"); line; line = strtok(NULL, "\n"))
        if (strncmp(line, name, n) == 0 && line[n] == ' ')
            value = strtod(line + n, NULL);
    answer_free(&a);
    return value;
}

void daemon_metric_becomes(const struct daemon *d, const char *name, double value, int limit_ms) {
    double now = -1;
    for (int64_t until = mono_us() + limit_ms * 1000LL; mono_us() < until; usleep(10000))
        if ((now = daemon_metric(d, name)) == value)
            return;
    test_fail(__FILE__, __LINE__, "%s is %g after %d ms, not %g", name, now, limit_ms, value);
}

/* --- sockets -------------------------------------------------------------------------------- */

int client_connect(const struct daemon *d) {
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)d->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        test_fail(__FILE__, __LINE__, "connect: %s", strerror(errno));
    return fd;
}

int client_connect_admin(const struct daemon *d) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    snprintf(to.sun_path, sizeof to.sun_path, "%.100s", d->admin);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        test_fail(__FILE__, __LINE__, "connect %s: %s", d->admin, strerror(errno));
    return fd;
}

void client_send(int fd, const char *data, size_t n) {
    while (n) {
        ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        data += sent;
        n -= (size_t)sent;
    }
}

void client_text(int fd, const char *text) {
    client_send(fd, text, strlen(text));
}

/* The value of a header, lower-case search; NULL: none. */
static const char *header(const char *head, const char *name) {
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
            return line + strlen(name) + 1 + strspn(line + strlen(name) + 1, " ");
    }
    return NULL;
}

/* Undoes the chunks in place; true: the last chunk is there. */
static bool unchunk(const char *data, size_t n, char *out, size_t *n_out) {
    size_t at_byte = 0;
    *n_out = 0;
    while (at_byte < n) {
        char *end = NULL;
        size_t size = strtoul(data + at_byte, &end, 16);
        size_t start = (size_t)(end - data) + 2;
        if (end == data + at_byte || start + size > n)
            return false;
        memcpy(out + *n_out, data + start, size);
        *n_out += size;
        if (size == 0)
            return true;
        at_byte = start + size + 2;
    }
    return false;
}

/* Whether `data` holds a whole reply; fills `a` as far as it goes. */
static bool parse(const char *data, size_t n, bool ended, struct answer *a) {
    const char *end = memmem(data, n, "\r\n\r\n", 4);
    if (!end)
        return false;
    size_t n_head = (size_t)(end - data) + 2, n_body = n - n_head - 2;
    const char *body = end + 4;
    free(a->head);
    free(a->body);
    a->head = strndup(data, n_head);
    a->body = calloc(1, n_body + 1);
    a->status = atoi(data + 9);
    const char *length = header(a->head, "content-length"),
               *transfer = header(a->head, "transfer-encoding");
    if (transfer) {
        a->whole = unchunk(body, n_body, a->body, &a->n_body);
    } else {
        size_t wanted = length ? strtoul(length, NULL, 10) : 0;
        a->n_body = length && n_body > wanted ? wanted : n_body;
        memcpy(a->body, body, a->n_body);
        a->whole = length ? n_body >= wanted : ended;
    }
    a->body[a->n_body] = 0;
    return a->whole;
}

struct answer client_read(int fd, int limit_ms) {
    struct answer a = {0};
    size_t n = 0, cap = 1 << 16;
    char *data = calloc(1, cap);
    int64_t until = mono_us() + limit_ms * 1000LL;
    while (mono_us() < until) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 20) <= 0)
            continue;
        if (cap - n < 65536 + 1)
            data = realloc(data, cap *= 2);
        ssize_t got = recv(fd, data + n, 65536, 0);
        a.closed = got <= 0;
        n += got > 0 ? (size_t)got : 0;
        data[n] = 0;
        /* Long bodies are parsed when they pause, not on every read. */
        bool pause = poll(&p, 1, 0) <= 0;
        if ((pause || a.closed) && parse(data, n, a.closed, &a))
            break;
        if (a.closed)
            break;
    }
    free(data);
    return a;
}

void answer_free(struct answer *a) {
    free(a->head);
    free(a->body);
    *a = (struct answer){0};
}

static void send_call(int fd, const char *method, const char *path, const char *headers,
                      const char *body) {
    char head[4096];
    snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s%s", method,
             path, headers ? headers : "", body ? "Content-Type: application/json\r\n" : "");
    client_text(fd, head);
    if (body) {
        snprintf(head, sizeof head, "Content-Length: %zu\r\n", strlen(body));
        client_text(fd, head);
    }
    client_text(fd, "\r\n");
    if (body)
        client_text(fd, body);
}

static struct answer call(int fd, const char *method, const char *path, const char *headers,
                          const char *body) {
    send_call(fd, method, path, headers, body);
    struct answer a = client_read(fd, CALL_MS);
    close(fd);
    return a;
}

int client_complete(const struct daemon *d, const char *body) {
    int fd = client_connect(d);
    send_call(fd, "POST", "/v1/completions", NULL, body);
    return fd;
}

struct answer client_call(const struct daemon *d, const char *method, const char *path,
                          const char *headers, const char *body) {
    return call(client_connect(d), method, path, headers, body);
}

struct answer client_admin(const struct daemon *d, const char *method, const char *path,
                           const char *headers, const char *body) {
    return call(client_connect_admin(d), method, path, headers, body);
}

json_t *client_json(const struct daemon *d, const char *path, const char *body) {
    struct answer a = client_call(d, "POST", path, NULL, body);
    if (a.status != 200)
        test_fail(__FILE__, __LINE__, "%s: status %d: %s, for %.300s", path, a.status,
                  a.body ? a.body : "", body);
    json_error_t error;
    json_t *tree = json_loadb(a.body, a.n_body, 0, &error);
    if (!tree)
        test_fail(__FILE__, __LINE__, "not JSON (%s): %s", error.text, a.body);
    answer_free(&a);
    return tree;
}

/* --- trees and streams ---------------------------------------------------------------------- */

json_t *at(json_t *tree, const char *path) {
    char copy[256];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *word = strtok(copy, "."); word && tree; word = strtok(NULL, "."))
        tree = json_is_array(tree) ? json_array_get(tree, strtoul(word, NULL, 10))
                                   : json_object_get(tree, word);
    return tree;
}

const char *text_at(json_t *tree, const char *path) {
    return json_string_value(at(tree, path));
}

static void join_lists(json_t *into, json_t *logprobs) {
    static const char *const names[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    for (size_t i = 0; i < 4; i++) {
        json_t *list = json_object_get(into, names[i]);
        if (!list) {
            list = json_array();
            json_object_set_new(into, names[i], list);
        }
        json_array_extend(list, json_object_get(logprobs, names[i]));
    }
}

static void take_chunk(struct stream *s, json_t *chunk) {
    const char *text = text_at(chunk, "choices.0.text");
    const char *finish = text_at(chunk, "choices.0.finish_reason");
    if (text) {
        size_t n = strlen(s->text);
        s->text = realloc(s->text, n + strlen(text) + 1);
        memcpy(s->text + n, text, strlen(text) + 1);
        s->n_chunks++;
    }
    if (finish)
        snprintf(s->finish, sizeof s->finish, "%s", finish);
    if (json_is_object(at(chunk, "choices.0.logprobs")))
        join_lists(s->logprobs, at(chunk, "choices.0.logprobs"));
    if (json_is_object(at(chunk, "usage")))
        s->usage = json_incref(at(chunk, "usage"));
    if (at(chunk, "error"))
        s->error = json_incref(at(chunk, "error"));
}

struct stream client_stream(const char *body) {
    struct stream s = {.text = strdup(""), .logprobs = json_object()};
    while (*body) {
        const char *end = strstr(body, "\n\n");
        if (!end || strncmp(body, "data: ", 6) != 0)
            test_fail(__FILE__, __LINE__, "not an event: %.200s", body);
        const char *data = body + 6;
        if (s.done)
            test_fail(__FILE__, __LINE__, "an event after [DONE]: %.200s", body);
        if (strncmp(data, "[DONE]\n", 7) == 0) {
            s.done = true;
        } else {
            json_t *chunk = json_loadb(data, (size_t)(end - data), 0, NULL);
            if (!chunk)
                test_fail(__FILE__, __LINE__, "not JSON: %.*s", (int)(end - data), data);
            take_chunk(&s, chunk);
            json_decref(chunk);
        }
        body = end + 2;
    }
    return s;
}

void stream_free(struct stream *s) {
    free(s->text);
    json_decref(s->logprobs);
    json_decref(s->usage);
    json_decref(s->error);
}
