/* How much memory this process may still get: the smallest of what the kernel calls available and
 * what every control group above the process leaves. Files in the page cache count as free. */
#include "kernels/cpu/memory.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* The two versions of control groups: line in /proc/self/cgroup, folder, names of the files. */
struct cgroup_version {
    const char *line, *root, *limit, *used, *inactive, *active;
};
static const struct cgroup_version versions[] = {
    {"0::", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ", "active_file "},
    {"memory:", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file ", "total_active_file "},
};

/* The number after `key` at the start of a line; `none` when the file or the line is missing. */
static size_t read_number(const char *path, const char *key, size_t none) {
    FILE *f = fopen(path, "re");
    char line[256];
    unsigned long long n;
    size_t found = none, length = strlen(key);
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, length) == 0 && sscanf(line + length, "%llu", &n) == 1) {
            found = (size_t)n;
            break;
        }
    if (f)
        fclose(f);
    return found;
}

static size_t group_number(const struct cgroup_version *v, const char *group, const char *file,
                           const char *key, size_t none) {
    char path[640];
    snprintf(path, sizeof path, "%s%s/%s", v->root, group, file);
    return read_number(path, key, none);
}

/* What one control group leaves; SIZE_MAX without a limit ("max" is no number). */
static size_t group_free(const struct cgroup_version *v, const char *group) {
    size_t limit = group_number(v, group, v->limit, "", SIZE_MAX);
    if (limit == SIZE_MAX)
        return SIZE_MAX;
    size_t used = group_number(v, group, v->used, "", 0);
    size_t cache = group_number(v, group, "memory.stat", v->inactive, 0) +
                   group_number(v, group, "memory.stat", v->active, 0);
    used = used > cache ? used - cache : 0;
    return limit > used ? limit - used : 0;
}

/* The process's own group in this version, "" for the root or none. */
static void own_group(const struct cgroup_version *v, char *group, size_t n) {
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[512];
    group[0] = 0;
    while (f && fgets(line, sizeof line, f)) {
        const char *at = strstr(line, v->line);
        if (at && (at == line || at[-1] == ':' || at[-1] == ','))
            snprintf(group, n, "%.*s", (int)strcspn(at + strlen(v->line), "\n"),
                     at + strlen(v->line));
    }
    if (f)
        fclose(f);
}

size_t memory_available(void) {
    size_t left = read_number("/proc/meminfo", "MemAvailable:", 0) << 10;
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        char group[512];
        own_group(&versions[i], group, sizeof group);
        /* Upwards to the root. In a container the path may be the host's and absent here; its
         * root is then the limit. */
        for (;;) {
            size_t here = group_free(&versions[i], group);
            left = here < left ? here : left;
            char *slash = strrchr(group, '/');
            if (!slash)
                break;
            *slash = 0;
        }
    }
    return left;
}
