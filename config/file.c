#include "config/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static err_t read_all(int fd, const char *path, char *text, size_t n, struct why *why) {
    for (size_t done = 0; done < n;) {
        ssize_t got = read(fd, text + done, n - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return why_set(why, E_IO, "%s: cannot read: %s", path, strerror(errno));
        if (got == 0)
            return why_set(why, E_IO, "%s: became shorter while it was read", path);
        done += (size_t)got;
    }
    return E_OK;
}

err_t file_read(const char *path, size_t max_bytes, char **text, size_t *n, struct why *why) {
    *text = NULL;
    *n = 0;
    /* O_NONBLOCK: a FIFO must not hold us up before fstat can refuse it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return why_set(why, E_IO, "%s: cannot open: %s", path, strerror(errno));
    struct stat s;
    err_t e = E_OK;
    if (fstat(fd, &s) < 0)
        e = why_set(why, E_IO, "%s: cannot stat: %s", path, strerror(errno));
    else if (!S_ISREG(s.st_mode))
        e = why_set(why, E_FORMAT, "%s: not a regular file", path);
    else if ((unsigned long long)s.st_size > max_bytes)
        e = why_set(why, E_FORMAT, "%s: has %lld bytes, more than the %zu accepted", path,
                    (long long)s.st_size, max_bytes);
    if (!e) {
        size_t size = (size_t)s.st_size;
        char *buffer = malloc(size + 1);
        e = buffer ? read_all(fd, path, buffer, size, why)
                   : why_set(why, E_NOMEM, "%s: not enough memory to read it", path);
        if (!e) {
            buffer[size] = 0;
            *text = buffer;
            *n = size;
        } else {
            free(buffer);
        }
    }
    int saved = errno;
    close(fd);
    errno = saved;
    return e;
}

err_t file_read_in(const char *dir, const char *name, size_t max_bytes, char **text, size_t *n,
                   struct why *why) {
    char *path;
    *text = NULL;
    *n = 0;
    if (asprintf(&path, "%s/%s", dir, name) < 0)
        return why_set(why, E_NOMEM, "%s: not enough memory", dir);
    err_t e = file_read(path, max_bytes, text, n, why);
    int saved = errno;
    free(path);
    errno = saved;
    return e;
}
