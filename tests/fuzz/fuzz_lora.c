/* Any bytes as a LoRA adapter's adapter_config.json. */
#include <math.h>
#include <stdint.h>

#include "compress/lora_config.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"

void fuzz_lora(const uint8_t *data, size_t n);

void fuzz_lora(const uint8_t *data, size_t n) {
    struct lora_config c;
    struct why why = {{0}};
    err_t e = lora_config_parse(&c, (const char *)data, n, &why);
    if (e && !why.text[0])
        abort();
    for (int32_t rank = 1; !e && rank < 5; rank++) {
        float scale;
        if (lora_scale(&c, "model.layers.0.self_attn.q_proj", rank, &scale, &why) == E_OK &&
            !(scale > 0 && isfinite(scale)))
            abort();
    }
    lora_config_free(&c);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_lora(data, n);
    return 0;
}
#else
TEST(fuzz_lora_survives_damaged_adapter_configs) {
    static const char config[] =
        "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8.5,\"use_rslora\":true,\"bias\":\"none\","
        "\"use_dora\":false,\"modules_to_save\":null,\"fan_in_fan_out\":false,"
        "\"rank_pattern\":{\"q_proj\":2,\"model.layers.0.self_attn.k_proj\":3},"
        "\"alpha_pattern\":{\"self_attn.q_proj\":16}}";
    fuzz_mutations("fuzz_lora", fuzz_lora, config, sizeof config - 1, 30000);
}
#endif
