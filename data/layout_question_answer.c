/* question/answer: {"question": "…", "answer": "…"}, as GSM8K is published: a user's message and its answer. */
#include "data/layout.h"

static Status read_question_answer(JsonReader *reader, Record *record, Error *err) {
    static const char *const names[2] = {"question", "answer"};
    return pair_read(reader, names, record, err);
}

const Layout layout_question_answer = {.id = LAYOUT_QUESTION_ANSWER,
                                       .name = "question_answer",
                                       .keys = {"question", "answer"},
                                       .default_template = "alpaca",
                                       .uses_model_template = 1,
                                       .read = read_question_answer};
