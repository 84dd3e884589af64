/* Any bytes as a server's event stream, fed in two pieces (the first byte says where): what is
 * shown and what is kept are the same text, and every failure has a sentence. */
#include <stdint.h>

#include "client/spoken.h"
#include "config/utf8.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"

void fuzz_spoken(const uint8_t *data, size_t n);

static void count(void *arg, const char *text, size_t n) {
    if (utf8_valid_prefix(text, n) != n)
        abort();
    *(size_t *)arg += n;
}

void fuzz_spoken(const uint8_t *data, size_t n) {
    size_t n_shown = 0;
    if (!n)
        return;
    struct spoken a = {.show = count, .arg = &n_shown, .sent_us = 1};
    const char *bytes = (const char *)data + 1;
    size_t first = data[0] % n;
    err_t e = spoken_feed(&a, bytes, first);
    if (!e)
        e = spoken_feed(&a, bytes + first, n - 1 - first);
    if ((e != E_OK) != (a.why.text[0] != 0) || n_shown != a.text.n || spoken_rate(&a) < 0)
        abort();
    spoken_free(&a);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_spoken(data, n);
    return 0;
}
#else
TEST(fuzz_spoken_survives_damaged_streams) {
    static const char completion[] =
        "\x40"
        "data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"text\":\" "
        "Hello\",\"finish_reason\":null}],"
        "\"usage\":{\"completion_tokens\":1}}\n\ndata: {\"choices\":[{\"index\":0,\"text\":\"\","
        "\"finish_reason\":\"stop\"}],\"usage\":{\"completion_tokens\":2}}\r\n\r\ndata: [DONE]\n\n";
    static const char chat[] =
        "\x09: hi\nevent: x\ndata:{\"choices\":[{\"delta\":{\"role\":\"assistant\",\n"
        "data:\"content\":\"a\\u00e9\\ud83d\\ude00\"}}]}\n\ndata: "
        "{\"error\":{\"message\":\"no\"}}\n\n";
    fuzz_mutations("fuzz_spoken", fuzz_spoken, completion, sizeof completion - 1, 20000);
    fuzz_mutations("fuzz_spoken", fuzz_spoken, chat, sizeof chat - 1, 20000);
}
#endif
