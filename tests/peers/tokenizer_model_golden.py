#!/usr/bin/env python3
"""Makes tests/golden/tokenizer_*.model and tests/golden/tokenizer_model_vectors.json.

    tests/peers/tokenizer_model_golden.py

Small SentencePiece models (0.2) and tiktoken ranks (0.14) trained on tokenizer_golden.py's text, and for each the ids and decoded
text of a few texts; tests/unit/test_tokenizer_models.c compares them. Run again only to add a kind.
"""
import base64, io, json, pathlib, tempfile

import sentencepiece
import tiktoken

from tokenizer_golden import GOLDEN, L3, SAMPLES, TEXT
from tokenizer_models import llama3_specials

MORE = ["a<sep>b  [x]", "mu\u0308ller ﬁne ﬃ  ", "\t a \u3000 b", "<ctl> <s>", "xyz" * 40]
# code points to code points, in hexadecimal: ligatures, white space, one that vanishes
RULES = "FB01\t66 69\nFB03\t66 66 69\n9\t20\nA\t20\n3000\t20\nAD\t\n75 308\tFC\n"


def sentencepiece_model(name, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(line for t in TEXT for line in t.split("\n") if line), model_writer=model,
                                             minloglevel=2, num_threads=1, hard_vocab_limit=False, **options)
    path = GOLDEN / f"tokenizer_{name}.model"
    path.write_bytes(model.getvalue())
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    texts = [{"text": t, "ids": sp.encode(t), "decoded": sp.decode(sp.encode(t))} for t in SAMPLES + MORE]
    return {"name": path.name, "texts": texts}


def tiktoken_model(name):
    model = json.loads((GOLDEN / "tokenizer_llama3_style.json").read_text())["model"]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    back = {**{chr(b): b for b in shown}, **{chr(256 + i): b for i, b in enumerate(hidden)}}
    tokens = [bytes([b]) for b in range(256)]
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        tokens.append(bytes(back[c] for c in left + right))
    path = GOLDEN / f"tokenizer_{name}.model"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    encoding = tiktoken.Encoding("golden", pat_str=L3, mergeable_ranks={t: i for i, t in enumerate(tokens)},
                                 special_tokens=llama3_specials(len(tokens)))
    texts = []
    for t in SAMPLES + MORE + ["a<|eot_id|>b<|begin_of_text|>"]:
        ids = encoding.encode(t, disallowed_special=())
        texts.append({"text": t, "ids": ids, "decoded": encoding.decode(ids)})
    return {"name": path.name, "texts": texts}


def main():
    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder) / "rules.tsv"
        rules.write_text(RULES)
        out = [
            sentencepiece_model("spm_bpe", model_type="bpe", vocab_size=440, byte_fallback=True, character_coverage=0.98,
                                normalization_rule_name="identity", remove_extra_whitespaces=False,
                                user_defined_symbols=["<sep>", "[x]", "  "], control_symbols=["<ctl>"]),
            sentencepiece_model("spm_suffix", model_type="bpe", vocab_size=200, treat_whitespace_as_suffix=True,
                                character_coverage=0.98, normalization_rule_name="identity", unk_surface="??"),
            sentencepiece_model("spm_unigram", model_type="unigram", vocab_size=160, character_coverage=0.98,
                                normalization_rule_tsv=str(rules), user_defined_symbols=["<sep>"]),
            sentencepiece_model("spm_unigram_bytes", model_type="unigram", vocab_size=380, byte_fallback=True,
                                character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=False),
            tiktoken_model("tiktoken"),
        ]
    path = GOLDEN / "tokenizer_model_vectors.json"
    path.write_text(json.dumps({"made_by": "tests/peers/tokenizer_model_golden.py", "tokenizers": out}, ensure_ascii=False,
                               separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
