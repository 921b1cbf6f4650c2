"""Folders from `nibble quantize` against transformers + bitsandbytes: the same logits in F32.

usage: quantized_logits.py NIBBLE MODEL...      (each MODEL a 16- or 32-bit Hugging Face folder)
Each model is quantized (nf4, nf4 without double quantization, fp4), loaded by transformers on the CPU, and asked for the logits
of a fixed sequence; `nibble eval --logits` gives ours. Bound: largest difference at most 1e-4 of the largest |logit|.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BOUND = 1e-4
VARIANTS = {"nf4": [], "nf4-no-double": ["--no-double-quant"], "fp4": ["--type", "fp4"]}


def ids_for(folder, count=48):
    vocab = json.loads((pathlib.Path(folder) / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, vocab, (count,), generator=generator).tolist()


def main():
    nibble, models = sys.argv[1], sys.argv[2:]
    failed = 0
    for model in models:
        ids = ids_for(model)
        for name, options in VARIANTS.items():
            with tempfile.TemporaryDirectory() as folder:
                out, logits = f"{folder}/q", f"{folder}/logits.safetensors"
                subprocess.run([nibble, "quantize", model, "--out", out, *options], check=True, capture_output=True)
                subprocess.run([nibble, "eval", out, "--precision", "f32", "--logits", logits, "--ids", ",".join(map(str, ids))],
                               check=True, capture_output=True)
                ours = load_file(logits)["logits"]
                theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
                theirs.train()  # bitsandbytes' packed CPU inference computes in BF16; this path does not
                for module in theirs.modules():
                    if hasattr(module, "compute_dtype"):
                        module.compute_dtype, module.compute_type_is_set = torch.float32, True
                with torch.no_grad():
                    want = theirs(torch.tensor([ids])).logits[0].float()
            difference = (ours - want).abs().max().item() / want.abs().max().item()
            verdict = "ok" if difference <= BOUND else "FAILED"
            failed += verdict != "ok"
            print(f"{verdict} {model} {name}: largest difference {difference:.2e} of the largest |logit|", flush=True)
    sys.exit(failed > 0)


main()
