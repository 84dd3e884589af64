/* Where a library stands, and loading it. */
#include "config/library.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LIBRARY_PATH_CAP = PATH_MAX + 128 };

/* The library's path, from the first of its two places that has it; else the executable's folder.
 */
static bool find_library(const char *file, char path[LIBRARY_PATH_CAP]) {
    static const char *const place[] = {"", "../lib/bitdeltad/"};
    char folder[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    folder[n > 0 ? n : 0] = 0;
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = 0;
    for (int i = 0; i < 2; i++) {
        snprintf(path, LIBRARY_PATH_CAP, "%s/%s%s", folder, place[i], file);
        if (access(path, R_OK) == 0)
            return true;
    }
    snprintf(path, LIBRARY_PATH_CAP, "%s", folder);
    return false;
}

err_t library_symbol(const char *part, const char *file, const char *symbol, void **out,
                     struct why *why) {
    char path[LIBRARY_PATH_CAP];
    if (!find_library(file, path))
        return why_set(why, E_UNSUPPORTED,
                       "%s is not installed: %s stands neither in %.300s nor in ../lib/bitdeltad "
                       "beside it",
                       part, file, path);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return why_set(why, E_UNSUPPORTED, "%s could not be loaded: %.400s", part, dlerror());
    *out = dlsym(library, symbol);
    return *out ? E_OK : why_set(why, E_UNSUPPORTED, "%.400s is no backend of this program", path);
}
