/* Multiple choice from CSV files: question, four choices, the answer as 0..3 or A..D. A first row that names the columns is left
 * out. The prompt is that of the benchmark's own code (Hendrycks 2021). */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "train/suite.h"

#define FIELDS 6
#define FILE_LIMIT ((size_t)64 << 20)

typedef struct Row {
    Text field[FIELDS];
} Row;

typedef struct Table {
    Row *rows;
    int64_t count;
} Table;

static void table_free(Table *table) {
    for (int64_t r = 0; r < table->count; r++)
        for (int f = 0; f < FIELDS; f++)
            text_free(&table->rows[r].field[f]);
    memory_free(table->rows);
    *table = (Table){0};
}

/* One row (RFC 4180: quotes double inside quotes, line ends may stand there). *fields: how many there were. */
static const char *read_row(const char *at, const char *end, Row *row, int *fields, const char **bad) {
    int quoted = 0;
    *fields = 1;
    for (; at < end; at++) {
        Text *field = &row->field[*fields - 1 < FIELDS ? *fields - 1 : FIELDS - 1];
        if (quoted) {
            if (*at != '"')
                text_add(field, at, 1);
            else if (at + 1 < end && at[1] == '"')
                text_add(field, at++, 1);
            else
                quoted = 0;
            continue;
        }
        if (*at == '"') {
            quoted = 1;
        } else if (*at == ',') {
            if (++*fields > FIELDS) *bad = "more than six fields";
        } else if (*at == '\n') {
            return at + 1;
        } else if (*at != '\r') {
            text_add(field, at, 1);
        }
    }
    if (quoted) *bad = "a quote that is not closed";
    return end;
}

static const char *text_of(const Text *text) {
    return text->data != NULL ? text->data : "";
}

static int answer_of(const Row *row) {
    const char *a = text_of(&row->field[FIELDS - 1]);
    if (a[0] == 0 || a[1] != 0) return -1;
    if (a[0] >= '0' && a[0] < '0' + SUITE_CHOICES) return a[0] - '0';
    return a[0] >= 'A' && a[0] < 'A' + SUITE_CHOICES ? a[0] - 'A' : -1;
}

static Status read_rows(const char *path, const char *at, const char *end, Table *table, Error *err) {
    for (int64_t number = 1; at < end; number++) {
        table->rows = memory_resize(table->rows, (size_t)(table->count + 1) * sizeof *table->rows);
        Row *row = &table->rows[table->count++];
        *row = (Row){0};
        int fields;
        const char *bad = NULL;
        at = read_row(at, end, row, &fields, &bad);
        int empty = fields == 1 && row->field[0].length == 0;
        int header = number == 1 && fields == FIELDS && strcmp(text_of(&row->field[FIELDS - 1]), "answer") == 0;
        if (empty || header) {
            for (int f = 0; f < FIELDS; f++)
                text_free(&row->field[f]);
            table->count--;
            continue;
        }
        if (bad == NULL && fields != FIELDS) bad = "fewer than six fields";
        if (bad == NULL && answer_of(row) < 0) bad = "an answer that is none of 0 to 3 and A to D";
        if (bad != NULL) FAIL("%s: row %lld: %s; want question, four choices, answer", path, (long long)number, bad);
    }
    return OK;
}

static Status read_table(const char *path, Table *table, Error *err) {
    char *bytes = NULL;
    size_t length;
    TRY(file_read(path, FILE_LIMIT, &bytes, &length, err));
    Status status = read_rows(path, bytes, bytes + length, table, err);
    memory_free(bytes);
    return status;
}

/* ---- prompts ------------------------------------------------------------------------------------------------------------- */

static void add_question(Text *out, const Row *row) {
    text_addf(out, "%s", text_of(&row->field[0]));
    for (int c = 0; c < SUITE_CHOICES; c++)
        text_addf(out, "\n%c. %s", 'A' + c, text_of(&row->field[1 + c]));
    text_adds(out, "\nAnswer:");
}

/* The tokens of " A" behind "Answer:", with which every prompt ends. */
static Status option_tokens(int c, const Tokenizer *tokenizer, TokenBuffer *out, int64_t *first, Error *err) {
    const char both[] = {'A', 'n', 's', 'w', 'e', 'r', ':', ' ', (char)('A' + c), 0};
    TRY(tokenizer_encode(tokenizer, both, 7, 0, 0, out, err));
    *first = out->count;
    out->count = 0;
    TRY(tokenizer_encode(tokenizer, both, 9, 0, 0, out, err));
    int64_t count = out->count - *first;
    if (count < 1 || count > SUITE_OPTION_TOKENS)
        FAIL("option \"%s\" is %lld tokens behind \"Answer:\"; want 1 to %d", both + 7, (long long)count, SUITE_OPTION_TOKENS);
    return OK;
}

static Status encode_option(SuiteItem *item, int c, const Tokenizer *tokenizer, Error *err) {
    TokenBuffer tokens = {0};
    int64_t first = 0;
    Status status = option_tokens(c, tokenizer, &tokens, &first, err);
    if (status == OK) {
        size_t bytes = (size_t)(tokens.count - first) * sizeof *tokens.ids;
        item->option_count[c] = tokens.count - first;
        item->option[c] = memory_alloc(bytes);
        memcpy(item->option[c], tokens.ids + first, bytes);
    }
    token_buffer_free(&tokens);
    return status;
}

typedef struct Subject {
    const char *name;
    Table test, dev;
    Text *shots;
    int64_t shot_count;
    Text head;
} Subject;

static Status add_items(Suite *suite, const SuiteOptions *options, const Subject *s, const Tokenizer *tokenizer,
                        int64_t context, Error *err) {
    int64_t count = options->limit > 0 && options->limit < s->test.count ? options->limit : s->test.count;
    for (int64_t i = 0; i < count; i++) {
        SuiteItem *item = suite_add(suite);
        item->index = i;
        item->answer = answer_of(&s->test.rows[i]);
        Text question = {0};
        add_question(&question, &s->test.rows[i]);
        SuitePrompt prompt = {s->head.data, s->shots, s->shot_count, question.data, SUITE_OPTION_TOKENS};
        Status status = suite_encode(item, &prompt, tokenizer, context, err);
        text_free(&question);
        TRY(status);
        for (int c = 0; c < SUITE_CHOICES; c++)
            TRY(encode_option(item, c, tokenizer, err));
    }
    return OK;
}

static Status read_subject(Suite *suite, const SuiteOptions *options, Subject *s, const Tokenizer *tokenizer, int64_t context,
                           Error *err) {
    Text path = {0};
    text_addf(&path, "%s/test/%s_test.csv", options->path, s->name);
    Status status = read_table(path.data, &s->test, err);
    int64_t shots = suite->shots = options->shots < 0 ? 5 : options->shots;
    if (status == OK && shots > 0) {
        text_clear(&path);
        text_addf(&path, "%s/dev/%s_dev.csv", options->path, s->name);
        status = read_table(path.data, &s->dev, err);
    }
    if (status == OK && s->dev.count < shots)
        status = error_set(err, ERR_FAILED, "%s: %lld examples, and --shots is %lld", path.data, (long long)s->dev.count,
                           (long long)shots);
    text_free(&path);
    TRY(status);
    s->shots = memory_calloc((size_t)shots + 1, sizeof *s->shots);
    for (; s->shot_count < shots; s->shot_count++) {
        const Row *row = &s->dev.rows[s->shot_count];
        add_question(&s->shots[s->shot_count], row);
        text_addf(&s->shots[s->shot_count], " %c\n\n", 'A' + answer_of(row));
    }
    text_adds(&s->head, "The following are multiple choice questions (with answers) about ");
    for (const char *c = s->name; *c != 0; c++)
        text_add(&s->head, *c == '_' ? " " : c, 1);
    text_adds(&s->head, ".\n\n");
    return add_items(suite, options, s, tokenizer, context, err);
}

static void subject_free(Subject *s) {
    table_free(&s->test);
    table_free(&s->dev);
    for (int64_t i = 0; i < s->shot_count; i++)
        text_free(&s->shots[i]);
    memory_free(s->shots);
    text_free(&s->head);
}

/* ---- the folder ---------------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static Status list_subjects(Suite *suite, const char *folder, Error *err) {
    static const char ending[] = "_test.csv";
    Text path = {0};
    text_addf(&path, "%s/test", folder);
    DIR *dir = opendir(path.data);
    text_free(&path);
    if (dir == NULL) FAIL("%s: want a folder with test/SUBJECT_test.csv and dev/SUBJECT_dev.csv", folder);
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        size_t length = strlen(entry->d_name), end = sizeof ending - 1;
        if (length > end && strcmp(entry->d_name + length - end, ending) == 0)
            (void)suite_subject(suite, entry->d_name, length - end);
    }
    closedir(dir);
    if (suite->subject_count == 0) FAIL("%s/test: no file is named SUBJECT_test.csv", folder);
    qsort(suite->subjects, (size_t)suite->subject_count, sizeof *suite->subjects, by_name);
    return OK;
}

Status suite_open_mmlu(Suite *suite, const SuiteOptions *options, const Tokenizer *tokenizer, int64_t context, Error *err) {
    TRY(list_subjects(suite, options->path, err));
    for (int64_t i = 0; i < suite->subject_count; i++) {
        Subject s = {.name = suite->subjects[i]};
        int64_t first = suite->count;
        Status status = read_subject(suite, options, &s, tokenizer, context, err);
        for (int64_t q = first; q < suite->count; q++)
            suite->items[q].subject = i;
        subject_free(&s);
        TRY(status);
    }
    return OK;
}
