/* What an interrupted fit goes on from: a folder OUT.partial beside the file to come, with the text
 * that the models wrote and what the fine-tune made of it; from time to time the student and where
 * its fit stands; and what finished fits of a search measured. All files are written whole or not
 * at all, and carry a key of everything the result depends on and a hash of themselves: a file of
 * other inputs or options, or a damaged one, counts as none. Owner and caller: the tool's main
 * thread. */
#ifndef COMPRESS_RESUME_H
#define COMPRESS_RESUME_H

#include <jansson.h>

#include "compress/fit.h"
#include "config/sha256.h"

struct resume {
    char *folder; /* OUT.partial; owned; NULL: nothing is kept */
    unsigned char text_key[SHA256_BYTES], fit_key[SHA256_BYTES];
    int64_t saved_us, cost_us; /* when a fit was kept, and how long that took */
};

/* path: of the file to come. E_NOMEM. */
err_t resume_open(struct resume *r, const char *path, struct why *why);
void resume_close(struct resume *r);
/* Forgets what is kept for this output. */
void resume_remove(const char *path);

/* Adds to a key what a checkpoint holds: some rows of every matrix and all norms. E_IO, E_FORMAT.
 */
err_t resume_add_weights(struct sha256 *key, const struct checkpoint *c, struct why *why);

/* The lessons in one file. *found: they are those of before, and nothing needs to be written. */
err_t resume_write_text(struct resume *r, struct lesson *const *lesson, int32_t n, struct why *why);
err_t resume_read_text(struct resume *r, struct lesson *const *lesson, int32_t n, bool *found,
                       struct why *why);

/* Student and standing. A student that is stored otherwise than the kept one counts as none. */
err_t resume_write_fit(struct resume *r, struct student *s, const struct fit_report *at,
                       struct why *why);
err_t resume_read_fit(struct resume *r, struct student *s, struct fit_report *at, bool *found,
                      struct why *why);
/* Whether it is time to keep a fit: after a minute of work, and so that keeping takes a tenth of
 * the time at most. */
bool resume_is_due(const struct resume *r, const struct student *s);
/* What fits of this text measured, each with other options: a search that was interrupted knows
 * them. The quality of a fit with this fit_key (a new reference), or NULL; and a further one, which
 * may fail without a word: the search then fits again. */
json_t *resume_look(const struct resume *r);
void resume_add_look(struct resume *r, const json_t *quality);

#endif
