/* The load client: one thread, one epoll set, keep-alive connections that ask again as soon as they
 * are answered. It reads as little as it can: events are counted by their "data: ", a reply's end
 * is its last chunk or its Content-Length. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "config/clock.h"
#include "tests/bench/http/bench_http.h"

enum { IN_BYTES = 1 << 16, MAX_SAMPLES = 1 << 22 };

struct client {
    int fd;
    char in[IN_BYTES];
    size_t n;
    bool head_seen;
    size_t length; /* of the body, without stream */
};

struct run {
    const struct bench_load *load;
    char request[2048];
    size_t n_request;
    struct bench_result *result;
    float *sample_ms;
    size_t n_samples;
};

double bench_now(void) {
    return (double)mono_us() / 1e6;
}

static double cpu_of(int pid) {
    char path[64], text[1024];
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    if (f)
        fclose(f);
    char *after = strrchr(text, ')');
    if (after)
        sscanf(after + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static int open_client(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)port);
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        fprintf(stderr, "cannot connect: %s\n", strerror(errno));
        exit(1);
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void make_request(struct run *r, const char *fields) {
    char body[1024];
    int n = snprintf(body, sizeof body, "{\"model\":\"base\",%s}", fields);
    r->n_request =
        (size_t)snprintf(r->request, sizeof r->request,
                         "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                         "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                         n, body);
}

static void ask(struct run *r, struct client *c) {
    c->head_seen = false;
    c->n = 0;
    if (send(c->fd, r->request, r->n_request, MSG_NOSIGNAL) != (ssize_t)r->n_request)
        r->result->errors++;
}

/* One whole event of a paced stream: its id says which step it is of, its log-probability which
 * part. */
static void time_event(struct run *r, const char *event, size_t n, int64_t now) {
    const char *ids = memmem(event, n, "\"token_ids\":[", 13);
    const char *part = memmem(event, n, "\"token_logprobs\":[", 18);
    if (!ids || !part || r->n_samples == MAX_SAMPLES)
        return;
    int id = atoi(ids + 13) - BENCH_FIRST_ID, k = -(int)strtod(part + 18, NULL);
    if (id < 0 || id >= BENCH_STAMPS || k < 0 || k >= BENCH_MAX_PARTS)
        return;
    int64_t left = atomic_load(&bench_shared->stamp_us[id * BENCH_MAX_PARTS + k]);
    r->sample_ms[r->n_samples++] = (float)(now - left) / 1e3f;
}

/* Counts the events that are whole, forgets them; true: the stream has ended. */
static bool take_stream(struct run *r, struct client *c, int64_t now) {
    char *at = c->in, *end = c->in + c->n, *stop;
    bool done = false;
    while ((stop = memmem(at, (size_t)(end - at), "}\n\n", 3))) {
        r->result->tokens++;
        if (r->sample_ms)
            time_event(r, at, (size_t)(stop - at), now);
        at = stop + 3;
    }
    if (end - at >= 5 && memcmp(end - 5, "0\r\n\r\n", 5) == 0) {
        done = true;
        r->result->tokens--; /* the last event brought the reason of the end, no token */
        at = end;
    }
    c->n = (size_t)(end - at);
    memmove(c->in, at, c->n);
    return done;
}

static bool take_whole(struct run *r, struct client *c) {
    if (!c->head_seen) {
        char *end = memmem(c->in, c->n, "\r\n\r\n", 4), *length;
        if (!end)
            return false;
        length = memmem(c->in, c->n, "Content-Length: ", 16);
        c->head_seen = true;
        c->length = (length ? (size_t)atol(length + 16) : 0) + (size_t)(end + 4 - c->in);
        r->result->errors += memcmp(c->in, "HTTP/1.1 200", 12) != 0;
    }
    if (c->n < c->length)
        return false;
    r->result->tokens += (uint64_t)r->load->tokens;
    return true;
}

static void on_readable(struct run *r, struct client *c) {
    ssize_t n = recv(c->fd, c->in + c->n, sizeof c->in - c->n, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) {
            fprintf(stderr, "the server closed a connection\n");
            exit(1);
        }
        return;
    }
    c->n += (size_t)n;
    if (r->load->stream ? take_stream(r, c, mono_us()) : take_whole(r, c)) {
        r->result->replies++;
        ask(r, c);
    }
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void sum_samples(struct run *r) {
    if (!r->n_samples)
        return;
    qsort(r->sample_ms, r->n_samples, sizeof *r->sample_ms, by_size);
    r->result->p50_ms = (double)r->sample_ms[r->n_samples / 2];
    r->result->p99_ms = (double)r->sample_ms[r->n_samples * 99 / 100];
    r->result->max_ms = (double)r->sample_ms[r->n_samples - 1];
}

void bench_run(const struct bench_load *load, int port, int server_pid, struct bench_result *out) {
    struct run r = {.load = load, .result = out};
    struct epoll_event events[256];
    struct client *clients = calloc((size_t)load->connections, sizeof *clients);
    bool paced = atomic_load(&bench_shared->step_us) > 0;
    int ep = epoll_create1(0);
    *out = (struct bench_result){0};
    make_request(&r, load->fields);
    for (int i = 0; i < load->connections; i++) {
        clients[i].fd = open_client(port);
        epoll_ctl(ep, EPOLL_CTL_ADD, clients[i].fd,
                  &(struct epoll_event){.events = EPOLLIN, .data.ptr = &clients[i]});
        ask(&r, &clients[i]);
    }
    double start = bench_now(), cpu = 0, own = 0;
    bool warm = false;
    while (bench_now() - start < load->seconds) {
        int n = epoll_wait(ep, events, 256, 100);
        for (int i = 0; i < n; i++)
            on_readable(&r, events[i].data.ptr);
        if (!warm && bench_now() - start > 0.5) { /* connections and first replies do not count */
            warm = true;
            *out = (struct bench_result){.errors = out->errors};
            r.sample_ms = paced ? malloc(MAX_SAMPLES * sizeof *r.sample_ms) : NULL;
            start = bench_now();
            cpu = cpu_of(server_pid);
            own = cpu_of(getpid());
        }
    }
    out->seconds = bench_now() - start;
    out->server_cpu_s = cpu_of(server_pid) - cpu;
    out->client_cpu_s = cpu_of(getpid()) - own;
    sum_samples(&r);
    for (int i = 0; i < load->connections; i++)
        close(clients[i].fd);
    close(ep);
    free(clients);
    free(r.sample_ms);
    usleep(300000); /* the server notices that they left */
}

static double resident_kb(int pid) {
    char path[64];
    long pages = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    FILE *f = fopen(path, "r");
    if (f) {
        if (fscanf(f, "%*d %ld", &pages) != 1)
            pages = 0;
        fclose(f);
    }
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1024;
}

double bench_idle_kb(int n, int port, int server_pid) {
    const struct bench_load load = {.fields = "\"prompt\":\"a\",\"max_tokens\":1", .tokens = 1};
    struct bench_result result = {0};
    struct run r = {.load = &load, .result = &result};
    struct client *c = calloc(1, sizeof *c);
    int *fds = calloc((size_t)n, sizeof *fds);
    make_request(&r, load.fields);
    double before = resident_kb(server_pid);
    for (int i = 0; i < n; i++) { /* each has been used once */
        c->fd = fds[i] = open_client(port);
        ask(&r, c);
        while (!take_whole(&r, c)) {
            ssize_t got = recv(c->fd, c->in + c->n, sizeof c->in - c->n, 0);
            if (got > 0)
                c->n += (size_t)got;
            else
                usleep(20);
        }
    }
    double kb = (resident_kb(server_pid) - before) / n;
    for (int i = 0; i < n; i++)
        close(fds[i]);
    free(fds);
    free(c);
    return result.errors ? -1 : kb;
}
