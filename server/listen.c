#include "server/listen.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    BACKLOG = 4096, /* the kernel caps it at net.core.somaxconn */
    /* Of each connection: the kernel would otherwise take up to 4 MB for a client that does not
     * read, and we would notice that much later. */
    SEND_BUFFER = 256 * 1024,
};
static const char unix_prefix[] = "unix:";
enum { N_UNIX_PREFIX = sizeof unix_prefix - 1 };

static int socket_open(int family, int kind, int protocol) {
    int fd = socket(family, kind | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol), bytes = SEND_BUFFER;
    if (fd >= 0) /* accepted connections inherit it */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    return fd;
}

/* A socket file that nobody accepts on was left by a process that is gone. */
static void remove_stale(const struct sockaddr_un *at) {
    int fd = socket_open(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)at, sizeof *at) != 0 && errno == ECONNREFUSED)
        unlink(at->sun_path);
    close(fd);
}

static err_t open_unix(const char *address, int *out, char *name, struct why *why) {
    const char *path = address + N_UNIX_PREFIX;
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof at.sun_path)
        return why_set(why, E_CONFIG, "%s: a socket's path has 1 to %zu bytes", address,
                       sizeof at.sun_path - 1);
    memcpy(at.sun_path, path, strlen(path) + 1);
    remove_stale(&at);
    int fd = socket_open(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0)
        return why_set(why, E_CONFIG, "%s: %s", address, strerror(errno));
    mode_t old = umask(0117); /* 0660 from the first moment on */
    int bound = bind(fd, (struct sockaddr *)&at, sizeof at);
    int error = errno;
    umask(old);
    if (bound != 0 || listen(fd, BACKLOG) != 0) {
        error = bound != 0 ? error : errno;
        close(fd);
        return why_set(why, E_CONFIG, "%s: cannot listen: %s", address, strerror(error));
    }
    snprintf(name, LISTEN_NAME_BYTES, "%s", address);
    *out = fd;
    return E_OK;
}

/* "HOST:PORT" or "[V6]:PORT" into its two parts. */
static err_t split(const char *address, char host[256], char port[8], struct why *why) {
    const char *colon = strrchr(address, ':');
    const char *start = address, *end = colon;
    if (colon && address[0] == '[' && colon > address + 1 && colon[-1] == ']') {
        start = address + 1;
        end = colon - 1;
    }
    size_t n_port = colon ? strlen(colon + 1) : 0;
    if (!colon || n_port == 0 || n_port > 5 || strspn(colon + 1, "0123456789") != n_port ||
        end - start >= 256)
        return why_set(why, E_CONFIG, "%s: an address is HOST:PORT or unix:PATH", address);
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = 0;
    memcpy(port, colon + 1, n_port + 1);
    return E_OK;
}

static int bind_one(const struct addrinfo *a) {
    int fd = socket_open(a->ai_family, a->ai_socktype, a->ai_protocol), one = 1;
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static void name_of(int fd, char *name) {
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    char host[128] = "?", port[16] = "0";
    if (getsockname(fd, (struct sockaddr *)&at, &n) == 0)
        getnameinfo((struct sockaddr *)&at, n, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(name, LISTEN_NAME_BYTES, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

err_t listen_open(const char *address, int *fd, char name[LISTEN_NAME_BYTES], struct why *why) {
    if (strncmp(address, unix_prefix, N_UNIX_PREFIX) == 0)
        return open_unix(address, fd, name, why);
    char host[256], port[8];
    err_t e = split(address, host, port, why);
    if (e)
        return e;
    struct addrinfo *list = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    int failed = getaddrinfo(*host ? host : NULL, port, &hints, &list);
    if (failed)
        return why_set(why, E_CONFIG, "%s: %s", address, gai_strerror(failed));
    int opened = -1;
    errno = 0;
    for (const struct addrinfo *a = list; a && opened < 0; a = a->ai_next)
        opened = bind_one(a);
    int error = errno;
    freeaddrinfo(list);
    if (opened < 0)
        return why_set(why, E_CONFIG, "%s: cannot listen: %s", address, strerror(error));
    name_of(opened, name);
    *fd = opened;
    return E_OK;
}

void listen_remove(const char *address) {
    if (address && strncmp(address, unix_prefix, N_UNIX_PREFIX) == 0)
        unlink(address + N_UNIX_PREFIX);
}
