/* A student into a tenant file. */
#ifndef COMPRESS_STUDENT_WRITE_H
#define COMPRESS_STUDENT_WRITE_H

#include "compress/report.h"
#include "compress/student.h"
#include "compress/tenant_write.h"

/* Brings every number to what the file will hold of it (FP16 scales and pairs), so that what is
 * measured afterwards is what is served. E_NOMEM. */
err_t student_round(struct student *s, struct why *why);
/* Writes all tensors of the tenant, in the file's order; fills the report, for which the
 * differences are read once more. E_FORMAT where a value does not fit FP16; E_NOMEM, E_IO. */
err_t student_write(struct student *s, struct tenant_writer *w, struct report *report,
                    struct why *why);

#endif
