#include "client/line.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "config/utf8.h"

enum { N_KEPT = 500 };

struct line_reader {
    EditLine *edit;
    History *history;
    const char *prompt;
    int interrupt_fd;
    bool interrupted;
};

static struct line_reader *of(EditLine *edit) {
    void *l = NULL;
    el_get(edit, EL_CLIENTDATA, &l);
    return l;
}

static const char *prompt_of(EditLine *edit) {
    return of(edit)->prompt;
}

/* One byte of stdin; 0: its end, -1: Ctrl-C came first. */
static int read_byte(struct line_reader *l, char *byte) {
    struct pollfd fd[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                           {.fd = l->interrupt_fd, .events = POLLIN}};
    while (poll(fd, 2, -1) < 0 && errno == EINTR)
        ;
    struct signalfd_siginfo info;
    if (fd[1].revents && read(l->interrupt_fd, &info, sizeof info) > 0) {
        l->interrupted = true;
        errno = EINTR;
        return -1;
    }
    return read(STDIN_FILENO, byte, 1) == 1 ? 1 : 0;
}

/* One character, as libedit asks for them. What is no UTF-8 becomes the character that says so. */
static int read_character(EditLine *edit, wchar_t *out) {
    char bytes[4];
    uint32_t c = UTF8_REPLACEMENT;
    for (size_t n = 0; n < sizeof bytes; n++) {
        int got = read_byte(of(edit), &bytes[n]);
        if (got != 1)
            return got;
        if (utf8_next(bytes, n + 1, &c))
            break;
        bool may_go_on = n ? (bytes[n] & 0xc0) == 0x80 : (unsigned char)bytes[0] >= 0xc2;
        c = UTF8_REPLACEMENT;
        if (!may_go_on)
            break;
    }
    *out = (wchar_t)c;
    return 1;
}

err_t line_open(struct line_reader **out, int interrupt_fd) {
    struct line_reader *l = calloc(1, sizeof *l);
    if (!l)
        return E_NOMEM;
    setlocale(LC_CTYPE, "C.UTF-8"); /* what libedit hands back is in the locale's bytes */
    l->interrupt_fd = interrupt_fd;
    l->edit = el_init("bitdelta", stdin, stderr, stderr);
    l->history = history_init();
    if (!l->edit || !l->history) {
        line_close(l);
        return E_NOMEM;
    }
    HistEvent event;
    history(l->history, &event, H_SETSIZE, N_KEPT);
    history(l->history, &event, H_SETUNIQUE, 1);
    el_set(l->edit, EL_CLIENTDATA, l);
    el_set(l->edit, EL_EDITOR, "emacs");
    el_set(l->edit, EL_SIGNAL, 0);
    el_set(l->edit, EL_PROMPT, prompt_of);
    el_set(l->edit, EL_GETCFN, read_character);
    el_set(l->edit, EL_HIST, history, l->history);
    *out = l;
    return E_OK;
}

void line_close(struct line_reader *l) {
    if (!l)
        return;
    if (l->edit)
        el_end(l->edit);
    if (l->history)
        history_end(l->history);
    free(l);
}

char *line_read(struct line_reader *l, const char *prompt, bool *ended) {
    int n = 0;
    l->prompt = prompt;
    l->interrupted = false;
    const char *line = el_gets(l->edit, &n);
    *ended = false;
    if (l->interrupted)
        return NULL;
    *ended = !line || n <= 0;
    return *ended ? NULL : strndup(line, strcspn(line, "\n"));
}

void line_keep(struct line_reader *l, const char *line) {
    HistEvent event;
    history(l->history, &event, H_ENTER, line);
}
