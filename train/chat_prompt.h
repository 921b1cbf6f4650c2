/* Conversations as token ids, through the model's own chat template or a built-in one. */
#ifndef NIBBLE_TRAIN_CHAT_PROMPT_H
#define NIBBLE_TRAIN_CHAT_PROMPT_H

#include "data/template.h"

typedef struct ChatPrompt {
    const char *name; /* TEMPLATE_MODEL or a built-in's */
    const Tokenizer *tokenizer;
    TemplateJinja *model; /* NULL: the built-in */
    int32_t end;          /* the special token that ends an answer; -1: none */
} ChatPrompt;

/* Whether a name means a template: TEMPLATE_MODEL or a built-in. Fails as a mistake of usage, with the nearest name. */
Status chat_prompt_check(const char *name, Error *err);
/* The tokenizer must outlive it. Fails where the model has no template of its own. */
Status chat_prompt_open(ChatPrompt *prompt, const char *name, const Tokenizer *tokenizer, Error *err);
void chat_prompt_close(ChatPrompt *prompt);
/* Appends the ids of a conversation, up to what opens the assistant's turn. Special tokens are parsed in the template's own
 * text only; a BOS is put in front unless the template writes one. */
Status chat_prompt_encode(const ChatPrompt *prompt, const ChatMessage *messages, int64_t count, TokenBuffer *out, Error *err);

#endif
