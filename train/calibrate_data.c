/* Calibration sequences: chosen evenly over the data, back to back in batches of at most CALIBRATION_ROWS tokens. */
#include <string.h>

#include "train/calibrate_internal.h"

static Status read_dataset(CalibrationData *data, const CalibrationOptions *o, const ModelConfig *model, Error *err) {
    TRY(tokenizer_open(&data->tokenizer, o->model, err));
    DatasetOptions options = {.path = o->data,
                              .layout = LAYOUT_AUTO,
                              .template_name = "auto",
                              .max_length = model->context < o->tokens ? model->context : o->tokens,
                              .tokenizer = data->tokenizer,
                              .eos_id = tokenizer_eos(data->tokenizer),
                              .open_documents = 1};
    if (options.eos_id < 0 && model->eos_count > 0) options.eos_id = (int32_t)model->eos_ids[0];
    TRY(dataset_read(&options, &data->dataset, err));
    for (int64_t t = 0; t < data->dataset.tokens; t++)
        if (data->dataset.ids[t] < 0 || data->dataset.ids[t] >= model->vocab)
            FAIL("%s: token %d is not in the model's vocabulary of %lld; the tokenizer does not belong to this model", o->data,
                 data->dataset.ids[t], (long long)model->vocab);
    return OK;
}

static void choose(CalibrationData *data, int64_t samples) {
    int64_t all = data->dataset.count;
    data->count = all < samples ? all : samples;
    data->sequences = memory_alloc((size_t)data->count * sizeof *data->sequences);
    for (int64_t i = 0; i < data->count; i++) {
        int64_t s = (int64_t)((__int128)i * all / data->count);
        int64_t length = data->dataset.start[s + 1] - data->dataset.start[s];
        data->sequences[i] = s;
        data->tokens += length;
        if (length > data->longest) data->longest = length;
    }
}

static void cut_batches(CalibrationData *data) {
    int64_t most = data->longest > CALIBRATION_ROWS ? data->longest : CALIBRATION_ROWS, rows = 0, row = 0;
    data->batch = memory_alloc((size_t)(data->count + 1) * sizeof *data->batch);
    data->row = memory_alloc((size_t)(data->count + 1) * sizeof *data->row);
    for (int64_t i = 0; i < data->count; i++) {
        int64_t length = data->dataset.start[data->sequences[i] + 1] - data->dataset.start[data->sequences[i]];
        if (data->batches == 0 || rows + length > most) {
            data->batch[data->batches] = i;
            data->row[data->batches++] = row;
            rows = 0;
        }
        rows += length;
        row += length;
        if (rows > data->rows) data->rows = rows;
    }
    data->batch[data->batches] = data->count;
    data->row[data->batches] = row;
}

Status calibration_data_open(CalibrationData *data, const CalibrationOptions *options, const ModelConfig *model, Error *err) {
    TRY(read_dataset(data, options, model, err));
    choose(data, options->samples);
    cut_batches(data);
    TRY(arena_create(&data->arena, "a batch", batch_buffer_bytes(data->rows), err));
    return batch_buffer_take(&data->buffer, &data->arena, data->rows, err);
}

void calibration_data_close(CalibrationData *data) {
    arena_free(&data->arena);
    memory_free(data->sequences);
    memory_free(data->batch);
    memory_free(data->row);
    dataset_free(&data->dataset);
    tokenizer_close(data->tokenizer);
}

Status calibration_data_batch(CalibrationData *data, int64_t b, Batch *batch, Error *err) {
    *batch = (Batch){.dropout = 0};
    return batch_fill(batch, &data->buffer, &data->dataset, data->sequences + data->batch[b],
                      data->batch[b + 1] - data->batch[b], 0, err);
}

/* The rows [first, first + count) of the table that some token wants. */
static void embed_slab(const CalibrationData *data, const float *slab, int64_t first, int64_t count, int64_t hidden, float *h) {
    int64_t row = 0;
    for (int64_t i = 0; i < data->count; i++) {
        int64_t at = data->dataset.start[data->sequences[i]], end = data->dataset.start[data->sequences[i] + 1];
        for (; at < end; at++, row++) {
            int64_t id = data->dataset.ids[at] - first;
            if (id >= 0 && id < count) memcpy(h + row * hidden, slab + id * hidden, (size_t)hidden * sizeof *h);
        }
    }
}

Status calibration_data_embed(CalibrationData *data, Merge *merge, float *h, Error *err) {
    MergeWeight table = merge_weight(merge, WEIGHT_EMBED);
    int64_t slab = merge_slab_rows(merge, WEIGHT_EMBED);
    float *rows = memory_alloc((size_t)(slab * table.cols) * sizeof *rows);
    Status status = merge_begin(merge, WEIGHT_EMBED, err);
    for (int64_t first = 0; first < table.rows && status == OK; first += slab) {
        int64_t count = table.rows - first < slab ? table.rows - first : slab;
        status = merge_rows(merge, first, count, rows, NULL, err);
        if (status == OK) embed_slab(data, rows, first, count, table.cols, h);
    }
    memory_free(rows);
    return status;
}
