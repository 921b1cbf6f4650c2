"""Folders of gptq, awq and compressed-tensors against readers that are not ours: the same weights, bit for bit.

usage: packed_formats.py BUILD      (needs numpy, torch, safetensors; compressed-tensors and transformers where they are there)
For every variant below a random model and the demo's base are exported, and nibble writes what it reads back as `--format hf --dtype
f32`. Compared with that, without tolerance:
  an unpacking written here in numpy from the formats' descriptions (words, fields, orders; nothing of nibble's code)
  what the compressed-tensors package unpacks and dequantizes (its own functions on the file's tensors)
And: transformers loads the compressed-tensors folders on the CPU; logits within 1e-4 of the largest.
"""
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIANTS = {
    "gptq": [["--sym"], ["--asym", "--group", "64"], ["--bits", "8", "--group", "-1"], ["--bits", "3", "--group", "32"],
             ["--bits", "2", "--asym", "--group", "32"]],
    "awq": [["--asym"], ["--sym", "--group", "32"], ["--group", "-1"]],
    "compressed-tensors": [["--sym"], ["--asym", "--group", "32"], ["--bits", "8", "--group", "-1"], ["--bits", "3", "--asym"],
                           ["--bits", "2"], ["--activations", "int8"], ["--activations", "int8", "--asym"]],
}
ARCH = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16"}
LOGITS = 1e-4  # both in F32; the weights are the same numbers


# ---- the formats, from their descriptions ---------------------------------------------------------------------------------------

def fields(words, bits, count):
    """Fields of `bits` bits from a stream along the last axis of 32-bit words, low bits first."""
    raw = np.ascontiguousarray(words).astype("<i4").view(np.uint8).reshape(*words.shape[:-1], -1)
    stream = np.unpackbits(raw, axis=-1, bitorder="little")[..., : count * bits]
    return (stream.reshape(*stream.shape[:-1], count, bits) * (1 << np.arange(bits))).sum(-1).astype(np.int64)


def gptq(t, name, config, rows, cols):
    bits, words = config["bits"], t[name + ".qweight"].numpy()
    codes = fields(words.T, bits, cols)  # [out, in]
    zeros = fields(t[name + ".qzeros"].numpy(), bits, rows).T  # [out, groups]
    if config["checkpoint_format"] == "gptq":
        zeros = (zeros + 1) % (1 << bits)
    return codes, zeros, t[name + ".scales"].T, t[name + ".g_idx"].numpy()


def awq(t, name, config, rows, cols):
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # the output of nibble i

    def unpack(words):
        nibbles = (words.astype(np.int64)[..., None] >> (4 * np.arange(8))) & 15
        out = np.empty_like(nibbles)
        out[..., order] = nibbles
        return out.reshape(words.shape[0], -1)

    group = config["group_size"] if config["group_size"] > 0 else cols
    codes, zeros = unpack(t[name + ".qweight"].numpy()).T, unpack(t[name + ".qzeros"].numpy()).T
    return codes, zeros, t[name + ".scales"].T, np.arange(cols) // group


def compressed(t, name, config, rows, cols):
    args = config["config_groups"]["group_0"]["weights"]
    bits, half = args["num_bits"], 1 << (args["num_bits"] - 1)
    group = args["group_size"] or cols
    scales = t[name + ".weight_scale"]
    zeros = np.full(scales.shape, half)
    if config["format"] == "int-quantized":
        codes = t[name + ".weight"].numpy().astype(np.int64) + half
        if not args["symmetric"]:
            zeros = t[name + ".weight_zero_point"].numpy().astype(np.int64) + half
    else:
        assert t[name + ".weight_shape"].tolist() == [rows, cols]
        codes = fields(t[name + ".weight_packed"].numpy(), bits, cols)
        if not args["symmetric"]:
            zeros = fields(t[name + ".weight_zero_point"].numpy().T, bits, rows).T
    return codes, zeros, scales, np.arange(cols) // group


def values(codes, zeros, scales, index):
    """(u - z) s, rounded to the scales' type, as FP32."""
    whole = torch.from_numpy((codes - zeros[:, index]).astype(np.float32))
    return (whole * scales.float()[:, torch.from_numpy(index).long()]).to(scales.dtype).float()


UNPACK = {"gptq": gptq, "awq": awq, "compressed-tensors": compressed}


# ---- compressed-tensors itself -------------------------------------------------------------------------------------------------------

def by_package(t, name, config, rows, cols):
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    parts = {n[len(name) + 1:]: v for n, v in t.items() if n.startswith(name + ".")}
    return BaseCompressor.get_value_from_registry(config["format"]).decompress(parts, scheme)["weight"].float()


# ---- comparing -------------------------------------------------------------------------------------------------------------------------

def run(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr}")


def logits_differ(nibble, folder, work):
    from transformers import AutoModelForCausalLM

    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = torch.randint(3, vocab, (40,), generator=torch.Generator().manual_seed(7)).tolist()
    out = work / "logits.safetensors"
    run(nibble, "eval", folder, "--precision", "f32", "--logits", out, "--ids", ",".join(map(str, ids)))
    # in BF16 it decompresses, at its first use, to the numbers that the format defines; then FP32, so that only weights could differ
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    with torch.no_grad():
        model(torch.tensor([ids[:2]]))
    torch.nn.Module.float(model)  # transformers' own float() refuses models that were quantized
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].float()
    ours = load_file(out)["logits"]
    return (ours - want).abs().max().item() / want.abs().max().item()


def transformers_loads(group):
    """Quantized activations would be computed, which nibble does not; and for packed zero points transformers 5.23 with
    compressed-tensors 0.20 makes parameters of another shape than the package itself writes (its compress() on meta tensors leaves
    weight_zero_point unpacked), so neither loads such folders."""
    return group["input_activations"] is None and group["weights"]["symmetric"]


def check(nibble, model, kind, options, work):
    """Returns lines that say what differs, and how many weights were compared by each reader."""
    folder, dense = work / "packed", work / "dense"
    run(nibble, "export", model, "--format", kind, "--out", folder, "--overwrite", "--no-verify", *options)
    run(nibble, "export", folder, "--format", "hf", "--dtype", "f32", "--out", dense, "--overwrite", "--no-verify")
    tensors, ours = load_file(folder / "model.safetensors"), load_file(dense / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    names = [n[: -len(".weight")] for n in ours if "_proj.weight" in n]
    readers = {"numpy": lambda *a: values(*UNPACK[kind](*a))}
    if kind == "compressed-tensors" and importlib.util.find_spec("compressed_tensors"):
        readers["compressed-tensors"] = by_package
    wrong, counts = [], {}
    for reader, read in readers.items():
        for name in names:
            want = ours[name + ".weight"]
            got = read(tensors, name, config, *want.shape)
            if not torch.equal(got, want):  # -0 and 0 are equal; there is no -0 in ours
                wrong.append(f"{reader}: {name}: {(got != want).sum().item()} of {want.numel()} values differ")
        counts[reader] = len(names)
    for name, tensor in ours.items():  # what is not quantized is as it was
        if "_proj.weight" not in name and not torch.equal(tensors[name].float(), tensor):
            wrong.append(f"{name} was changed")
    if kind == "compressed-tensors" and transformers_loads(config["config_groups"]["group_0"]) and importlib.util.find_spec("compressed_tensors"):
        difference = logits_differ(nibble, folder, work)
        counts["transformers, logits"] = f"{difference:.1e}"
        if not difference <= LOGITS:
            wrong.append(f"transformers: logits differ by {difference:.2e} of the largest")
    return wrong, counts


def main():
    build = pathlib.Path(sys.argv[1])
    nibble = ROOT / "nibble" if build.name == "release" else build / "nibble"
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        (work / "arch.json").write_text(json.dumps(ARCH))
        run(nibble, "synth", "--arch", work / "arch.json", "--out", work / "random")
        for model in (work / "random", ROOT / "configs" / "demo" / "base"):
            for kind, variants in VARIANTS.items():
                for options in variants:
                    wrong, counts = check(nibble, model, kind, options, work)
                    failed += len(wrong) > 0
                    seen = ", ".join(f"{reader}: {count}" for reader, count in counts.items())
                    print(f"{'FAILED' if wrong else 'ok'} {model.name} {kind} {' '.join(options)} ({seen})", flush=True)
                    for line in wrong[:5]:
                        print("  " + line)
    if not importlib.util.find_spec("compressed_tensors"):
        print("SKIP the compressed-tensors package: there is no such module")
    sys.exit(failed > 0)


main()
