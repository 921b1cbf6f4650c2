#!/usr/bin/env python3
"""Encodes and decodes random Unicode strings with nibble and with the `tokenizers` package and compares.

    tests/peers/tokenizer_vectors.py [BUILD] [--strings 20000] [--seed 1] [--assets ../shared/assets] [--only NAME ...]

Builds the tokenizer's sources into a shared library in a temporary folder and calls them through ctypes, so what runs
is the C code as it is. Compared per string: ids with and without the post-processor; offsets, after both are widened to
character boundaries (nibble gives bytes, the package characters); decoded text with and without special tokens; and the
text that the streaming decoder gives for ids that came from text; and ids of ill-formed bytes. Characters come from every
plane, unassigned and private ones too, but more often from the classes that tokenizers treat specially; emoji sequences, control
characters and long runs of one word are among the strings. Byte-level GGUF vocabularies are compared with
the package's assembly of the same tokens and merges. Needs: pip install tokenizers, and gguf for those.
Prints one line per tokenizer, exits 1 on any difference.
"""
import argparse, ctypes, json, os, pathlib, random, shutil, subprocess, sys, tempfile, unicodedata
from concurrent.futures import ThreadPoolExecutor

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]


class TokenBuffer(ctypes.Structure):
    _fields_ = [("ids", ctypes.POINTER(ctypes.c_int32)), ("begin", ctypes.POINTER(ctypes.c_int32)),
                ("end", ctypes.POINTER(ctypes.c_int32)), ("count", ctypes.c_int64), ("capacity", ctypes.c_int64),
                ("scratch", ctypes.c_void_p)]


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("text", ctypes.c_char * 2048)]


def build(folder):
    """The sources below train/ as a shared library: position-independent, which the objects of make are not."""
    sources = [p for part in ("core", "quant", "data") for p in sorted(ROOT.glob(part + "/*.c"))]
    command = [os.environ.get("CC", "cc"), "-std=gnu17", "-D_GNU_SOURCE=", "-O2", "-g", "-ffp-contract=off", "-fPIC", f"-I{ROOT}"]

    def compile(source):
        out = os.path.join(folder, f"{source.parent.name}-{source.stem}.o")
        subprocess.run([*command, "-c", str(source), "-o", out], check=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, sources))
    library = os.path.join(folder, "tokenizer.so")
    subprocess.run([*command, "-shared", "-Wl,-z,defs", "-o", library, *objects, "-lcjson", "-lzstd", "-lz", "-lpcre2-8", "-lutf8proc",
                    "-lxxhash", "-lm", "-pthread"], check=True)
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


def newer():
    """Marks and modifier letters that are newer than the tables by which the package normalizes; utf8proc knows them."""
    from tokenizers import normalizers
    package = normalizers.NFKD()
    for c in range(0x110000):
        category = unicodedata.category(chr(c))
        if category in ("Lm", "Mn", "Mc"):
            texts = ("\u0315" + chr(c), chr(c) + "\u0334")  # marks that go before and behind it
            if any(package.normalize_str(t) != unicodedata.normalize("NFKD", t) for t in texts):
                yield chr(c)


def characters():
    """By class. What this Python's Unicode does not know is left out of the planes in which newer engines may know it: PCRE2 10.42
    knows Unicode 14 (Python 3.11), Oniguruma 6.9.9 knows 15, Rust's crates more, and a letter to one is none to the other."""
    old = unicodedata.ucd_3_2_0
    every = [chr(c) for c in range(0x110000) if old.category(chr(c)) not in ("Cn", "Cs", "Co")]
    by = lambda test: [c for c in every if test(c)]
    never = lambda c: 0x40000 <= c < 0xE0000 or c & 0xFFFE == 0xFFFE or 0xFDD0 <= c < 0xFDF0  # assigned in no version so far
    unknown = set(newer())
    planes = [chr(c) for c in range(0x110000) if chr(c) not in unknown and (never(c) or unicodedata.category(chr(c)) not in ("Cn", "Cs"))]
    return {"any": every, "planes": planes, "controls": by(lambda c: old.category(c) in ("Cc", "Cf")), "ascii": [chr(c) for c in range(128)], "latin": by(lambda c: 0xA0 <= ord(c) < 0x250),
            "marks": by(lambda c: old.category(c)[0] == "M"), "space": by(str.isspace) + ["\u200b", "\ufeff", "\u180e"],
            "numbers": by(lambda c: old.category(c)[0] == "N"), "cjk": [chr(c) for c in range(0x4E00, 0x9FA0)],
            "jamo": by(lambda c: 0x1100 <= ord(c) < 0x1200 or 0xAC00 <= ord(c) < 0xAC80),
            "emoji": [chr(c) for c in range(0x1F300, 0x1F640)] + ["\u200d", "\ufe0f", "\U0001F1E9", "\U0001F1EA"],
            "odd": list("'\u2019\u017f\u212a\u0130\u2581\u0120\u010a\ufffd<>|[]_\u00df")}


WORDS = ("the of and Hello world don't I'm we'LL THEY'RE it'ſ 1234567 3.14159 foo_bar() {\n\t\"a\": [1, 2]} größe "
         "naïve été 你好，世界 こんにちは Здравствуйте مرحبا 🙂👨‍👩‍👧 e\u0301 \r\n \n\n \t    <0x0A> ▁ ▁▁").split(" ")

RUNS = [" ", "a", "ab", "é", "▁", "🙂", "👩\u200d🚀", "\n", "the ", "0", "\0", "漢", "!", "\t", "\U000E0001", "\U0010FFFD"]


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
        if rng.random() < 0.05:
            out.append(rng.choice(RUNS) * rng.randint(20, 600))
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


def byte_spelling():
    """The character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(rest)) for b in range(256)]


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
    rng, unknown = random.Random(args.seed), set()
    if theirs.decoder and "ByteLevel" in data["decoder"]["type"]:
        unknown = {byte for byte, shown_as in enumerate(byte_spelling()) if theirs.token_to_id(shown_as) is None}

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
                # a composed character stands for its whole sequence here, for its first character there; behind a byte
                # without a token, which both leave out, the package's offsets are too small
                if not composes and not unknown.intersection(data) and spans != b.offsets:
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


# What llama.cpp's names of pre-tokenizers stand for in the models' own files.
def steps(pre):
    from tokenizers import Regex, normalizers, pre_tokenizers
    level, digits = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=True)
    if pre == "deepseek-coder":
        splits = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]
        return None, [*(pre_tokenizers.Split(Regex(s), "isolated") for s in splits), digits,
                      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return {"gpt-2": (None, [level]), "mpt": (normalizers.NFC(), [level]), "starcoder": (None, [digits, level])}[pre]


def byte_level_gguf(path, out):
    """The package's tokenizer of a byte-level GGUF vocabulary; False for another kind."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    read = lambda key: fields["tokenizer.ggml." + key].contents()
    fields = GGUFReader(path).fields
    if read("model") != "gpt2":
        return False
    tokens, types = read("tokens"), read("token_type")
    t = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in read("merges")]))
    normalizer, cuts = steps(read("pre"))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    t.post_processor, t.decoder = processors.ByteLevel(trim_offsets=False), decoders.ByteLevel()
    data = json.loads(t.to_str())
    data["added_tokens"] = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
                             "normalized": False, "special": types[i] != 4} for i in range(len(tokens)) if types[i] != 1]
    if "tokenizer.ggml.add_bos_token" in fields and read("add_bos_token"):
        bos = tokens[read("bos_token_id")]
        data["post_processor"] = {"type": "TemplateProcessing", "pair": [], "single": [
            {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [read("bos_token_id")], "tokens": [bos]}}}
    pathlib.Path(out).write_text(json.dumps(data))
    return True


def jobs(assets, folder):
    """(name, file of the package, what nibble opens; None: the same)"""
    files = [(p, None) for p in sorted(assets.glob("tokenizers/*/*tokenizer.json"))]
    files += [(p, None) for p in sorted(assets.glob("models/*/hf/tokenizer.json"))]
    for path, ours in files:
        yield str(path.relative_to(assets)), path, ours
    for path in sorted((ROOT / "tests/golden").glob("tokenizer_*_style.json")):
        yield "golden/" + path.name, path, None
    if (assets / "tokenizers/qwen2.5/vocab.json").exists():
        qwen(assets / "tokenizers/qwen2.5", pathlib.Path(folder) / "qwen.json")
        yield "tokenizers/qwen2.5, assembled", pathlib.Path(folder) / "qwen.json", None
    for path in sorted(assets.glob("tokenizers/ggml-vocab/*.gguf")):
        out = pathlib.Path(folder) / "gguf.json"
        try:
            if byte_level_gguf(path, out):
                yield str(path.relative_to(assets)), out, path
        except ImportError as error:
            print(f"SKIP {path.name}: {error}")
    for path in sorted(assets.glob("tokenizers/*/tokenizer_config.json")):
        if not any((path.parent / n).exists() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            print(f"SKIP {path.parent.name}: no vocabulary beside {path.name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", help="not used: the sources are built anew")
    parser.add_argument("--strings", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--assets", type=pathlib.Path, default=ROOT / "../shared/assets")
    parser.add_argument("--only", nargs="*", default=[], help="only tokenizers whose name contains one of these")
    args = parser.parse_args()
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        lib = build(folder)
        for name, path, ours in jobs(args.assets, folder):
            if not args.only or any(n in name for n in args.only):
                bad |= compare(lib, name, path, args, folder, Nibble(lib, ours) if ours else None)
    sys.exit(bad)


if __name__ == "__main__":
    main()
