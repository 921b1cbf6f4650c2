"""Writes tests/golden/parity: what tests/unit/test_parity.c compares with, where there is no Python.

Per model: the folder itself (weights in bfloat16; llama_gqa in float32), an adapter saved by PEFT, batches, and in
golden.safetensors the logits, loss and adapter gradients of step 0, F32, with eager attention, every sequence on its own.
curve: 50 losses of PEFT + AdamW on values that bitsandbytes' default functions quantized to NF4 (block 64) and decoded.
"""

# parity first: it sets the environment that torch reads
from parity import MODELS, ROOT, load_model, random_batches, random_model, save_model, step_loss, write_batches

import os
import shutil

import peft
import torch
from nf4_exactness import find_default
from safetensors.torch import save_file


OUT = os.path.join(ROOT, "tests", "golden", "parity")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS, RATE = 50, 3e-3


def wrap(model, **options):
    torch.manual_seed(2)
    options = {**dict(r=3, lora_alpha=5, target_modules=ALL, task_type="CAUSAL_LM"), **options}
    return peft.get_peft_model(model, peft.LoraConfig(**options)).eval()


def write_model(name):
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    save_model(random_model(name), folder, torch.float32 if name == "llama_gqa" else torch.bfloat16)
    os.remove(os.path.join(folder, "generation_config.json"))
    model = wrap(load_model(folder), use_rslora=name == "qwen2", rank_pattern={"v_proj": 5} if name == "qwen3" else {})
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_B" in key:
                value.copy_(0.2 * torch.randn_like(value))
    model.save_pretrained(os.path.join(folder, "adapter"))
    os.remove(os.path.join(folder, "adapter", "README.md"))
    batches = random_batches(31, model.config.vocab_size, 1, 2, (20, 20) if "dynamic" in name else (5, 13, 1, 20))
    write_batches(batches, os.path.join(folder, "batches"))
    loss = step_loss(model, batches[0])
    loss.backward()
    tensors = {"loss": loss.detach().reshape(1)}
    for key, value in model.named_parameters():
        if value.grad is not None:
            tensors[key.removeprefix("base_model.model.").replace(".default.weight", "")] = value.grad
    rows = [row for micro_batch in batches[0] for row in micro_batch]
    with torch.no_grad():
        for i, (ids, _) in enumerate(rows):
            tensors[f"logits.{i}"] = model(input_ids=torch.tensor([ids])).logits[0].contiguous()
    save_file(tensors, os.path.join(folder, "golden.safetensors"))


def write_curve(name):
    folder = os.path.join(OUT, name)
    model = load_model(folder)
    for key, value in model.named_parameters():
        if key.endswith("_proj.weight"):
            codes, absmax = find_default("quantize_4bit")(value.data, 64, "nf4", torch.uint8)
            value.data = find_default("dequantize_4bit")(codes, absmax, 64, "nf4", value.shape, torch.float32)
    model = wrap(model)
    model.save_pretrained(os.path.join(folder, "curve-adapter"))
    os.remove(os.path.join(folder, "curve-adapter", "README.md"))
    few = random_batches(33, model.config.vocab_size, 4, 2, (5, 17, 11), trained=0.7)
    write_batches(few, os.path.join(folder, "curve-batches"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    with open(os.path.join(folder, "curve"), "w") as file:
        for step in range(STEPS):
            loss = step_loss(model, few[step % len(few)])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            file.write(f"{float(loss.detach()):.9g}\n")


for name in MODELS:
    write_model(name)
write_curve("llama_gqa")
