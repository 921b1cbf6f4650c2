/* TensorBoard event files, from the record layout and the two messages it needs.
 *
 *   record: u64 length | u32 masked CRC-32C of those 8 bytes | data | u32 masked CRC-32C of data      (little-endian)
 *   data:   Event{1: wall time, double; 2: step, varint; 3: file version; 5: Summary{1: Value{1: tag, 2: float}}; 7: SessionLog}
 *
 * Source: tensorboard `compat/proto/event.proto`, `summary.proto`, `summary/writer/record_writer.py`.
 */
#ifndef NIBBLE_TRAIN_TENSORBOARD_H
#define NIBBLE_TRAIN_TENSORBOARD_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "core/text.h"

typedef struct TensorboardScalar {
    const char *tag;
    double value;
} TensorboardScalar;

typedef struct Tensorboard {
    char *path;
    int fd;
    Text record; /* reused */
} Tensorboard;

/* A new file RUN/events.out.tfevents.TIME.HOST.PID.N. resume_step >= 0: readers drop what older files say of later steps. */
Status tensorboard_open(Tensorboard *board, const char *run, int64_t resume_step, Error *err);
/* One event with `count` scalars, appended and flushed. */
Status tensorboard_scalars(Tensorboard *board, int64_t step, const TensorboardScalar *scalars, size_t count, Error *err);
void tensorboard_close(Tensorboard *board);

/* Pieces, for tests: the framing, and one event's record at a given time (seconds since 1970). */
uint32_t crc32c(const void *bytes, size_t length);
uint32_t crc32c_masked(const void *bytes, size_t length);
void tensorboard_record_version(Text *out, double wall_time);
void tensorboard_record_scalars(Text *out, double wall_time, int64_t step, const TensorboardScalar *scalars, size_t count);

#endif
