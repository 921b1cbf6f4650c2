/* Results of a suite: a line a subject, and all of them together. */
#include <string.h>

#include "train/suite.h"

typedef struct Score {
    int64_t questions, right, flexible, cut, fewer_shots;
} Score;

/* subject -1: all */
static Score score_of(const Suite *suite, int64_t subject) {
    Score score = {0};
    for (int64_t i = 0; i < suite->count; i++) {
        const SuiteItem *item = &suite->items[i];
        if (subject >= 0 && item->subject != subject) continue;
        score.questions++;
        score.right += suite->is_choice ? item->choice == item->answer : item->strict;
        score.flexible += item->flexible;
        score.cut += item->cut;
        score.fewer_shots += item->shots < suite->shots;
    }
    return score;
}

static double part(int64_t of, int64_t all) {
    return all > 0 ? (double)of / (double)all : 0.0;
}

static void json_score(Text *out, const Suite *suite, const Score *s) {
    text_addf(out, "\"questions\": %lld, \"right\": %lld, \"accuracy\": %.9g", (long long)s->questions, (long long)s->right,
              part(s->right, s->questions));
    if (!suite->is_choice)
        text_addf(out, ", \"flexible_right\": %lld, \"flexible\": %.9g", (long long)s->flexible,
                  part(s->flexible, s->questions));
}

static void print_json(const Suite *suite, const SuiteOptions *options, const Score *all, double macro, Text *out) {
    text_addf(out, "\"suite\": \"%s\", \"shots\": %lld, ", options->name, (long long)suite->shots);
    json_score(out, suite, all);
    text_addf(out, ", \"fewer_shots\": %lld, \"cut\": %lld, \"seconds\": %.4f", (long long)all->fewer_shots,
              (long long)all->cut, suite->seconds);
    if (!suite->is_choice) return;
    text_addf(out, ", \"mean_of_subjects\": %.9g, \"subjects\": {", macro);
    for (int64_t i = 0; i < suite->subject_count; i++) {
        Score s = score_of(suite, i);
        text_adds(out, i > 0 ? ", " : "");
        text_add_json_string(out, suite->subjects[i], strlen(suite->subjects[i]));
        text_adds(out, ": {");
        json_score(out, suite, &s);
        text_adds(out, "}");
    }
    text_adds(out, "}");
}

void suite_print(const Suite *suite, const SuiteOptions *options, Text *out) {
    Score all = score_of(suite, -1);
    double macro = 0.0;
    for (int64_t i = 0; i < suite->subject_count; i++) {
        Score s = score_of(suite, i);
        macro += part(s.right, s.questions) / (double)suite->subject_count;
    }
    if (options->json) {
        print_json(suite, options, &all, macro, out);
        return;
    }
    text_addf(out, "%s, %lld shots, %s\n\n", options->name, (long long)suite->shots, options->path);
    if (suite->is_choice) {
        for (int64_t i = 0; i < suite->subject_count; i++) {
            Score s = score_of(suite, i);
            text_addf(out, "  %-40s %5lld questions  %6.2f %%\n", suite->subjects[i], (long long)s.questions,
                      100.0 * part(s.right, s.questions));
        }
        text_addf(out, "\naccuracy     %.2f %% (%lld of %lld; mean of subjects %.2f %%; guessing gives 25 %%)\n",
                  100.0 * part(all.right, all.questions), (long long)all.right, (long long)all.questions, 100.0 * macro);
    } else {
        text_addf(out, "exact match  %.2f %% (%lld of %lld: the number behind \"####\")\n",
                  100.0 * part(all.right, all.questions), (long long)all.right, (long long)all.questions);
        text_addf(out, "last number  %.2f %% (%lld)\n", 100.0 * part(all.flexible, all.questions), (long long)all.flexible);
    }
    if (all.fewer_shots > 0)
        text_addf(out, "shots        dropped from the front of %lld prompts that the context does not hold\n",
                  (long long)all.fewer_shots);
    if (all.cut > 0)
        text_addf(out, "cut          %lld prompts lost their beginning: too long without any shot\n", (long long)all.cut);
    text_addf(out, "seconds      %.2f\n", suite->seconds);
}
