/* `bitdelta chat` against the real daemon: one answer, a session on a terminal, and what it says
 * when something is not as it should be. */
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "config/clock.h"
#include "tests/drive.h"
#include "tests/e2e/client.h"
#include "tests/unit/run_tool.h"

/* A daemon with the math tenant; its URL as an option. */
static const char *start(struct daemon *d, const char *more) {
    static char url[64];
    char folder[300], to[400], arguments[600];
    snprintf(folder, sizeof folder, "%s/deltas", test_tmp());
    snprintf(to, sizeof to, "mkdir -p %s", folder);
    CHECK_EQ(system(to), 0);
    snprintf(to, sizeof to, "%s/math.bitdelta", folder);
    client_copy(client_delta("math"), to);
    snprintf(arguments, sizeof arguments, "--deltas %s %s", folder, more);
    daemon_start(d, arguments);
    snprintf(url, sizeof url, "--url http://127.0.0.1:%d", d->port);
    return url;
}

/* The answer as the API gives it. */
static void direct(const struct daemon *d, const char *body, char out[2000]) {
    json_t *reply = client_json(d, "/v1/completions", body);
    snprintf(out, 2000, "%s", text_at(reply, "choices.0.text"));
    json_decref(reply);
}

TEST(chat_tool_prints_the_answer_of_the_api) {
    struct daemon d = {0};
    char said[2000];
    const char *url = start(&d, "");
    direct(&d,
           "{\"model\":\"math\",\"prompt\":\"Q: 7 + 8 = ?\\nA:\",\"temperature\":0,"
           "\"max_tokens\":40}",
           said);
    strcat(said, "\n");
    TOOL_OK("chat %s --tenant math --raw --temperature 0 --max-tokens 40 \"$(printf 'Q: 7 + 8 = "
            "?\\nA:')\"",
            url);
    CHECK_STR(tool_output, said);
    char path[300];
    snprintf(path, sizeof path, "%s/prompt", test_tmp());
    FILE *f = fopen(path, "w");
    fputs("Q: 7 + 8 = ?\nA:\n", f);
    fclose(f);
    TOOL_OK("chat %s --tenant math --raw --temperature 0 --max-tokens 40 --stats - < %s", url,
            path);
    CHECK_EQ(strncmp(tool_output, said, strlen(said)), 0);
    CHECK_HAS(tool_output, "tokens/s");
    TOOL_OK("chat %s --tenant math --seed 3 --temperature 0.9 --top-p 0.9 x", url);
    CHECK_HAS(tool_output, "[math has no chat template");
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(chat_tool_reads_keys_from_file_and_environment_only) {
    struct daemon d = {0};
    char path[300], options[400];
    snprintf(path, sizeof path, "%s/keys", test_tmp());
    FILE *f = fopen(path, "w");
    fputs("# of the test\n a-key-of-the-public-api \n", f);
    fclose(f);
    snprintf(options, sizeof options, "--api-key-file %s", path);
    const char *url = start(&d, options);
    CHECK_EQ(run_tool("chat %s --tenant math --raw x", url), 65);
    CHECK_HAS(tool_output, "BITDELTA_API_KEY");
    CHECK_EQ(run_tool("chat %s --tenant math --api-key a-key-of-the-public-api x", url), 64);
    TOOL_OK("chat %s --tenant math --raw --max-tokens 1 --api-key-file %s x", url, path);
    setenv("BITDELTA_API_KEY", "a-key-of-the-public-api", 1);
    TOOL_OK("chat %s --tenant math --raw --max-tokens 1 x", url);
    setenv("BITDELTA_API_KEY", "another-key-0123456789", 1);
    CHECK_EQ(run_tool("chat %s --tenant math --raw x", url), 65);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

TEST(chat_tool_says_what_is_wrong) {
    struct daemon d = {0};
    const char *url = start(&d, "");
    CHECK_EQ(run_tool("chat %s x", url), 64);
    CHECK_HAS(tool_output, "one of base, math");
    CHECK_EQ(run_tool("chat %s --tenant none x", url), 65);
    CHECK_HAS(tool_output, "there is: base, math");
    CHECK_EQ(run_tool("chat %s --tenant math --raw --max-tokens 100000 x", url), 65);
    CHECK_HAS(tool_output, "context");
    CHECK_EQ(run_tool("chat %s --tenant math --system y x", url), 65);
    CHECK_HAS(tool_output, "without a template");
    CHECK_EQ(run_tool("chat %s --tenant math --temperature 3 x", url), 64);
    CHECK_EQ(run_tool("chat %s --tenant math </dev/null", url), 65);
    CHECK_HAS(tool_output, "stdin is empty");
    CHECK_EQ(run_tool("chat %s --tenant math --raw \"$(printf '\\377')\"", url), 65);
    CHECK_HAS(tool_output, "UTF-8");
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
    CHECK_EQ(run_tool("chat %s --tenant math x", url), 65);
    CHECK_HAS(tool_output, "bitdeltad --base DIR");
    CHECK_EQ(run_tool("chat --url gopher://x --tenant math x"), 64);
    CHECK_EQ(run_tool("chat --url unix:/nonexistent --tenant math x"), 65);
}

TEST(chat_tool_waits_for_a_full_server) {
    struct daemon d = {0};
    const char *url = start(&d, "--max-seqs 1 --max-queue 1 --max-batch-tokens 1");
    /* Long enough to be there when the tool asks, short enough to be gone when it asks again. */
    int n_tokens = DRIVE_SLOW ? 60 : 500;
    char body[256];
    snprintf(body, sizeof body,
             "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":%d,\"ignore_eos\":true,"
             "\"stream\":true}",
             n_tokens);
    int fd[2];
    for (int i = 0; i < 2; i++) {
        fd[i] = client_complete(&d, body);
        struct pollfd p = {.fd = fd[0], .events = POLLIN};
        CHECK_EQ(poll(&p, 1, 5000), 1);
    }
    daemon_metric_becomes(&d, "vllm:num_requests_waiting{model_name=\"base\",engine=\"0\"}", 1,
                          5000);
    TOOL_OK("chat %s --tenant math --raw --max-tokens 2 x", url);
    CHECK_HAS(tool_output, "[the server is full; again in 1 s (try 2 of 5)]");
    close(fd[0]);
    close(fd[1]);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 9000), 0);
}

/* --- a session on a terminal ---------------------------------------------------------------- */

struct terminal {
    pid_t pid;
    int fd;
    char text[1 << 16];
    size_t n, from; /* expect looks behind `from` */
};

static void open_terminal(struct terminal *t, const char *arguments) {
    char self[512], command[1500];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    CHECK(n > 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    snprintf(command, sizeof command, "exec %s/bitdelta chat %s", self, arguments);
    *t = (struct terminal){0};
    t->pid = forkpty(&t->fd, NULL, NULL, NULL);
    CHECK(t->pid >= 0);
    if (t->pid == 0) {
        setenv("TERM", "xterm", 1);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
}

static void type(struct terminal *t, const char *text) {
    CHECK_EQ(write(t->fd, text, strlen(text)), (ssize_t)strlen(text));
}

/* Waits for text that comes after what was expected before. */
static void expect(struct terminal *t, const char *text) {
    for (int64_t until = mono_us() + 10000000; mono_us() < until;) {
        char *hit = strstr(t->text + t->from, text);
        if (hit) {
            t->from = (size_t)(hit - t->text) + strlen(text);
            return;
        }
        struct pollfd p = {.fd = t->fd, .events = POLLIN};
        if (poll(&p, 1, 100) > 0) {
            ssize_t got = read(t->fd, t->text + t->n, sizeof t->text - 1 - t->n);
            if (got <= 0)
                break;
            t->n += (size_t)got;
            for (size_t i = 0; i < t->n; i++)
                t->text[i] = t->text[i] ? t->text[i] : '?';
        }
    }
    test_fail(__FILE__, __LINE__, "no \"%s\" after: %s", text, t->text + t->from);
}

/* Ctrl-D at a prompt. It is printed before the terminal leaves lines to the tool, and what comes in
 * between would be the terminal's own end of file, which is lost then. */
static void type_end(struct terminal *t) {
    struct termios mode = {.c_lflag = ICANON};
    for (int i = 0; i < 5000 && (mode.c_lflag & ICANON); i++) {
        CHECK_EQ(tcgetattr(t->fd, &mode), 0);
        usleep(1000);
    }
    type(t, "\x04");
}

static int close_terminal(struct terminal *t) {
    int status = -1;
    for (int64_t until = mono_us() + 5000000; mono_us() < until; usleep(5000)) {
        char rest[4096];
        struct pollfd p = {.fd = t->fd, .events = POLLIN};
        while (poll(&p, 1, 0) > 0 && read(t->fd, rest, sizeof rest) > 0)
            ;
        if (waitpid(t->pid, &status, WNOHANG) == t->pid)
            break;
    }
    close(t->fd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

TEST(chat_tool_interrupt_stops_the_answer_not_the_session) {
    struct daemon d = {0};
    struct terminal t;
    char arguments[200];
    const char *url = start(&d, "--max-seqs 1 --max-batch-tokens 1");
    snprintf(arguments, sizeof arguments,
             "%s --tenant base --raw --temperature 0 --max-tokens 450 --stats", url);
    open_terminal(&t, arguments);
    expect(&t, "> ");
    kill(d.pid, SIGSTOP); /* so that the answer cannot be over before it is stopped */
    type(&t, "Once upon a time\n");
    expect(&t, "time\r\n");
    usleep(50000);
    type(&t, "\x03");
    expect(&t, "[stopped]");
    kill(d.pid, SIGCONT);
    daemon_metric_becomes(&d, "vllm:num_requests_running{model_name=\"base\",engine=\"0\"}", 0,
                          5000);
    expect(&t, "> ");
    type(&t, "half a line\x03"); /* at the prompt: forgets the line */
    expect(&t, "> ");
    type(&t, "/tenant math\n");
    expect(&t, "> ");
    type(&t, "Q: 403 + 743 = ?\\\nA:\n");
    expect(&t, " 1146");
    expect(&t, "tokens/s");
    expect(&t, "> ");
    type(&t, "/tenant none\n");
    expect(&t, "there is no tenant \"none\"");
    expect(&t, "> ");
    type(&t, "/hexp\x02\x7fl\n"); /* Ctrl-B goes left */
    expect(&t, "/new");
    expect(&t, "> ");
    type(&t, "\x1b[A\n"); /* arrow up: the line before */
    expect(&t, "/new");
    expect(&t, "> ");
    type_end(&t);
    CHECK_EQ(close_terminal(&t), 0);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}

/* The prompts are counted by the server: what was said before is in the second one, and gone after
 * /new. */
TEST(chat_tool_session_remembers_until_it_is_told_not_to) {
    struct daemon d = {0};
    struct terminal t;
    char arguments[200], to[400];
    const char *url = start(&d, "--no-autoload");
    static const char counter[] = "bitdeltad_tenant_prompt_tokens_total{tenant=\"chat\"}";
    snprintf(to, sizeof to, "%s/deltas/chat.bitdelta", test_tmp());
    client_copy(client_delta("chat"), to);
    struct answer added = client_admin(&d, "POST", "/admin/deltas", NULL,
                                       "{\"name\":\"chat\",\"path\":\"chat.bitdelta\"}");
    CHECK_EQ(added.status, 201);
    answer_free(&added);
    snprintf(arguments, sizeof arguments,
             "%s --tenant chat --temperature 0 --max-tokens 24 --stats", url);
    open_terminal(&t, arguments);
    double asked[3], before = 0;
    for (int i = 0; i < 3; i++) {
        expect(&t, "> ");
        if (i == 2) {
            type(&t, "/new\n");
            expect(&t, "> ");
        }
        type(&t, "What does \"kernel\" mean?\n");
        expect(&t, "tokens/s");
        double all = daemon_metric(&d, counter);
        asked[i] = all - before;
        before = all;
    }
    CHECK(asked[1] > 2 * asked[0]);
    CHECK_EQ(asked[2], asked[0]);
    type(&t, "/quit\n");
    CHECK_EQ(close_terminal(&t), 0);
    CHECK_EQ(daemon_stop(&d, SIGTERM, 5000), 0);
}
