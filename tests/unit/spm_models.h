/* The SentencePiece models that tokenizer tests run on: the demo base's, which every clone has, and
 * Mistral's, where the shared models are. */
#ifndef TESTS_UNIT_SPM_MODELS_H
#define TESTS_UNIT_SPM_MODELS_H

#include <stdbool.h>
#include <stddef.h>

enum { SPM_DEMO, SPM_MISTRAL_V1, SPM_MISTRAL_V3, SPM_MODELS };

/* The folder of the demo base. Skips the test if there is none at all. */
const char *spm_base_folder(void);
/* The bytes of a model, malloc'ed; NULL: it is not here. */
char *spm_model_bytes(int which, size_t *n);
/* The same, in tokenizer.model of test_tmp(), which is returned; NULL: it is not here. */
const char *spm_model_folder(int which);

#endif
