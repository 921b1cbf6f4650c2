/* A byte-level BPE tokenizer learned from text (Sennrich, Haddow and Birch, ACL 2016; bytes as in GPT-2).
 *
 * Merges stay inside words, which are cut as GPT-2 does; only letters are merged. The text is ASCII.
 */
#ifndef NIBBLE_DEMO_BPE_H
#define NIBBLE_DEMO_BPE_H

#include <stdio.h>

typedef struct Bpe Bpe;

Bpe *bpe_create(void);
void bpe_count(Bpe *bpe, const char *text); /* adds the words of a text */
void bpe_learn(Bpe *bpe, int vocabulary);   /* 256 bytes, merges, and as the last id the end of text */
void bpe_print(const Bpe *bpe, FILE *file); /* tokenizer.json */
void bpe_free(Bpe *bpe);

#endif
