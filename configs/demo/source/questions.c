/* The task: questions in a form that the text never uses, each with an answer of a few words. */
#include "world.h"

#include <stdlib.h>
#include <string.h>

enum {
    HELD_OUT_EVERY = 4, /* every fourth fact of a kind is asked only afterwards */
    QUESTIONS_MAX = 2 * FACTS_MAX
};

#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* formats come from the constant tables of phrasings */

typedef struct Question {
    char prompt[128], answer[32];
} Question;

static void ask(Question *question, const Fact *fact, const char *format) {
    int used = snprintf(question->prompt, sizeof question->prompt, format, fact->subject);
    if (used < 0 || (size_t)used >= sizeof question->prompt) abort();
    used = snprintf(question->answer, sizeof question->answer, "%s", fact->answer);
    if (used < 0 || (size_t)used >= sizeof question->answer) abort();
}

/* ---- the two sets ---------------------------------------------------------------------------------------------------- */

typedef struct QuestionSet {
    Question items[QUESTIONS_MAX];
    int count;
} QuestionSet;

static int contains(const QuestionSet *set, const char *prompt) {
    for (int i = 0; i < set->count; i++)
        if (strcmp(set->items[i].prompt, prompt) == 0) return 1;
    return 0;
}

/* Facts of a kind are taken in a random order; the held-out ones are asked in one way, the others in all. */
static void split_facts(Random *random, QuestionSet *train, QuestionSet *held_out) {
    Fact facts[FACTS_MAX];
    int count = world_facts(facts), order[FACTS_MAX], seen[FACT_KINDS] = {0};
    random_order(random, order, count);
    for (int i = 0; i < count; i++) {
        const Fact *fact = &facts[order[i]];
        const char *const *forms = phrasings[fact->kind].questions;
        if (seen[fact->kind]++ % HELD_OUT_EVERY == 0) {
            ask(&held_out->items[held_out->count++], fact, random_of(random, forms));
            continue;
        }
        for (int f = 0; forms[f] != NULL; f++)
            ask(&train->items[train->count++], fact, forms[f]);
    }
}

static void print_set(FILE *file, Random *random, const QuestionSet *set) {
    int order[QUESTIONS_MAX];
    random_order(random, order, set->count);
    for (int i = 0; i < set->count; i++) {
        const Question *question = &set->items[order[i]];
        fprintf(file, "{\"prompt\": \"Q: %s\\nA:\", \"completion\": \" %s\"}\n", question->prompt, question->answer);
    }
}

int write_questions(FILE *train_file, FILE *held_out_file) {
    QuestionSet *train = calloc(1, sizeof *train), *held_out = calloc(1, sizeof *held_out);
    if (train == NULL || held_out == NULL) abort();
    Random random = {2};
    split_facts(&random, train, held_out);
    int apart = 1;
    for (int i = 0; i < held_out->count; i++)
        apart = apart && !contains(train, held_out->items[i].prompt);
    print_set(train_file, &random, train);
    print_set(held_out_file, &random, held_out);
    free(train);
    free(held_out);
    return apart;
}
