#include "train/tensorboard.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"

/* ---- framing --------------------------------------------------------------------------------------------------------------- */

/* Castagnoli's polynomial, reflected. Bit by bit: a record has a hundred bytes. */
uint32_t crc32c(const void *bytes, size_t length) {
    const uint8_t *p = bytes;
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < length; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0x82F63B78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

uint32_t crc32c_masked(const void *bytes, size_t length) {
    uint32_t crc = crc32c(bytes, length);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

static void add_little_endian(Text *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        text_add(out, &(char){(char)(value >> 8 * i & 0xFF)}, 1);
}

static void add_record(Text *out, const Text *data) {
    size_t begin = out->length;
    add_little_endian(out, data->length, 8);
    add_little_endian(out, crc32c_masked(out->data + begin, 8), 4);
    text_add(out, data->data, data->length);
    add_little_endian(out, crc32c_masked(data->data, data->length), 4);
}

/* ---- messages -------------------------------------------------------------------------------------------------------------- */

typedef enum WireType { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 } WireType;

static void add_varint(Text *out, uint64_t value) {
    for (; value >= 0x80; value >>= 7)
        text_add(out, &(char){(char)(0x80 | (value & 0x7F))}, 1);
    text_add(out, &(char){(char)value}, 1);
}

static void add_tag(Text *out, unsigned field, WireType type) {
    add_varint(out, field << 3 | (unsigned)type);
}

static void add_bytes(Text *out, unsigned field, const char *bytes, size_t length) {
    add_tag(out, field, WIRE_BYTES);
    add_varint(out, length);
    text_add(out, bytes, length);
}

static void add_wall_time(Text *out, double wall_time) {
    uint64_t bits;
    memcpy(&bits, &wall_time, sizeof bits);
    add_tag(out, 1, WIRE_64);
    add_little_endian(out, bits, 8);
}

static void add_step(Text *out, int64_t step) {
    add_tag(out, 2, WIRE_VARINT);
    add_varint(out, (uint64_t)step);
}

void tensorboard_record_version(Text *out, double wall_time) {
    static const char version[] = "brain.Event:2";
    Text event = {0};
    add_wall_time(&event, wall_time);
    add_bytes(&event, 3, version, sizeof version - 1);
    add_record(out, &event);
    text_free(&event);
}

/* SessionLog{status: START}: a reader purges everything that it has of this step and later ones. */
static void add_session_start(Text *out, double wall_time, int64_t step) {
    static const char start[] = {1 << 3 | WIRE_VARINT, 1};
    Text event = {0};
    add_wall_time(&event, wall_time);
    add_step(&event, step);
    add_bytes(&event, 7, start, sizeof start);
    add_record(out, &event);
    text_free(&event);
}

void tensorboard_record_scalars(Text *out, double wall_time, int64_t step, const TensorboardScalar *scalars, size_t count) {
    Text event = {0}, summary = {0}, value = {0};
    for (size_t i = 0; i < count; i++) {
        float number = (float)scalars[i].value;
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        text_clear(&value);
        add_bytes(&value, 1, scalars[i].tag, strlen(scalars[i].tag));
        add_tag(&value, 2, WIRE_32);
        add_little_endian(&value, bits, 4);
        add_bytes(&summary, 1, value.data, value.length);
    }
    add_wall_time(&event, wall_time);
    add_step(&event, step);
    add_bytes(&event, 5, summary.data, summary.length);
    add_record(out, &event);
    text_free(&value);
    text_free(&summary);
    text_free(&event);
}

/* ---- the file -------------------------------------------------------------------------------------------------------------- */

static double wall_clock(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static Status append(Tensorboard *board, Error *err) {
    Status status = file_append(board->fd, board->path, board->record.data, board->record.length, err);
    text_clear(&board->record);
    return status;
}

static Status create(Tensorboard *board, const char *run, Error *err) {
    char host[128];
    if (gethostname(host, sizeof host) != 0) host[0] = 0;
    host[sizeof host - 1] = 0;
    for (char *c = host; *c != 0; c++)
        if (*c == '/') *c = '-';
    long long now = (long long)wall_clock();
    for (int n = 0;; n++) { /* a run that is resumed within the second takes the next number */
        board->path = memory_format("%s/events.out.tfevents.%010lld.%s.%ld.%d", run, now, host[0] ? host : "localhost",
                                    (long)getpid(), n);
        board->fd = open(board->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (board->fd >= 0) return OK;
        if (errno != EEXIST || n == 1000) FAIL("%s: cannot create: %s", board->path, strerror(errno));
        memory_free(board->path);
    }
}

Status tensorboard_open(Tensorboard *board, const char *run, int64_t resume_step, Error *err) {
    *board = (Tensorboard){.fd = -1};
    TRY(create(board, run, err));
    tensorboard_record_version(&board->record, wall_clock());
    if (resume_step >= 0) add_session_start(&board->record, wall_clock(), resume_step + 1);
    return append(board, err);
}

Status tensorboard_scalars(Tensorboard *board, int64_t step, const TensorboardScalar *scalars, size_t count, Error *err) {
    tensorboard_record_scalars(&board->record, wall_clock(), step, scalars, count);
    return append(board, err);
}

void tensorboard_close(Tensorboard *board) {
    if (board->path != NULL && board->fd >= 0) close(board->fd);
    memory_free(board->path);
    text_free(&board->record);
    *board = (Tensorboard){.fd = -1};
}
