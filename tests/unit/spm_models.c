#include "tests/unit/spm_models.h"

#include <unistd.h>

#include "tests/check.h"
#include "tokenizer/additions.h"

const char *spm_base_folder(void) {
    return access("demo/base/tokenizer.model", R_OK) == 0 ? "demo/base" : test_model("base");
}

char *spm_model_bytes(int which, size_t *n) {
    static const char *const names[] = {"tokenizer.model", "../tokenizers/tokenizer.model.v1",
                                        "../tokenizers/mistral_instruct_tokenizer_240323.model.v3"};
    const char *dir = which == SPM_DEMO ? spm_base_folder() : test_models();
    char *bytes = NULL;
    struct why why = {""};
    if (dir)
        CHECK_OK(additions_read_file(dir, names[which], ADDITIONS_MAX_MODEL_BYTES, &bytes, n, &why),
                 why);
    return bytes;
}

const char *spm_model_folder(int which) {
    char path[512];
    size_t n;
    char *bytes = spm_model_bytes(which, &n);
    if (!bytes)
        return NULL;
    snprintf(path, sizeof path, "%s/tokenizer.model", test_tmp());
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
    free(bytes);
    return test_tmp();
}
