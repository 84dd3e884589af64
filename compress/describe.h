/* The tool's manual pages and completions, from the tables of its commands. */
#ifndef COMPRESS_DESCRIBE_H
#define COMPRESS_DESCRIBE_H

#include "compress/command.h"

/* Prints what `word` asks for (config/manual.h), of `one` where it is given. False: nothing. */
bool describe_print(const struct command *const *commands, int n, const struct command *one,
                    const char *word);

#endif
