"""The gradient of every adapter matrix over packed ragged sequences against autograd through PEFT, F32.

The torch side runs each sequence on its own, on the dense base, or on the values that our quantized base decodes to; the loss is
the sum over trained tokens divided by their number. Relative norm error of every matrix: at most 1e-4.
"""

import peft
import torch

from parity import MODELS, Checks, Folder, probe, random_batches, random_model, read_tensors, relative, save_model
from parity import settings, step_loss, variants, write_batches

checks = Checks()
BASES = {
    "dense": dict(method="lora"),
    "nf4": dict(method="qlora", quant_type="nf4", quant_double_quant=False),
    "nf4+dq": dict(method="qlora", quant_type="nf4", quant_double_quant=True),
    "fp4": dict(method="qlora", quant_type="fp4", quant_double_quant=False),
    "int8": dict(method="qlora", quant_type="int8"),
    "int4": dict(method="qlora", quant_type="int4", quant_block_size=32),
}


def torch_gradients(model, adapter, step):
    wrapped = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    loss = step_loss(wrapped, step)
    loss.backward()
    out = {}
    for name, value in wrapped.named_parameters():
        if value.grad is not None:
            out[name.removeprefix("base_model.model.").replace(".default.weight", "")] = value.grad
    wrapped.unload()
    return float(loss.detach()), out


def compare(name, base, runs):
    options = settings(**BASES[base], lora_rank=5, lora_alpha=13, train_lr=0.0)
    model = random_model(name)
    with Folder() as f:
        save_model(model, f("model"))
        batches = random_batches(11, model.config.vocab_size, 1, 3, (40, 40) if "dynamic" in name else (5, 17, 1, 40, 11))
        write_batches(batches, f("batches"))
        probe("adapter", f("model"), f("adapter"), *options)
        if base != "dense":
            probe("dense", f("model"), f("dense"), *options)
            missing, unexpected = model.load_state_dict(read_tensors(f("dense")), strict=False)
            assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        loss, want = torch_gradients(model, f("adapter"), batches[0])
        for variant, recompute in runs:
            out = probe("gradients", f("model"), f("batches"), f("out"), "--adapter", f("adapter"), "--cpu", variant,
                        *options, *settings(train_recompute=recompute))
            got = read_tensors(f("out"))
            label = f"{name} {base} {variant} recompute {recompute}"
            checks.at_most(f"{label} loss", abs(float(out.split()[0]) - loss), 1e-5)
            checks.true(f"{label} names", set(got) == set(want), f"{set(got) ^ set(want)}")
            worst = max((relative(got[key], want[key]) for key in want if key in got), default=float("nan"))
            checks.at_most(f"{label}: worst of {len(want)} gradients", worst, 1e-4)
            checks.true(f"{label}: none is zero", all(float(value.norm()) > 0 for value in want.values()))


every = [(variant, "none") for variant in variants()] + [(variants()[-1], "layers")]
for name in MODELS:
    compare(name, "dense", every)
for base in ("nf4", "nf4+dq", "fp4", "int8", "int4"):
    compare("llama_tied_mha", base, every)
for base in ("nf4", "nf4+dq", "int8"):
    compare("llama_biases_odd", base, every)
checks.finish()
