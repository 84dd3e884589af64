#include <sys/stat.h>
#include <unistd.h>

#include "server/listen.h"
#include "tests/check.h"

TEST(listen_reports_the_port_it_got) {
    int fd = -1;
    char name[LISTEN_NAME_BYTES];
    struct why why;
    CHECK_OK(listen_open("127.0.0.1:0", &fd, name, &why), why);
    CHECK_HAS(name, "127.0.0.1:");
    CHECK(strcmp(name, "127.0.0.1:0") != 0);
    int second = -1;
    CHECK_EQ(listen_open(name, &second, name, &why), E_CONFIG); /* taken */
    CHECK_HAS(why.text, "cannot listen");
    close(fd);
}

TEST(listen_replaces_a_socket_that_was_left_behind_but_not_one_in_use) {
    int first = -1, second = -1;
    char address[256], name[LISTEN_NAME_BYTES];
    struct why why;
    struct stat st;
    snprintf(address, sizeof address, "unix:%s/s", test_tmp());
    CHECK_OK(listen_open(address, &first, name, &why), why);
    CHECK_EQ(stat(address + 5, &st), 0);
    CHECK_EQ(st.st_mode & 0777, 0660);
    CHECK_EQ(listen_open(address, &second, name, &why), E_CONFIG);
    close(first);
    CHECK_OK(listen_open(address, &second, name, &why), why);
    close(second);
    listen_remove(address);
    CHECK(stat(address + 5, &st) != 0);
}

TEST(listen_refuses_what_is_no_address) {
    static const char *const bad[] = {"",      "localhost",        "127.0.0.1:", "127.0.0.1:x",
                                      "unix:", "127.0.0.1:999999", "[::1",       "1.2.3.4.5:1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int fd = -1;
        char name[LISTEN_NAME_BYTES];
        struct why why = {""};
        if (listen_open(bad[i], &fd, name, &why) != E_CONFIG || !why.text[0])
            test_fail(__FILE__, __LINE__, "'%s' passes", bad[i]);
    }
}
