"""Log-likelihoods of multiple-choice options against transformers, prompt by prompt.

    python3 tests/peers/suite_parity.py BUILD

The prompts are made here from the CSV files by the benchmark's own recipe, shots dropped from the front where the context is
too short. Needs ../shared/assets (stories3M and the MMLU subjects); without them it is skipped.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ASSETS = os.path.join(ROOT, "..", "shared", "assets")
MODEL = os.path.join(ASSETS, "models", "stories3M", "hf")
MMLU = os.path.join(ASSETS, "datasets", "mmlu")
SHOTS, LIMIT, ROOM = 5, 6, 8
BOUND = 1e-3  # the issue's; FP32 on both sides gives 1e-5


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.reader(file) if row and row[5] != "answer"]


def question(row):
    return row[0] + "".join(f"\n{'ABCD'[i]}. {row[1 + i]}" for i in range(4)) + "\nAnswer:"


def prompts(tokenizer, subject, context):
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    shots = [question(r) + f" {'ABCD'[int(r[5])]}\n\n" for r in rows(os.path.join(MMLU, "dev", subject + "_dev.csv"))[:SHOTS]]
    for row in rows(os.path.join(MMLU, "test", subject + "_test.csv"))[:LIMIT]:
        for first in range(len(shots) + 1):
            text = head + "".join(shots[first:]) + question(row)
            ids = tokenizer(text)["input_ids"]
            if len(ids) + ROOM <= context:
                break
        else:
            ids = ids[:1] + ids[len(ids) - (context - ROOM) + 1 :]
        whole = [tokenizer(text + " " + letter)["input_ids"] for letter in "ABCD"]
        plain = len(tokenizer(text)["input_ids"])
        yield ids, [w[plain:] for w in whole], len(shots) - first


def main():
    if not os.path.isdir(MODEL) or not os.path.isdir(MMLU):
        print("SKIP suite_parity: no ../shared/assets")
        return 0
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32).eval()
    context = model.config.max_position_embeddings
    program = os.path.join(ROOT, "nibble")
    with tempfile.TemporaryDirectory() as folder:
        details = os.path.join(folder, "details.jsonl")
        command = [program, "eval", MODEL, "--suite", "mmlu:" + MMLU, "--precision", "f32", "--limit", str(LIMIT)]
        subprocess.run(command + ["--details", details], check=True, capture_output=True)
        with open(details) as file:
            ours = [json.loads(line) for line in file]
    worst, count, differing, dropped, at = 0.0, 0, 0, 0, 0
    for subject in sorted(name[:-9] for name in os.listdir(os.path.join(MMLU, "test")) if name.endswith("_test.csv")):
        for ids, options, shots in prompts(tokenizer, subject, context):
            item = ours[at]
            at += 1
            if (item["subject"], item["prompt_tokens"], item["shots"]) != (subject, len(ids), shots):
                print(f"FAILED {subject} {item['index']}: {item['prompt_tokens']} tokens and {item['shots']} shots, "
                      f"transformers' prompt has {len(ids)} and {shots}")
                return 1
            dropped += shots < SHOTS
            values = []
            for option in options:
                with torch.no_grad():
                    logits = model(torch.tensor([ids + option])).logits[0].double().log_softmax(-1)
                values.append(sum(logits[len(ids) - 1 + i, token].item() for i, token in enumerate(option)))
            worst = max([worst] + [abs(a - b) for a, b in zip(values, item["loglik"])])
            differing += max(range(4), key=lambda c: values[c]) != item["choice"]
            count += 4
    good = at == len(ours) and worst <= BOUND and differing == 0
    print(f"{'ok' if good else 'FAILED'} {count} options of {at} questions ({dropped} with shots dropped): worst difference "
          f"{worst:.3g} (limit {BOUND}), {differing} choices differ")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
