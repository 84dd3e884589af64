#include "server/guard.h"

#include <string.h>
#include <strings.h>

void guard_init(struct guard *g) {
    *g = (struct guard){0};
}

/* RFC 9110 5.6.2: the bytes of a header's name. */
static bool is_token_byte(unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool name_is_clean(const char *name, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!is_token_byte((unsigned char)name[i]))
            return false;
    return n > 0;
}

static bool value_is_clean(const char *value, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)value[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static bool is_name(const char *name, size_t n, const char *wanted) {
    return strlen(wanted) == n && strncasecmp(name, wanted, n) == 0;
}

static bool read_length(const char *value, size_t n, uint64_t *out) {
    uint64_t length = 0;
    for (size_t i = 0; i < n; i++) {
        if (value[i] < '0' || value[i] > '9' || length > UINT64_MAX / 10 - 1)
            return false;
        length = length * 10 + (uint64_t)(value[i] - '0');
    }
    *out = length;
    return n > 0;
}

static void take_request_id(struct guard *g, const char *value, size_t n) {
    if (n == 0 || n > GUARD_MAX_ID)
        return;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)value[i];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
              c == '.' || c == '_' || c == '-'))
            return;
    }
    memcpy(g->request_id, value, n);
    g->request_id[n] = 0;
}

static bool is_json_type(const char *value, size_t n) {
    static const char type[] = "application/json";
    size_t n_type = sizeof type - 1;
    return n >= n_type && strncasecmp(value, type, n_type) == 0 &&
           (n == n_type || value[n_type] == ';' || value[n_type] == ' ');
}

void guard_header(struct guard *g, const char *name, size_t n_name, const char *value,
                  size_t n_value) {
    g->n_headers++;
    if (!value)
        n_value = 0;
    if (!name_is_clean(name, n_name) || !value_is_clean(value, n_value)) {
        g->malformed = true;
        return;
    }
    if (is_name(name, n_name, "transfer-encoding")) {
        g->n_transfer++;
        g->chunked = is_name(value, n_value, "chunked"); /* as libmicrohttpd compares it */
    } else if (is_name(name, n_name, "content-length")) {
        g->n_length++;
        if (!read_length(value, n_value, &g->length))
            g->malformed = true;
    } else if (is_name(name, n_name, "host")) {
        g->n_host++;
    } else if (is_name(name, n_name, "authorization")) {
        g->n_authorization++;
        g->authorization = value;
    } else if (is_name(name, n_name, "content-encoding")) {
        g->encoded = !is_name(value, n_value, "identity");
    } else if (is_name(name, n_name, "content-type")) {
        g->n_type++;
        g->json = is_json_type(value, n_value);
    } else if (is_name(name, n_name, "expect")) {
        g->expects_continue = true;
    } else if (is_name(name, n_name, "if-none-match")) {
        n_value = n_value > GUARD_MAX_ID ? 0 : n_value;
        memcpy(g->if_none_match, value ? value : "", n_value);
        g->if_none_match[n_value] = 0;
    } else if (is_name(name, n_name, "x-request-id")) {
        take_request_id(g, value, n_value);
    }
}

err_t guard_end(const struct guard *g, const char *version, struct why *why) {
    bool old = version && strcmp(version, "HTTP/1.0") == 0;
    if (!old && (!version || strcmp(version, "HTTP/1.1") != 0))
        return why_set(why, E_HTTP, "Only HTTP/1.1 and HTTP/1.0 are spoken here.");
    if (g->n_transfer && (g->n_transfer > 1 || !g->chunked || old))
        return why_set(why, E_LENGTH_REQUIRED, "%s", err_sentence(E_LENGTH_REQUIRED));
    if (g->n_transfer && g->n_length)
        return why_set(why, E_HTTP, "Content-Length and Transfer-Encoding exclude each other.");
    if (g->malformed)
        return why_set(why, E_HTTP, "A header has bytes that do not belong in it.");
    if (g->n_headers > GUARD_MAX_HEADERS)
        return why_set(why, E_HEADERS, "More than %d headers.", GUARD_MAX_HEADERS);
    if (g->n_length > 1 || g->n_authorization > 1 || g->n_type > 1)
        return why_set(why, E_HTTP,
                       "Content-Length, Content-Type and Authorization may stand once.");
    if (g->n_host > 1 || (g->n_host == 0 && !old))
        return why_set(why, E_HTTP, "Exactly one Host header is required.");
    return E_OK;
}

err_t guard_uri(const char *raw, struct why *why) {
    size_t n = strlen(raw);
    if (n > GUARD_MAX_URI)
        return why_set(why, E_URI, "The address is longer than %d bytes.", GUARD_MAX_URI);
    if (raw[0] != '/')
        return why_set(why, E_HTTP, "The address must start with '/'.");
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)raw[i];
        if (c <= 0x20 || c >= 0x7f || c == '\\')
            return why_set(why, E_HTTP, "The address has a byte that must be escaped.");
        if (c == '%' &&
            (strncmp(raw + i, "%00", 3) == 0 || strncasecmp(raw + i, "%2f", 3) == 0 ||
             strncasecmp(raw + i, "%5c", 3) == 0 || strncasecmp(raw + i, "%2e", 3) == 0))
            return why_set(why, E_HTTP, "The address has an escape that is not accepted.");
    }
    if (strstr(raw, "/.."))
        return why_set(why, E_HTTP, "The address may not climb.");
    return E_OK;
}
