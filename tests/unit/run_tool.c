#include "tests/unit/run_tool.h"

#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/check.h"

char tool_output[1 << 16];

int run_tool(const char *format, ...) {
    char self[512], rest[4096], command[5000];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    CHECK(n > 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    va_list args;
    va_start(args, format);
    vsnprintf(rest, sizeof rest, format, args);
    va_end(args);
    snprintf(command, sizeof command, "%s/bitdelta %s 2>&1", self, rest);
    FILE *f = popen(command, "r");
    CHECK(f != NULL);
    size_t got = fread(tool_output, 1, sizeof tool_output - 1, f);
    tool_output[got] = 0;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}
