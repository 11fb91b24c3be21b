/* listener: counts the rows that servers tell their live clients of, and asks others for a ping.
 *
 *   listener FILE PING EVERY PINGED FD...
 *       FDs are sockets that are connected and subscribed, inherited; the first PINGED of them send PING (hex, a whole
 *       frame or request) in turn, one every EVERY milliseconds, and any bytes that come back are the answer.
 *       Of the others each "stamp":N that arrives is a row. No frames are parsed: it costs little.
 *
 * They do so between the lines "on" and "off" on stdin. FILE gets a record of two 64-bit numbers for each row, N and when it came (CLOCK_MONOTONIC, nanoseconds), and for
 * each answer 2^63 + nanoseconds it took, and when it came. Each line on stdin has all records written, and the
 * numbers of rows, reads and bytes until then printed as JSON. It ends with stdin, or when a server hangs up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define KEPT 64
#define NEEDLE "\"stamp\":"

typedef struct {
    int fd, left;
    uint64_t asked; /* when a ping went out that has no answer; 0 without one */
    char rest[KEPT];
} Conn;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static FILE *records;
static unsigned long rows, reads, bytes;

static void note(uint64_t what, uint64_t when) {
    uint64_t both[2] = {what, when};
    fwrite(both, sizeof both, 1, records);
}

/* takes each row of `text`; returns how many bytes of its end belong to one that is not complete */
static int scan(char *text, size_t n, uint64_t when) {
    char *at = text, *end = text + n, *done = text;
    while ((at = memmem(at, end - at, NEEDLE, sizeof NEEDLE - 1))) {
        char *digits = at + sizeof NEEDLE - 1, *p = digits;
        uint64_t stamp = 0;
        while (p < end && *p >= '0' && *p <= '9') stamp = stamp * 10 + (*p++ - '0');
        if (p == end) return end - at;
        if (p > digits) { rows++; note(stamp, when); }
        at = done = p;
    }
    size_t left = end - done;
    return left < sizeof NEEDLE - 2 ? left : sizeof NEEDLE - 2;
}

int main(int argc, char **argv) {
    if (argc < 6) { fprintf(stderr, "usage: listener FILE PING EVERY PINGED FD...\n"); return 2; }
    records = fopen(argv[1], "wb");
    if (!records) { perror(argv[1]); return 1; }
    setvbuf(records, NULL, _IOFBF, 1 << 20);
    static unsigned char ping[65536];
    size_t ping_size = strlen(argv[2]) / 2;
    if (ping_size > sizeof ping) return 2;
    for (size_t i = 0; i < ping_size; i++) sscanf(argv[2] + 2 * i, "%2hhx", ping + i);
    int every = atoi(argv[3]), pinged = atoi(argv[4]), count = argc - 5, turn = 0, asks = 0;
    Conn *conns = calloc(count, sizeof *conns);
    int poll = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        conns[i].fd = atoi(argv[5 + i]);
        fcntl(conns[i].fd, F_SETFL, O_NONBLOCK);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &conns[i]};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, conns[i].fd, &e)) { perror("epoll_ctl"); return 1; }
    }
    struct epoll_event in = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, 0, &in)) { perror("stdin"); return 1; }
    static char buffer[KEPT + (1 << 20)];
    uint64_t next = now();
    for (;;) {
        struct epoll_event events[256];
        int wait = -1;
        if (pinged && asks) {
            uint64_t t = now();
            if (t >= next) {
                Conn *c = &conns[turn++ % pinged];
                if (!c->asked) {
                    c->asked = now();
                    if (send(c->fd, ping, ping_size, MSG_NOSIGNAL) != (ssize_t)ping_size) { perror("ping"); return 1; }
                }
                next = t > next + 10 * every * 1000000ull ? t : next + every * 1000000ull;
                continue;
            }
            wait = (next - t) / 1000000 + 1;
        }
        int got = epoll_wait(poll, events, 256, wait);
        if (got < 0 && errno != EINTR) { perror("epoll_wait"); return 1; }
        for (int i = 0; i < got; i++) {
            Conn *c = events[i].data.ptr;
            if (!c) {
                ssize_t n = read(0, buffer, 4096);
                if (n <= 0) return 0;
                if (!memcmp(buffer, "on", 2)) asks = 1;
                if (!memcmp(buffer, "off", 3)) asks = 0;
                fflush(records);
                printf("{\"rows\":%lu,\"reads\":%lu,\"bytes\":%lu}\n", rows, reads, bytes);
                fflush(stdout);
                continue;
            }
            memcpy(buffer, c->rest, c->left);
            ssize_t n = read(c->fd, buffer + c->left, 1 << 20);
            if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
            if (n <= 0) { fprintf(stderr, "the server hung up\n"); return 1; }
            uint64_t t = now();
            reads++;
            bytes += n;
            if (c - conns < pinged) {
                if (c->asked) note((1ull << 63) + (t - c->asked), t);
                c->asked = 0;
                continue;
            }
            n += c->left;
            c->left = scan(buffer, n, t);
            if (c->left > KEPT) { fprintf(stderr, "a number without an end\n"); return 1; }
            memcpy(c->rest, buffer + n - c->left, c->left);
        }
    }
}
