#include "tests/unit/run_tool.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/checkpoint.h"
#include "tests/check.h"

char tool_output[1 << 16];

int run_tool_after(const char *before, const char *rest) {
    char self[512], command[6000];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    CHECK(n > 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    snprintf(command, sizeof command, "%s %s/bitdelta %s 2>&1", before, self, rest);
    FILE *f = popen(command, "r");
    CHECK(f != NULL);
    size_t got = fread(tool_output, 1, sizeof tool_output - 1, f);
    tool_output[got] = 0;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

int run_tool(const char *format, ...) {
    char rest[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(rest, sizeof rest, format, args);
    va_end(args);
    return run_tool_after("", rest);
}

void read_tenant(const char *path, struct tenant_file *t) {
    struct why why;
    int fd = open(path, O_RDONLY);
    CHECK_OK(tenant_file_read(t, fd, path, NULL, NULL, &why), why);
    close(fd);
}

float *read_tensor(const char *dir, const char *name, size_t n) {
    struct checkpoint c;
    struct why why;
    float *x = malloc(n * sizeof *x);
    CHECK_OK(checkpoint_open(&c, dir, &why), why);
    CHECK_OK(checkpoint_read_f32(&c, name, x, n, &why), why);
    checkpoint_close(&c);
    return x;
}
