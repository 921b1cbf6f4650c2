"""Adapters between nibble and PEFT, both ways, over the config's flags.

Ours: written by nibble, loaded with PeftModel.from_pretrained; the logits are ours (F32, at most 1e-4 apart).
Theirs: written by PEFT, loaded by nibble; the same. What nibble does not compute is refused by its name.
"""

import json
import os

import peft
import torch

from parity import ASSETS, ROOT, Checks, Folder, difference, load_model, probe, random_batches, random_model, read_tensors
from parity import save_model, settings, write_batches

checks = Checks()
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

OURS = {
    "plain": dict(lora_rank=4, lora_alpha=8),
    "rslora": dict(lora_rank=9, lora_alpha=6, lora_use_rslora=True),
    "one target": dict(lora_rank=3, lora_alpha=7.5, lora_target_modules="v_proj"),
    "some targets": dict(lora_rank=5, lora_alpha=16, lora_target_modules=["q_proj", "down_proj"]),
    "one layer": dict(lora_rank=5, lora_alpha=16, lora_layers=[1]),
    "one layer, some targets": dict(lora_rank=6, lora_alpha=3, lora_layers=[0], lora_target_modules=["gate_proj", "k_proj"]),
    "rank above the width": dict(lora_rank=64, lora_alpha=16),
}

THEIRS = {
    "plain": dict(r=4, lora_alpha=8, target_modules=ALL),
    "rslora": dict(r=9, lora_alpha=6, use_rslora=True, target_modules=ALL),
    "all-linear": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "regular expression": dict(r=4, lora_alpha=8, target_modules=r".*\.(q|up)_proj"),
    "layers_to_transform": dict(r=4, lora_alpha=8, target_modules=ALL, layers_to_transform=[1]),
    "rank_pattern": dict(r=4, lora_alpha=8, target_modules=ALL, rank_pattern={"q_proj": 7, "layers.1.mlp.up_proj": 2}),
    "alpha_pattern": dict(r=4, lora_alpha=8, target_modules=ALL, alpha_pattern={"v_proj": 33, r".*\.0\.mlp\.down_proj": 2}),
    "both patterns, rslora": dict(
        r=4, lora_alpha=8, target_modules=ALL, use_rslora=True, rank_pattern={"o_proj": 9}, alpha_pattern={"o_proj": 5}
    ),
    "dropout": dict(r=4, lora_alpha=8, lora_dropout=0.3, target_modules=ALL),
}

# what PEFT writes, and the word that our refusal must have
REFUSED = {
    "DoRA": (dict(r=4, target_modules=ALL, use_dora=True), "use_dora"),
    "modules_to_save": (dict(r=4, target_modules=ALL, modules_to_save=["lm_head"]), "modules_to_save"),
    "bias": (dict(r=4, target_modules=ALL, bias="all"), "bias"),
    "lora_bias": (dict(r=4, target_modules=ALL, lora_bias=True), "lora_bias"),
    "embedding": (dict(r=4, target_modules=["q_proj", "embed_tokens"]), "embed_tokens"),
    "head": (dict(r=4, target_modules=["q_proj", "lm_head"]), "lm_head"),
    "trainable tokens": (dict(r=4, target_modules=ALL, trainable_token_indices=[3]), "trainable_token_indices"),
    "layer replication": (dict(r=4, target_modules=ALL, layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
}


def wrapped_logits(model, batches):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0] for ids, _ in batches[0][0]]


def worst_difference(folder, adapter, f, batches, want):
    probe("logits", folder, f("batches"), f("out"), "--adapter", adapter, *settings(method="lora"))
    got = read_tensors(f("out"))
    return max(difference(got[f"logits.{i}"], value) for i, value in enumerate(want))


def randomize(model):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))


def check_ours(name, options, folder, f, batches, plain):
    adapter = f("ours-" + name.replace(" ", "-"))
    probe("adapter", folder, adapter, *settings(method="lora", **options))
    model = peft.PeftModel.from_pretrained(load_model(folder), adapter)
    want = wrapped_logits(model, batches)
    checks.at_most(f"ours, {name}", worst_difference(folder, adapter, f, batches, want), 1e-4)
    moved = max(difference(a, b) for a, b in zip(want, plain))
    checks.true(f"ours, {name}: the adapter moves the logits by {moved:.2g}", moved > 0.01)


def check_theirs(name, options, folder, f, batches, plain):
    adapter = f("theirs-" + name.replace(" ", "-"))
    model = peft.get_peft_model(load_model(folder), peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    randomize(model)
    model.save_pretrained(adapter)
    want = wrapped_logits(model, batches)
    checks.at_most(f"theirs, {name}", worst_difference(folder, adapter, f, batches, want), 1e-4)
    moved = max(difference(a, b) for a, b in zip(want, plain))
    checks.true(f"theirs, {name}: the adapter moves the logits by {moved:.2g}", moved > 0.01)


def check_refused(name, options, word, folder, f):
    adapter = f("refused")
    model = peft.get_peft_model(load_model(folder), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    model.save_pretrained(adapter)
    message = probe("read-adapter", os.path.join(folder, "config.json"), adapter, fails=True)
    checks.true(f"refused, {name}: {message.strip().splitlines()[-1][-110:]}", word in message)


for family in ("llama_gqa", "qwen3"):
    with Folder() as f:
        folder = f("model")
        save_model(random_model(family), folder)
        model = load_model(folder)
        batches = random_batches(8, model.config.vocab_size, 1, 1, (5, 17, 30))
        write_batches(batches, f("batches"))
        plain = wrapped_logits(model, batches)
        for name, options in OURS.items():
            check_ours(f"{name}, {family}", options, folder, f, batches, plain)
        for name, options in THEIRS.items():
            check_theirs(f"{name}, {family}", options, folder, f, batches, plain)
        for name, (options, word) in REFUSED.items() if family == "llama_gqa" else ():
            check_refused(name, options, word, folder, f)

folder = os.path.join(ASSETS, "models", "lora-adapter-qwen2.5-0.5b")
if os.path.isdir(folder):
    tensors = read_tensors(os.path.join(folder, "adapter_model.safetensors"))
    with open(os.path.join(folder, "adapter_config.json")) as file:
        config = json.load(file)
    out = probe("read-adapter", os.path.join(ROOT, "configs", "arch", "qwen2.5-0.5b.json"), folder)
    want = f"{len(tensors)} matrices, {sum(t.numel() for t in tensors.values())} numbers, scale {config['lora_alpha'] / config['r']:g}"
    checks.true(f"Qwen2.5-0.5B's adapter: {out.strip()}", out.strip() == want, f"want {want}")
else:
    print(f"SKIP Qwen2.5-0.5B's adapter: not at {folder}")
checks.finish()
