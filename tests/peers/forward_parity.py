"""Logits against transformers with eager attention.

F32: at most 1e-4 apart, cached (probe: logits) and packed without a cache (probe: nll). BF16: our error against our F32 run is
at most twice that of transformers' BF16 run against its F32 run, as the norm over all logits of the model.
"""

import json
import os

import torch

from parity import ASSETS, MODELS, Checks, Folder, difference, load_model, probe, random_batches, random_model
from parity import read_tensors, save_model, settings, variants, write_batches

checks = Checks()


def sequences(batches):
    return [row for step in batches for micro_batch in step for row in micro_batch]


def torch_logits(model, batches):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0].float() for ids, _ in sequences(batches)]



def nll_of(logits, ids, mask):
    chosen = torch.tensor(mask[1:], dtype=torch.bool)
    return torch.nn.functional.cross_entropy(logits[:-1][chosen], torch.tensor(ids[1:])[chosen], reduction="none")


def compare(name, folder, model, batches):
    with Folder() as f:
        write_batches(batches, f("batches"))
        want = torch_logits(model, batches)
        low = torch_logits(load_model(folder, torch.bfloat16), batches)
        for variant in variants():
            probe("logits", folder, f("batches"), f("f32"), "--cpu", variant, *settings(precision="f32", method="lora"))
            probe("logits", folder, f("batches"), f("bf16"), "--cpu", variant, *settings(precision="bf16", method="lora"))
            ours, ours_low = read_tensors(f("f32")), read_tensors(f("bf16"))
            worst = worst_nll = 0.0
            error = [0.0, 0.0]
            error_max = [0.0, 0.0]
            for s, (ids, mask) in enumerate(sequences(batches)):
                worst = max(worst, difference(ours[f"logits.{s}"], want[s]))
                if any(mask):
                    worst_nll = max(worst_nll, difference(ours[f"nll.{s}"], nll_of(want[s], ids, mask)))
                deltas = (ours_low[f"logits.{s}"] - ours[f"logits.{s}"], low[s] - want[s])
                for i, delta in enumerate(deltas):
                    error[i] += float(delta.double().square().sum())
                    error_max[i] = max(error_max[i], float(delta.abs().max()))
            checks.at_most(f"{name} {variant} f32 logits", worst, 1e-4)
            checks.at_most(f"{name} {variant} f32 packed nll", worst_nll, 1e-4)
            ratio, ratio_max = (error[0] / error[1]) ** 0.5, error_max[0] / error_max[1]
            checks.at_most(f"{name} {variant} bf16 error / transformers' (largest {ratio_max:.2f})", ratio, 2.0)


for name in MODELS:
    model = random_model(name)
    with Folder() as f:
        save_model(model, f("model"))
        dynamic = "dynamic" in name
        # the scaling of a run is that of its longest sequence: here every sequence is that long
        lengths = (40, 40) if dynamic else (5, 17, 1, 40, 11)
        batches = random_batches(3, model.config.vocab_size, 2, 1, lengths)
        compare(name, f("model"), load_model(f("model")), batches)

# That what the names promise matters in these models: without it the logits are others.
REMOVED = {
    "mistral_window": {"sliding_window": None},
    "qwen2_window": {"max_window_layers": 3, "layer_types": None},
    "llama3_rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama_linear_rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama_dynamic_rope": {"max_position_embeddings": 48},
    "llama_yarn_rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "llama_gelu": {"hidden_act": "silu"},
}
for name, changes in REMOVED.items():
    with Folder() as f:
        model = random_model(name)
        save_model(model, f("model"))
        batches = random_batches(3, model.config.vocab_size, 1, 1, (40,))
        want = torch_logits(model, batches)[0]
        with open(f("model", "config.json")) as file:
            config = {**json.load(file), **changes}
        with open(f("model", "config.json"), "w") as file:
            json.dump({key: value for key, value in config.items() if value is not None}, file)
        write_batches(batches, f("batches"))
        probe("logits", f("model"), f("batches"), f("out"), *settings(method="lora"))
        off = difference(read_tensors(f("out"))["logits.0"], want)
        checks.true(f"{name} without its feature is another model: {off:.2g} off", off > 0.05)

for name in ("stories260K/hf", "stories260K/hf-bf16", "stories3M/hf", "stories3M/hf-bf16"):
    folder = os.path.join(ASSETS, "models", name)
    if not os.path.isdir(folder):
        print(f"SKIP {name}: not at {folder}")
        continue
    model = load_model(folder)
    compare(name, folder, model, random_batches(5, model.config.vocab_size, 1, 1, (64, 9, 200)))

checks.finish()
