#include "compress/fine_tune.h"

#include "compress/origin.h"

err_t fine_tune_open(struct fine_tune *f, const char *dir, const struct checkpoint *base,
                     struct why *why) {
    *f = (struct fine_tune){.adapter = {.fd = -1}};
    err_t e;
    if (lora_is_adapter(dir)) {
        e = lora_open(&f->adapter, dir, base, why);
        e = e ? e : lora_checkpoint(&f->adapter, &f->checkpoint, why);
    } else {
        e = checkpoint_open(&f->checkpoint, dir, why);
    }
    e = e ? e : model_config_same_shape(&f->checkpoint.config, &base->config, dir, why);
    return e ? e : origin_check(base, &f->checkpoint, why);
}

void fine_tune_close(struct fine_tune *f) {
    checkpoint_close(&f->checkpoint);
    lora_close(&f->adapter);
}
