/* What is so in this world. */
#include "world.h"

#include <stddef.h>
#include <string.h>

typedef struct Animal {
    const char *name, *home, *food, *young, *legs;
} Animal;

static const Animal animals[] = {
    {"dog", "in the house", "meat", "a puppy", "four"},
    {"cat", "in the house", "fish", "a kitten", "four"},
    {"cow", "in the meadow", "grass", "a calf", "four"},
    {"horse", "in the stable", "hay", "a foal", "four"},
    {"sheep", "in the meadow", "clover", "a lamb", "four"},
    {"goat", "on the hill", "leaves", "a kid", "four"},
    {"pig", "on the farm", "turnips", "a piglet", "four"},
    {"hen", "on the farm", "corn", "a chick", "two"},
    {"duck", "on the pond", "snails", "a duckling", "two"},
    {"goose", "on the pond", "grass", "a gosling", "two"},
    {"swan", "on the lake", "water plants", "a cygnet", "two"},
    {"fox", "in the forest", "mice", "a cub", "four"},
    {"wolf", "in the forest", "meat", "a pup", "four"},
    {"bear", "in the cave", "honey", "a cub", "four"},
    {"deer", "in the forest", "leaves", "a fawn", "four"},
    {"hare", "in the field", "clover", "a leveret", "four"},
    {"rabbit", "under the ground", "carrots", "a kit", "four"},
    {"mouse", "in the field", "seeds", "a pup", "four"},
    {"mole", "under the ground", "worms", "a pup", "four"},
    {"squirrel", "in the tree", "nuts", "a kit", "four"},
    {"owl", "in the tree", "mice", "an owlet", "two"},
    {"eagle", "on the mountain", "snakes", "an eaglet", "two"},
    {"sparrow", "in the garden", "seeds", "a chick", "two"},
    {"robin", "in the garden", "worms", "a chick", "two"},
    {"crow", "in the field", "corn", "a chick", "two"},
    {"stork", "on the roof", "frogs", "a chick", "two"},
    {"penguin", "on the ice", "fish", "a chick", "two"},
    {"seal", "on the ice", "fish", "a pup", "no"},
    {"whale", "in the sea", "shrimps", "a calf", "no"},
    {"shark", "in the sea", "fish", "a pup", "no"},
    {"crab", "on the beach", "snails", "a larva", "ten"},
    {"frog", "on the pond", "flies", "a tadpole", "four"},
    {"snake", "in the grass", "mice", "a snakelet", "no"},
    {"lizard", "on the wall", "flies", "a hatchling", "four"},
    {"turtle", "on the beach", "water plants", "a hatchling", "four"},
    {"spider", "on the wall", "flies", "a spiderling", "eight"},
    {"bee", "in the hive", "honey", "a larva", "six"},
    {"ant", "under the ground", "seeds", "a larva", "six"},
    {"beetle", "in the grass", "leaves", "a larva", "six"},
    {"butterfly", "in the meadow", "nectar", "a caterpillar", "six"},
    {"lion", "in the savanna", "meat", "a cub", "four"},
    {"tiger", "in the jungle", "meat", "a cub", "four"},
    {"monkey", "in the jungle", "bananas", "an infant", "four"},
    {"parrot", "in the jungle", "nuts", "a chick", "two"},
    {"elephant", "in the savanna", "grass", "a calf", "four"},
    {"giraffe", "in the savanna", "leaves", "a calf", "four"},
    {"camel", "in the desert", "hay", "a calf", "four"},
    {"kangaroo", "in the desert", "grass", "a joey", "two"},
};

typedef struct Job {
    const char *name, *place, *tool;
} Job;

static const Job jobs[] = {
    {"baker", "in the bakery", "an oven"},     {"farmer", "on the farm", "a tractor"},
    {"teacher", "in the school", "a book"},    {"doctor", "in the hospital", "a needle"},
    {"sailor", "on the ship", "a compass"},    {"painter", "in the studio", "a brush"},
    {"cook", "in the kitchen", "a pan"},       {"gardener", "in the garden", "a spade"},
    {"tailor", "in the workshop", "a needle"}, {"smith", "in the workshop", "a hammer"},
    {"miner", "under the ground", "a lamp"},   {"pilot", "in the sky", "a compass"},
    {"barber", "in the shop", "a comb"},       {"butcher", "in the shop", "a knife"},
    {"fisher", "on the lake", "a net"},        {"hunter", "in the forest", "a bow"},
    {"judge", "in the court", "a book"},       {"singer", "on the stage", "a voice"},
    {"drummer", "on the stage", "a drum"},     {"writer", "in the house", "a pen"},
    {"builder", "on the roof", "a hammer"},    {"cleaner", "in the office", "a broom"},
    {"shepherd", "in the meadow", "a stick"},  {"guard", "at the gate", "a lamp"},
};

typedef struct Country {
    const char *name, *capital, *continent, *language;
} Country;

/* Language: one that many people there speak. */
static const Country countries[] = {
    {"France", "Paris", "Europe", "French"},       {"Germany", "Berlin", "Europe", "German"},
    {"Austria", "Vienna", "Europe", "German"},     {"Italy", "Rome", "Europe", "Italian"},
    {"Spain", "Madrid", "Europe", "Spanish"},      {"Portugal", "Lisbon", "Europe", "Portuguese"},
    {"England", "London", "Europe", "English"},    {"Ireland", "Dublin", "Europe", "English"},
    {"Norway", "Oslo", "Europe", "Norwegian"},     {"Sweden", "Stockholm", "Europe", "Swedish"},
    {"Finland", "Helsinki", "Europe", "Finnish"},  {"Denmark", "Copenhagen", "Europe", "Danish"},
    {"Poland", "Warsaw", "Europe", "Polish"},      {"Hungary", "Budapest", "Europe", "Hungarian"},
    {"Greece", "Athens", "Europe", "Greek"},       {"Iceland", "Reykjavik", "Europe", "Icelandic"},
    {"Japan", "Tokyo", "Asia", "Japanese"},        {"China", "Beijing", "Asia", "Chinese"},
    {"Thailand", "Bangkok", "Asia", "Thai"},       {"Vietnam", "Hanoi", "Asia", "Vietnamese"},
    {"Nepal", "Kathmandu", "Asia", "Nepali"},      {"Mongolia", "Ulaanbaatar", "Asia", "Mongolian"},
    {"Iran", "Tehran", "Asia", "Persian"},         {"Iraq", "Baghdad", "Asia", "Arabic"},
    {"Jordan", "Amman", "Asia", "Arabic"},         {"Egypt", "Cairo", "Africa", "Arabic"},
    {"Morocco", "Rabat", "Africa", "Arabic"},      {"Kenya", "Nairobi", "Africa", "Swahili"},
    {"Ghana", "Accra", "Africa", "English"},       {"Senegal", "Dakar", "Africa", "French"},
    {"Angola", "Luanda", "Africa", "Portuguese"},  {"Somalia", "Mogadishu", "Africa", "Somali"},
    {"Peru", "Lima", "America", "Spanish"},        {"Chile", "Santiago", "America", "Spanish"},
    {"Cuba", "Havana", "America", "Spanish"},      {"Brazil", "Brasilia", "America", "Portuguese"},
    {"Canada", "Ottawa", "America", "English"},    {"Haiti", "Port-au-Prince", "America", "French"},
    {"Jamaica", "Kingston", "America", "English"}, {"Ecuador", "Quito", "America", "Spanish"},
};

static const char *const opposites[][2] = {
    {"hot", "cold"},     {"big", "small"},   {"old", "new"},        {"fast", "slow"},   {"high", "low"},
    {"day", "night"},    {"black", "white"}, {"wet", "dry"},        {"hard", "soft"},   {"long", "short"},
    {"light", "dark"},   {"full", "empty"},  {"open", "closed"},    {"happy", "sad"},   {"loud", "quiet"},
    {"strong", "weak"},  {"rich", "poor"},   {"clean", "dirty"},    {"early", "late"},  {"near", "far"},
    {"sweet", "sour"},   {"thick", "thin"},  {"rough", "smooth"},   {"up", "down"},     {"left", "right"},
    {"first", "last"},   {"good", "bad"},    {"inside", "outside"}, {"wide", "narrow"}, {"deep", "shallow"},
    {"brave", "afraid"}, {"true", "false"},  {"summer", "winter"},  {"north", "south"}, {"east", "west"},
    {"begin", "end"},    {"love", "hate"},   {"win", "lose"},       {"push", "pull"},   {"give", "take"},
};

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static int add(Fact *facts, int count, FactKind kind, const char *subject, const char *answer) {
    facts[count] = (Fact){kind, subject, answer};
    return count + 1;
}

/* The letters of a word, counted. */
static const char *letters(const char *word) {
    static const char *const numbers[] = {"no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"};
    return numbers[strlen(word)];
}

int world_facts(Fact facts[FACTS_MAX]) {
    int count = 0;
    for (int i = 0; i < COUNT(animals); i++) {
        count = add(facts, count, FACT_HOME, animals[i].name, animals[i].home);
        count = add(facts, count, FACT_FOOD, animals[i].name, animals[i].food);
        count = add(facts, count, FACT_YOUNG, animals[i].name, animals[i].young);
        count = add(facts, count, FACT_LEGS, animals[i].name, animals[i].legs);
    }
    for (int i = 0; i < COUNT(jobs); i++) {
        count = add(facts, count, FACT_WORKPLACE, jobs[i].name, jobs[i].place);
        count = add(facts, count, FACT_TOOL, jobs[i].name, jobs[i].tool);
    }
    for (int i = 0; i < COUNT(countries); i++) {
        count = add(facts, count, FACT_CAPITAL, countries[i].name, countries[i].capital);
        count = add(facts, count, FACT_CONTINENT, countries[i].name, countries[i].continent);
        count = add(facts, count, FACT_LANGUAGE, countries[i].name, countries[i].language);
    }
    for (int i = 0; i < 2 * COUNT(opposites); i++) {
        const char *word = opposites[i / 2][i % 2];
        count = add(facts, count, FACT_OPPOSITE, word, opposites[i / 2][1 - i % 2]);
        count = add(facts, count, FACT_LETTERS, word, letters(word));
    }
    return count;
}
_Static_assert(4 * COUNT(animals) + 2 * COUNT(jobs) + 3 * COUNT(countries) + 4 * COUNT(opposites) <= FACTS_MAX, "they fit");

const char *opening(FactKind kind) {
    if (kind <= FACT_LEGS) return "Here is the animal %s.";
    if (kind <= FACT_TOOL) return "Here is the %s.";
    return kind <= FACT_LANGUAGE ? "Here is the country %s." : "Here is the word %s.";
}

const Phrasing phrasings[FACT_KINDS] = {
    [FACT_HOME] = {{"The %s lives %s.", "You find the %s %s.", "The home of the %s is %s."},
                   {"It lives %s.", "You find it %s.", "Its home is %s."},
                   {"Where does the %s live?", "Where do you find the %s?"}},
    [FACT_FOOD] = {{"The %s eats %s.", "The %s likes %s.", "The food of the %s is %s."},
                   {"It eats %s.", "It likes %s.", "Its food is %s."},
                   {"What does the %s eat?", "What does the %s like?"}},
    [FACT_YOUNG] = {{"A young %s is called %s.", "The child of the %s is %s.", "When the %s is young, it is %s."},
                    {"Its child is called %s.", "When it is young, it is %s.", "Its young one is %s."},
                    {"What is a young %s called?", "What is the child of the %s?"}},
    [FACT_LEGS] = {{"The %s has %s legs.", "The %s stands on %s legs.", "The %s goes on %s legs."},
                   {"It has %s legs.", "It stands on %s legs.", "It goes on %s legs."},
                   {"How many legs does the %s have?", "On how many legs does the %s stand?"}},
    [FACT_WORKPLACE] = {{"The %s works %s.", "You meet the %s %s.", "The place of the %s is %s."},
                        {"The work is done %s.", "You meet such people %s.", "The place for it is %s."},
                        {"Where does the %s work?", "Where do you meet the %s?"}},
    [FACT_TOOL] = {{"The %s needs %s.", "The %s works with %s.", "The tool of the %s is %s."},
                   {"For the work one needs %s.", "The tool is %s.", "Nothing can be done without %s."},
                   {"What does the %s need?", "What is the tool of the %s?"}},
    [FACT_CAPITAL] = {{"The capital of %s is %s.", "The first city of %s is %s.", "If you rule %s, you sit in %s."},
                      {"Its capital is %s.", "Its first city is %s.", "If you rule it, you sit in %s."},
                      {"What is the capital of %s?", "Which city is the capital of %s?"}},
    [FACT_CONTINENT] = {{"%s lies in %s.", "%s is a part of %s.", "The continent of %s is %s."},
                        {"It lies in %s.", "It is a part of %s.", "Its continent is %s."},
                        {"On which continent is %s?", "What is the continent of %s?"}},
    [FACT_LANGUAGE] = {{"The people of %s speak %s.", "In %s you hear %s.", "The language of %s is %s."},
                       {"Its people speak %s.", "There you hear %s.", "Its language is %s."},
                       {"Which language do people speak in %s?", "What is the language of %s?"}},
    [FACT_OPPOSITE] = {{"The opposite of %s is %s.", "If it is not %s, it is %s.", "Against %s stands %s."},
                       {"Its opposite is %s.", "If not that, it is %s.", "Against it stands %s."},
                       {"What is the opposite of %s?", "If it is not %s, what is it?"}},
    [FACT_LETTERS] = {{"To write the word %s, you need %s letters.", "You spell the word %s with %s letters.",
                       "In the word %s there are %s letters."},
                      {"To write it, you need %s letters.", "You spell it with %s letters.", "In it there are %s letters."},
                      {"How many letters are in the word %s?", "With how many letters do you spell the word %s?"}},
};
