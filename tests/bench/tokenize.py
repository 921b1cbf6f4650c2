#!/usr/bin/env python3
"""Throughput of encoding beside the `tokenizers` package: one core, one run, the same text in the same pieces.

    tests/bench/tokenize.py PROGRAM TEXT TOKENIZER... [--piece 2000] [--seconds 10] [--rounds 5]

A tiktoken file (Llama 3's tokenizer.model) is first written as the tokenizer.json that transformers makes of it, for both sides.
PROGRAM is tests/bench/tokenize.c. Both sides take turns, in seconds of the processor, the best pass of a turn counts; printed are medians over the rounds, and
the least of their ratios. Both must give equally many tokens.
"""
import argparse, base64, os, statistics, subprocess, sys, tempfile, time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer


L3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
      r"\s+(?!\S)|\s+")


def as_json(path, folder):
    """Byte-level BPE with every way to cut a token in two as a merge."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    spell = {**{b: chr(b) for b in shown}, **{b: chr(256 + i) for i, b in enumerate(hidden)}}
    ranks = {base64.b64decode(k): int(v) for k, v in (l.split() for l in open(path, "rb").read().splitlines() if l)}
    word = lambda token: "".join(spell[b] for b in token)
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(word(l), word(r)) for l, r in sorted(cuts, key=lambda c: (ranks[c[0]], ranks[c[1]]))]
    t = Tokenizer(models.BPE({word(k): v for k, v in ranks.items()}, merges, ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(L3), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    out = os.path.join(folder, "llama3.json")
    t.save(out)
    return out


def pieces(text, size):
    data, at = text, 0
    while at < len(data):
        end = len(data) if len(data) - at <= size else (data.find(b"\n", at + size) + 1 or len(data))
        yield data[at:end].decode()
        at = end


def theirs(path, data, size, seconds):
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    texts, best, spent, count = list(pieces(data, size)), 0.0, 0.0, 0
    while spent < seconds:
        start, count = time.process_time(), 0
        for text in texts:
            count += len(tokenizer.encode(text, add_special_tokens=False))
        took = time.process_time() - start
        best, spent = max(best, len(data) / 1e6 / took), spent + took
    return best, count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("text")
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--piece", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    data, bad = open(args.text, "rb").read(), False
    folder = tempfile.TemporaryDirectory()
    for path in args.tokenizers:
        name = path
        if path.endswith(".model"):
            path = as_json(path, folder.name)
        rates = []
        for _ in range(args.rounds):
            out = subprocess.run([args.program, path, args.text, str(args.piece), str(args.seconds / args.rounds)],
                                 check=True, capture_output=True, text=True).stdout.split()
            rate, count = theirs(path, data, args.piece, args.seconds / args.rounds)
            rates.append((float(out[0]), rate))
            bad |= int(out[1]) != count
        ours_rate, their_rate = (statistics.median(side) for side in zip(*rates))
        ratios = [a / b for a, b in rates]
        print(f"{name}: nibble {ours_rate:.1f} MB/s, tokenizers {their_rate:.1f} MB/s, ratio {statistics.median(ratios):.2f} (least {min(ratios):.2f} of "
              f"{args.rounds}), {count} tokens{'' if int(out[1]) == count else f' DIFFER from {out[1]}'}", flush=True)
    sys.exit(bad)


if __name__ == "__main__":
    main()
