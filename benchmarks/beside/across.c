/* across: publishes at one server and listens at others, for measuring several that share a Redis.
 *
 *   across closed|paced|fan PORT PORTS PUBLISHERS SUBSCRIBERS DEPTH RATE ROOMS SECONDS
 *       PORT is where is published, PORTS (with commas) where is listened, each by its share of the SUBSCRIBERS;
 *       publisher and subscriber number n are of the room n % ROOMS.
 *       closed: each publisher keeps DEPTH messages outstanding that are not answered.
 *       paced:  RATE messages a second in all, in turn by the publishers and rooms.
 *       fan:    the one publisher keeps DEPTH messages outstanding that not all subscribers have got (in sum).
 *
 * Prints one JSON object: acks and deliveries a second, milliseconds from when a message was due until it was delivered,
 * and the processor seconds that each process has used. The first fifth of SECONDS is warming up and does not count.
 * One thread, epoll, loopback only.
 *
 * Environment ("%R" is the room, "%N" a running number, "%T" the time in ns; "@" parts several):
 *   ACROSS_PATH      path of publishers; ACROSS_PATHS those of subscribers, one for each of PORTS
 *   ACROSS_OPEN      the opening of a publisher: frames to wait for, text to send, frames to wait for, ...
 *   ACROSS_OPENS     that of a subscriber
 *   ACROSS_SAY       what is published
 *   ACROSS_HTTP      publish by POST instead of WebSocket, to ACROSS_PATH
 *   ACROSS_PIDS      processes, with commas
 *   ACROSS_SHOW      print the first frames of all
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
    int fd, open, room, subscribes, step;
    unsigned before;          /* frames of the opening that are still to come */
    char **opening;
    unsigned char *buf;
    size_t len, cap, tail;
} Conn;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static unsigned long seq, acks, told, stalls;
static int64_t due, *lat;
static size_t nlat;
static int rooms, by_http, show, shown;

static size_t expand(char *out, size_t most, const char *text, int room) {
    size_t n = 0;
    for (; *text && n + 24 < most; text++) {
        if (text[0] == '%' && text[1] == 'R') n += sprintf(out + n, "%d", room), text++;
        else if (text[0] == '%' && text[1] == 'N') n += sprintf(out + n, "%lu", seq), text++;
        else if (text[0] == '%' && text[1] == 'T') n += sprintf(out + n, "%ld", (long)due), text++;
        else out[n++] = *text;
    }
    out[n] = 0;
    return n;
}

static void put(int fd, const void *data, size_t n) {
    size_t o = 0;
    while (o < n) {
        ssize_t w = write(fd, (const char *)data + o, n - o);
        if (w < 0 && errno == EAGAIN) { usleep(50); continue; }
        if (w <= 0) { perror("write"); exit(1); }
        o += w;
    }
}

static size_t masked(unsigned char *out, const char *text, size_t n) {
    size_t h = 2;
    out[0] = 0x81;
    if (n < 126) out[1] = 0x80 | n;
    else { out[1] = 0x80 | 126; out[2] = n >> 8; out[3] = n; h = 4; }
    static const unsigned char mask[4] = {0x12, 0x34, 0x56, 0x78};
    memcpy(out + h, mask, 4); h += 4;
    for (size_t i = 0; i < n; i++) out[h + i] = text[i] ^ mask[i & 3];
    return h + n;
}

static void say(Conn *c, const char *template, int room) {
    char text[16384]; unsigned char out[17000];
    size_t n = expand(text, sizeof text, template, room);
    put(c->fd, out, masked(out, text, n));
}

static const char *said, *http_path; static int http_port;
static void publish(Conn *c, int room) {
    seq++;
    if (!by_http) { say(c, said, room); return; }
    char body[16384], head[1024], place[512];
    size_t n = expand(body, sizeof body, said, room);
    expand(place, sizeof place, http_path, room);
    size_t h = snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n", place, http_port, n);
    memmove(body + h, body, n); memcpy(body, head, h);
    put(c->fd, body, h + n);
}

static void step_on(Conn *c) {
    /* opening: wait, send, wait, send, ..., wait */
    while (!c->before && c->opening[c->step]) {
        if (c->step % 2) say(c, c->opening[c->step], c->room);
        else c->before = atoi(c->opening[c->step]);
        c->step++;
    }
}

static int opened(Conn *c) { return c->open && !c->before && !c->opening[c->step]; }

static void frame(Conn *c, const char *text, size_t n) {
    if (show && shown < 12) { shown++; fprintf(stderr, "%s: %.*s\n", c->subscribes ? "sub" : "pub", (int)(n < 300 ? n : 300), text); }
    if (n == 1 && *text == '2') { say(c, "3", 0); return; }
    if (c->before) { c->before--; step_on(c); return; }
    if (!c->subscribes) {
        acks++;
        if (memmem(text, n, "\"error\"", 7)) { fprintf(stderr, "error: %.*s\n", (int)(n < 300 ? n : 300), text); exit(1); }
        return;
    }
    const char *at = memmem(text, n, "\"at\":", 5);
    if (!at) return;
    told++;
    if (nlat < 8000000) lat[nlat++] = now() - strtoll(at + 5, NULL, 10);
}

/* reads what there is; how many messages of a subscriber or answers of a publisher came, -1 when the peer closed */
static int take(Conn *c) {
    unsigned long before = c->subscribes ? told : acks;
    for (;;) {
        if (c->cap - c->len < 65536) c->buf = realloc(c->buf, c->cap = c->cap * 2 + 131072);
        ssize_t r = read(c->fd, c->buf + c->len, c->cap - c->len);
        if (r < 0 && errno == EAGAIN) break;
        if (r <= 0) return -1;
        c->len += r;
        if ((size_t)r < 65536) break;
    }
    size_t o = 0;
    if (by_http && !c->subscribes) {
        for (;;) {
            unsigned char *e = memmem(c->buf + o, c->len - o, "\r\n\r\n", 4);
            if (!e) break;
            size_t h = e + 4 - (c->buf + o), n = 0;
            if (memcmp(c->buf + o, "HTTP/1.1 20", 11)) { fprintf(stderr, "refused: %.300s\n", c->buf + o); exit(1); }
            char *l = memmem(c->buf + o, h, "ontent-Length: ", 15);
            if (l) n = atoi(l + 15);
            if (c->len - o < h + n) break;
            acks++;
            o += h + n;
        }
    } else {
        if (!c->open) {
            unsigned char *e = memmem(c->buf, c->len, "\r\n\r\n", 4);
            if (!e) return 0;
            if (memcmp(c->buf, "HTTP/1.1 101", 12)) { fprintf(stderr, "refused: %.300s\n", c->buf); exit(1); }
            c->open = 1;
            step_on(c);
            o = e + 4 - c->buf;
        }
        while (c->len - o >= 2) {
            size_t n = c->buf[o + 1] & 0x7f, h = 2;
            if (n == 126) { if (c->len - o < 4) break; n = c->buf[o + 2] << 8 | c->buf[o + 3]; h = 4; }
            else if (n == 127) { if (c->len - o < 10) break; n = 0; for (int i = 0; i < 8; i++) n = n << 8 | c->buf[o + 2 + i]; h = 10; }
            if (c->len - o < h + n) break;
            int op = c->buf[o] & 0x0f;
            if (op == 8) { fprintf(stderr, "closed by server: %d\n", n >= 2 ? c->buf[o + h] << 8 | c->buf[o + h + 1] : 0); return -1; }
            if (op == 1 || op == 2) frame(c, (char *)c->buf + o + h, n);
            else if (op == 9) { unsigned char pong[6] = {0x8a, 0x80}; put(c->fd, pong, 6); }
            o += h + n;
        }
    }
    memmove(c->buf, c->buf + o, c->len -= o);
    return (c->subscribes ? told : acks) - before;
}

static void dial(Conn *c, int port, const char *path) {
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a) < 0) { perror("connect"); exit(1); }
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (by_http && !c->subscribes) { c->open = 1; }
    else {
        char req[1024], place[512];
        expand(place, sizeof place, path, c->room);
        int n = snprintf(req, sizeof req,
            "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", place, port);
        put(c->fd, req, n);
        while (!opened(c)) if (take(c) < 0) { fprintf(stderr, "a connection was refused\n"); exit(1); }
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static double used(int pid) {
    struct timespec t;
    if (clock_gettime((~(clockid_t)pid << 3) | 2, &t)) return 0;
    return t.tv_sec + t.tv_nsec / 1e9;
}

static char **parts(const char *text, const char *by) {
    char **found = calloc(64, sizeof *found), *copy = strdup(text ? text : ""); int n = 0;
    for (char *one; (one = strsep(&copy, by)) && n < 63;) if (*one) found[n++] = one;
    return found;
}

static int cmp(const void *a, const void *b) { int64_t d = *(int64_t *)a - *(int64_t *)b; return d < 0 ? -1 : d > 0; }
static double pct(double p) { return nlat ? lat[(size_t)(p * (nlat - 1))] / 1e6 : 0; }

int main(int argc, char **argv) {
    if (argc < 10) { fprintf(stderr, "usage: see the first comment of across.c\n"); return 2; }
    int closed = !strcmp(argv[1], "closed"), fan = !strcmp(argv[1], "fan"), port = atoi(argv[2]);
    char **ports = parts(argv[3], ","), **paths = parts(getenv("ACROSS_PATHS"), "@"), **pids = parts(getenv("ACROSS_PIDS"), ",");
    unsigned pubs = atoi(argv[4]), subs = atoi(argv[5]), depth = atoi(argv[6]), all = pubs + subs, places = 0;
    double rate = atof(argv[7]), seconds = atof(argv[9]);
    rooms = atoi(argv[8]);
    by_http = getenv("ACROSS_HTTP") != NULL; show = getenv("ACROSS_SHOW") != NULL;
    said = getenv("ACROSS_SAY"); http_path = getenv("ACROSS_PATH"); http_port = port;
    while (ports[places]) places++;
    struct rlimit rl = {200000, 200000}; setrlimit(RLIMIT_NOFILE, &rl);
    lat = malloc(sizeof *lat * 8000000);
    Conn *cs = calloc(all, sizeof *cs);
    int ep = epoll_create1(0);
    for (unsigned i = 0; i < all; i++) {
        Conn *c = &cs[i];
        c->subscribes = i >= pubs;
        unsigned number = c->subscribes ? i - pubs : i;
        c->room = number % rooms;
        c->opening = parts(getenv(c->subscribes ? "ACROSS_OPENS" : "ACROSS_OPEN"), "@");
        seq++;
        if (c->subscribes) dial(c, atoi(ports[number % places]), paths[number % places]);
        else dial(c, port, http_path);
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
    }
    usleep(500000);   /* a subscription without an answer, and what others tell of it, has its time */
    acks = told = nlat = 0;
    double cpu[16] = {0};
    int64_t start = now(), end = start + seconds * 1e9, warm = start + seconds * 2e8, counted = 0, moved = start;
    unsigned long acks0 = 0, told0 = 0, sent0 = seq, sent = 0, round = 0, heard = 0;
    due = start;
    if (closed) for (unsigned i = 0; i < pubs; i++) for (unsigned k = 0; k < depth; k++) publish(&cs[i], (i + k * pubs) % rooms);
    if (fan) for (unsigned k = 0; k < depth; k++) publish(&cs[0], 0);
    struct epoll_event ev[1024];
    for (;;) {
        int64_t t = now();
        if (!counted && t > warm) {
            counted = t; acks0 = acks; told0 = told; nlat = 0; sent0 = seq;
            for (int i = 0; pids[i] && i < 16; i++) cpu[i] = used(atoi(pids[i]));
        }
        if (t > end) break;
        int64_t wait = 100000000;
        if (!closed && !fan) {
            while ((due = start + (int64_t)(sent * 1e9 / rate)) <= t) { publish(&cs[sent % pubs], sent % rooms); sent++; }
            if (due - t < wait) wait = due - t;
        }
        if (fan && t - moved > 1000000000LL) {
            /* something got lost on the way */
            stalls++; moved = t; heard = 0; round = 0; due = t;
            for (unsigned k = 0; k < depth; k++) publish(&cs[0], 0);
        }
        struct timespec patience = {wait / 1000000000, wait % 1000000000};
        int n = epoll_pwait2(ep, ev, 1024, &patience, NULL);
        due = now();
        for (int k = 0; k < n; k++) {
            Conn *c = &cs[ev[k].data.u32];
            int f = take(c);
            if (f < 0) { fprintf(stderr, "connection %u lost\n", ev[k].data.u32); return 1; }
            if (closed && !c->subscribes) while (f--) { due = now(); publish(c, seq % rooms); }
            if (fan && c->subscribes && f) {
                heard += f; moved = due;
                while (heard / subs > round) { round++; due = now(); publish(&cs[0], 0); }
            }
        }
    }
    double el = (now() - counted) / 1e9;
    size_t n = nlat;
    qsort(lat, n, sizeof *lat, cmp);
    printf("{\"acks\": %.1f, \"told\": %.1f, \"sent\": %.1f, \"p50\": %.4f, \"p99\": %.4f, \"most\": %.4f, \"deliveries\": %lu, "
           "\"stalls\": %lu, \"seconds\": %.3f, \"cpu\": [", (acks - acks0) / el, (told - told0) / el, (seq - sent0) / el, pct(.5), pct(.99),
           pct(1), told - told0, stalls, el);
    for (int i = 0; pids[i] && i < 16; i++) printf("%s%.6f", i ? ", " : "", used(atoi(pids[i])) - cpu[i]);
    printf("]}\n");
    return 0;
}
