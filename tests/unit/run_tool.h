/* Runs the `bitdelta` that was built beside the test binary, through the shell. */
#ifndef TESTS_UNIT_RUN_TOOL_H
#define TESTS_UNIT_RUN_TOOL_H

#include <stddef.h>

#include "engine/tenant_file.h"

/* "compress --base ..." printf style. Returns the exit code; what the tool printed on both streams
 * is in tool_output until the next call. */
int run_tool(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, in a shell that does `before` first: "ulimit -f 8; exec". */
int run_tool_after(const char *before, const char *rest);
extern char tool_output[1 << 16];
/* Ends the test unless the code is 0. */
#define TOOL_OK(...)                                                                               \
    do {                                                                                           \
        int tool_code = run_tool(__VA_ARGS__);                                                     \
        if (tool_code)                                                                             \
            test_fail(__FILE__, __LINE__, "bitdelta gave %d: %s", tool_code, tool_output);         \
    } while (0)

/* What the tool wrote. A failure ends the test. tenant_file_free; free. */
void read_tenant(const char *path, struct tenant_file *t);
float *read_tensor(const char *dir, const char *name, size_t n); /* [n] of a checkpoint */

#endif
