/* Grade-school mathematics: {"question", "answer"} lines, the number behind "####" at an answer's end. */
#include <dirent.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "core/file.h"
#include "core/memory.h"
#include "train/suite.h"

#define FILE_LIMIT ((size_t)256 << 20)

static int is_number_byte(char c) {
    return (c >= '0' && c <= '9') || c == '.' || c == ',' || c == '-';
}

/* [begin, end) without commas, a leading "-" kept, points at the end dropped; NULL without a digit. */
static char *clean(const char *begin, const char *end) {
    Text out = {0};
    int digits = 0;
    for (const char *p = begin; p < end; p++) {
        if (*p == ',' || (*p == '-' && p != begin)) continue;
        digits |= *p >= '0' && *p <= '9';
        text_add(&out, p, 1);
    }
    while (out.length > 0 && out.data[out.length - 1] == '.')
        out.data[--out.length] = 0;
    if (digits) return out.data;
    text_free(&out);
    return NULL;
}

char *suite_number(const char *text, int flexible) {
    const char *at = text;
    if (!flexible) {
        const char *mark = NULL;
        for (const char *p = strstr(text, "####"); p != NULL; p = strstr(p + 4, "####"))
            mark = p;
        if (mark == NULL) return NULL;
        for (at = mark + 4; *at == ' ' || *at == '$'; at++) {
        }
        const char *end = at;
        while (is_number_byte(*end))
            end++;
        return clean(at, end);
    }
    char *last = NULL;
    while (*at != 0) {
        if (!is_number_byte(*at)) {
            at++;
            continue;
        }
        const char *begin = at;
        while (is_number_byte(*at) && (at == begin || *at != '-'))
            at++;
        char *number = clean(begin, at);
        if (number == NULL) continue;
        memory_free(last);
        last = number;
    }
    return last;
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

typedef struct Problem {
    char *question, *answer;
} Problem;
typedef struct Problems {
    Problem *items;
    int64_t count;
} Problems;

static void problems_free(Problems *p) {
    for (int64_t i = 0; i < p->count; i++) {
        memory_free(p->items[i].question);
        memory_free(p->items[i].answer);
    }
    memory_free(p->items);
    *p = (Problems){0};
}

static Status add_problem(Problems *problems, const char *path, int64_t line, const char *text, size_t length, Error *err) {
    cJSON *json = cJSON_ParseWithLength(text, length);
    const char *question = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "question"));
    const char *answer = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "answer"));
    if (question != NULL && answer != NULL) {
        problems->items = memory_resize(problems->items, (size_t)(problems->count + 1) * sizeof *problems->items);
        problems->items[problems->count++] = (Problem){memory_strdup(question), memory_strdup(answer)};
    }
    int good = question != NULL && answer != NULL;
    cJSON_Delete(json);
    if (!good) FAIL("%s:%lld: want an object with \"question\" and \"answer\"", path, (long long)line);
    return OK;
}

/* The first `limit` (0: all). */
static Status read_problems(const char *path, int64_t limit, Problems *problems, Error *err) {
    char *bytes = NULL;
    size_t length;
    TRY(file_read(path, FILE_LIMIT, &bytes, &length, err));
    Status status = OK;
    const char *at = bytes, *end = bytes + length;
    for (int64_t line = 1; status == OK && at < end && (limit == 0 || problems->count < limit); line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        if (stop == NULL) stop = end;
        int blank = 1;
        for (const char *p = at; p < stop; p++)
            blank &= *p == ' ' || *p == '\t' || *p == '\r';
        if (!blank) status = add_problem(problems, path, line, at, (size_t)(stop - at), err);
        at = stop < end ? stop + 1 : end;
    }
    memory_free(bytes);
    return status;
}

/* The first name in the folder, in order, with this beginning and ".jsonl"; NULL: none. */
static char *find_file(const char *folder, const char *beginning) {
    DIR *dir = opendir(folder);
    char *best = NULL;
    if (dir == NULL) return NULL;
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        const char *name = entry->d_name;
        size_t length = strlen(name);
        if (strncmp(name, beginning, strlen(beginning)) != 0 || length < 6 || strcmp(name + length - 6, ".jsonl") != 0)
            continue;
        if (best != NULL && strcmp(best, name) <= 0) continue;
        memory_free(best);
        best = memory_strdup(name);
    }
    closedir(dir);
    if (best == NULL) return NULL;
    char *path = memory_format("%s/%s", folder, best);
    memory_free(best);
    return path;
}

typedef struct Files {
    char *test, *train, *folder;
} Files;

/* The path is the questions' file, or a folder with them; the shots lie beside them. */
static Status find_files(const SuiteOptions *options, Files *files, Error *err) {
    size_t length = strlen(options->path);
    int is_file = length > 6 && strcmp(options->path + length - 6, ".jsonl") == 0;
    const char *slash = strrchr(options->path, '/');
    files->folder =
        !is_file ? memory_strdup(options->path)
                 : memory_format("%.*s", slash == NULL ? 1 : (int)(slash - options->path), slash == NULL ? "." : options->path);
    files->test = is_file ? memory_strdup(options->path) : find_file(files->folder, "test");
    files->train = find_file(files->folder, "train");
    if (files->test == NULL) FAIL("%s: want a .jsonl file, or a folder with test*.jsonl", options->path);
    return OK;
}

/* ---- prompts ------------------------------------------------------------------------------------------------------------- */

static Status add_items(Suite *suite, const Problems *problems, const Text *shots, int64_t shot_count,
                        const Tokenizer *tokenizer, int64_t context, const char *path, Error *err) {
    int64_t room = SUITE_ANSWER_TOKENS < context / 2 ? SUITE_ANSWER_TOKENS : context / 2;
    for (int64_t i = 0; i < problems->count; i++) {
        SuiteItem *item = suite_add(suite);
        item->index = i;
        item->number = suite_number(problems->items[i].answer, 0);
        if (item->number == NULL) FAIL("%s: question %lld: its answer has no number behind \"####\"", path, (long long)i + 1);
        char *question = memory_format("Question: %s\nAnswer:", problems->items[i].question);
        SuitePrompt prompt = {"", shots, shot_count, question, room};
        Status status = suite_encode(item, &prompt, tokenizer, context, err);
        memory_free(question);
        TRY(status);
    }
    return OK;
}

static Status open_files(Suite *suite, const SuiteOptions *options, const Files *files, const Tokenizer *tokenizer,
                         int64_t context, Error *err) {
    Problems test = {0}, train = {0};
    int64_t shots = suite->shots = options->shots >= 0 ? options->shots : files->train != NULL ? 5 : 0;
    if (shots > 0 && files->train == NULL) FAIL("--shots %lld: no train*.jsonl lies in %s", (long long)shots, files->folder);
    Status status = read_problems(files->test, options->limit, &test, err);
    if (status == OK && shots > 0) status = read_problems(files->train, shots, &train, err);
    if (status == OK && train.count < shots)
        status = error_set(err, ERR_FAILED, "%s: %lld examples, and --shots is %lld", files->train, (long long)train.count,
                           (long long)shots);
    Text *texts = memory_calloc((size_t)shots + 1, sizeof *texts);
    for (int64_t i = 0; status == OK && i < shots; i++)
        text_addf(&texts[i], "Question: %s\nAnswer: %s\n\n", train.items[i].question, train.items[i].answer);
    if (status == OK) {
        (void)suite_subject(suite, "gsm8k", 5);
        status = add_items(suite, &test, texts, shots, tokenizer, context, files->test, err);
    }
    for (int64_t i = 0; i < shots; i++)
        text_free(&texts[i]);
    memory_free(texts);
    problems_free(&test);
    problems_free(&train);
    return status;
}

Status suite_open_gsm8k(Suite *suite, const SuiteOptions *options, const Tokenizer *tokenizer, int64_t context, Error *err) {
    Files files = {0};
    Status status = find_files(options, &files, err);
    if (status == OK) status = open_files(suite, options, &files, tokenizer, context, err);
    memory_free(files.test);
    memory_free(files.train);
    memory_free(files.folder);
    return status;
}
