#include "quant/awq.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "core/memory.h"
#include "quant/factor.h"

#define LEAST_SCALE 1e-4
#define TILE 16 /* rows of one item */

/* ---- scales ---------------------------------------------------------------------------------------------------------------- */

static void scales_for(const AwqGroup *group, double alpha, float *s) {
    double most = 0.0, least = INFINITY;
    for (int64_t c = 0; c < group->cols; c++) {
        double value = pow((double)group->mean_inputs[c], alpha);
        value = value > LEAST_SCALE ? value : LEAST_SCALE;
        s[c] = (float)value;
        if (value > most) most = value;
        if (value < least) least = value;
    }
    double middle = sqrt(most * least);
    for (int64_t c = 0; c < group->cols; c++)
        s[c] = (float)((double)s[c] / middle);
}

/* One trial of one linear. */
typedef struct Trial {
    const GroupInt *grid;
    const float *w, *s;
    int64_t cols;
    _Atomic int bad;
} Trial;

/* d = Q(w s) / s - w. */
static void trial_row(void *context, int64_t row, float *d, float *scratch) {
    Trial *t = context;
    const float *w = t->w + row * t->cols;
    float *scaled = scratch, scale;
    int64_t group = group_int_columns(t->grid, t->cols);
    uint8_t zero;
    for (int64_t c = 0; c < t->cols; c++)
        scaled[c] = w[c] * t->s[c];
    for (int64_t first = 0; first < t->cols; first += group) {
        group_int_scale_of(t->grid, scaled + first, group, &scale, &zero);
        if (!isfinite(scale)) atomic_store(&t->bad, 1);
        for (int64_t c = first; c < first + group; c++) {
            uint8_t code = group_int_code(t->grid->bits, scaled[c], scale, zero, NULL);
            d[c] = group_int_value(code, scale, zero, t->grid->scale_type) / t->s[c] - w[c];
        }
    }
}

static Status trial_error(const GroupInt *grid, const AwqGroup *group, OutputError *error, const float *s, double *sum,
                          Error *err) {
    *sum = 0.0;
    for (int i = 0; i < group->count; i++) {
        Trial trial = {.grid = grid, .w = group->linear[i].w, .s = s, .cols = group->cols};
        double part;
        TRY(output_error_sum(error, group->hessian, group->linear[i].rows, group->cols, trial_row, &trial, &part, err));
        *sum += trial.bad ? (double)INFINITY : part;
    }
    return OK;
}

Status awq_search(const GroupInt *grid, const AwqGroup *group, OutputError *error, float *s, AwqFound *found, Error *err) {
    float *trial = memory_alloc((size_t)group->cols * sizeof *trial);
    Status status = OK;
    for (int step = 0; step < AWQ_STEPS && status == OK; step++) {
        double alpha = (double)step / AWQ_STEPS, sum;
        scales_for(group, alpha, trial);
        status = trial_error(grid, group, error, trial, &sum, err);
        if (step == 0) found->plain = sum;
        if (step > 0 && !(sum < found->error)) continue;
        found->alpha = alpha;
        found->error = sum;
        memcpy(s, trial, (size_t)group->cols * sizeof *s);
    }
    memory_free(trial);
    return status;
}

typedef struct Scaling {
    float *values;
    int64_t cols;
    const float *s;
    int divide; /* the matrix of the inputs: rows and columns are divided */
} Scaling;

static void scale_item(void *context, int64_t row, int worker) {
    (void)worker;
    const Scaling *job = context;
    float *values = job->values + row * job->cols;
    for (int64_t c = 0; c < job->cols; c++)
        values[c] = job->divide ? values[c] / job->s[row] / job->s[c] : values[c] * job->s[c];
}

void awq_scale_columns(const AwqGroup *group, const float *s, Pool *pool) {
    Scaling job = {.cols = group->cols, .s = s};
    for (int i = 0; i < group->count; i++) {
        job.values = group->linear[i].w;
        pool_run(pool, scale_item, &job, group->linear[i].rows);
    }
    job.values = group->hessian;
    job.divide = 1;
    pool_run(pool, scale_item, &job, group->cols);
    for (int64_t c = 0; c < group->cols; c++)
        group->mean_inputs[c] /= s[c];
}

/* ---- clipping and codes ------------------------------------------------------------------------------------------------------ */

typedef struct Job {
    const float *w, *hessian;
    GroupIntTensor *tensor;
    int clips;
    int64_t group;
    float *scratch;      /* [threads, 2 * TILE * group]: differences and their products */
    _Atomic int64_t bad; /* the first row that does not fit, or rows */
} Job;

typedef struct Range {
    float least, most, scale;
    uint8_t zero;
    double error;
} Range;

static Range range_of(const float *x, int64_t count) {
    Range range = {0};
    for (int64_t i = 0; i < count; i++) {
        if (x[i] < range.least) range.least = x[i];
        if (x[i] > range.most) range.most = x[i];
    }
    return range;
}

/* One step of the search, for the same group of `rows` rows: the products d H_gg are formed together. */
static void clip_step(const Job *job, int step, int64_t first_row, int64_t rows, int64_t first, float *d, Range *ranges) {
    const GroupInt *grid = &job->tensor->grid;
    int64_t cols = job->tensor->cols, group = job->group;
    float part = 1.0f - (float)step / AWQ_CLIP_GRID, *product = d + TILE * group, scale[TILE];
    uint8_t zero[TILE];
    for (int64_t r = 0; r < rows; r++) {
        const float *x = job->w + (first_row + r) * cols + first;
        group_int_scale(grid, part * ranges[r].least, part * ranges[r].most, &scale[r], &zero[r]);
        for (int64_t c = 0; c < group; c++)
            d[r * group + c] = group_int_value(group_int_code(grid->bits, x[c], scale[r], zero[r], NULL), scale[r], zero[r],
                                               grid->scale_type) -
                               x[c];
    }
    memset(product, 0, (size_t)(rows * group) * sizeof *product);
    if (job->clips)
        subtract_product_f32(rows, group, group, d, group, job->hessian + first * cols + first, cols, product, group);
    for (int64_t r = 0; r < rows; r++) {
        double error = 0.0;
        for (int64_t c = 0; c < group; c++)
            error -= (double)d[r * group + c] * (double)product[r * group + c];
        if (step > 0 && !(error < ranges[r].error)) continue;
        ranges[r].scale = scale[r];
        ranges[r].zero = zero[r];
        ranges[r].error = error;
    }
}

static void quantize_item(void *context, int64_t item, int worker) {
    Job *job = context;
    GroupIntTensor *out = job->tensor;
    int64_t first_row = item * TILE, rows = out->rows - first_row < TILE ? out->rows - first_row : TILE;
    float *d = job->scratch + worker * 2 * TILE * job->group;
    for (int64_t g = 0; g < out->groups; g++) {
        Range ranges[TILE];
        int64_t first = g * job->group;
        for (int64_t r = 0; r < rows; r++)
            ranges[r] = range_of(job->w + (first_row + r) * out->cols + first, job->group);
        for (int step = 0; step < (job->clips ? AWQ_CLIP_STEPS : 1); step++)
            clip_step(job, step, first_row, rows, first, d, ranges);
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = (first_row + r) * out->cols + first, constant = (first_row + r) * out->groups + g;
            out->scales[constant] = ranges[r].scale;
            if (out->zeros != NULL) out->zeros[constant] = ranges[r].zero;
            group_int_quantize_given_scale(&out->grid, job->w + at, job->group, ranges[r].scale, ranges[r].zero,
                                           out->codes + at);
            int64_t seen = atomic_load(&job->bad);
            while (!isfinite(ranges[r].scale) && first_row + r < seen &&
                   !atomic_compare_exchange_weak(&job->bad, &seen, first_row + r)) {
            }
        }
    }
}

Status awq_quantize(const float *w, const float *hessian, int clips, GroupIntTensor *tensor, Pool *pool, Error *err) {
    Job job = {.w = w,
               .hessian = hessian,
               .tensor = tensor,
               .clips = clips,
               .group = group_int_columns(&tensor->grid, tensor->cols),
               .bad = tensor->rows};
    job.scratch = memory_alloc((size_t)(pool_threads(pool) * 2 * TILE * job.group) * sizeof(float));
    pool_run(pool, quantize_item, &job, (tensor->rows + TILE - 1) / TILE);
    memory_free(job.scratch);
    if (job.bad < tensor->rows)
        FAIL("row %lld: values are not finite or too large for scales of type %s", (long long)job.bad,
             dtype_name(tensor->grid.scale_type));
    return OK;
}
