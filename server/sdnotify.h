/* The service manager's notification protocol (sd_notify(3)), spoken by hand: one datagram to
 * $NOTIFY_SOCKET. Nothing happens where no service manager listens. */
#ifndef SERVER_SDNOTIFY_H
#define SERVER_SDNOTIFY_H

#include <stdint.h>

/* `state` as "READY=1\nSTATUS=...". */
void sdnotify(const char *state);
/* How often WATCHDOG=1 is due (half of what the manager asks for); 0: not asked for. */
int64_t sdnotify_watchdog_us(void);

#endif
