#include "train/eval_options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/chat_prompt.h"

static Status check_logits(const EvalOptions *o, Error *err) {
    if (o->logits == NULL || o->ids == NULL) FAIL_USAGE("--logits FILE and --ids LIST go together; give both");
    if (o->data != NULL || o->exact_match || o->max_length != 0 || o->window != 0 || o->stride != 0 || o->layout != NULL ||
        o->template_name != NULL || o->train_on != NULL || o->no_document_eos || o->limit != 0 || o->show != 0)
        FAIL_USAGE("--logits computes the logits of --ids and reads no data; leave the data options out");
    return OK;
}

static Status find_names(EvalOptions *o, Error *err) {
    o->data_layout = o->layout == NULL ? LAYOUT_AUTO : layout_by_name(o->layout);
    if (o->layout != NULL && o->data_layout == LAYOUT_AUTO && strcmp(o->layout, "auto") != 0)
        FAIL_USAGE("--layout: want auto, alpaca, messages, sharegpt, prompt_completion, question_answer or text, got \"%.60s\"",
                   o->layout);
    const char *train_on = o->train_on != NULL ? o->train_on : o->exact_match ? "last" : "assistant";
    if (strcmp(train_on, "assistant") == 0)
        o->data_train_on = TRAIN_ON_ASSISTANT;
    else if (strcmp(train_on, "all") == 0)
        o->data_train_on = TRAIN_ON_ALL;
    else if (strcmp(train_on, "last") == 0)
        o->data_train_on = TRAIN_ON_LAST;
    else
        FAIL_USAGE("--train-on: want assistant, all or last, got \"%.60s\"", train_on);
    if (o->template_name == NULL) o->template_name = "auto";
    return strcmp(o->template_name, "auto") == 0 ? OK : chat_prompt_check(o->template_name, err);
}

static Status check_exact_match(const EvalOptions *o, Error *err) {
    if (!o->exact_match) {
        if (o->limit != 0 || o->show != 0) FAIL_USAGE("--limit and --show belong to --exact-match");
        return OK;
    }
    if (o->window != 0 || o->stride != 0 || o->max_length != 0 || o->no_document_eos)
        FAIL_USAGE("--exact-match generates answers; --window, --stride, --max-length and --no-document-eos do not apply");
    if (o->train_on != NULL && strcmp(o->train_on, "all") == 0)
        FAIL_USAGE("--exact-match needs a prompt, and --train-on all leaves none");
    return OK;
}

static Status check_suite(const EvalOptions *o, Error *err) {
    if (o->logits != NULL || o->ids != NULL || o->exact_match || o->max_length != 0 || o->window != 0 || o->stride != 0 ||
        o->layout != NULL || o->template_name != NULL || o->train_on != NULL || o->no_document_eos || o->show != 0)
        FAIL_USAGE("--suite has prompts of its own; of the data options it takes --data, --shots, --limit and --details");
    if (o->shots < -1 || o->shots > 64) FAIL_USAGE("--shots: want 0 to 64, got %lld", (long long)o->shots);
    if (o->limit < 0) FAIL_USAGE("--limit: want a positive number, got %lld", (long long)o->limit);
    return OK;
}

Status eval_options_check(EvalOptions *o, Error *err) {
    if (o->suite != NULL) return check_suite(o, err);
    if (o->shots != -1 || o->details != NULL) FAIL_USAGE("--shots and --details belong to --suite");
    if (o->logits != NULL || o->ids != NULL) return check_logits(o, err);
    if (o->data == NULL) FAIL_USAGE("want --data FILE (or --logits FILE with --ids LIST)");
    if (o->max_length < 0 || o->window < 0 || o->stride < 0 || o->limit < 0 || o->show < 0)
        FAIL_USAGE("--max-length, --window, --stride, --limit and --show: want positive numbers");
    if (o->max_length != 0 && (o->window != 0 || o->stride != 0))
        FAIL_USAGE("--max-length cuts text into pieces as training does, --window slides over it; give one");
    if (o->no_document_eos && o->max_length == 0)
        FAIL_USAGE("--no-document-eos belongs to --max-length; sliding windows never score the end of a document");
    if (o->window == 1) FAIL_USAGE("--window: want at least 2 tokens, got 1");
    if (o->window != 0 && o->stride > o->window)
        FAIL_USAGE("--stride: want at most --window %lld, so that no token is left out, got %lld", (long long)o->window,
                   (long long)o->stride);
    TRY(find_names(o, err));
    return check_exact_match(o, err);
}

Status eval_options_ids(const EvalOptions *o, const ModelConfig *model, int32_t **ids, int64_t *count, Error *err) {
    int64_t most = 1;
    for (const char *p = o->ids; *p != 0; p++)
        most += *p == ',';
    if (most > model->context)
        FAIL_USAGE("--ids: %lld tokens and the model takes %lld", (long long)most, (long long)model->context);
    *ids = memory_alloc((size_t)most * sizeof **ids);
    *count = 0;
    for (const char *p = o->ids;; p++) {
        char *end;
        errno = 0;
        long long id = strtoll(p, &end, 10);
        if (end == p || errno != 0 || (*end != ',' && *end != 0))
            FAIL_USAGE("--ids: want numbers with commas between them, got \"%.40s\"", p);
        if (id < 0 || id >= model->vocab)
            FAIL_USAGE("--ids: %lld is not in the model's vocabulary of %lld", id, (long long)model->vocab);
        (*ids)[(*count)++] = (int32_t)id;
        if (*end == 0) return OK;
        p = end;
    }
}
