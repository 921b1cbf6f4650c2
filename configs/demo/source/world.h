/* The small world of the demo: facts, the text that tells them, and questions about them.
 *
 * Everything is a function of the seeds in the sources, so the same files come out everywhere. The text only ever states
 * things; the form "Q: …? A: …" occurs in the questions alone.
 */
#ifndef NIBBLE_DEMO_WORLD_H
#define NIBBLE_DEMO_WORLD_H

#include <stdint.h>
#include <stdio.h>

typedef enum FactKind {
    FACT_HOME,
    FACT_FOOD,
    FACT_YOUNG,
    FACT_LEGS,
    FACT_WORKPLACE,
    FACT_TOOL,
    FACT_CAPITAL,
    FACT_CONTINENT,
    FACT_LANGUAGE,
    FACT_OPPOSITE,
    FACT_LETTERS,
    FACT_KINDS
} FactKind;

typedef struct Fact {
    FactKind kind;
    const char *subject, *answer;
} Fact;

/* How the text and the questions speak of a kind; each array ends with NULL. */
typedef struct Phrasing {
    const char *full[4];      /* with subject and answer */
    const char *follow[4];    /* with the answer alone, about a subject named before */
    const char *questions[3]; /* with the subject alone */
} Phrasing;

#define FACTS_MAX 640
int world_facts(Fact facts[FACTS_MAX]); /* all of them, those of one subject side by side; returns how many */
const char *opening(FactKind kind);     /* the sentence that names a subject first */
extern const Phrasing phrasings[FACT_KINDS];

/* splitmix64 (Steele, Lea and Flood, OOPSLA 2014). */
typedef struct Random {
    uint64_t state;
} Random;
int random_below(Random *random, int n);                        /* 0 … n-1 */
void random_order(Random *random, int *order, int n);           /* a permutation of 0 … n-1 */
const char *random_of(Random *random, const char *const *list); /* an element of a list that ends with NULL */

#define DOCUMENT_MAX 2048
void write_document(Random *random, char text[DOCUMENT_MAX]);

/* Training and held-out questions, about different facts. Returns 0 when a question is in both. */
int write_questions(FILE *train, FILE *held_out);

#endif
