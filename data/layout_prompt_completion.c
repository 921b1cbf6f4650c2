/* prompt/completion: {"prompt": "…", "completion": "…"}. The completion follows the prompt directly. */
#include "data/layout.h"

static Status read_prompt_completion(JsonReader *reader, Record *record, Error *err) {
    static const char *const names[2] = {"prompt", "completion"};
    static const char *const roles[2] = {"user", "assistant"};
    Field fields[2] = {{0}};
    JsonToken token;
    Status status = OK;
    for (;;) {
        TRY_GOTO(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        int f = 0;
        while (f < 2 && !json_key_is(&token, names[f]))
            f++;
        if (f < 2) {
            TRY_GOTO(field_read(reader, names[f], &fields[f], err));
        } else {
            TRY_GOTO(json_skip(reader, &token, err));
        }
    }
    for (int f = 0; f < 2; f++)
        TRY_GOTO(field_want(reader, names[f], &fields[f], err));
    for (int f = 0; f < 2; f++) {
        record_add(record, roles[f], fields[f].text, fields[f].length, -1);
        fields[f].text = NULL;
    }
done:
    for (int f = 0; f < 2; f++)
        field_free(&fields[f]);
    return status;
}

const Layout layout_prompt_completion = {.id = LAYOUT_PROMPT_COMPLETION,
                                         .name = "prompt_completion",
                                         .keys = {"prompt", "completion"},
                                         .default_template = "plain",
                                         .uses_model_template = 0,
                                         .read = read_prompt_completion};
