#!/usr/bin/env python3
"""Folders of `nibble quantize` in transformers + bitsandbytes, and theirs in our loader.

Run from the repository root after `make`, with torch, transformers and bitsandbytes:
    python3 tests/peers/load_quantized.py [MODEL...]
For each model (default: ../shared/assets/models/stories*/hf*) and each type:
  ours    `nibble quantize`, loaded by transformers on the CPU; every linear's decoded F32 weight must equal, bit for bit,
          what our loader gives for the same folder, and the logits must be finite
  theirs  (4 bit) quantized and saved by transformers, with two quant_storage types; our loader must give, bit for bit, what
          bitsandbytes' default backend decodes from the same files
"""
import glob, json, logging, os, subprocess, sys, tempfile, warnings

import numpy as np
import torch
import transformers

sys.path.insert(0, os.path.dirname(__file__))
import nf4_exactness as exact
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
dequantize_4bit = exact.find_default("dequantize_4bit")
dequantize_blockwise = exact.find_default("dequantize_blockwise")


def decoded(module):
    """The module's weight in F32 by the default backend's arithmetic."""
    weight = module.weight
    if weight.dtype == torch.int8:
        scale = module.state.SCB if module.state.SCB is not None else weight.SCB
        return weight.data.float() * scale.view(-1, 1) * 7.874015718698502e-3
    state = weight.quant_state
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2.absmax, state.state2.code, 256, torch.float32) + state.offset
    return dequantize_4bit(weight.data, absmax, state.blocksize, state.quant_type, state.shape, torch.float32)


def linears(model):
    return {name + ".weight": module for name, module in model.named_modules()
            if type(module).__name__ in ("Linear4bit", "Linear8bitLt")}


def compare(what, model, ours):
    modules = linears(model)
    if set(modules) != set(ours):
        return f"{what}: other linears: {sorted(set(modules) ^ set(ours))[:4]}"
    for name, module in modules.items():
        want, got = decoded(module).reshape(ours[name].shape).numpy(), ours[name]
        differ = int((want.view(np.uint32) != np.ascontiguousarray(got).view(np.uint32)).sum())
        differ -= int(((want == 0) & (got == 0) & (np.signbit(want) != np.signbit(got))).sum())  # -0 is 0
        if differ:
            return f"{what}: {name}: {differ} of {want.size} values differ"
    return None


def main():
    assets = sorted(glob.glob("../shared/assets/models/stories*/hf*"))
    models = sys.argv[1:] or assets
    if not models:
        print("skipped: no models given and ../shared/assets is not there")
        return 0
    nibble = os.environ.get("NIBBLE", "./nibble")
    ours, failed, checked = exact.Ours(), 0, 0
    for model in models:
        dtype = getattr(torch, json.load(open(os.path.join(model, "config.json"))).get("torch_dtype", "float32"))
        for options in (["--type", "nf4"], ["--type", "nf4", "--no-double-quant"], ["--type", "fp4", "--block-size", "128"],
                        ["--type", "int8"]):
            with tempfile.TemporaryDirectory() as folder:
                out = os.path.join(folder, "q")
                subprocess.run([nibble, "quantize", model, "--out", out] + options, check=True, stdout=subprocess.DEVNULL)
                loaded = AutoModelForCausalLM.from_pretrained(out, dtype=dtype, device_map="cpu")
                problem = compare(f"ours {model} {options}", loaded, ours.folder_weights(out))
                logits = loaded(torch.tensor([[1, 5, 9, 200, 300]])).logits
                if not torch.isfinite(logits).all():
                    problem = problem or f"ours {model} {options}: logits are not finite"
                print(problem or f"ok: ours {model} {' '.join(options)}: {len(linears(loaded))} linears equal bit for bit")
                failed += problem is not None
                checked += 1
        for kind in ("nf4", "fp4"):
            for nested in (False, True):
                for storage in (torch.uint8, torch.bfloat16):
                    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested,
                                                bnb_4bit_quant_storage=storage, bnb_4bit_compute_dtype=torch.float32)
                    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=config, dtype=dtype,
                                                                  device_map="cpu")
                    what = f"theirs {model} {kind} nested={nested} {storage}"
                    with tempfile.TemporaryDirectory() as folder:
                        loaded.save_pretrained(folder)
                        problem = compare(what, loaded, ours.folder_weights(folder))
                    print(problem or f"ok: {what}")
                    failed += problem is not None
                    checked += 1
    print(f"{checked} folders, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
