/* Parts of the programs that are loaded at run time because they need what a machine may lack. The
 * executable's own folder is the only place a library's path is derived from: never the working
 * directory, never the environment. */
#ifndef CONFIG_LIBRARY_H
#define CONFIG_LIBRARY_H

#include "config/err.h"

/* The address of `symbol` in `file`, which stands beside the executable or in ../lib/bitdeltad;
 * what was loaded stays. `part` names it in sentences ("the CUDA backend"). E_UNSUPPORTED with one.
 */
err_t library_symbol(const char *part, const char *file, const char *symbol, void **out,
                     struct why *why);

#endif
