/* text: {"text": …}, one document a record. Plain .txt files give the same records without JSON. */
#include "data/layout.h"

static Status read_text(JsonReader *reader, Record *record, Error *err) {
    Field field = {0};
    JsonToken token;
    Status status = OK;
    for (;;) {
        TRY_GOTO(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        if (json_key_is(&token, "text")) {
            TRY_GOTO(field_read(reader, "text", &field, err));
        } else {
            TRY_GOTO(json_skip(reader, &token, err));
        }
    }
    TRY_GOTO(field_want(reader, "text", &field, err));
    record->text = field.text;
    record->text_length = field.length;
    field.text = NULL;
done:
    field_free(&field);
    return status;
}

const Layout layout_text = {.id = LAYOUT_TEXT,
                            .name = "text",
                            .keys = {"text"},
                            .default_template = "plain",
                            .uses_model_template = 0,
                            .read = read_text};
