/* Fits until the tenant is what was asked for: of a given size, or of the smallest that goes a
 * given share of the way from the base to the fine-tune. Owner and caller: the tool's main thread.
 */
#ifndef COMPRESS_WANTED_H
#define COMPRESS_WANTED_H

#include "compress/fitted.h"

struct wanted {
    double quality;    /* share of the way, as report_kept has it; 0: whatever fitted.bits gives */
    double first_bits; /* where the search for it begins; fitted.bits: the most it may take */
    struct fitted_options fitted;
};

/* A tenant all but its header. */
struct made {
    struct tenant_writer *w; /* owned */
    struct report report;
    json_t *made, *quality; /* owned; quality has "kept" where it was measured */
};

/* path: of the file to come; about: what every attempt's `made` begins with. Refused with E_INVAL
 * and the bits that it would take: a share that the bits do not reach, and, where none was asked
 * for, a tenant that goes less than a quarter of the way (one that goes less than three has a note
 * on stderr). Free out in any case. */
err_t wanted_make(const struct job_base *base, const struct checkpoint *fine,
                  const struct wanted *o, const char *path, const json_t *about, struct made *out,
                  struct why *why);
void made_free(struct made *m);

#endif
