#!/usr/bin/env python3
"""Encodes and decodes random strings with nibble and with `sentencepiece`, `tiktoken` or `tokenizers`, where a folder has no
tokenizer.json, and compares.

    tests/peers/tokenizer_models.py [BUILD] [--strings 20000] [--seed 1] [--assets ../shared/assets] [--only NAME ...]

SentencePiece models: ids of strings over all planes of Unicode (unassigned and private characters too), of ill-formed bytes, and
the text of random ids and of ids that came from text; GGUF files with SentencePiece's vocabulary are compared with the model that
they were made of. tiktoken ranks: ids with and without special tokens, decoded text; characters as in tokenizer_vectors.py.
vocab.json with merges.txt: against the `tokenizers` package's own assembly of the same files. Needs: pip install sentencepiece
tiktoken tokenizers.
Prints one line per tokenizer, exits 1 on any difference.
"""
import argparse, base64, pathlib, random, shutil, sys, tempfile

from tokenizer_vectors import Nibble, ROOT, build, compare_to, strings

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")


def with_planes(count, seed, extra=()):
    """strings() with more of the characters that are not assigned."""
    rng = random.Random(seed + 1)
    for text in strings(count, seed, list(extra)):
        if rng.random() < 0.3:
            codes = (rng.randrange(0x110000) if rng.random() < 0.7 else rng.randrange(0x3000) for _ in range(rng.randint(1, 20)))
            text += "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)
        yield text


class Report:
    def __init__(self, name):
        self.name, self.tally = name, {}

    def differ(self, kind, *what):
        self.tally[kind] = self.tally.get(kind, 0) + 1
        if sum(self.tally.values()) <= 5:
            print(f"  {self.name}: {kind}:", *(repr(w)[:600] for w in what))

    def close(self, count):
        print(f"{self.name}: {count} strings, differences: {self.tally or 0}", flush=True)
        return bool(self.tally)


def noise(rng):
    return bytes(rng.choice((0x41, 0x20, 0x80, 0xBF, 0xC3, 0xE2, 0x96, 0x81, 0x98, 0xED, 0xF0, 0x9F, 0xFF))
                 for _ in range(rng.randint(1, 16)))


def check_sentencepiece(lib, name, path, args, folder, gguf=None):
    import sentencepiece
    alone = pathlib.Path(folder) / "tokenizer.model"  # without the settings beside it
    shutil.copyfile(path, alone)
    ours, theirs, report = Nibble(lib, gguf or alone), sentencepiece.SentencePieceProcessor(model_file=str(alone)), Report(name)
    rng = random.Random(args.seed)
    extra = [theirs.id_to_piece(i) for i in range(theirs.get_piece_size()) if theirs.is_control(i) or theirs.is_unknown(i)][:40]
    extra += [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())
              if not theirs.is_control(i) and theirs.get_score(i) == 0 and not theirs.is_byte(i)][:40]
    for text in with_planes(args.strings, args.seed, extra):
        if gguf:  # "</s>" is a user-defined token in Phi-3's file
            text = text.replace("</s>", "")
        got, want = ours.encode(text.encode(), 0, 0)[0], theirs.encode(text)
        if got != want:
            report.differ("ids", text, got, want)
            continue
        if ours.decode(got, 1) != theirs.decode(want):
            report.differ("decode", text, ours.decode(got, 1), theirs.decode(want))
        if ours.stream(got) != theirs.decode(want):
            report.differ("stream", text, ours.stream(got), theirs.decode(want))
        ids = [rng.randrange(theirs.get_piece_size()) if rng.random() < 0.5 else rng.randrange(260)
               for _ in range(rng.randint(0, 12))]
        ids = [i for i in ids if not (gguf and i == 2)]
        if ours.decode(ids, 1) != theirs.decode(ids):
            report.differ("decode of random ids", ids, ours.decode(ids, 1), theirs.decode(ids))
        broken = noise(rng)
        if ours.encode(broken, 0, 0)[0] != theirs.encode(broken):
            report.differ("ill-formed", broken, ours.encode(broken, 0, 0)[0], theirs.encode(broken))
    return report.close(args.strings)


def check_gguf(lib, name, path, args, folder):
    """Llama 2's pieces and scores in a GGUF file."""
    return check_sentencepiece(lib, name, args.assets / "tokenizers/llama2/tokenizer.model", args, folder, gguf=path)


def llama3_specials(base):
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
    rest = (f"<|reserved_special_token_{i}|>" for i in range(251))
    return {named.get(i) or next(rest): base + i for i in range(256)}


def check_tiktoken(lib, name, path, args, folder):
    import tiktoken
    ranks = {base64.b64decode(k): int(v) for k, v in (l.split() for l in pathlib.Path(path).read_bytes().splitlines() if l)}
    specials = llama3_specials(len(ranks))
    theirs = tiktoken.Encoding("peer", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=specials)
    alone = pathlib.Path(folder) / "tokenizer.model"
    shutil.copyfile(path, alone)
    ours, report, rng = Nibble(lib, alone), Report(name), random.Random(args.seed)
    for text in strings(args.strings, args.seed, list(specials)[:16]):
        got, want = ours.encode(text.encode(), 0, 1)[0], theirs.encode(text, allowed_special="all")
        if got != want:
            report.differ("ids", text, got, want)
            continue
        if ours.decode(got, 0) != theirs.decode(want):
            report.differ("decode", text, ours.decode(got, 0), theirs.decode(want))
        if ours.encode(text.encode(), 0, 0)[0] != theirs.encode(text, disallowed_special=()):
            report.differ("plain", text)
        if ours.encode(text.encode(), 1, 1)[0] != [specials["<|begin_of_text|>"], *want]:
            report.differ("bos", text)
        ids = [rng.randrange(len(ranks) + 256) for _ in range(rng.randint(0, 12))]
        # special tokens cut characters there, the byte-level decoder of the `tokenizers` package joins them
        ids = [i for i in ids if i < len(ranks)]
        if ours.decode(ids, 0) != theirs.decode(ids):
            report.differ("decode of random ids", ids, ours.decode(ids, 0), theirs.decode(ids))
        broken = noise(rng)
        if ours.encode(broken, 0, 0)[0] != theirs.encode(broken.decode("utf-8", "replace")):
            report.differ("ill-formed", broken)
    return report.close(args.strings)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", help="not used: the sources are built anew")
    parser.add_argument("--strings", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--assets", type=pathlib.Path, default=ROOT / "../shared/assets")
    parser.add_argument("--only", nargs="*", default=[], help="only tokenizers whose name contains one of these")
    args = parser.parse_args()
    a = args.assets / "tokenizers"
    models = [a / "llama2/tokenizer.model", a / "mistral/tokenizer.model.v1", a / "mistral/tokenizer.model.v3",
              a / "small-torchtune/m.model", args.assets / "models/stories260K/hf/tokenizer.model"]
    jobs = [(p, check_sentencepiece) for p in models]
    jobs += [(a / "llama3/tokenizer.model", check_tiktoken), (a / "small-torchtune/tiktoken_small.model", check_tiktoken)]
    jobs += [(a / "gpt2/vocab.json", compare_to), (a / "qwen2.5/vocab.json", compare_to)]
    jobs += [(a / f"ggml-vocab/ggml-vocab-{n}.gguf", check_gguf) for n in ("llama-spm", "phi-3")]
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        lib = build(folder)
        for path, check in jobs:
            name = "/".join(path.parts[-3 if path.parts[-2] == "hf" else -2:])
            if args.only and not any(n in name for n in args.only):
                continue
            if not path.exists():
                print(f"SKIP {name}: {path} is not there")
                continue
            bad |= check(lib, name, path, args, folder)
    for path in [*sorted(a.glob("*/*.bin")), *sorted(args.assets.glob("models/*/llama2c/tok*.bin"))]:
        print(f"SKIP {path.parent.name}/{path.name}: llama2.c's form of a tokenizer that is compared in another form")
    sys.exit(bad)


if __name__ == "__main__":
    main()
