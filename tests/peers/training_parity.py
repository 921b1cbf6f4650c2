"""50 AdamW steps on an NF4 base beside PEFT + bitsandbytes on the CPU: the same first adapter (PEFT's own), the same batches.

F32, dropout 0, weight decay and clipping on. At most 1e-3 between the losses of every step; the losses must move by far more.
bitsandbytes decodes with its Python "default" functions, which are the reference: its native CPU kernel (0.50) decodes other
values where the width of a layer is no multiple of the block.
"""

# parity first: it sets the environment that torch reads
from parity import ASSETS, Checks, Folder, probe, random_batches, random_model, read_tensors, relative
from parity import save_model, settings, step_loss, variants, write_batches

import os

import peft
import torch
from nf4_exactness import find_default
import transformers


STEPS, RATE, DECAY, CLIP = 50, 1e-3, 0.01, 1.0  # at 3e-3 the runs on random text part like any two roundings do
checks = Checks()
reference = torch.library.Library("bitsandbytes", "IMPL")
for name in ("quantize_4bit", "dequantize_4bit", "quantize_blockwise", "dequantize_blockwise"):
    reference.impl(name, find_default(name), "CPU", allow_override=True)


def cycling_batches(vocab, lengths):
    """A few batches again and again, so that there is something to learn."""
    few = random_batches(21, vocab, 4, 2, lengths, trained=0.7)
    return [few[step % len(few)] for step in range(STEPS)]


def quantized(folder, double_quant):
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config, attn_implementation="eager", device_map="cpu"
    )


def train(model, batches):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    losses = []
    model.train()
    for step in batches:
        loss = step_loss(model, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def compare(name, folder, double_quant, lengths):
    model = quantized(folder, double_quant)
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets))
    batches = cycling_batches(model.config.vocab_size, lengths)
    with Folder() as f:
        wrapped.save_pretrained(f("first"))
        write_batches(batches, f("batches"))
        want = train(wrapped, batches)
        wrapped.save_pretrained(f("last"))
        last = read_tensors(f("last", "adapter_model.safetensors"))
        moved = max(want) - min(want)
        checks.true(f"{name}: the loss moves, {want[0]:.4f} to {want[-1]:.4f}", moved > 0.3)
        for variant in variants():
            out = probe("train", folder, f("batches"), f("ours"), "--adapter", f("first"), "--cpu", variant, *settings(
                method="qlora", quant_type="nf4", quant_double_quant=double_quant, train_lr=RATE, train_weight_decay=DECAY,
                train_max_grad_norm=CLIP))
            got = [float(line.split()[0]) for line in out.splitlines()]
            assert len(got) == STEPS
            worst = max(abs(a - b) for a, b in zip(got, want))
            checks.at_most(f"{name} {variant}: worst difference of {STEPS} losses", worst, 1e-3)
            ours = read_tensors(f("ours", "adapter_model.safetensors"))
            checks.true(f"{name} {variant}: same matrices", set(ours) == set(last))
            worst = max(relative(ours[key], last[key]) for key in last)
            print(f"   the adapters after {STEPS} steps differ by {worst:.2g} of their norm at most")


for double_quant in (False, True):
    label = "nf4+dq" if double_quant else "nf4"
    with Folder() as f:
        save_model(random_model("qwen3"), f("model"))
        compare(f"qwen3 {label}", f("model"), double_quant, (5, 17, 30, 11))
    folder = os.path.join(ASSETS, "models", "stories3M", "hf")
    if os.path.isdir(folder):
        compare(f"stories3M {label}", folder, double_quant, (5, 40, 24))
    else:
        print(f"SKIP stories3M: not at {folder}")
checks.finish()
