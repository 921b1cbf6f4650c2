"""Products with frozen weights on this CPU, `nibble bench linear`, beside oneDNN's with BF16 weights that were packed beforehand
(PyTorch's mkldnn operators, those that torch.compile with freezing calls), forward (Y = X W^T) and backward (dX = dY W, for which
theirs keeps a second packed copy). Alternating in one run, a process of ours and a pass over all shapes of theirs; medians. Each call
takes another copy of its weight, so that weights come from memory on both sides. Exit status 1 where theirs packs nothing.

    python tests/peers/bench_linear.py [./nibble] [--tokens 512] [--threads 1 2] [--rounds 5] [--json FILE]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

SHAPES = [(576, 576), (576, 1536), (1536, 576), (2048, 2048), (2048, 5632), (5632, 2048)]
SAMPLE_SECONDS = 5e-3
SAMPLES = 3


def has_packed(log):
    """Whether an inner product ran on weights that are not plain rows."""
    lines = [line for line in log.splitlines() if ",inner_product," in line]
    return bool(lines) and all("wei:bf16::blocked:ab:" not in line and "wei:bf16::blocked:ba:" not in line for line in lines), lines


def probe(size):
    """One product under ONEDNN_VERBOSE; its line."""
    code = ("import torch; w = torch.ones(%d, %d, dtype=torch.bfloat16); p = torch.ops.mkldnn._reorder_linear_weight(w, 512); "
            "torch.ops.mkldnn._linear_pointwise(w[:512], p, None, 'none', [], '')" % (size, size))
    log = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "ONEDNN_VERBOSE": "1"}).stdout
    packed, lines = has_packed(log)
    print("oneDNN: " + (lines[-1].rsplit(",", 1)[0] if lines else "no inner product"))
    return packed


class Theirs:
    def __init__(self, tokens, contracted, results, cold):
        self.x = torch.randn(tokens, contracted).to(torch.bfloat16)
        copies = cold // (2 * contracted * results) + 1
        weight = (0.02 * torch.randn(results, contracted)).to(torch.bfloat16)
        self.weights = [torch.ops.mkldnn._reorder_linear_weight(weight, tokens) for _ in range(copies)]
        self.next = 0
        self.flops = 2.0 * tokens * contracted * results
        self.run(1)
        self.calls = min(64, max(1, round(SAMPLE_SECONDS / self.run(1))))

    def run(self, calls):
        begin = time.perf_counter()
        for _ in range(calls):
            torch.ops.mkldnn._linear_pointwise(self.x, self.weights[self.next], None, "none", [], "")
            self.next = (self.next + 1) % len(self.weights)
        return time.perf_counter() - begin

    def rate(self):
        return statistics.median(self.flops * self.calls / self.run(self.calls) for _ in range(SAMPLES))


def theirs(tokens, cold):
    """Both passes of all shapes, made anew in each round: what is measured next does not find its packed weights in a cache."""
    rates = {}
    for inputs, outputs in SHAPES:
        for name, contracted, results in (("forward", inputs, outputs), ("backward", outputs, inputs)):
            rates[inputs, outputs, name] = Theirs(tokens, contracted, results, cold).rate()
    return rates


def ours(options, threads):
    words = [options.nibble, "bench", "linear", "--tokens", str(options.tokens), "--threads", str(threads), "--steps", str(SAMPLES), "--json"]
    result = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    rates = {}
    for line in result["results"]:
        for weight in line["weights"]:
            rates[line["in"], line["out"][0], line["pass"], weight["weight"]] = weight["flops_per_second"]
    return rates, result


def compare(options, threads):
    torch.set_num_threads(threads)
    rounds = []
    for _ in range(options.rounds):
        mine, result = ours(options, threads)
        rounds.append((mine, theirs(options.tokens, result["cold_bytes"])))
    print(f"\n{options.tokens} tokens, {threads} thread{'s' if threads > 1 else ''}, {result['variant']}, "
          f"medians of {options.rounds} rounds; GFLOP/s, ratios within a round")
    print(f"{'shape':14} {'pass':9} {'oneDNN':>8} {'ours BF16':>10} {'ratio':>6} {'NF4':>8} {'ratio':>6} {'NF4+DQ':>8} {'ratio':>6}")
    rows = []
    for inputs, outputs in SHAPES:
        for name in ("forward", "backward"):
            key = (inputs, outputs, name)
            row = {"in": inputs, "out": outputs, "pass": name, "threads": threads, "tokens": options.tokens,
                   "onednn": statistics.median(other[key] for _, other in rounds)}
            text = f"{inputs:5} -> {outputs:5} {name:9} {row['onednn'] / 1e9:8.1f}"
            for weight, width in (("bf16", 10), ("nf4", 8), ("nf4+dq", 8)):
                row[weight] = statistics.median(mine[key + (weight,)] for mine, _ in rounds)
                row[weight + " ratio"] = statistics.median(mine[key + (weight,)] / other[key] for mine, other in rounds)
                text += f" {row[weight] / 1e9:{width}.1f} {row[weight + ' ratio']:6.2f}"
            print(text, flush=True)
            rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", nargs="?", default="./nibble")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="the rows, for further work")
    options = parser.parse_args()
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        print("skipped: this PyTorch was built without oneDNN")
        return
    if not probe(1024):
        sys.exit("oneDNN does not multiply packed weights here: not the comparison that is wanted")
    rows = []
    for threads in options.threads:
        rows += compare(options, threads)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
