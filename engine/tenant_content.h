/* The content of a tenant file on its way to memory: tensors in extents, read, hashed and checked
 * piece by piece on all cores while earlier pieces are being copied to the device. Private to
 * tenant_file.c and tenant_content.c.
 *
 * An extent is a run of the file's tensors, at most EXTENT_BYTES long (a longer tensor has one of
 * its own), in memory of its own: so tenants of any sizes fit into whatever holes others left. */
#ifndef ENGINE_TENANT_CONTENT_H
#define ENGINE_TENANT_CONTENT_H

#include "engine/tenant_file.h"

enum { EXTENT_BYTES = 32 << 20 };

/* What the values of a tensor must be, found out by its role. */
enum value_check { CHECK_NOTHING, CHECK_F16, CHECK_F32, CHECK_SCALE, CHECK_PADDING };

/* One claimed tensor. */
struct content_tensor {
    bool claimed;
    enum value_check check;
    int32_t n, k;        /* CHECK_PADDING: of the matrix */
    bool keep;           /* the host needs the bytes, too: scales to expand, row ids */
    unsigned char *kept; /* [tensor bytes] owned */
    int32_t extent;      /* where it lies */
    /* The first value that breaks the check; written by the one thread that reads the tensor. */
    bool broken;
    uint64_t at; /* element; row of a padding bit in the upper half, column in the lower */
    double value;
};

struct content {
    struct tenant_file *t;
    const struct st_file *f;
    struct content_tensor *tensor; /* [f->n_tensors] owned */
    struct why *why;
};

err_t content_open(struct content *c, struct tenant_file *t, const struct st_file *f,
                   struct why *why);
void content_close(struct content *c);

/* Reserves memory for all claimed tensors and reads them into it; trusted: without hashes. Then
 * checks hashes, values and what is not claimed, in this order. Errors: E_FORMAT, E_IO, E_NOMEM,
 * E_DEVICE. */
err_t content_read(struct content *c, bool trusted);
/* Where a claimed tensor lies. */
const void *content_address(const struct content *c, const struct st_tensor *t);
/* Its bytes on the host, if it was to be kept. */
const void *content_kept(const struct content *c, const struct st_tensor *t);
/* An extent beyond the file's, and its content. */
err_t content_reserve(struct content *c, size_t bytes, const void **address);
err_t content_fill(struct content *c, const void *address, const void *data, size_t bytes);
/* Waits until all is in place. */
err_t content_settle(struct content *c);

#endif
