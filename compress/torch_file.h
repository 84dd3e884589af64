/* A file of torch.save: a zip archive with one pickle (read by pickle.h, never run) and one stored
 * member per storage. */
#ifndef COMPRESS_TORCH_FILE_H
#define COMPRESS_TORCH_FILE_H

#include "compress/pickle.h"

struct torch_file {
    char *label;  /* owned */
    void *zip;    /* zip_t; owned */
    char *folder; /* "archive" of "archive/data.pkl"; owned */
    struct pt_tensors all;
};

/* Errors: E_IO, E_FORMAT, E_UNSUPPORTED, E_NOMEM. Free with torch_file_close, also after an error.
 */
err_t torch_file_open(struct torch_file *f, const char *path, struct why *why);
void torch_file_close(struct torch_file *f);

const struct pt_tensor *torch_file_find(const struct torch_file *f, const char *name);
/* The elements in row-major order of the tensor's sizes, whatever its strides: I32 to int32_t, the
 * float types to FP32. E_FORMAT for a dtype of the other sort. n: the elements expected. */
err_t torch_file_read_i32(const struct torch_file *f, const struct pt_tensor *t, int32_t *dst,
                          size_t n, struct why *why);
err_t torch_file_read_f32(const struct torch_file *f, const struct pt_tensor *t, float *dst,
                          size_t n, struct why *why);

#endif
