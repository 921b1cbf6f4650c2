/* The text that the base model is trained on: short pieces of simple statements. */
#include "world.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* Formats come from the tables of phrasings, which are constant; text is far below DOCUMENT_MAX. */
__attribute__((format(printf, 2, 3))) static void say(char *text, const char *format, ...) {
    size_t used = strlen(text);
    if (used > 0 && used + 1 < DOCUMENT_MAX) text[used++] = ' ';
    va_list values;
    va_start(values, format);
    int length = vsnprintf(text + used, DOCUMENT_MAX - used, format, values);
    va_end(values);
    if (length < 0 || (size_t)length >= DOCUMENT_MAX - used) abort();
}

#pragma GCC diagnostic ignored "-Wformat-nonliteral"

static void say_fact(Random *random, char *text, const Fact *fact) {
    say(text, random_of(random, phrasings[fact->kind].full), fact->subject, fact->answer);
}

/* One subject: named once, and everything about it in any order. */
static void portrait(Random *random, char *text, const Fact *facts, int count, int of) {
    int first = of, last = of, order[4];
    while (first > 0 && facts[first - 1].subject == facts[of].subject)
        first--;
    while (last + 1 < count && facts[last + 1].subject == facts[of].subject)
        last++;
    random_order(random, order, last - first + 1);
    if (random_below(random, 2))
        say(text, opening(facts[of].kind), facts[of].subject);
    else
        say_fact(random, text, &facts[of]);
    for (int i = 0; i <= last - first; i++) {
        const Fact *fact = &facts[first + order[i]];
        say(text, random_of(random, phrasings[fact->kind].follow), fact->answer);
    }
}

void write_document(Random *random, char text[DOCUMENT_MAX]) {
    static Fact facts[FACTS_MAX];
    static int count;
    if (count == 0) count = world_facts(facts);
    text[0] = 0;
    if (random_below(random, 4) > 0) {
        portrait(random, text, facts, count, random_below(random, count));
        return;
    }
    for (int left = 3 + random_below(random, 4); left > 0; left--)
        say_fact(random, text, &facts[random_below(random, count)]);
}
