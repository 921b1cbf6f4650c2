/* What is trained, as a property over random conversations: layouts × templates, built in, of our own, and those of the assets.
 *
 * The expectation owes nothing to the code that finds spans. The conversation is rendered once with a unique word in the place of
 * every content: what lies between the words is the template's own text, and the words are where contents go. From that the whole
 * text and its trained bytes are put together again with the real contents, and must be what the data set has, byte for byte.
 * An answer is its content and what follows up to and including the first control token; a call of a tool begins where an answer
 * to the same question begins.
 */
#include "tests/unit/test_talks.h"

#include <dirent.h>

#include "data/jinja.h"
#include "data/template.h"

#define ASSETS "../shared/assets/tokenizers/"
#define CONVERSATIONS 24 /* for each layout and template */
#define MAX_SPECIALS 64
#define WORD "Zq%02dqZ"
#define WORD_LENGTH 6

/* ---- templates ------------------------------------------------------------------------------------------------------------ */

typedef struct Source {
    const char *name;  /* as data.template has it, or what it is called here */
    const char *jinja; /* NULL: built in */
    const char *specials[MAX_SPECIALS];
    int special_count;
    Jinja *parsed;
} Source;

static const char *const common_specials[] = {
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};

/* Ours: an end of turn that is EOS; trimmed contents; questions and answers in turn, a space before the answer; calls of tools;
 * definitions at the last question, calls without a role; spans that the template marks itself; contents next to letters. */
static const struct {
    const char *name, *jinja;
} own[] = {
    {"roles", "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"},
    {"trimmed",
     "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + "
     "'<|eot_id|>' }}{% endfor %}"},
    {"turns",
     "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') "
     "}}{% "
     "endif %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + eos_token }}{% endfor %}"},
    {"calls",
     "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ "
     "m.role }}\n"
     "{% if m.content is defined %}{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | "
     "tojson }}\n</tool_call>{% endfor %}"
     "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"},
    {"late tools",
     "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}{% for m in messages %}{% if "
     "m.role == "
     "'user' %}{% if tools and m == users[-1] %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% "
     "elif "
     "m.tool_calls %}[CALLS]{{ m.tool_calls | tojson }}{{ eos_token }}{% elif m.role == 'tool' %}[RESULT]{{ m.content "
     "}}[/RESULT]{% "
     "else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"},
    {"generation",
     "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}{% "
     "for c in "
     "m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}<|im_end|>{% endgeneration "
     "%}{% "
     "else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"},
    {"letters", "{% for m in messages %}H{{ m.content }}c{{ eos_token }}b{% endfor %}"},
};

/* Everything in the source that looks like a control token. */
static void list_specials(Source *source) {
    static const char *const more[] = {"<start_of_turn>", "<end_of_turn>",     "[INST]",
                                       "[/INST]",         "[TOOL_CALLS]",      "[TOOL_RESULTS]",
                                       "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"};
    static const struct { const char *open, *close; } marks[] = {{"<|", "|>"}, {"<\xEF\xBD\x9C", "\xEF\xBD\x9C>"}};
    source->specials[source->special_count++] = memory_strdup("<s>");
    source->specials[source->special_count++] = memory_strdup("</s>");
    for (size_t i = 0; i < sizeof more / sizeof more[0]; i++) {
        if (strstr(source->jinja, more[i]) != NULL) source->specials[source->special_count++] = memory_strdup(more[i]);
    }
    for (size_t k = 0; k < 2; k++) {
        for (const char *at = source->jinja; (at = strstr(at, marks[k].open)) != NULL; at++) {
            const char *end = strstr(at + 2, marks[k].close);
            size_t n = end == NULL ? 0 : (size_t)(end - at) + strlen(marks[k].close);
            int known = n == 0 || n > 40 || memchr(at, ' ', n) != NULL || memchr(at, '\'', n) != NULL;
            for (int i = 0; i < source->special_count && !known; i++)
                known = strlen(source->specials[i]) == n && memcmp(source->specials[i], at, n) == 0;
            if (known) continue;
            assert_true(source->special_count < MAX_SPECIALS);
            source->specials[source->special_count++] = memory_format("%.*s", (int)n, at);
        }
    }
}

static void free_specials(Source *source) {
    for (int i = 0; i < source->special_count; i++)
        memory_free((char *)source->specials[i]);
}

/* ---- the expectation ------------------------------------------------------------------------------------------------------ */

typedef enum Verdict { EXPECT_TEXT, EXPECT_REFUSAL, NO_EXPECTATION } Verdict;

/* A content: where it goes, and what goes there. Slots of a call: its name, its argument. */
typedef struct Slot {
    int turn, is_call;
    const char *text;
    size_t at;         /* of its word in the rendering with words */
    size_t begin, end; /* in the text */
} Slot;

typedef struct Plan {
    Slot slots[3 * MAX_MESSAGES + 1]; /* in order of the text */
    int count;
    char *words; /* the rendering */
    char *text;
    uint8_t *wanted; /* per byte of text */
    uint8_t *typed;  /* 1: somebody's, not the template's */
} Plan;

static void free_plan(Plan *plan) {
    memory_free(plan->words);
    memory_free(plan->text);
    memory_free(plan->wanted);
    memory_free(plan->typed);
    *plan = (Plan){0};
}

static char *render_built_in(const char *name, const Talk *talk) {
    ChatMessage messages[MAX_MESSAGES];
    SegmentList list = {0};
    Error unused = {0};
    Text text = {0};
    for (int i = 0; i < talk->count; i++)
        messages[i] = (ChatMessage){talk->turns[i].role, talk->turns[i].content, strlen(talk->turns[i].content), -1, NULL};
    Status status = template_render(name, messages, talk->count, 0, "<s>", "</s>", &list, &unused);
    text_adds(&text, "");
    for (int64_t i = 0; i < list.count; i++)
        text_add(&text, list.items[i].text, list.items[i].length);
    segments_free(&list);
    if (status == OK) return text.data;
    text_free(&text);
    return NULL;
}

/* Without any marks. NULL: the template refuses. */
static char *render(const Source *source, const Talk *talk) {
    if (source->jinja == NULL) return render_built_in(source->name, talk);
    Text json = {0};
    JinjaRun *run = jinja_run_create(JINJA_LIMITS_DEFAULT);
    JinjaValue values;
    JinjaText out;
    Error error = {0};
    char *text = NULL;
    text_adds(&json, "{\"add_generation_prompt\":false,\"documents\":null,\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",");
    if (talk->definition != NULL)
        add_tools(&json, talk);
    else
        text_adds(&json, "\"tools\":null");
    text_adds(&json, ",");
    add_list(&json, talk, 0);
    text_adds(&json, "}");
    if (jinja_json(run, "test", json.data, json.length, JINJA_ORIGIN_NONE, &values, &error) != OK) fail_msg("%s", error.text);
    if (jinja_render(source->parsed, run, values, &out, &error) == OK) text = memory_format("%.*s", (int)out.length, out.data);
    jinja_run_free(run);
    text_free(&json);
    return text;
}

static int is_blank(const char *text) {
    return text[strspn(text, " \n\t")] == 0 || strcmp(text, "\xE3\x80\x80") == 0;
}

/* The words of a talk: contents that are blank stay, since templates may ask for that. */
static void make_words(const Talk *talk, Talk *words, Plan *plan, int keeps_blank) {
    *words = *talk;
    plan->count = 0;
    for (int i = 0; i < talk->count; i++) {
        Turn *turn = &words->turns[i];
        char **texts[] = {&turn->content, &turn->name, &turn->argument};
        for (int k = 0; k < 3; k++) {
            char *text = *texts[k];
            if (text == NULL || (keeps_blank && k == 0 && is_blank(text))) {
                *texts[k] = text == NULL ? NULL : memory_strdup(text);
                continue;
            }
            *texts[k] = memory_format(WORD, plan->count);
            plan->slots[plan->count++] = (Slot){.turn = i, .is_call = k > 0, .text = text};
        }
    }
    if (talk->definition != NULL) {
        words->definition = memory_format(WORD, plan->count);
        plan->slots[plan->count++] = (Slot){.turn = -1, .text = talk->definition};
    }
}

static int compare_slots(const void *a, const void *b) {
    const Slot *x = a, *y = b;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* Finds the words; a call that is not there must be refused, and so must a result and definitions. A word that stands twice
 * foretells nothing. */
static Verdict find_words(Plan *plan, const Talk *talk) {
    int kept = 0;
    for (int i = 0; i < plan->count; i++) {
        char word[16];
        (void)snprintf(word, sizeof word, WORD, i);
        const char *at = strstr(plan->words, word);
        Slot *slot = &plan->slots[i];
        if (at == NULL) {
            if (slot->turn < 0 || slot->is_call || strcmp(talk->turns[slot->turn].role, "tool") == 0) return EXPECT_REFUSAL;
            continue;
        }
        if (strstr(at + 1, word) != NULL) return NO_EXPECTATION;
        slot->at = (size_t)(at - plan->words);
        plan->slots[kept++] = *slot;
    }
    plan->count = kept;
    qsort(plan->slots, (size_t)kept, sizeof plan->slots[0], compare_slots);
    return EXPECT_TEXT;
}

/* What templates make of a content: it stays, or loses white space. */
static void trim(const char **text, size_t *length, int how) {
    static const char wide[] = "\xE3\x80\x80";
    for (int more = how & 3; more;) {
        more = 0;
        if (*length > 0 && strchr(how & 4 ? "\n" : " \n\t", **text) != NULL) more = 1;
        if (!(how & 4) && *length > 2 && memcmp(*text, wide, 3) == 0) more = 3;
        if (!(how & 1)) more = 0;
        *text += more;
        *length -= (size_t)more;
    }
    while ((how & 2) && *length > 0) {
        const char *end = *text + *length;
        if (strchr(how & 4 ? "\n" : " \n\t", end[-1]) != NULL) {
            --*length;
        } else if (!(how & 4) && *length > 2 && memcmp(end - 3, wide, 3) == 0) {
            *length -= 3;
        } else {
            break;
        }
    }
}

/* Whether the text from `at` on is slot `s` and everything behind it; fills in the slots' places. */
static int fits(Plan *plan, int s, size_t at, const char *text) {
    static const int hows[] = {0, 3, 5, 2, 1};
    Slot *slot = &plan->slots[s];
    const char *piece = s == plan->count ? NULL : plan->words + slot->at + WORD_LENGTH;
    if (s == plan->count) return text[at] == 0;
    size_t n = s + 1 < plan->count ? plan->slots[s + 1].at - slot->at - WORD_LENGTH : strlen(piece);
    const char *tried[sizeof hows / sizeof hows[0]] = {NULL};
    size_t tried_length[sizeof hows / sizeof hows[0]] = {0};
    for (size_t h = 0; h < sizeof hows / sizeof hows[0]; h++) {
        const char *content = slot->text;
        size_t length = strlen(content), known = 0;
        trim(&content, &length, hows[h]);
        while (known < h && (tried[known] != content || tried_length[known] != length))
            known++;
        tried[h] = content;
        tried_length[h] = length;
        if (known < h) continue;
        if (strncmp(text + at, content, length) != 0 || strncmp(text + at + length, piece, n) != 0) continue;
        slot->begin = at;
        slot->end = at + length;
        if (fits(plan, s + 1, at + length + n, text)) return 1;
    }
    return 0;
}

/* Behind the first control token in [begin, end), or begin. */
static size_t first_control(const Source *source, const char *text, size_t begin, size_t end) {
    for (size_t at = begin; at < end; at++) {
        size_t longest = 0;
        for (int i = 0; i < source->special_count; i++) {
            size_t n = strlen(source->specials[i]);
            if (n > longest && n <= end - at && strncmp(text + at, source->specials[i], n) == 0) longest = n;
        }
        if (longest > 0) return at + longest;
    }
    return begin;
}

/* How the template gets from a question to its answer: the text between the words of the two. */
static char *opening_of(const Source *source, const Talk *talk) {
    Talk pair = {.count = 2, .definition = talk->definition};
    pair.turns[0] = (Turn){"user", "Zq00qZ", NULL, NULL, -1};
    pair.turns[1] = (Turn){"assistant", "Zq01qZ", NULL, NULL, -1};
    char *text = render(source, &pair), *opening = NULL;
    const char *question = text == NULL ? NULL : strstr(text, "Zq00qZ"), *answer = text == NULL ? NULL : strstr(text, "Zq01qZ");
    if (question != NULL && answer != NULL && answer > question)
        opening = memory_format("%.*s", (int)(answer - question - WORD_LENGTH), question + WORD_LENGTH);
    memory_free(text);
    return opening;
}

/* Whether the control token that ends at `behind` is one that opens the turn: it stands in the opening behind the question's end. */
static int opens(const Source *source, const char *text, size_t behind, const char *opening) {
    const char *token = NULL;
    for (int i = 0; i < source->special_count; i++) {
        size_t n = strlen(source->specials[i]);
        if (n <= behind && strncmp(text + behind - n, source->specials[i], n) == 0 && (token == NULL || n > strlen(token)))
            token = source->specials[i];
    }
    return token != NULL && strstr(opening + first_control(source, opening, 0, strlen(opening)), token) != NULL;
}

static int is_wanted(const Talk *talk, TrainOn train_on, int turn) {
    int last = talk->count - 1;
    while (last >= 0 && strcmp(talk->turns[last].role, "assistant") != 0)
        last--;
    if (talk->turns[turn].train >= 0) return talk->turns[turn].train;
    if (train_on == TRAIN_ON_ALL) return 1;
    return train_on == TRAIN_ON_LAST ? turn == last : strcmp(talk->turns[turn].role, "assistant") == 0;
}

/* Marks what is trained. A call without an end of turn must be refused, where it would be trained. */
static Verdict mark_wanted(Plan *plan, const Source *source, const Talk *talk, TrainOn train_on) {
    size_t length = strlen(plan->text);
    plan->wanted = memory_calloc(length + 1, 1);
    plan->typed = memory_calloc(length + 1, 1);
    if (train_on == TRAIN_ON_ALL) memset(plan->wanted, 1, length);
    for (int s = 0; s < plan->count; s++)
        memset(plan->typed + plan->slots[s].begin, 1, plan->slots[s].end - plan->slots[s].begin);
    for (int s = 0; s < plan->count; s++) {
        const Slot *slot = &plan->slots[s];
        int is_call = slot->is_call, last = s;
        if (slot->turn < 0) continue;
        while (last + 1 < plan->count && plan->slots[last + 1].turn == slot->turn)
            last++;
        size_t begin = slot->begin, end = plan->slots[last].end,
               next = last + 1 < plan->count ? plan->slots[last + 1].begin : length;
        int is_answer = strcmp(talk->turns[slot->turn].role, "assistant") == 0;
        size_t before = s > 0 ? plan->slots[s - 1].end : 0;
        size_t behind = first_control(source, plan->text, end, next);
        if (is_call && (s == 0 || plan->slots[s - 1].turn != slot->turn - 1)) return NO_EXPECTATION; /* a blank question */
        if (is_call) {
            char *opening = opening_of(source, talk);
            if (opening == NULL || strncmp(plan->text + before, opening, strlen(opening)) != 0)
                fail_msg("%s: no opening", source->name);
            begin = before + strlen(opening);
            int ended = behind > end && !opens(source, plan->text, behind, opening);
            memory_free(opening);
            if (!ended && talk->turns[slot->turn].train != 0) return EXPECT_REFUSAL;
            if (!ended && train_on == TRAIN_ON_ALL) return NO_EXPECTATION;
            if (!ended) continue;
        }
        if (is_answer && begin > before + 1 && plan->text[begin - 1] == ' ' && plan->text[begin - 2] > ' ') begin--;
        memset(plan->wanted + begin, is_wanted(talk, train_on, slot->turn), behind - begin);
        s = last;
    }
    return EXPECT_TEXT;
}

/* Puts text and mask together. No expectation: a blank answer that no word could find, or contents that a template rewrites. */
static Verdict make_plan(const Source *source, const Talk *talk, TrainOn train_on, Plan *plan) {
    *plan = (Plan){.text = render(source, talk)};
    if (plan->text == NULL) return EXPECT_REFUSAL;
    for (int keeps_blank = 0; keeps_blank < 2; keeps_blank++) {
        Talk words;
        int found = 0;
        make_words(talk, &words, plan, keeps_blank);
        memory_free(plan->words);
        plan->words = render(source, &words);
        free_talk(&words);
        if (plan->words == NULL) return NO_EXPECTATION;
        Verdict verdict = find_words(plan, talk);
        if (verdict != EXPECT_TEXT) return verdict;
        size_t first = plan->count > 0 ? plan->slots[0].at : 0;
        found = plan->count > 0 && strncmp(plan->text, plan->words, first) == 0 && fits(plan, 0, first, plan->text);
        for (int i = 0; i < talk->count && found && keeps_blank; i++)
            found = talk->turns[i].content == NULL || strcmp(talk->turns[i].role, "assistant") != 0 ||
                    !is_blank(talk->turns[i].content);
        if (found) return mark_wanted(plan, source, talk, train_on);
    }
    return NO_EXPECTATION;
}

/* ---- comparing ------------------------------------------------------------------------------------------------------------ */

typedef struct Counts {
    int64_t compared, refused, unknown, tokens, trained, straddling;
} Counts;

static size_t spelled(const Source *source, int32_t id, char out[64]) {
    if (id < ID_HI) {
        out[0] = (char)id;
        return 1;
    }
    return (size_t)snprintf(out, 64, "%s", id < ID_BOS ? id_spelling[id - ID_HI] : source->specials[id - ID_BOS]);
}

/* The sequence against the plan: every token's bytes, and whether it is trained. */
static void compare(const Source *source, const Dataset *d, int64_t sequence, const Plan *plan, int adds_bos, int eos,
                    int eos_wanted, Counts *counts) {
    int64_t t = d->start[sequence], end = d->start[sequence + 1];
    size_t at = 0, length = strlen(plan->text);
    int is_plain = strcmp(source->name, "plain") == 0; /* its contents are their author's own rendering */
    if (adds_bos && strncmp(plan->text, "<s>", 3) != 0) {
        assert_int_equal(d->ids[t], ID_BOS);
        assert_int_equal(d->train[t], 0);
        t++;
    }
    for (; at < length; t++) {
        char bytes[64];
        size_t n = t < end ? spelled(source, d->ids[t], bytes) : 0;
        if (n == 0 || n > length - at || memcmp(bytes, plan->text + at, n) != 0)
            fail_msg("%s: byte %zu: \"%.*s\" does not go on in: %s", source->name, at, (int)n, bytes, plan->text);
        int wanted = t > d->start[sequence] && plan->wanted[at];
        if (d->train[t] != wanted)
            fail_msg("%s: byte %zu: \"%.*s\" is %strained, and should%s be: %s", source->name, at, (int)n, bytes,
                     wanted ? "not " : "", wanted ? "" : " not", plan->text);
        for (size_t b = 0; b < n && d->ids[t] >= ID_BOS && !is_plain; b++)
            assert_false(plan->typed[at + b]); /* nobody types a special token */
        for (size_t b = 1; b < n; b++)
            counts->straddling += plan->wanted[at + b] != plan->wanted[at];
        counts->trained += wanted;
        counts->tokens++;
        at += n;
    }
    if (eos) {
        assert_int_equal(d->ids[t], ID_EOS);
        assert_int_equal(d->train[t++], eos_wanted);
    }
    assert_int_equal(t, end);
    counts->compared++;
}

static void check_one(const Source *source, const Dataset *d, int64_t sequence, const Talk *talk, const DatasetOptions *options,
                      int adds_bos, Counts *counts) {
    Plan plan;
    Verdict verdict = make_plan(source, talk, options->train_on, &plan);
    int is_read = sequence < d->count;
    if (verdict == NO_EXPECTATION) {
        counts->unknown++;
    } else if (verdict == EXPECT_REFUSAL) {
        if (is_read) fail_msg("%s: was read, and should be refused: %s", source->name, plan.text != NULL ? plan.text : "");
        counts->refused++;
    } else {
        int appends = source->jinja == NULL && template_appends_eos(source->name), last = talk->count - 1;
        int ends = appends && strcmp(talk->turns[last].role, "assistant") == 0;
        size_t length = strlen(plan.text), n = strlen(talk->turns[last].content);
        int written =
            ends && strcmp(source->name, "plain") == 0 && n >= 4 && strcmp(talk->turns[last].content + n - 4, "</s>") == 0;
        size_t wanted = 0;
        for (size_t i = 0; i < length; i++)
            wanted += i > 0 && plan.wanted[i];
        if (!is_read && wanted > 0)
            fail_msg("%s: was not read: %s", source->name, d->skip_reasons != NULL ? d->skip_reasons : plan.text);
        if (is_read)
            compare(source, d, sequence, &plan, adds_bos, ends && !written, is_wanted(talk, options->train_on, last), counts);
    }
    free_plan(&plan);
}

/* Every form, with every way to choose what is trained. */
static void check_source(Source *source, const Tokenizer *tokenizer, int adds_bos, Counts *counts) {
    for (int form = 0; form < FORMS; form++) {
        Talk talks[CONVERSATIONS];
        Text file = {0};
        DatasetOptions options = defaults(tokenizer);
        Error error = {0};
        Dataset d = {0};
        options.template_name = source->jinja == NULL ? source->name : TEMPLATE_MODEL;
        options.train_on = (TrainOn)pick(3);
        options.on_error = ON_ERROR_SKIP;
        if (form == AS_TOOLS && source->jinja == NULL) continue; /* refused: test_dataset_tools.c */
        for (int i = 0; i < CONVERSATIONS; i++) {
            talks[i] = (Talk){0};
            make_talk(&talks[i], (Form)form);
            add_record(&file, &talks[i], (Form)form);
            if (form == AS_ALPACA) settle_input(&talks[i], strcmp(source->name, "alpaca") == 0);
        }
        Status status = read_text("masks.jsonl", file.data, options, &d, &error);
        if (status != OK && strstr(error.text, "nothing in it is trained") == NULL)
            fail_msg("%s: %s", source->name, error.text);
        for (int64_t i = 0, s = 0; i < CONVERSATIONS; i++) {
            int is_read = s < d.count && d.record[s] == i + 1;
            check_one(source, &d, is_read ? s : d.count, &talks[i], &options, adds_bos, counts);
            s += is_read;
            free_talk(&talks[i]);
        }
        dataset_free(&d);
        text_free(&file);
    }
}

static void check_jinja(const char *name, const char *jinja, uint64_t seed) {
    Source source = {.name = name, .jinja = jinja};
    Counts counts = {0};
    Error error = {0};
    if (jinja_open(&source.parsed, name, jinja, strlen(jinja), &error) != OK) fail_msg("%s: %s", name, error.text);
    list_specials(&source);
    random_state = seed * 0x9E3779B97F4A7C15u + 1;
    for (int adds_bos = 0; adds_bos < 2; adds_bos++) {
        /* pad is eos: the end of a turn is trained all the same */
        Tokenizer *tokenizer =
            make_special_tokenizer(source.specials, source.special_count, adds_bos, jinja, ",\"pad_token\":\"</s>\"");
        assert_int_equal(tokenizer_pad(tokenizer), tokenizer_eos(tokenizer));
        check_source(&source, tokenizer, adds_bos, &counts);
        tokenizer_close(tokenizer);
    }
    print_message("%s: %lld equal, %lld refused by both, %lld not foretold; %lld tokens, %lld trained, %lld straddle\n", name,
                  (long long)counts.compared, (long long)counts.refused, (long long)counts.unknown, (long long)counts.tokens,
                  (long long)counts.trained, (long long)counts.straddling);
    assert_true(counts.compared > 0 && counts.trained > 0);
    assert_true(counts.unknown <= (counts.compared + counts.refused) / 8);
    free_specials(&source);
    jinja_close(source.parsed);
}

/* ---- tests ---------------------------------------------------------------------------------------------------------------- */

static void test_built_ins(void **state) {
    (void)state;
    for (int i = 0; template_names[i] != NULL; i++) {
        Source source = {.name = template_names[i], .special_count = sizeof common_specials / sizeof common_specials[0]};
        Counts counts = {0};
        memcpy(source.specials, common_specials, sizeof common_specials);
        random_state = 77 + (uint64_t)i;
        for (int adds_bos = 0; adds_bos < 2; adds_bos++) {
            Tokenizer *tokenizer =
                make_special_tokenizer(source.specials, source.special_count, adds_bos, NULL, ",\"pad_token\":\"</s>\"");
            check_source(&source, tokenizer, adds_bos, &counts);
            tokenizer_close(tokenizer);
        }
        print_message("%s: %lld equal, %lld refused by both, %lld not foretold; %lld tokens, %lld trained\n", source.name,
                      (long long)counts.compared, (long long)counts.refused, (long long)counts.unknown,
                      (long long)counts.tokens, (long long)counts.trained);
        assert_true(counts.compared > 0 && counts.trained > 0);
        assert_true(counts.unknown <= (counts.compared + counts.refused) / 8);
    }
}

static void test_own_templates(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        check_jinja(own[i].name, own[i].jinja, i + 1);
}

static char *read_source(const char *path) {
    char *text = NULL;
    size_t length = 0;
    if (!file_exists(path) || file_read(path, (size_t)1 << 20, &text, &length, NULL) != OK) return NULL;
    text = memory_resize(text, length + 1);
    text[length] = 0;
    return text;
}

/* "chat_template" of a tokenizer_config.json, or NULL. */
static char *config_source(const char *path) {
    char *json = read_source(path), *found = NULL;
    JsonReader reader;
    JsonToken token;
    if (json == NULL) return NULL;
    json_open(&reader, path, json, strlen(json), 1, (JsonLimits){0});
    if (json_expect(&reader, JSON_OBJECT_BEGIN, "config", &token, NULL) == OK) {
        while (found == NULL && json_next(&reader, &token, NULL) == OK && token.kind == JSON_KEY) {
            int is_template = json_key_is(&token, "chat_template");
            if (is_template && json_next(&reader, &token, NULL) == OK && token.kind == JSON_STRING)
                found = memory_format("%.*s", (int)token.length, token.text);
            else if (json_skip(&reader, &token, NULL) != OK)
                break;
        }
    }
    json_close(&reader);
    memory_free(json);
    return found;
}

static int check_folder(const char *folder, int is_configs) {
    int count = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        char *path = memory_format("%s%s%s", folder, entry->d_name, is_configs ? "/tokenizer_config.json" : "");
        char *source = is_configs ? config_source(path) : read_source(path);
        if (source != NULL) check_jinja(entry->d_name, source, (uint64_t)++count);
        memory_free(source);
        memory_free(path);
    }
    if (dir != NULL) closedir(dir);
    return count;
}

static void test_published_templates(void **state) {
    (void)state;
    int count = check_folder(ASSETS "chat_templates/", 0) + check_folder(ASSETS, 1);
    if (count == 0) {
        print_message("skipped: no templates in " ASSETS "\n");
        skip();
    }
    print_message("%d templates\n", count);
}

/* Plain text: every token but the first, and the end. */
static void test_text(void **state) {
    (void)state;
    random_state = 5;
    for (int adds_bos = 0; adds_bos < 2; adds_bos++) {
        Tokenizer *tokenizer = make_tokenizer(adds_bos, NULL);
        for (int round = 0; round < 100; round++) {
            char *text = random_text(0);
            Text record = {0};
            text_adds(&record, "{\"text\":");
            text_add_json_string(&record, text, strlen(text));
            text_adds(&record, "}");
            if (text[0] != 0) {
                int writes_bos = strncmp(text, "<s>", 3) == 0;
                size_t n = strlen(text);
                int ended = n >= 4 && strcmp(text + n - 4, "</s>") == 0;
                Dataset d;
                Error error = {0};
                Status status = read_text("text.jsonl", record.data, defaults(tokenizer), &d, &error);
                char *want = memory_format("%s%s%s", adds_bos && !writes_bos ? "<s>" : "", text, ended ? "" : "</s>");
                if (status == OK) {
                    char *got = spell(&d, 0, 0);
                    assert_string_equal(got, want);
                    assert_int_equal(d.trained_tokens, d.tokens - 1);
                    assert_int_equal(d.train[0], 0);
                    memory_free(got);
                    dataset_free(&d);
                } else {
                    assert_true(strcmp(want, "</s>") == 0 || strcmp(want, "<s>") == 0); /* one token, and nothing to predict */
                }
                memory_free(want);
            }
            text_free(&record);
            memory_free(text);
        }
        tokenizer_close(tokenizer);
    }
}

/* Pairs are read, checked, and refused for what they are, whatever their template. */
static void test_preference(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, CHATML);
    random_state = 9;
    for (int round = 0; round < 20; round++) {
        Talk talk = {0};
        Text record = {0};
        make_talk(&talk, AS_SHAREGPT);
        text_adds(&record, "{");
        talk.count--;
        add_list(&record, &talk, 1);
        talk.count++;
        text_adds(&record, ",\"chosen\":\"good\",\"rejected\":\"bad\"}");
        must_fail("p.jsonl", record.data, defaults(tokenizer), "1 records are read and valid, 0 bad ones");
        text_free(&record);
        free_talk(&talk);
    }
    tokenizer_close(tokenizer);
}

/* Tokens that stand on a border: one that begins before an answer is not trained, one that begins in it is. */
static void test_borders(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, own[6].jinja);
    Dataset d = must_read("b.jsonl",
                          "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"i b\"}]}",
                          defaults(tokenizer));
    static const int32_t ids[] = {'H', 'u', 'c', ID_EOS, 'b', ID_HI, ' ', ID_BC, ID_EOS, 'b'};
    static const uint8_t train[] = {0, 0, 0, 0, 0, 0, 1, 1, 1, 0};
    assert_string_equal(own[6].name, "letters");
    assert_int_equal(d.tokens, 10);
    assert_memory_equal(d.ids, ids, sizeof ids);
    assert_memory_equal(d.train, train, sizeof train);
    dataset_free(&d);
    tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_built_ins),           cmocka_unit_test(test_own_templates),
                                       cmocka_unit_test(test_published_templates), cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_preference),          cmocka_unit_test(test_borders)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
