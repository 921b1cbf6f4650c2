#!/usr/bin/env python3
"""Encodes and decodes random Unicode strings with nibble and with the `tokenizers` package and compares.

    tests/peers/tokenizer_vectors.py [--strings 5000] [--seed 1] [--assets ../shared/assets] [NAME ...]

Builds the tokenizer's sources into a shared library in a temporary folder and calls them through ctypes, so what runs
is the C code as it is. Compared per string: ids with and without the post-processor; offsets, after both are widened to
character boundaries (nibble gives bytes, the package characters); decoded text with and without special tokens; and the
text that the streaming decoder gives for ids that came from text. Characters are drawn from Unicode 3.2 plus emoji,
because the engines' newer Unicode tables differ (PCRE2 and utf8proc against Oniguruma and Rust crates).
Needs: pip install tokenizers. Prints one line per tokenizer, exits 1 on any difference.
"""
import argparse, ctypes, json, os, pathlib, random, shutil, subprocess, sys, tempfile, unicodedata

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]


class TokenBuffer(ctypes.Structure):
    _fields_ = [("ids", ctypes.POINTER(ctypes.c_int32)), ("begin", ctypes.POINTER(ctypes.c_int32)),
                ("end", ctypes.POINTER(ctypes.c_int32)), ("count", ctypes.c_int64), ("capacity", ctypes.c_int64),
                ("scratch", ctypes.c_void_p)]


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("text", ctypes.c_char * 2048)]


def build(folder):
    library = os.path.join(folder, "tokenizer.so")
    sources = [str(p) for p in sorted(ROOT.glob("data/tokenizer*.c"))] + [str(ROOT / f"data/{n}.c") for n in (
        "json", "tiktoken", "sentencepiece", "sentencepiece_build", "sentencepiece_decode", "sentencepiece_normalize",
        "sentencepiece_unigram")]
    sources += [str(ROOT / f"core/{n}.c") for n in ("error", "memory", "text", "file", "folder", "fault", "hash", "cgroup")]
    subprocess.run([os.environ.get("CC", "cc"), "-std=gnu17", "-D_GNU_SOURCE=", "-O2", "-g", "-fPIC", "-shared", f"-I{ROOT}", "-o", library,
                    *sources, "-lpcre2-8", "-lutf8proc", "-lxxhash", "-lm", "-pthread"], check=True)
    return ctypes.CDLL(library)


class Nibble:
    def __init__(self, lib, path):
        self.lib, self.err, self.handle, self.buffer = lib, Error(), ctypes.c_void_p(), TokenBuffer()
        self.check(lib.tokenizer_open(ctypes.byref(self.handle), str(path).encode(), ctypes.byref(self.err)))

    def check(self, status):
        if status:
            raise RuntimeError(self.err.text.decode(errors="replace"))

    def encode(self, data, special, parse=1):
        b = self.buffer
        b.count = 0
        self.check(self.lib.tokenizer_encode(self.handle, data, ctypes.c_size_t(len(data)), special, parse, ctypes.byref(b),
                                             ctypes.byref(self.err)))
        return b.ids[:b.count], list(zip(b.begin[:b.count], b.end[:b.count]))

    def decode(self, ids, skip):
        array, out, length = (ctypes.c_int32 * len(ids))(*ids), ctypes.c_void_p(), ctypes.c_size_t()
        self.check(self.lib.tokenizer_decode(self.handle, array, ctypes.c_int64(len(ids)), skip, ctypes.byref(out),
                                             ctypes.byref(length), ctypes.byref(self.err)))
        text = ctypes.string_at(out, length.value)
        self.lib.memory_free(out)
        return text.decode()

    def stream(self, ids):
        stream, out, length = ctypes.c_void_p(), ctypes.c_char_p(), ctypes.c_size_t()
        self.check(self.lib.token_stream_open(ctypes.byref(stream), self.handle, ctypes.byref(self.err)))
        parts = []
        for i in [*ids, None]:
            if i is None:
                status = self.lib.token_stream_flush(stream, ctypes.byref(out), ctypes.byref(length), ctypes.byref(self.err))
            else:
                status = self.lib.token_stream_next(stream, i, ctypes.byref(out), ctypes.byref(length), ctypes.byref(self.err))
            self.check(status)
            parts.append(ctypes.string_at(out, length.value).decode())  # raises on half a character
        self.lib.token_stream_close(stream)
        return "".join(parts)


def characters():
    old = unicodedata.ucd_3_2_0
    every = [chr(c) for c in range(0x110000) if old.category(chr(c)) not in ("Cn", "Cs", "Co")]
    by = lambda test: [c for c in every if test(c)]
    return {"any": every, "ascii": [chr(c) for c in range(128)], "latin": by(lambda c: 0xA0 <= ord(c) < 0x250),
            "marks": by(lambda c: old.category(c)[0] == "M"), "space": by(str.isspace) + ["\u200b", "\ufeff", "\u180e"],
            "numbers": by(lambda c: old.category(c)[0] == "N"), "cjk": [chr(c) for c in range(0x4E00, 0x9FA0)],
            "jamo": by(lambda c: 0x1100 <= ord(c) < 0x1200 or 0xAC00 <= ord(c) < 0xAC80),
            "emoji": [chr(c) for c in range(0x1F300, 0x1F640)] + ["\u200d", "\ufe0f", "\U0001F1E9", "\U0001F1EA"],
            "odd": list("'\u2019\u017f\u212a\u0130\u2581\u0120\u010a\ufffd<>|[]_\u00df")}


WORDS = ("the of and Hello world don't I'm we'LL THEY'RE it'ſ 1234567 3.14159 foo_bar() {\n\t\"a\": [1, 2]} größe "
         "naïve été 你好，世界 こんにちは Здравствуйте مرحبا 🙂👨‍👩‍👧 e\u0301 \r\n \n\n \t    <0x0A> ▁ ▁▁").split(" ")


def strings(count, seed, extra):
    rng, pools = random.Random(seed), characters()
    names = list(pools)
    for _ in range(count):
        out = []
        for _ in range(rng.randint(0, 8)):
            kind = rng.random()
            if kind < 0.35:
                out.append(rng.choice(WORDS) + rng.choice(["", " ", "  ", "\n"]))
            elif kind < 0.5 and extra:
                out.append(rng.choice(["", " ", "  \n"]) + rng.choice(extra) + rng.choice(["", " ", " \t"]))
            else:
                pool = pools[rng.choice(names)]
                out.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 12))))
        yield "".join(out)


def widen(text, spans):
    """Byte spans to character spans."""
    starts = [0]
    for c in text:
        starts.append(starts[-1] + len(c.encode()))
    char_of = {}
    for i, c in enumerate(text):
        for b in range(starts[i], starts[i + 1]):
            char_of[b] = i
    char_of[starts[-1]] = len(text)
    return [(char_of[b], char_of[e - 1] + 1 if e > b else char_of[b]) for b, e in spans]


def untrimmed(path, folder):
    """The same tokenizer without truncation, and with offsets that keep their spaces."""
    data = json.loads(pathlib.Path(path).read_text())
    data["truncation"] = data["padding"] = None
    post = data.get("post_processor")
    for p in [post, *(post or {}).get("processors", [])]:
        if p and p["type"] == "ByteLevel":
            p["trim_offsets"] = False
    out = os.path.join(folder, "peer.json")
    pathlib.Path(out).write_text(json.dumps(data))
    return Tokenizer.from_file(out), data


def normal_form(data):
    return "NF" in json.dumps(data["normalizer"])


def compare_to(lib, name, path, args, folder):
    """A folder of vocab.json and merges.txt, without any tokenizer.json, against the package's assembly of them."""
    bare = pathlib.Path(folder) / "bare"
    shutil.rmtree(bare, ignore_errors=True)
    bare.mkdir()
    for part in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(path.parent / part, bare / part)
    assembled = pathlib.Path(folder) / "assembled.json"
    (qwen if "qwen" in name else gpt2)(bare, assembled)
    return compare(lib, name, assembled, args, folder, Nibble(lib, bare))


def compare(lib, name, path, args, folder, ours=None):
    ours = ours or Nibble(lib, path)
    theirs, data = untrimmed(path, folder)
    added = [t["content"] for t in data["added_tokens"]]
    composes, size, tally, shown = normal_form(data), theirs.get_vocab_size(), {}, 0
    rng = random.Random(args.seed)

    def differ(kind, *what):
        nonlocal shown
        tally[kind] = tally.get(kind, 0) + 1
        if shown < 5:
            shown += 1
            print(f"  {name}: {kind}:", *map(repr, what))

    for text in strings(args.strings, args.seed, added):
        data = text.encode()
        for special in (0, 1):
            a, b = ours.encode(data, special), theirs.encode(text, add_special_tokens=bool(special))
            if a[0] != b.ids:
                differ("ids", text, a[0], b.ids)
                break
            if special == 0:
                spans = widen(text, a[1])
                # a composed character stands for its whole sequence here, for its first character there
                if not composes and spans != b.offsets:
                    differ("offsets", text, spans, b.offsets)
                if any(x[0] > y[0] for x, y in zip(a[1], a[1][1:])):
                    differ("order", text, a[1])
            for skip in (0, 1):
                if ours.decode(a[0], skip) != theirs.decode(b.ids, skip_special_tokens=bool(skip)):
                    differ("decode", text, ours.decode(a[0], skip), theirs.decode(b.ids, skip_special_tokens=bool(skip)))
            whole = ours.decode(a[0], 1)
            if "\ufffd" not in whole and ours.stream(a[0]) != whole:
                differ("stream", text, ours.stream(a[0]), whole)
        ids = [rng.randrange(size) for _ in range(rng.randint(0, 12))]
        if ours.decode(ids, 0) != theirs.decode(ids, skip_special_tokens=False):
            differ("decode of random ids", ids, ours.decode(ids, 0), theirs.decode(ids, skip_special_tokens=False))
        ours.stream(ids)
        noise = bytes(rng.choice((0x41, 0x20, 0x80, 0xBF, 0xC3, 0xE2, 0x98, 0xED, 0xF0, 0x9F, 0xFF)) for _ in range(12))
        if ours.encode(noise, 0)[0] != theirs.encode(noise.decode("utf-8", "replace"), add_special_tokens=False).ids:
            differ("ill-formed", noise)
    print(f"{name}: {args.strings} strings, differences: {tally or 0}", flush=True)
    return bool(tally)


def qwen(folder, out):
    """Qwen2.5's tokenizer.json assembled from its vocab.json and merges.txt by the package."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
    t = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    t.normalizer = normalizers.NFC()
    regex = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
             r"\s+(?!\S)|\s+")
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.post_processor, t.decoder = processors.ByteLevel(trim_offsets=False), decoders.ByteLevel()
    add_tokens(t, folder)
    t.save(str(out))


def gpt2(folder, out):
    from tokenizers import decoders, models, pre_tokenizers, processors
    t = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.post_processor, t.decoder = processors.ByteLevel(trim_offsets=False), decoders.ByteLevel()
    add_tokens(t, folder)
    t.save(str(out))


def add_tokens(t, folder):
    from tokenizers import AddedToken
    config = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    t.add_tokens([AddedToken(v["content"], single_word=v["single_word"], lstrip=v["lstrip"], rstrip=v["rstrip"],
                             normalized=v["normalized"], special=v["special"]) for _, v in sorted(config.items(), key=lambda x: int(x[0]))])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--assets", type=pathlib.Path, default=ROOT / "../shared/assets")
    parser.add_argument("names", nargs="*", help="only tokenizers whose name contains one of these")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lib = build(folder)
        files = sorted(args.assets.glob("tokenizers/*/*tokenizer.json")) + sorted(args.assets.glob("models/*/hf/tokenizer.json"))
        files += sorted((ROOT / "tests/golden").glob("tokenizer_*_style.json"))
        named = [("/".join(p.parts[-2:]), p) for p in files]
        if (args.assets / "tokenizers/qwen2.5/vocab.json").exists():
            qwen(args.assets / "tokenizers/qwen2.5", pathlib.Path(folder) / "qwen.json")
            named.append(("qwen2.5", pathlib.Path(folder) / "qwen.json"))
        bad = False
        for name, path in named:
            if not args.names or any(n in name for n in args.names):
                bad |= compare(lib, name, path, args, folder)
    sys.exit(bad)


if __name__ == "__main__":
    main()
