/* A student into a tenant file. */
#ifndef COMPRESS_STUDENT_WRITE_H
#define COMPRESS_STUDENT_WRITE_H

#include "compress/report.h"
#include "compress/student.h"
#include "compress/tenant_write.h"

/* Brings every number to what the file will hold of it (FP16 scales and pairs), and the model's
 * weights with them, so that what is measured afterwards is what is served. */
void student_round(struct student *s, const struct gemm *g);
/* Writes all tensors of the tenant, in the file's order; fills the report. E_FORMAT where a value
 * does not fit FP16. */
err_t student_write(const struct student *s, struct tenant_writer *w, struct report *report,
                    struct why *why);

#endif
