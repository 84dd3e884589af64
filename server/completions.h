/* POST /v1/completions, as a surface: its fields, its prompts, its JSON. */
#ifndef SERVER_COMPLETIONS_H
#define SERVER_COMPLETIONS_H

extern const struct surface surface_completions;

#endif
