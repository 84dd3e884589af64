/* Opens the sockets that are listened on: "HOST:PORT", "[V6]:PORT", ":PORT" or "unix:PATH". */
#ifndef SERVER_LISTEN_H
#define SERVER_LISTEN_H

#include "config/err.h"

enum { LISTEN_NAME_BYTES = 192 };

/* *fd is given to the caller (close). `name` receives the address as bound, with the real port
 * where 0 was asked for. A Unix socket gets mode 0660; a stale one (nobody accepts) is replaced.
 * Errors: E_CONFIG with a sentence. */
err_t listen_open(const char *address, int *fd, char name[LISTEN_NAME_BYTES], struct why *why);
/* Removes a Unix socket's file; nothing for other addresses. */
void listen_remove(const char *address);

#endif
