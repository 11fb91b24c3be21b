/* zcomm.wire._fast: the functions of zcomm/wire/frames_pure.py and sockets.py, compiled.
 *
 * Each gives the same result as its Python twin, which says what it does and why; the tests hold the two
 * together. Nothing is kept between calls, so every interpreter may have its own copy. No pointer is read
 * before its bounds are known: lengths from the wire are compared as unsigned 64-bit numbers with what is
 * left, never added to a pointer first.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS; Python ignores SIGPIPE anyhow */
#endif

#define TEXT 0x81   /* FIN, no extension bits, opcode 1 */
#define MASKED 0x80
#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte)) /* a word of eight such bytes */
#define HIGH_BITS EACH(0x80)

/* An int argument as int64_t; one beyond it counts as the nearest. -1 with an exception set when not an int. */
static int
as_int64(PyObject *value, int64_t *out)
{
    int overflow;
    long long n = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (n == -1 && PyErr_Occurred())
        return -1;
    *out = overflow > 0 ? INT64_MAX : overflow < 0 ? INT64_MIN : n;
    return 0;
}

static int
check_arguments(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", name, wanted, given);
    return -1;
}

static int
check_bytes(PyObject *value)
{
    if (PyBytes_Check(value))
        return 0;
    PyErr_Format(PyExc_TypeError, "bytes expected, not %.100s", Py_TYPE(value)->tp_name);
    return -1;
}

/* Whether p[0..n) is UTF-8 as RFC 3629 has it: no surrogates, nothing overlong, nothing beyond U+10FFFF. */
static int
is_utf8(const uint8_t *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t word;
        while (n - i >= 8) {
            memcpy(&word, p + i, 8);
            if (word & HIGH_BITS)
                break;
            i += 8;
        }
        if (i == n)
            break;
        uint8_t first = p[i];
        if (first < 0x80) {
            i++;
            continue;
        }
        size_t more;
        uint8_t low = 0x80, high = 0xBF; /* what the second byte may be */
        if (first >= 0xC2 && first <= 0xDF)
            more = 1;
        else if (first >= 0xE0 && first <= 0xEF) {
            more = 2;
            if (first == 0xE0)
                low = 0xA0;
            else if (first == 0xED)
                high = 0x9F;
        }
        else if (first >= 0xF0 && first <= 0xF4) {
            more = 3;
            if (first == 0xF0)
                low = 0x90;
            else if (first == 0xF4)
                high = 0x8F;
        }
        else
            return 0;
        if (n - i <= more || p[i + 1] < low || p[i + 1] > high)
            return 0;
        for (size_t k = 2; k <= more; k++)
            if ((p[i + k] & 0xC0) != 0x80)
                return 0;
        i += more + 1;
    }
    return 1;
}

/* Copies n bytes of a masked payload, unmasked; returns whether all of them are ASCII. */
static int
unmask(uint8_t *to, const uint8_t *from, size_t n, const uint8_t *mask)
{
    uint8_t twice[8];
    uint64_t key, word, seen = 0;
    size_t i = 0;
    memcpy(twice, mask, 4);
    memcpy(twice + 4, mask, 4);
    memcpy(&key, twice, 8);
    for (; n - i >= 8; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= key;
        seen |= word;
        memcpy(to + i, &word, 8);
    }
    for (; i < n; i++) {
        to[i] = from[i] ^ mask[i & 3];
        seen |= to[i];
    }
    return (seen & HIGH_BITS) == 0;
}

/* Takes whole text messages from data[at..end) and appends them to payloads; returns where it stopped, -1 on error. */
static Py_ssize_t
take(PyObject *payloads, const uint8_t *data, size_t at, size_t end, int64_t max_payload)
{
    while (end - at >= 6 && data[at] == TEXT && data[at + 1] >= MASKED) {
        uint64_t length = data[at + 1] - MASKED;
        size_t head = 2;
        if (length == 126) {
            length = (uint64_t)data[at + 2] << 8 | data[at + 3];
            head = 4;
            if (length < 126)
                break;
        }
        else if (length == 127) {
            if (end - at < 14)
                break;
            length = 0;
            for (size_t i = 2; i < 10; i++)
                length = length << 8 | data[at + i];
            head = 10;
            if (length < 65536)
                break;
        }
        head += 4;
        if (max_payload < 0 || length > (uint64_t)max_payload || end - at < head || length > end - at - head)
            break;
        PyObject *payload = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (payload == NULL)
            return -1;
        uint8_t *to = (uint8_t *)PyBytes_AS_STRING(payload);
        /* The empty payload is a shared object, into which nothing may be written. */
        if (length && !unmask(to, data + at + head, (size_t)length, data + at + head - 4)
            && !is_utf8(to, (size_t)length)) {
            Py_DECREF(payload);
            break;
        }
        int appended = PyList_Append(payloads, payload);
        Py_DECREF(payload);
        if (appended < 0)
            return -1;
        at += head + (size_t)length;
    }
    return (Py_ssize_t)at;
}

static PyObject *
split(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t offset, max_payload;
    if (check_arguments("split", nargs, 3) < 0 || check_bytes(args[0]) < 0 || as_int64(args[1], &offset) < 0
        || as_int64(args[2], &max_payload) < 0)
        return NULL;
    const size_t end = (size_t)PyBytes_GET_SIZE(args[0]);
    if (offset < 0 || (uint64_t)offset > end) {
        PyErr_SetString(PyExc_ValueError, "offset is outside of data");
        return NULL;
    }
    PyObject *payloads = PyList_New(0);
    if (payloads == NULL)
        return NULL;
    Py_ssize_t at = take(payloads, (const uint8_t *)PyBytes_AS_STRING(args[0]), (size_t)offset, end, max_payload);
    PyObject *stop = at < 0 ? NULL : PyLong_FromSsize_t(at);
    PyObject *result = stop == NULL ? NULL : PyTuple_New(2);
    if (result == NULL) {
        Py_XDECREF(stop);
        Py_DECREF(payloads);
        return NULL;
    }
    PyTuple_SET_ITEM(result, 0, payloads);
    PyTuple_SET_ITEM(result, 1, stop);
    return result;
}

#define READ_SIZE 65536

static PyObject *
receive(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t fd, max_payload;
    if (check_arguments("receive", nargs, 2) < 0 || as_int64(args[0], &fd) < 0 || as_int64(args[1], &max_payload) < 0)
        return NULL;
    uint8_t data[READ_SIZE];
    ssize_t size;
    /* The interpreter's lock is kept: the socket does not block, and to give it up costs more than the read. */
    do
        size = recv(fd < 0 || fd > INT32_MAX ? -1 : (int)fd, data, sizeof data, MSG_DONTWAIT);
    while (size < 0 && errno == EINTR);
    if (size < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (size >= 6 && data[0] == TEXT) {
        PyObject *payloads = PyList_New(0);
        if (payloads == NULL)
            return NULL;
        Py_ssize_t at = take(payloads, data, 0, (size_t)size, max_payload);
        if (at == size)
            return payloads;
        Py_DECREF(payloads);
        if (at < 0)
            return NULL;
    }
    return PyBytes_FromStringAndSize((char *)data, size);
}

static size_t
header_size(uint64_t length)
{
    return length < 126 ? 2 : length < 65536 ? 4 : 10;
}

/* Writes the header of a text frame and returns where its payload begins. */
static uint8_t *
put_header(uint8_t *to, uint64_t length)
{
    *to++ = TEXT;
    if (length < 126)
        *to++ = (uint8_t)length;
    else if (length < 65536) {
        *to++ = 126;
        *to++ = (uint8_t)(length >> 8);
        *to++ = (uint8_t)length;
    }
    else {
        *to++ = 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            *to++ = (uint8_t)(length >> shift);
    }
    return to;
}

static PyObject *
header(PyObject *Py_UNUSED(module), PyObject *value)
{
    int overflow;
    long long length = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (length == -1 && PyErr_Occurred())
        return NULL;
    if (overflow || length < 0) {
        PyErr_SetString(PyExc_ValueError, "a frame's length is from 0 to 2**63 - 1");
        return NULL;
    }
    uint8_t bytes[10];
    put_header(bytes, (uint64_t)length);
    return PyBytes_FromStringAndSize((char *)bytes, (Py_ssize_t)header_size((uint64_t)length));
}

static PyObject *
frame(PyObject *Py_UNUSED(module), PyObject *payload)
{
    if (check_bytes(payload) < 0)
        return NULL;
    size_t length = (size_t)PyBytes_GET_SIZE(payload), size = header_size(length);
    if (length > (size_t)PY_SSIZE_T_MAX - size)
        return PyErr_NoMemory();
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(size + length));
    if (result == NULL)
        return NULL;
    memcpy(put_header((uint8_t *)PyBytes_AS_STRING(result), length), PyBytes_AS_STRING(payload), length);
    return result;
}

/* The size of the frames of count payloads; -1 with an exception set when one is no bytes, or when it is too much. */
static Py_ssize_t
size_of_frames(PyObject *const *payloads, Py_ssize_t count)
{
    size_t total = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (check_bytes(payloads[i]) < 0)
            return -1;
        size_t length = (size_t)PyBytes_GET_SIZE(payloads[i]), size = header_size(length);
        if (length > (size_t)PY_SSIZE_T_MAX - size - total) {
            PyErr_NoMemory();
            return -1;
        }
        total += size + length;
    }
    return (Py_ssize_t)total;
}

static void
put_frames(uint8_t *to, PyObject *const *payloads, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t length = (size_t)PyBytes_GET_SIZE(payloads[i]);
        to = put_header(to, length);
        memcpy(to, PyBytes_AS_STRING(payloads[i]), length);
        to += length;
    }
}

static PyObject *
frames(PyObject *Py_UNUSED(module), PyObject *payloads)
{
    PyObject *sequence = PySequence_Fast(payloads, "a list of bytes expected");
    if (sequence == NULL)
        return NULL;
    /* No Python code runs from here on, so the list stays as it is. */
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    PyObject **items = PySequence_Fast_ITEMS(sequence);
    const Py_ssize_t size = size_of_frames(items, count);
    PyObject *result = size < 0 ? NULL : PyBytes_FromStringAndSize(NULL, size);
    if (result != NULL && size)
        put_frames((uint8_t *)PyBytes_AS_STRING(result), items, count);
    Py_DECREF(sequence);
    return result;
}

#define AT_ONCE 65536

/* send(2) that does not wait and raises no signal; interrupted ones are tried again. */
static ssize_t
send_now(int fd, const void *data, size_t size)
{
    ssize_t sent;
    do
        sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent;
}

static PyObject *
send_messages(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t fd;
    if (check_arguments("send_messages", nargs, 2) < 0 || as_int64(args[0], &fd) < 0)
        return NULL;
    PyObject *sequence = PySequence_Fast(args[1], "a list of bytes expected");
    if (sequence == NULL)
        return NULL;
    const int number = fd < 0 || fd > INT32_MAX ? -1 : (int)fd;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    PyObject **items = PySequence_Fast_ITEMS(sequence);
    const Py_ssize_t size = size_of_frames(items, count);
    PyObject *rest = NULL;
    if (size >= 0 && size <= AT_ONCE) {
        /* The interpreter's lock is kept: to give it up costs more than so small a write. */
        uint8_t data[AT_ONCE];
        put_frames(data, items, count);
        ssize_t sent = send_now(number, data, (size_t)size);
        if (sent < 0)
            sent = 0;
        rest = PyBytes_FromStringAndSize((char *)data + sent, size - sent);
    }
    else if (size > AT_ONCE && (rest = PyBytes_FromStringAndSize(NULL, size)) != NULL) {
        uint8_t *data = (uint8_t *)PyBytes_AS_STRING(rest);
        ssize_t sent;
        put_frames(data, items, count);
        Py_BEGIN_ALLOW_THREADS
        sent = send_now(number, data, (size_t)size);
        Py_END_ALLOW_THREADS
        if (sent > 0)
            Py_SETREF(rest, PyBytes_FromStringAndSize((char *)data + sent, size - sent));
    }
    Py_DECREF(sequence);
    return rest;
}

/* The top bit of each byte that is zero, and of no other: a sum of seven bits carries into no neighbour. */
static uint64_t
zero_bytes(uint64_t word)
{
    return ~(((word & EACH(0x7F)) + EACH(0x7F)) | word) & HIGH_BITS;
}

#define CHEAP 256

/* A bytes object is not written to, and the caller has it for as long as the call takes: what is long is looked through
   without the interpreter's lock, which other threads may need meanwhile. */
#define LONG_LOOK (64 * 1024)
#define LOOKED_THROUGH(size, statement) \
    do { \
        if ((size) > LONG_LOOK) { \
            Py_BEGIN_ALLOW_THREADS \
            statement; \
            Py_END_ALLOW_THREADS \
        } \
        else { \
            statement; \
        } \
    } while (0)

/* See zcomm.wire.frames_pure.depth_within. */
static long
shape_of(const uint8_t *text, size_t size, int64_t limit)
{
    if (limit < 0)
        return 0;
    /* An upper bound first: '[' and '{' differ in one bit alone, and most messages have few of either. */
    int64_t openings = 0;
    uint64_t exponents = 0;
    size_t at = 0;
    for (; size - at >= 8; at += 8) {
        uint64_t word, before;
        memcpy(&word, text + at, 8);
        word |= EACH(0x20);
        openings += (int64_t)((zero_bytes(word ^ EACH('{')) >> 7) * EACH(1) >> 56);
        if (at) {
            /* Where a byte is an 'e', and the one before it is among "0123456789:;<=>?". */
            memcpy(&before, text + at - 1, 8);
            exponents |= zero_bytes(word ^ EACH('e')) & zero_bytes((before & EACH(0xF0)) ^ EACH(0x30));
        }
    }
    for (; at < size; at++) {
        openings += (text[at] | 0x20) == '{';
        exponents |= at > 7 && (text[at] | 0x20) == 'e' && (text[at - 1] & 0xF0) == 0x30;
    }
    /* No request has room for a number within its first eight bytes. */
    const long shape = 1 + (exponents || size > CHEAP);
    if (openings <= limit)
        return shape;
    int64_t depth = 0;
    for (size_t i = 0; i < size; i++) {
        switch (text[i]) {
        case '"':
            for (i++; i < size && text[i] != '"'; i++)
                if (text[i] == '\\')
                    i++;
            break;
        case '[':
        case '{':
            if (++depth > limit)
                return 0;
            break;
        case ']':
        case '}':
            depth--;
        }
    }
    return shape;
}

static PyObject *
depth_within(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t limit;
    if (check_arguments("depth_within", nargs, 2) < 0 || check_bytes(args[0]) < 0 || as_int64(args[1], &limit) < 0)
        return NULL;
    const uint8_t *text = (const uint8_t *)PyBytes_AS_STRING(args[0]);
    const size_t size = (size_t)PyBytes_GET_SIZE(args[0]);
    long shape;
    LOOKED_THROUGH(size, shape = shape_of(text, size, limit));
    return PyLong_FromLong(shape);
}

static int
is_space(uint8_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static size_t
skip_spaces(const uint8_t *text, size_t at, size_t size)
{
    while (at < size && is_space(text[at]))
        at++;
    return at;
}

/* The offset behind the string that begins at at, or 0 where it has no end. */
static size_t
end_of_string(const uint8_t *text, size_t at, size_t size)
{
    for (at++; at < size; at++) {
        if (text[at] == '"')
            return at + 1;
        if (text[at] == '\\')
            at++;
    }
    return 0;
}

/* What it costs to read JSON, in units of some 12 ns; see zcomm.wire.frames_pure.price, which says why. */
#define OF_VALUE 1
#define OF_NAME 3
#define OF_NEW_NAME 16
#define OF_STRING 8
#define OF_CONTAINER 22
#define OF_DEAR_NUMBER 1900
#define MAX_DIGITS 4300
#define CHARACTERS 32 /* of a text that weigh as much as a value */
/* The least bits of an integer that weigh more than a value; how many as much as one, and how many of their square. */
#define WORD 65
#define BITS 32
#define BITS_SQUARED 32768
#define LEVELS 500
#define NAME_SLOTS 256 /* of names that may stand again at no more than OF_NAME */

static int
is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

/* The price of the number text[at..size) begins with, beyond that of any value; *end is set behind it. */
static uint64_t
price_of_number(const uint8_t *text, size_t at, size_t size, size_t *end)
{
    const size_t start = at;
    size_t first = SIZE_MAX; /* the first digit that counts */
    int is_float = 0;
    for (; at < size && (is_digit(text[at]) || text[at] == '.'); at++) {
        is_float |= text[at] == '.';
        if (first == SIZE_MAX && text[at] != '0' && text[at] != '.')
            first = at;
    }
    const size_t stop = at, length = at - start, digits = first == SIZE_MAX ? 0 : at - first;
    size_t exponent = 0;
    uint64_t price = 0;
    if (at < size && (text[at] | 0x20) == 'e') {
        is_float = 1;
        at++;
        const int is_negative = at < size && text[at] == '-';
        if (at < size && (text[at] == '-' || text[at] == '+'))
            at++;
        const size_t from = at;
        int is_zero = 1;
        for (; at < size && is_digit(text[at]); at++)
            is_zero &= text[at] == '0';
        exponent = at - from;
        if (!is_negative || is_zero)
            price = 80;
    }
    *end = at;
    if (!is_float) /* What is longer is refused unread. */
        return length > 300 && length <= MAX_DIGITS ? 4 * (uint64_t)length : 0;
    if (exponent > 2 || length > 150)
        return OF_DEAR_NUMBER + (uint64_t)length;
    if (digits > 18)
        return price + 70 + digits;
    if (digits > 15 && (text[stop - 1] == '0' || text[stop - 1] == '5'))
        return price + 60;
    return price;
}

/* A name, quotation marks and all; none has no length. */
struct name {
    size_t at, length;
};

/* Whether the name text[at..end) is the last one of its slot, which it is from now on. */
static int
is_known(struct name *names, const uint8_t *text, size_t at, size_t end)
{
    const size_t length = end - at;
    struct name *last =
        &names[(text[at + 1] + 3 * text[at + length / 2] + 5 * text[end - 2] + 7 * length) % NAME_SLOTS];
    if (last->length == length && memcmp(text + last->at, text + at, length) == 0)
        return 1;
    last->at = at;
    last->length = length;
    return 0;
}

/* See zcomm.wire.frames_pure.price. */
static uint64_t
price_of(const uint8_t *text, size_t size)
{
    struct name names[NAME_SLOTS] = {{0}};
    uint64_t total = 0;
    size_t at = 0;
    while (at < size) {
        const uint8_t c = text[at];
        if (is_digit(c)) {
            size_t end = at + 1;
            while (end < size && is_digit(text[end]))
                end++;
            if (end - at <= 300 && (end == size || (text[end] != '.' && (text[end] | 0x20) != 'e')))
                at = end; /* an integer, as most are */
            else
                total += price_of_number(text, at, size, &at);
            continue;
        }
        if (c == '"') {
            const size_t start = at;
            at = end_of_string(text, at, size);
            if (at == 0) {
                total += OF_STRING;
                break;
            }
            const size_t end = at;
            at = skip_spaces(text, at, size);
            if (at == size || text[at] != ':')
                total += OF_STRING;
            else {
                total += is_known(names, text, start, end) ? OF_NAME : OF_NEW_NAME;
                at++;
            }
            continue;
        }
        if (c == ',')
            total += OF_VALUE;
        else if (c == '[' || c == '{')
            total += OF_CONTAINER;
        at++;
    }
    return total;
}

static PyObject *
price(PyObject *Py_UNUSED(module), PyObject *payload)
{
    if (check_bytes(payload) < 0)
        return NULL;
    const uint8_t *text = (const uint8_t *)PyBytes_AS_STRING(payload);
    const size_t size = (size_t)PyBytes_GET_SIZE(payload);
    uint64_t total;
    LOOKED_THROUGH(size, total = price_of(text, size));
    return PyLong_FromUnsignedLongLong(total);
}

/* The offset behind a value that is a string or another scalar, or 0 where there is none. */
static size_t
end_of_scalar(const uint8_t *text, size_t at, size_t size)
{
    if (at < size && text[at] == '"')
        return end_of_string(text, at, size);
    const size_t start = at;
    while (at < size && !is_space(text[at]) && memchr("\"[]{},:", text[at], 7) == NULL)
        at++;
    return at > start ? at : 0;
}

static int
hex_value(uint8_t c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
}

/* Whether the string text[at..end), quotation marks and all, is name, whose characters may be written as \u00XX. */
static int
is_named(const uint8_t *text, size_t at, size_t end, const char *name)
{
    at++;
    end--;
    for (; *name; name++) {
        if (at < end && text[at] == (uint8_t)*name)
            at++;
        else if (end - at >= 6 && memcmp(text + at, "\\u00", 4) == 0
                 && hex_value(text[at + 4]) == (*name >> 4) && hex_value(text[at + 5]) == (*name & 15))
            at += 6;
        else
            return 0;
    }
    return at == end;
}

/* See zcomm.wire.frames_pure.request_id. Where the value begins, and *length, both 0 where there is none.

   opened has a bit for each bracket that is open inside of the outermost one: whether it is a '{'. */
static size_t
find_request_id(const uint8_t *text, size_t size, uint8_t *opened, size_t *length)
{
    *length = 0;
    size_t at = size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    at = skip_spaces(text, at, size);
    if (at == size || text[at] != '{')
        return 0;
    at++;
    size_t depth = 0, found = 0, found_end = 0;
    int is_name_due = 1;
    while (at < size) {
        if (is_name_due) {
            is_name_due = 0;
            size_t name = skip_spaces(text, at, size);
            size_t end = name < size && text[name] == '"' ? end_of_string(text, name, size) : 0;
            size_t colon = end ? skip_spaces(text, end, size) : size;
            if (colon < size && text[colon] == ':') {
                at = skip_spaces(text, colon + 1, size);
                if (is_named(text, name, end, "_requestId")) {
                    end = end_of_scalar(text, at, size);
                    int is_whole = end && end < size && (is_space(text[end]) || text[end] == ',' || text[end] == '}');
                    found = is_whole ? at : 0;
                    found_end = is_whole ? end : 0;
                }
                continue;
            }
        }
        const uint8_t c = text[at];
        if (c == '"') {
            at = end_of_string(text, at, size);
            if (at == 0)
                break;
            continue;
        }
        if (c == '[' || c == '{') {
            const uint8_t bit = (uint8_t)(1 << (depth & 7));
            opened[depth >> 3] = (uint8_t)(c == '{' ? opened[depth >> 3] | bit : opened[depth >> 3] & ~bit);
            depth++;
        }
        else if (c == ']' || c == '}') {
            if (depth == 0)
                break;
            depth--;
            if ((opened[depth >> 3] >> (depth & 7) & 1) != (c == '}'))
                break;
        }
        else if (c == ',')
            is_name_due = depth == 0;
        at++;
    }
    *length = found_end - found;
    return found;
}

static PyObject *
request_id(PyObject *Py_UNUSED(module), PyObject *payload)
{
    if (check_bytes(payload) < 0)
        return NULL;
    const uint8_t *text = (const uint8_t *)PyBytes_AS_STRING(payload);
    const size_t size = (size_t)PyBytes_GET_SIZE(payload);
    uint8_t *opened = PyMem_Calloc(size / 8 + 1, 1);
    if (opened == NULL)
        return PyErr_NoMemory();
    size_t found, length;
    LOOKED_THROUGH(size, found = find_request_id(text, size, opened, &length));
    PyMem_Free(opened);
    return PyBytes_FromStringAndSize((const char *)text + found, (Py_ssize_t)length);
}

static PyObject *
send_all(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (check_arguments("send_all", nargs, 2) < 0 || check_bytes(args[1]) < 0)
        return NULL;
    PyObject *sequence = PySequence_Fast(args[0], "a list of descriptors expected");
    if (sequence == NULL)
        return NULL;
    PyObject *short_of = NULL;
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    /* One block: results first, as they need the stricter alignment. */
    int64_t *sent = PyMem_Malloc((size_t)(count ? count : 1) * (sizeof *sent + sizeof(int)));
    if (sent == NULL) {
        Py_DECREF(sequence);
        return PyErr_NoMemory();
    }
    int *fds = (int *)(sent + count);
    for (Py_ssize_t i = 0; i < count; i++) {
        /* An int's value is read without running Python code, so the list cannot change under the loop. */
        PyObject *item = PySequence_Fast_GET_ITEM(sequence, i);
        int64_t fd;
        if (!PyLong_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a descriptor is an int");
            goto done;
        }
        if (as_int64(item, &fd) < 0)
            goto done;
        fds[i] = fd < 0 || fd > INT32_MAX ? -1 : (int)fd;
    }
    const char *data = PyBytes_AS_STRING(args[1]);
    const size_t size = (size_t)PyBytes_GET_SIZE(args[1]);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        if (fds[i] < 0) {
            sent[i] = 0;
            continue;
        }
        ssize_t n = send_now(fds[i], data, size);
        sent[i] = n < 0 ? -(int64_t)errno : n;
    }
    Py_END_ALLOW_THREADS
    short_of = PyList_New(0);
    for (Py_ssize_t i = 0; short_of != NULL && i < count; i++) {
        if (fds[i] >= 0 && sent[i] == (int64_t)size)
            continue;
        PyObject *pair = Py_BuildValue("(nL)", i, (long long)sent[i]);
        if (pair == NULL || PyList_Append(short_of, pair) < 0)
            Py_CLEAR(short_of);
        Py_XDECREF(pair);
    }
done:
    PyMem_Free(sent);
    Py_DECREF(sequence);
    return short_of;
}

/* The bits of an integer that has more than a machine's word; less than WORD for any other. */
static int64_t
bits_of(PyObject *value)
{
    int overflow;
    (void)PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow == 0)
        return 0;
    /* int's own, whatever a subclass has in its place. */
    PyObject *length = PyObject_CallMethod((PyObject *)&PyLong_Type, "bit_length", "O", value);
    const int64_t bits = length == NULL ? -1 : PyLong_AsLongLong(length);
    Py_XDECREF(length);
    if (bits < 0)
        PyErr_Clear();
    return bits < 0 ? WORD : bits;
}

/* How much of what may be left remains after value; see zcomm.wire.frames_pure.is_light. No code of Python's runs. */
static int64_t
weigh(PyObject *value, int64_t left, int levels)
{
    if (--left < 0 || levels == 0)
        return -1;
    if (PyUnicode_CheckExact(value))
        return left - PyUnicode_GET_LENGTH(value) / CHARACTERS;
    if (PyBytes_CheckExact(value))
        return left - PyBytes_GET_SIZE(value) / CHARACTERS;
    if (PyList_Check(value) || PyTuple_Check(value)) {
        const Py_ssize_t count = PySequence_Fast_GET_SIZE(value);
        PyObject **items = PySequence_Fast_ITEMS(value);
        if (count > left)
            return -1;
        for (Py_ssize_t i = 0; i < count && left >= 0; i++)
            left = weigh(items[i], left, levels - 1);
    } else if (PyLong_Check(value)) {
        const int64_t bits = bits_of(value);
        if (bits > INT32_MAX)
            return -1;
        left -= bits < WORD ? 0 : bits / BITS + bits * bits / BITS_SQUARED;
    } else if (PyDict_Check(value)) {
        PyObject *name, *inner;
        Py_ssize_t at = 0;
        while (left >= 0 && PyDict_Next(value, &at, &name, &inner)) {
            left = weigh(name, left, levels - 1);
            if (left >= 0)
                left = weigh(inner, left, levels - 1);
        }
    }
    return left;
}

static PyObject *
is_light(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    int64_t most;
    if (check_arguments("is_light", nargs, 2) < 0 || as_int64(args[1], &most) < 0)
        return NULL;
    return PyBool_FromLong(weigh(args[0], most, LEVELS) >= 0);
}

static PyMethodDef methods[] = {
    {"split", (PyCFunction)(void (*)(void))split, METH_FASTCALL, "See zcomm.wire.frames_pure.split."},
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, "See zcomm.wire.sockets.receive_pure."},
    {"header", header, METH_O, "See zcomm.wire.frames_pure.header."},
    {"frame", frame, METH_O, "See zcomm.wire.frames_pure.frame."},
    {"frames", frames, METH_O, "See zcomm.wire.frames_pure.frames."},
    {"send_messages", (PyCFunction)(void (*)(void))send_messages, METH_FASTCALL, "See zcomm.wire.sockets.send_messages_pure."},
    {"depth_within", (PyCFunction)(void (*)(void))depth_within, METH_FASTCALL,
     "See zcomm.wire.frames_pure.depth_within."},
    {"price", price, METH_O, "See zcomm.wire.frames_pure.price."},
    {"is_light", (PyCFunction)(void (*)(void))is_light, METH_FASTCALL, "See zcomm.wire.frames_pure.is_light."},
    {"request_id", request_id, METH_O, "See zcomm.wire.frames_pure.request_id."},
    {"send_all", (PyCFunction)(void (*)(void))send_all, METH_FASTCALL, "See zcomm.wire.sockets.send_all_pure."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "zcomm.wire._fast",
    .m_doc = "Text frames, what JSON is like without reading it, and broadcast writes, compiled.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__fast(void)
{
    return PyModuleDef_Init(&module);
}
