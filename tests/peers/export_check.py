"""`nibble export` against transformers, PEFT and bitsandbytes.

hf:      transformers loads the folder; every weight against PEFT's merge in F32 rounded to BF16: at least 99.99 % equal, the rest one
         ulp apart; what no adapter touches is equal bit for bit
bnb-nf4: transformers with bitsandbytes loads the folder; codes and constants are those that bitsandbytes' default backend gives for
         our merged weights in F32
peft:    PEFT loads the folder; the tensors are those it was made from

Needs ./nibble (or NIBBLE) beside what the other comparisons need.
"""

import json
import os
import subprocess

import bitsandbytes
import peft
import torch

from nf4_exactness import find_default
from parity import ASSETS, ROOT, Checks, Folder, load_model, random_model, read_tensors, save_model

checks = Checks()
NIBBLE = os.environ.get("NIBBLE", os.path.join(ROOT, "nibble"))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "plain": dict(r=4, lora_alpha=8, target_modules=ALL),
    "rslora": dict(r=9, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"]),
    "patterns": dict(r=4, lora_alpha=8, target_modules=ALL, rank_pattern={"q_proj": 7}, alpha_pattern={r".*\.0\.mlp\.down_proj": 2}),
    "DoRA": dict(r=4, lora_alpha=8, target_modules=ALL, use_dora=True),
}
quantize_4bit = find_default("quantize_4bit")
quantize_blockwise = find_default("quantize_blockwise")


def export(model, out, *words):
    done = subprocess.run([NIBBLE, "export", model, "--out", out, *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"nibble export {' '.join(words)}: exit {done.returncode}\n{done.stderr}")
    with open(os.path.join(out, "export_report.json")) as file:
        return json.load(file)


def make_adapter(folder, options, out, seed):
    model = peft.get_peft_model(load_model(folder), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.02 * torch.randn(value.shape, generator=generator))
            if "magnitude" in name:
                value.mul_(1.0 + 0.05 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(out)


def compare_bf16(ours, theirs):
    """(values, values that differ, the most ulps by which one differs)"""
    values = differ = ulps = 0
    for name, got in ours.items():
        want = theirs[name].to(torch.bfloat16)
        gap = (got.view(torch.int16).int() - want.view(torch.int16).int()).abs()
        values += gap.numel()
        differ += int((gap > 0).sum())
        ulps = max(ulps, int(gap.max()))
    return values, differ, ulps


def check_hf(what, base, adapter, f):
    out = f("hf")
    export(base, out, "--adapter", adapter, "--format", "hf", "--dtype", "bf16", "--overwrite")
    merged = peft.PeftModel.from_pretrained(load_model(base), adapter).merge_and_unload().state_dict()
    ours = read_tensors(os.path.join(out, "model.safetensors"))
    values, differ, ulps = compare_bf16(ours, merged)
    checks.at_most(f"hf, {what}: {differ} of {values} weights differ", differ / values, 1e-4)
    checks.at_most(f"hf, {what}: ulps", ulps, 1)
    loaded = load_model(out, torch.bfloat16)
    state = loaded.state_dict()
    same = all(torch.equal(state[name], value) for name, value in ours.items())
    checks.true(f"hf, {what}: transformers has the same weights", same)
    checks.true(f"hf, {what}: no name is new or missing", set(ours) == set(read_tensors(os.path.join(base, "model.safetensors"))))
    logits = loaded(input_ids=torch.tensor([[1, 5, 9, 2]])).logits
    checks.true(f"hf, {what}: finite logits", bool(torch.isfinite(logits).all()))
    return values, differ


def reference_parts(weight):
    """What bitsandbytes' default backend stores for a weight: NF4, blocks of 64, double quantization. The mean of the constants is
    taken in double: torch's own, in FP32, depends on its build (quant/README.md)."""
    codes, absmax = quantize_4bit(weight, 64, "nf4", torch.uint8)
    offset = absmax.double().mean().float()
    table = bitsandbytes.functional.create_dynamic_map()
    nested_codes, nested = quantize_blockwise(absmax - offset, table, 256)
    return codes.flatten(), nested_codes.flatten(), nested.flatten(), offset.item()


def check_nf4(what, base, adapter, f):
    merged, out = f("merged"), f("nf4")
    export(base, merged, "--adapter", adapter, "--format", "hf", "--dtype", "f32", "--overwrite")
    export(base, out, "--adapter", adapter, "--format", "bnb-nf4", "--overwrite")
    weights, stored = read_tensors(os.path.join(merged, "model.safetensors")), read_tensors(os.path.join(out, "model.safetensors"))
    linears, wrong = 0, []
    for name, weight in weights.items():
        if name.split(".")[-2] not in ALL or not name.endswith(".weight"):
            if not torch.equal(stored[name], weight):
                wrong.append(name)
            continue
        linears += 1
        codes, nested_codes, nested, offset = reference_parts(weight)
        state = json.loads(bytes(stored[name + ".quant_state.bitsandbytes__nf4"].tolist()))
        if not (torch.equal(stored[name].flatten(), codes) and torch.equal(stored[name + ".absmax"], nested_codes)
                and torch.equal(stored[name + ".nested_absmax"], nested)
                and torch.tensor(state["nested_offset"], dtype=torch.float32).item() == offset):
            wrong.append(name)
    checks.true(f"bnb-nf4, {what}: the bytes of {linears} linears are bitsandbytes' own, the rest is unchanged", not wrong and linears, wrong[:3])
    loaded = load_model(out)
    count = sum(type(m).__name__ == "Linear4bit" for m in loaded.modules())
    checks.true(f"bnb-nf4, {what}: transformers loads {count} quantized linears", count == linears)
    logits = loaded(input_ids=torch.tensor([[1, 5, 9, 2]])).logits
    checks.true(f"bnb-nf4, {what}: finite logits", bool(torch.isfinite(logits).all()))


def check_peft(what, base, adapter, f):
    out = f("peft")
    export(base, out, "--adapter", adapter, "--format", "peft", "--overwrite")
    before, after = (read_tensors(os.path.join(x, "adapter_model.safetensors")) for x in (adapter, out))
    same = set(before) == set(after) and all(torch.equal(before[n], after[n]) for n in before)
    checks.true(f"peft, {what}: the same tensors", same)
    ids = torch.tensor([[1, 5, 9, 2]])
    want, got = (peft.PeftModel.from_pretrained(load_model(base), x)(input_ids=ids).logits for x in (adapter, out))
    checks.true(f"peft, {what}: the same logits", torch.equal(want, got))


def main():
    bases = {}
    with Folder() as f:
        for family in ("llama_gqa", "llama_tied_mha", "llama_biases_odd", "qwen3"):
            save_model(random_model(family), f(family))
            bases[family] = f(family)
        real = os.path.join(ASSETS, "models", "stories3M", "hf")
        if os.path.isdir(real):
            bases["stories3M"] = real
        else:
            print(f"SKIP stories3M: not at {real}")
        values = differ = 0
        for seed, (name, base) in enumerate(bases.items()):
            for kind, options in ADAPTERS.items():
                adapter, what = f(f"{name}-{kind}"), f"{name}, {kind}"
                make_adapter(base, options, adapter, seed)
                counts = check_hf(what, base, adapter, f)
                values, differ = values + counts[0], differ + counts[1]
                check_nf4(what, base, adapter, f)
                if kind != "DoRA":
                    check_peft(what, base, adapter, f)
        print(f"hf: {differ} of {values} weights differ from PEFT's merge, {differ / values:.2e}")
    checks.finish()


if __name__ == "__main__":
    main()
