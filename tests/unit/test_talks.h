/* Random conversations, and the records that the layouts make of them: for test_masks.c. */
#ifndef NIBBLE_TESTS_UNIT_TEST_TALKS_H
#define NIBBLE_TESTS_UNIT_TEST_TALKS_H

#include "tests/unit/test_dataset.h"

#define MAX_MESSAGES 10

/* ---- random conversations ------------------------------------------------------------------------------------------------- */

typedef struct Turn {
    const char *role;
    char *content;
    char *name, *argument; /* of a call, or NULL */
    int train;
} Turn;

typedef struct Talk {
    Turn turns[MAX_MESSAGES];
    int count;
    char *definition; /* of a tool: its description, or NULL */
    char *input;      /* alpaca's second part of the last question, until settle_input */
} Talk;

static uint64_t random_state;

static unsigned pick(unsigned n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)((random_state >> 11) % n);
}

static char *random_text(int is_plain) {
    static const char *const pieces[] = {"Hi",
                                         "b",
                                         "c",
                                         "bc",
                                         "i",
                                         "H",
                                         " ",
                                         "\xC3\xA9",
                                         "\xE6\x97\xA5",
                                         "\xF0\x9F\x98\x80",
                                         "e\xCC\x81",
                                         "{{ x }}",
                                         "{% if a %}",
                                         "</s>",
                                         "<s>",
                                         "<|im_end|>",
                                         "<|im_start|>assistant\n",
                                         "[INST]",
                                         "<tool_call>",
                                         "[/INST] ",
                                         "\n",
                                         "\t",
                                         "'",
                                         "\\",
                                         "\"",
                                         "\xE3\x80\x80"};
    enum { PLAIN_PIECES = 20, PIECES = sizeof pieces / sizeof pieces[0] };
    Text text = {0};
    text_adds(&text, "");
    for (unsigned left = pick(4) == 0 ? pick(2) : pick(9); left > 0; left--)
        text_adds(&text, pieces[pick(is_plain ? PLAIN_PIECES : PIECES)]);
    return text.data;
}

static Turn *add_turn(Talk *talk, const char *role, char *content) {
    Turn *turn = &talk->turns[talk->count++];
    *turn = (Turn){role, content, NULL, NULL, -1};
    return turn;
}

static void free_talk(Talk *talk) {
    for (int i = 0; i < talk->count; i++) {
        memory_free(talk->turns[i].content);
        memory_free(talk->turns[i].name);
        memory_free(talk->turns[i].argument);
    }
    memory_free(talk->definition);
    memory_free(talk->input);
    *talk = (Talk){0};
}

/* ---- layouts -------------------------------------------------------------------------------------------------------------- */

typedef enum Form { AS_MESSAGES, AS_SHAREGPT, AS_ALPACA, AS_PAIR, AS_QUESTION, AS_TOOLS, FORMS } Form;

static void make_talk(Talk *talk, Form form) {
    int rounds = form == AS_PAIR || form == AS_QUESTION ? 1 : 1 + (int)pick(3);
    if (form <= AS_ALPACA && pick(3) == 0) {
        add_turn(talk, "system", random_text(0));
        if (form == AS_ALPACA && talk->turns[0].content[0] == 0) free_talk(talk); /* there "" is none */
    }
    if (form == AS_TOOLS) talk->definition = random_text(1);
    for (int r = 0; r < rounds; r++) {
        add_turn(talk, "user", random_text(0));
        if (form == AS_TOOLS && talk->count < MAX_MESSAGES - 3 && pick(4) > 0) {
            Turn *call = add_turn(talk, "assistant", NULL);
            call->name = random_text(1);
            if (call->name[0] == 0) call->name = (memory_free(call->name), memory_strdup("f"));
            call->argument = random_text(1);
            call->train = pick(5) == 0 ? 0 : -1;
            add_turn(talk, "tool", memory_format("r%s", pick(2) ? "\xC3\xA9" : ""));
        }
        Turn *answer = add_turn(talk, "assistant", random_text(0));
        if (form == AS_MESSAGES && pick(5) == 0) answer->train = (int)pick(2);
    }
    if (form == AS_MESSAGES && pick(5) == 0) add_turn(talk, "user", random_text(0));
    if (form == AS_ALPACA && pick(2) == 0) talk->input = random_text(0);
}

/* Once the record is written: what the input becomes, a message of its own or a line of the question. */
static void settle_input(Talk *talk, int is_separate) {
    Turn *question = &talk->turns[talk->count - 2];
    char *input = talk->input;
    talk->input = NULL;
    if (input == NULL || input[0] == 0) {
        memory_free(input);
    } else if (is_separate) {
        Turn answer = question[1];
        question[1] = (Turn){"input", input, NULL, NULL, -1};
        question[2] = answer;
        talk->count++;
    } else {
        char *joined = memory_format("%s\n%s", question->content, input);
        memory_free(question->content);
        memory_free(input);
        question->content = joined;
    }
}

static void add_pair(Text *out, const char *key, const char *value, const char *after) {
    text_addf(out, "\"%s\":", key);
    text_add_json_string(out, value, strlen(value));
    text_adds(out, after);
}

/* Contents in `words`, one for each turn: name and argument of a call stand behind it. */
static void add_message(Text *out, const Turn *turn, int is_sharegpt) {
    static const char *const froms[] = {"system", "human", "gpt"};
    const char *from = froms[turn->role[0] == 's' ? 0 : turn->role[0] == 'u' ? 1 : 2];
    text_adds(out, "{");
    if (turn->train >= 0) text_addf(out, "\"train\":%s,", turn->train ? "true" : "false");
    if (turn->name != NULL) {
        text_adds(out, "\"tool_calls\":[{\"id\":\"abcdefghi\",\"type\":\"function\",\"function\":{");
        add_pair(out, "name", turn->name, ",\"arguments\":{");
        add_pair(out, "q", turn->argument, "}}}],");
    }
    if (strcmp(turn->role, "tool") == 0) text_adds(out, "\"tool_call_id\":\"abcdefghi\",");
    if (turn->content != NULL) add_pair(out, is_sharegpt ? "value" : "content", turn->content, ",");
    add_pair(out, is_sharegpt ? "from" : "role", is_sharegpt ? from : turn->role, "}");
}

static void add_tools(Text *out, const Talk *talk) {
    text_adds(out, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"ff\",");
    add_pair(out, "description", talk->definition,
             ",\"parameters\":{\"type\":\"object\",\"properties\":{\"q\":{\"type\":\"string\",\"description\":\"d\"}},"
             "\"required\":[\"q\"]}}}]");
}

static void add_list(Text *out, const Talk *talk, int is_sharegpt) {
    text_addf(out, "\"%s\":[", is_sharegpt ? "conversations" : "messages");
    for (int i = 0; i < talk->count; i++) {
        text_adds(out, i > 0 ? "," : "");
        add_message(out, &talk->turns[i], is_sharegpt);
    }
    text_adds(out, "]");
}

static void add_alpaca(Text *out, const Talk *talk) {
    int first = strcmp(talk->turns[0].role, "system") == 0, last = talk->count - 2;
    if (first) add_pair(out, "system", talk->turns[0].content, ",");
    text_adds(out, "\"history\":[");
    for (int i = first; i < last; i += 2) {
        text_adds(out, i > first ? ",[" : "[");
        text_add_json_string(out, talk->turns[i].content, strlen(talk->turns[i].content));
        text_adds(out, ",");
        text_add_json_string(out, talk->turns[i + 1].content, strlen(talk->turns[i + 1].content));
        text_adds(out, "]");
    }
    text_adds(out, "],");
    add_pair(out, "instruction", talk->turns[last].content, ",");
    add_pair(out, "input", talk->input != NULL ? talk->input : "", ",");
    add_pair(out, "output", talk->turns[last + 1].content, "");
}

static void add_record(Text *out, const Talk *talk, Form form) {
    text_adds(out, "{");
    if (form == AS_TOOLS) {
        add_tools(out, talk);
        text_adds(out, ",");
    }
    if (form == AS_MESSAGES || form == AS_SHAREGPT || form == AS_TOOLS) add_list(out, talk, form == AS_SHAREGPT);
    if (form == AS_ALPACA) add_alpaca(out, talk);
    if (form == AS_PAIR || form == AS_QUESTION) {
        add_pair(out, form == AS_PAIR ? "prompt" : "question", talk->turns[0].content, ",");
        add_pair(out, form == AS_PAIR ? "completion" : "answer", talk->turns[1].content, "");
    }
    text_adds(out, "}\n");
}

#endif
