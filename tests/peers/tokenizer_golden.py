#!/usr/bin/env python3
"""Makes tests/golden/tokenizer_*.json and tests/golden/tokenizer_vectors.json with the `tokenizers` package (0.23).

    tests/peers/tokenizer_golden.py

Small tokenizers of every supported shape, trained on the text below (written for this), and for each the ids, decoded
text and character offsets of a few texts. Run again only to add a shape; the vectors are then compared by
tests/unit/test_tokenizer.c.
"""
import json, pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
TEXT = [
    "The miller's cat slept on the sack of flour, and the miller didn't mind; he'd rather have cats than mice.",
    "We'll weigh 1234 sacks today, 56 tomorrow and 7 the day after. That's 1297 sacks in three days!",
    "    def weigh(sack):\n        return sack.weight * 2\n\n    for sack in sacks:\n        print(weigh(sack))\n",
    "Der Müller wog die Säcke: größer, schöner, früher. Le café est fermé, l'été est fini.",
    "Мельник взвесил мешки. 磨坊主称了面粉。粉屋は小麦粉を量った。",
    "They're sure I've seen it, I'm certain you're right, and she'd say WE'LL SEE.",
] * 3
L3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
      r"\s+(?!\S)|\s+")
O200K = "|".join([  # gpt-oss
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")  # Phi-4: cut out as matches of an inverted, removing split
DEEPSEEK_CODER = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
               r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
               r"\s*[\r\n]+|\s+(?!\S)|\s+"]
Q2 = L3.replace(r"\p{N}{1,3}", r"\p{N}")
SAMPLES = [
    "", " ", "Hello, world", "  The cat's  12345 sacks\n\n  WE'LL see\tnow \r\n ", "x'ſ it'S 'Ll", "Müller Mu\u0308ller ﬁne ﬃ Ⅻ ½ x²",
    "é e\u0301 가 \u1100\u1161 ｶﾞ ﷺ İı", "磨坊主。 🙂👨\u200d👩\u200d👧 \u00a0\u3000x\u2028y\u0085z\u180e", "<s>text</s> text<s>", "a<|sep|>b <|sep|> c<|sep|>",
    "the word wordy sword word, WORD  pad   [pad]  end", "١٢٣ 12 ½Ⅻ a1b22c333", "▁▁ _ ▁the", "tab\tnew\nline  two   three    ",
]


def save(name, tokenizer):
    path = GOLDEN / f"tokenizer_{name}.json"
    tokenizer.save(str(path), pretty=False)
    texts = []
    for text in SAMPLES:
        plain, special = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text)
        texts.append({"text": text, "ids": plain.ids, "special": special.ids, "decoded": tokenizer.decode(plain.ids, False)})
    return {"name": path.name, "texts": texts}


def train(tokenizer, size, special, initial=()):
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                                            initial_alphabet=list(initial)))
    return tokenizer


def byte_level(name, first, normalizer, special, post, last=(), **model):
    t = Tokenizer(models.BPE(**model))
    if normalizer:
        t.normalizer = normalizer
    last = last or [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    t.pre_tokenizer = pre_tokenizers.Sequence([*first, *last])
    t.decoder = decoders.ByteLevel()
    train(t, 480, special, pre_tokenizers.ByteLevel.alphabet())
    t.post_processor = post(t)
    return save(name, t)


def odd_tokens(t):
    """One of every flag."""
    t.add_tokens([AddedToken("<|sep|>", lstrip=True, rstrip=True, normalized=False), AddedToken("word", single_word=True),
                  AddedToken("[pad]", lstrip=True, special=True), AddedToken("pad", rstrip=True, normalized=False)])


def sentencepiece(name, normalizer, pre, decoder, add):
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer, t.decoder = normalizer, decoder
    if pre:
        t.pre_tokenizer = pre
    train(t, 600, ["<unk>", "<s>", "</s>", *bytes_])
    data = json.loads(t.to_str())
    data["added_tokens"] = data["added_tokens"][:3]  # the byte tokens belong to the model
    t = Tokenizer.from_str(json.dumps(data))
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    if add:
        odd_tokens(t)
    return save(name, t)


def split(regex):
    return pre_tokenizers.Split(Regex(regex), "isolated")


def trimless(_):
    return processors.ByteLevel(trim_offsets=False)


def main():
    begin = ("<|begin_of_text|>", 0)
    out = [
        byte_level("llama3_style", [pre_tokenizers.Split(Regex(L3), "isolated")], None, ["<|begin_of_text|>", "<|eot_id|>"],
                   lambda t: processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
                       single="<|begin_of_text|> $A", special_tokens=[begin])]), ignore_merges=True),
        byte_level("qwen2_style", [pre_tokenizers.Split(Regex(Q2), "isolated")], normalizers.NFC(),
                   ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], lambda t: processors.ByteLevel(trim_offsets=False)),
        byte_level("digits_style", [pre_tokenizers.Digits(individual_digits=True),
                                    pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.Split(",", "removed"),
                                    pre_tokenizers.Split(Regex(r"\w+"), "contiguous", invert=True)],
                   normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]), ["<s>"],
                   lambda t: processors.ByteLevel(trim_offsets=False)),
        byte_level("o200k_style", [split(O200K)], None, ["<|startoftext|>", "<|endoftext|>"], trimless),
        byte_level("phi4_style", [pre_tokenizers.Split(Regex(CL100K), "removed", invert=True)], None, ["<|endoftext|>"], trimless),
        byte_level("deepseek_coder_style", [*map(split, DEEPSEEK_CODER), pre_tokenizers.Digits(individual_digits=True)], None,
                   ["<|EOT|>"], trimless),
        byte_level("deepseek_v3_style", [*map(split, DEEPSEEK_V3)], None, ["<|end_of_sentence|>"], trimless),
        byte_level("starcoder_style", [pre_tokenizers.Digits(individual_digits=True)], None, ["<|endoftext|>"], trimless,
                   [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]),
        byte_level("falcon_style", [pre_tokenizers.Punctuation("contiguous")], None, [">>TITLE<<", "<|endoftext|>"], trimless,
                   [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), pre_tokenizers.Digits(individual_digits=False),
                    split("[0-9][0-9][0-9]")]),
        sentencepiece("gemma2_style", normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                      decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), True),
        sentencepiece("llama2_style", normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
                      decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)]), True),
        sentencepiece("metaspace_style", normalizers.NFD(), pre_tokenizers.Metaspace(prepend_scheme="first", split=True),
                      decoders.Metaspace(prepend_scheme="first"), True),
        sentencepiece("gemma_style", normalizers.Sequence([normalizers.NFKD(), normalizers.Replace(" ", "▁")]),
                      pre_tokenizers.Split(" ", "merged_with_previous"),
                      decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), False),
    ]
    path = GOLDEN / "tokenizer_vectors.json"
    path.write_text(json.dumps({"made_by": "tests/peers/tokenizer_golden.py with tokenizers 0.23.3", "tokenizers": out},
                               ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
