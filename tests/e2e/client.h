/* Starts the real daemon that was built beside the test and talks to it over raw sockets, so that a
 * test decides about every byte. Failures end the test. */
#ifndef TESTS_E2E_CLIENT_H
#define TESTS_E2E_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "tests/check.h"

struct daemon {
    pid_t pid;
    int port;
    char admin[256]; /* path of the admin socket */
    char log[256];   /* its stderr */
    int files_limit; /* set before the start: RLIMIT_NOFILE of the daemon, 0: as it is */
};

/* One reply as read from a socket. */
struct answer {
    int status; /* 0: the connection ended without a whole head */
    char *head, *body;
    size_t n_body;
    bool whole, closed; /* the body was complete; the peer closed */
};

/* The folder of the base and a tenant file of it ("math", "kjv", "sql"); skip the test if absent.
 */
const char *client_base(void);
const char *client_delta(const char *name);
/* Copies a file; mode 0644. */
void client_copy(const char *from, const char *to);

/* Starts build/bitdeltad on free ports with more arguments (one string, split at spaces) and waits
 * until it serves. */
void daemon_start(struct daemon *d, const char *arguments);
/* Sends the signal and waits: the exit status, or 1000 + signal if one ended it. Fails the test
 * after `limit_ms`. */
int daemon_stop(struct daemon *d, int signal, int limit_ms);
bool daemon_lives(const struct daemon *d);
/* Fails the test unless the daemon still answers /health with 200. */
void daemon_must_serve(const struct daemon *d);
/* The log holds this text; waits up to a second for it. */
bool daemon_logged(const struct daemon *d, const char *text);
/* A sample of /metrics by its whole name with labels; -1: not there. */
double daemon_metric(const struct daemon *d, const char *name);
/* Waits until the sample has the value; fails the test after limit_ms. */
void daemon_metric_becomes(const struct daemon *d, const char *name, double value, int limit_ms);

int client_connect(const struct daemon *d);
int client_connect_admin(const struct daemon *d);
void client_send(int fd, const char *data, size_t n); /* errors are ignored: the peer may close */
void client_text(int fd, const char *text);
/* Reads one reply (Content-Length, chunked or until the end), at most for limit_ms. */
struct answer client_read(int fd, int limit_ms);
void answer_free(struct answer *a);

/* A whole call on a connection of its own. `headers`: lines with \r\n, or NULL. */
struct answer client_call(const struct daemon *d, const char *method, const char *path,
                          const char *headers, const char *body);
struct answer client_admin(const struct daemon *d, const char *method, const char *path,
                           const char *headers, const char *body);
/* Sends a completion without reading the reply: the connection. */
int client_complete(const struct daemon *d, const char *body);
/* POST of a JSON body, 200 expected: the reply's tree (json_decref). */
json_t *client_json(const struct daemon *d, const char *path, const char *body);
/* Joins the texts of a stream's chunks; *last: the last chunk that has choices, *usage, *error:
 * borrowed from it ... all malloc'ed or referenced, NULL when not there. */
struct stream {
    char *text;
    json_t *logprobs; /* the four lists, joined */
    char finish[32];
    json_t *usage, *error;
    int n_chunks;
    bool done;
};
struct stream client_stream(const char *body);
void stream_free(struct stream *s);
/* Value at a path such as "choices.0.text"; NULL: not there. Borrowed. */
json_t *at(json_t *tree, const char *path);
const char *text_at(json_t *tree, const char *path);

#endif
