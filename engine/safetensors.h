/* safetensors: reading with every header field checked, and writing. The file is never trusted and
 * never mapped: a file that shrinks or changes while it is read gives an error, not a signal.
 * Format: u64 LE header length, JSON header, data; offsets relative to the data. Refused: duplicate
 * names, unknown dtypes, shape x dtype that differs from the range, overlap, holes, bytes outside
 * the file, a header that does not end where the data starts. */
#ifndef ENGINE_SAFETENSORS_H
#define ENGINE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

enum st_dtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_I16,
    ST_I32,
    ST_I64,
    ST_F16,
    ST_BF16,
    ST_F32,
    ST_F64,
    ST_N
};
enum { ST_MAX_DIMS = 8 };

struct st_tensor {
    const char *name; /* owned by the file */
    enum st_dtype dtype;
    int32_t n_dims;
    int64_t dim[ST_MAX_DIMS];
    uint64_t offset; /* from the start of the file */
    uint64_t bytes;
};

struct st_file {
    char *label; /* for sentences; owned */
    int fd;      /* borrowed or owned, see st_open */
    uint64_t size, data_start;
    int32_t n_tensors;
    struct st_tensor *tensor; /* sorted by name; owned */
    void *header;             /* the parsed JSON; owned */
};

/* Reads and checks the header. fd: borrowed, must be a regular file. label: names the file in
 * sentences. max_header: most bytes of header accepted. Free with st_close (also after an error).
 */
err_t st_open(struct st_file *f, int fd, const char *label, size_t max_header, struct why *why);
void st_close(struct st_file *f);

const struct st_tensor *st_find(const struct st_file *f, const char *name); /* NULL: absent */
const char *st_meta(const struct st_file *f, const char *key);              /* NULL: absent */
/* Reads the whole tensor into dst (tensor->bytes). Any thread. E_IO when the file shrank. */
err_t st_read(const struct st_file *f, const struct st_tensor *t, void *dst, struct why *why);
/* The same for bytes [at, at + bytes) of the tensor. */
err_t st_read_part(const struct st_file *f, const struct st_tensor *t, uint64_t at, void *dst,
                   uint64_t bytes, struct why *why);

size_t st_dtype_bytes(enum st_dtype d);
const char *st_dtype_name(enum st_dtype d);
/* Elements to float, for F16, BF16, F32, F64; E_UNSUPPORTED for others. */
err_t st_to_f32(enum st_dtype d, const void *src, float *dst, size_t n);

/* ---- writing: declare every tensor, then write their bytes in the declared order ------------- */

struct st_writer;

/* Writes to "path.tmp-PID" and renames over path in st_writer_end, so a crash leaves the old file.
 */
err_t st_writer_open(struct st_writer **out, const char *path, struct why *why);
void st_writer_meta(struct st_writer *w, const char *key, const char *value);
void st_writer_tensor(struct st_writer *w, const char *name, enum st_dtype d, int32_t n_dims,
                      const int64_t *dim);
/* align: file offset of the data (a power of two; 8 at least). Call once, after the declarations.
 */
err_t st_writer_header(struct st_writer *w, size_t align, struct why *why);
err_t st_writer_data(struct st_writer *w, const void *data, size_t bytes, struct why *why);
/* fsync and rename; frees w in any case. On any earlier error call st_writer_abort instead, which
 * removes the file (NULL is fine). */
err_t st_writer_end(struct st_writer *w, struct why *why);
void st_writer_abort(struct st_writer *w);

#endif
