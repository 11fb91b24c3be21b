/* wsload: a WebSocket load generator for measuring servers side by side.
 *
 *   wsload rpc    PORT PATH CONNS DEPTH SECONDS PAYLOAD
 *       every connection keeps DEPTH requests (masked text frames holding PAYLOAD) outstanding;
 *       each data frame that comes back counts as one reply.
 *   wsload fanout PORT PATH CONNS DEPTH SECONDS PAYLOAD
 *       CONNS connections listen and one more publishes PAYLOAD, DEPTH messages outstanding
 *       (a message is done when as many deliveries have arrived as there are listeners).
 *   wsload idle   PORT PATH CONNS 0 SECONDS x
 *       opens CONNS connections one after the other, then holds them SECONDS.
 *
 * Prints one JSON object: rate (replies, deliveries or connects a second), latency percentiles in
 * microseconds, and how many it counted. The first fifth of SECONDS is warming up and does not count.
 * One thread, epoll, loopback only. "%d" in PAYLOAD becomes a running number ("%1$d" when it stands there twice).
 *
 * Environment:
 *   WSLOAD_HELLO   text to send after the opening handshake, before anything else
 *   WSLOAD_THEN    text to send once those have come
 *   WSLOAD_READY   frames from the server that belong to the opening and are not counted
 *   WSLOAD_PID     the server's process: its processor time per reply, delivery or connect is reported
 *   WSLOAD_FROM    the first running number (0)
 *   WSLOAD_RANGE   how many running numbers there are before they begin anew (2**30)
 *   WSLOAD_ORIGIN  an Origin header
 *   WSLOAD_SHOW    print the first message of each connection
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int fd;
    int open;                 /* the HTTP part is over */
    int before;               /* frames of the opening still to come */
    unsigned char *buf;
    size_t len, cap;
    double *sent;             /* ring of send times */
    unsigned head, tail;      /* replies, sends */
    unsigned long got;
} Conn;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int port;
static const char *path, *payload, *origin, *hello, *then;
static int ready_after, server;
static unsigned long seq, range, first;

static int dial(int i) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) { perror("socket"); exit(1); }
    struct sockaddr_in src = {.sin_family = AF_INET};
    src.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (i / 20000)); /* past 28k ports: more source addresses */
    if (i >= 20000) bind(fd, (struct sockaddr *)&src, sizeof src);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) { perror("connect"); exit(1); }
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    char req[1024];
    int n = snprintf(req, sizeof req,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "%s%s%s"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        path, port, origin ? "Origin: " : "", origin ? origin : "", origin ? "\r\n" : "");
    if (write(fd, req, n) != n) { perror("write"); exit(1); }
    return fd;
}

static size_t masked(unsigned char *out, const char *text, size_t n) {
    size_t h;
    out[0] = 0x81;
    if (n < 126) { out[1] = 0x80 | n; h = 2; }
    else { out[1] = 0x80 | 126; out[2] = n >> 8; out[3] = n; h = 4; }
    static const unsigned char mask[4] = {0x12, 0x34, 0x56, 0x78};
    memcpy(out + h, mask, 4); h += 4;
    for (size_t i = 0; i < n; i++) out[h + i] = text[i] ^ mask[i & 3];
    return h + n;
}

static size_t frame(unsigned char *out) {
    char text[65536];
    size_t n = snprintf(text, sizeof text, payload, (int)(first + seq++ % range));
    return masked(out, text, n);
}

static void put(Conn *c, int count, unsigned depth) {
    static unsigned char out[1 << 20];
    size_t n = 0;
    for (int i = 0; i < count; i++) {
        n += frame(out + n);
        if (c->sent) c->sent[c->tail++ % depth] = now();
        if (n > sizeof out - 70000) break;
    }
    size_t o = 0;
    while (o < n) {
        ssize_t w = write(c->fd, out + o, n - o);
        if (w < 0 && errno == EAGAIN) { usleep(50); continue; }
        if (w <= 0) { perror("write"); exit(1); }
        o += w;
    }
}

/* reads what there is; returns how many data frames arrived, -1 when the peer closed */
static int take(Conn *c) {
    int frames = 0;
    for (;;) {
        if (c->cap - c->len < 65536) c->buf = realloc(c->buf, c->cap = c->cap * 2 + 131072);
        ssize_t r = read(c->fd, c->buf + c->len, c->cap - c->len);
        if (r < 0 && errno == EAGAIN) break;
        if (r <= 0) return -1;
        c->len += r;
        if ((size_t)r < 65536) break;
    }
    size_t o = 0;
    if (!c->open) {
        unsigned char *e = memmem(c->buf, c->len, "\r\n\r\n", 4);
        if (!e) return 0;
        if (memcmp(c->buf, "HTTP/1.1 101", 12)) { fprintf(stderr, "refused: %.80s\n", c->buf); exit(1); }
        c->open = 1;
        c->before = ready_after;
        if (hello) {
            unsigned char out[1024];
            size_t n = masked(out, hello, strlen(hello));
            if (write(c->fd, out, n) != (ssize_t)n) { perror("write"); exit(1); }
        }
        o = e + 4 - c->buf;
    }
    while (c->len - o >= 2) {
        size_t n = c->buf[o + 1] & 0x7f, h = 2;
        if (n == 126) { if (c->len - o < 4) break; n = c->buf[o + 2] << 8 | c->buf[o + 3]; h = 4; }
        else if (n == 127) { if (c->len - o < 10) break; n = 0; for (int i = 0; i < 8; i++) n = n << 8 | c->buf[o + 2 + i]; h = 10; }
        if (c->len - o < h + n) break;
        int op = c->buf[o] & 0x0f;
        if (op == 8) { fprintf(stderr, "closed by server: %d\n", n >= 2 ? c->buf[o+h] << 8 | c->buf[o+h+1] : 0); return -1; }
        if (op == 1 || op == 2) {
            if (!c->got && getenv("WSLOAD_SHOW")) fprintf(stderr, "first: %.*s\n", (int)(n < 200 ? n : 200), c->buf + o + h);
            if (c->before) c->before--;
            else { frames++; c->got++; }
        }
        o += h + n;
    }
    memmove(c->buf, c->buf + o, c->len -= o);
    return frames;
}

/* processor seconds the server has used */
static double used(void) {
    char name[64], text[1024];
    unsigned long user, system;
    snprintf(name, sizeof name, "/proc/%d/stat", server);
    FILE *f = server ? fopen(name, "r") : NULL;
    if (!f) return 0;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    char *after = strrchr(text, ')');
    if (!after || sscanf(after + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2) return 0;
    return (double)(user + system) / sysconf(_SC_CLK_TCK);
}

static double *lat; static size_t nlat;
static int cmp(const void *a, const void *b) { double d = *(double *)a - *(double *)b; return d < 0 ? -1 : d > 0; }
static void note(double t) { if (nlat < 4000000) lat[nlat++] = t; }
static double pct(double p) { return nlat ? lat[(size_t)(p * (nlat - 1))] * 1e6 : 0; }

int main(int argc, char **argv) {
    if (argc < 8) { fprintf(stderr, "usage: wsload rpc|fanout|idle PORT PATH CONNS DEPTH SECONDS PAYLOAD\n"); return 2; }
    const char *mode = argv[1];
    port = atoi(argv[2]); path = argv[3];
    int conns = atoi(argv[4]); unsigned depth = atoi(argv[5]); double secs = atof(argv[6]); payload = argv[7];
    origin = getenv("WSLOAD_ORIGIN");
    hello = getenv("WSLOAD_HELLO");
    if (hello && !*hello) hello = NULL;
    then = getenv("WSLOAD_THEN");
    ready_after = getenv("WSLOAD_READY") ? atoi(getenv("WSLOAD_READY")) : 0;
    first = getenv("WSLOAD_FROM") ? strtoul(getenv("WSLOAD_FROM"), NULL, 10) : 0;
    range = getenv("WSLOAD_RANGE") ? strtoul(getenv("WSLOAD_RANGE"), NULL, 10) : 1 << 30;
    server = getenv("WSLOAD_PID") ? atoi(getenv("WSLOAD_PID")) : 0;
    int fan = !strcmp(mode, "fanout"), idle = !strcmp(mode, "idle"), all = conns + fan;
    struct rlimit rl = {200000, 200000}; setrlimit(RLIMIT_NOFILE, &rl);
    lat = malloc(sizeof(double) * 4000000);
    Conn *cs = calloc(all, sizeof *cs);
    int ep = epoll_create1(0);
    double t0 = now(), cpu = used();
    for (int i = 0; i < all; i++) {
        cs[i].fd = dial(i);
        while (!cs[i].open || cs[i].before) if (take(&cs[i]) < 0) { fprintf(stderr, "connection %d refused\n", i); return 1; }
        if (then) {
            unsigned char out[1024];
            size_t n = masked(out, then, strlen(then));
            if (write(cs[i].fd, out, n) != (ssize_t)n) { perror("write"); exit(1); }
        }
        fcntl(cs[i].fd, F_SETFL, O_NONBLOCK);
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(ep, EPOLL_CTL_ADD, cs[i].fd, &e);
    }
    double tc = now() - t0;
    if (idle) { printf("{\"mode\": \"idle\", \"rate\": %.1f, \"conns\": %d, \"cpu_us\": %.2f}\n", all / tc, all, (used() - cpu) * 1e6 / all); fflush(stdout); double e = now() + secs; while (now() < e) usleep(100000); return 0; }
    for (int i = 0; i < all; i++) cs[i].got = 0;
    Conn *pub = &cs[all - 1];
    unsigned long done = 0, round = 0; unsigned long *have = calloc(1, sizeof *have);
    if (fan) { pub->sent = calloc(depth, sizeof(double)); put(pub, depth, depth); }
    else for (int i = 0; i < all; i++) { cs[i].sent = calloc(depth, sizeof(double)); put(&cs[i], depth, depth); }
    double start = now(), end = start + secs, warm = start + secs * 0.2, counted = 0; unsigned long base = 0;
    int warming = 1;
    struct epoll_event ev[1024];
    while (1) {
        double t = now();
        if (warming && t > warm) { warming = 0; base = done; nlat = 0; counted = t; cpu = used(); }
        if (t > end) break;
        int n = epoll_wait(ep, ev, 1024, 100);
        for (int k = 0; k < n; k++) {
            Conn *c = &cs[ev[k].data.u32];
            int f = take(c);
            if (f < 0) { fprintf(stderr, "connection %d lost\n", ev[k].data.u32); return 1; }
            if (!f) continue;
            if (fan) {
                if (c == pub) continue;
                done += f;
                if (done / conns > round) {           /* whole rounds delivered (in sum) */
                    unsigned long r = done / conns - round; round += r;
                    double tt = now();
                    for (unsigned long j = 0; j < r; j++) note(tt - pub->sent[pub->head++ % depth]);
                    put(pub, r, depth);
                }
            } else {
                done += f;
                double tt = now();
                for (int j = 0; j < f; j++) note(tt - c->sent[c->head++ % depth]);
                put(c, f, depth);
            }
        }
    }
    double el = now() - counted;
    qsort(lat, nlat, sizeof(double), cmp);
    printf("{\"mode\": \"%s\", \"rate\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"count\": %lu, "
           "\"cpu_us\": %.3f, \"conns\": %d, \"depth\": %u}\n", mode, (done - base) / el, pct(.5), pct(.99), pct(.999),
           done - base, (used() - cpu) * 1e6 / (done - base ? done - base : 1), conns, depth);
    return 0;
}
