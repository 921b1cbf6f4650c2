/* Sliding-window perplexity of documents.
 *
 *   tokens   0 1 2 3 4 5 6 7 8 9 …
 *   window 0 [. x x x x x]            window 6, stride 2: x is scored, . is context
 *   window 1     [. . . . x x]
 *   window 2         [. . . . x x]
 *
 * A window of `window` tokens starts at every `stride` tokens; each scores the tokens that no window before it has scored. So
 * every token of a document but its first is scored exactly once, with at least window - stride tokens of left context (fewer
 * only at the document's start). This is the usual recipe of transformers' documentation (docs/source/en/perplexity.md), for
 * strides up to the window; windows that do not overlap leave their first tokens unscored, as it does. Windows never reach from one document into the next.
 */
#ifndef NIBBLE_TRAIN_PERPLEXITY_H
#define NIBBLE_TRAIN_PERPLEXITY_H

#include "train/batches.h"
#include "train/engine.h"
#include "train/evaluate.h"

/* tape: EVAL, with rows (and supervised) of `rows` >= window; buffer: of that capacity. 1 <= stride <= window. dataset: whole
 * documents. The engine's ranks take turns with micro-batches; all get the result, the same number for any of them. Stops
 * early with ERR_INTERRUPTED when a signal is pending on one of them. */
Status perplexity_sliding(Engine *engine, const Tape *tape, const Dataset *documents, int64_t window, int64_t stride,
                          int64_t rows, BatchBuffer *buffer, EvalResult *result, Error *err);

#endif
