#include "server/playground.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/sha256.h"
#include "server/server.h"

/* The assembler puts the four files together into one page: the source stays in files that editors
 * know, the page needs one request, and where its style and script stand is known for their hashes.
 */
__asm__(".pushsection .rodata\n"
        "playground_page: .incbin \"demo/playground/head.html\"\n"
        ".ascii \"<style>\"\n"
        "playground_style: .incbin \"demo/playground/page.css\"\n"
        "playground_style_end: .ascii \"</style>\\n</head>\\n\"\n"
        ".incbin \"demo/playground/body.html\"\n"
        ".ascii \"<script>\"\n"
        "playground_script: .incbin \"demo/playground/page.js\"\n"
        "playground_script_end: .ascii \"</script>\\n</html>\\n\"\n"
        "playground_page_end: .byte 0\n"
        ".popsection\n");
#define HIDDEN __attribute__((visibility("hidden")))
extern const char playground_page[] HIDDEN, playground_page_end[] HIDDEN;
extern const char playground_style[] HIDDEN, playground_style_end[] HIDDEN;
extern const char playground_script[] HIDDEN, playground_script_end[] HIDDEN;

enum { BASE64_BYTES = 4 * ((SHA256_BYTES + 2) / 3) + 1 };

static void hash64(const char *from, const char *end, char out[BASE64_BYTES]) {
    unsigned char digest[SHA256_BYTES];
    sha256_of(from, (size_t)(end - from), digest);
    EVP_EncodeBlock((unsigned char *)out, digest, SHA256_BYTES);
}

void playground_init(struct playground *p) {
    char style[BASE64_BYTES], script[BASE64_BYTES], hex[SHA256_HEX];
    unsigned char digest[SHA256_BYTES];
    hash64(playground_style, playground_style_end, style);
    hash64(playground_script, playground_script_end, script);
    sha256_of(playground_page, (size_t)(playground_page_end - playground_page), digest);
    sha256_hex(digest, hex);
    snprintf(p->etag, sizeof p->etag, "\"%.32s\"", hex);
    /* The script builds elements, never markup, so trusted types cost nothing. */
    snprintf(p->policy, sizeof p->policy,
             "default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; "
             "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
             "frame-ancestors 'none'; require-trusted-types-for 'script'",
             script, style);
    const char *const headers[] = {"Content-Security-Policy",
                                   p->policy,
                                   "ETag",
                                   p->etag,
                                   "Cache-Control",
                                   "no-cache", /* kept, but asked for again: see ETag */
                                   "X-Content-Type-Options",
                                   "nosniff",
                                   "Referrer-Policy",
                                   "no-referrer",
                                   "Cross-Origin-Resource-Policy",
                                   "same-origin",
                                   NULL};
    memcpy(p->headers, headers, sizeof headers);
}

void playground_handle(struct server *s, struct exchange *x) {
    if (!s->options->playground) {
        http_reply_error(x, E_NO_ROUTE, NULL, NULL);
        return;
    }
    size_t n = (size_t)(playground_page_end - playground_page);
    bool known = strstr(x->head.if_none_match, s->playground.etag) != NULL;
    char *page = known ? NULL : malloc(n);
    if (!known && !page) {
        http_reply_error(x, E_NOMEM, NULL, NULL);
        return;
    }
    if (page)
        memcpy(page, playground_page, n);
    x->headers = s->playground.headers;
    http_reply(x, known ? 304 : 200, "text/html; charset=utf-8", page, known ? 0 : n);
}
