/* prompt/completion: {"prompt": "…", "completion": "…"}. The completion follows the prompt directly. */
#include "data/layout.h"

static Status read_prompt_completion(JsonReader *reader, Record *record, Error *err) {
    static const char *const names[2] = {"prompt", "completion"};
    return pair_read(reader, names, record, err);
}

const Layout layout_prompt_completion = {.id = LAYOUT_PROMPT_COMPLETION,
                                         .name = "prompt_completion",
                                         .keys = {"prompt", "completion"},
                                         .default_template = "plain",
                                         .uses_model_template = 0,
                                         .read = read_prompt_completion};
