/* Any source, rendered with small limits: marks stay in order and inside of the text. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/jinja.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char variables[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\" Be \\u00e9.\\n\"},{\"role\":\"user\",\"content\":\"Hi <x>\"},"
    "{\"role\":\"assistant\",\"content\":\"</"
    "think>\\n\\nok\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":[1,"
    "2.5,null]}}}]}],\"tools\":[{\"name\":\"f\"}],\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_generation_prompt\":true,"
    "\"n\":3,\"f\":-0.5,\"l\":[3,\"a\",[1]],\"d\":{\"k\":1,\"b\":\"v\"}}";

static void check(const JinjaText *out) {
    size_t at = 0;
    for (size_t i = 0; i < out->mark_count; i++) {
        const JinjaMark *mark = &out->marks[i];
        if (mark->begin < at || mark->end < mark->begin || mark->end > out->length) abort();
        at = mark->end;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Jinja *jinja;
    JinjaValue values;
    JinjaText out;
    Error err;
    if (jinja_open(&jinja, "fuzz", (const char *)data, size, &err) != OK) return 0;
    JinjaRun *run = jinja_run_create((JinjaLimits){.memory = (size_t)4 << 20, .steps = 200000});
    if (jinja_json(run, "variables", variables, sizeof variables - 1, 1, &values, &err) != OK) abort();
    if (jinja_render(jinja, run, values, &out, &err) == OK) check(&out);
    jinja_run_free(run);
    jinja_close(jinja);
    return 0;
}
