"""nibble's GPTQ against one written here from the paper's formulas (Frantar et al. 2022, algorithm 1, and its act-order and damping).

    python3 tests/peers/gptq_reference.py BUILD

For the demo's base and stories3M, at 4 and 3 bits: both quantize the same linears over the same sequences, in the same order of
layers; `nibble eval` gives the perplexity of both on text that neither has seen. At most 1 % apart, in the geometric mean over
options and, at 3 bits, sets of calibration data: where rounding costs as much as it does stories3M at 3 bits, a weight that FP32 moves across
a border changes all that comes after it, and a single pair lies up to 3 % apart, to either side. Here everything is FP64 but the
model's own forward pass; the inverse of H is formed and factored as the paper writes it, one column is rounded at a time, and every
column's error goes to all columns that are left at once (no blocks).
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from parity import ASSETS, ROOT

NIBBLE = os.path.join(ROOT, "nibble")
GROUP, TOKENS, DAMPING, DRAWS = 64, 256, 0.01, 4
VARIANTS = [["--asym", "--act-order", "--static-groups"], ["--sym", "--act-order"], ["--sym"]]
STEPS = [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)]
LIMIT = 0.01
torch.set_num_threads(1)


# ---- GPTQ -------------------------------------------------------------------------------------------------------------------------------

def grid(w, bits, symmetric):
    """Scale and zero point of each row of w, a group's columns: the whole range; scales are numbers that F16 holds, as in the file."""
    top = (1 << bits) - 1
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale = ((high - low) / top).half().double()
    scale[scale == 0] = 1
    zero = torch.full_like(scale, (top + 1) / 2) if symmetric else torch.round(-low / scale).clamp(0, top)
    return scale[:, None], zero[:, None]


def rounded(w, scale, zero, bits):
    return scale * (torch.clamp(torch.round(w / scale) + zero, 0, (1 << bits) - 1) - zero)


def gptq(w, h, bits, symmetric, act_order, static_groups):
    w, h, cols = w.double().clone(), h.clone(), w.shape[1]
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    fixed = [grid(w[:, g : g + GROUP], bits, symmetric) for g in range(0, cols, GROUP)]
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if act_order else torch.arange(cols)
    w, h = w[:, order], h[order][:, order]
    h += DAMPING * h.diagonal().mean() * torch.eye(cols, dtype=h.dtype)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    out = torch.zeros_like(w)
    for i in range(cols):
        if static_groups:
            scale, zero = fixed[order[i] // GROUP]
        elif i % GROUP == 0:
            scale, zero = grid(w[:, i : i + GROUP], bits, symmetric)
        out[:, i] = rounded(w[:, i : i + 1], scale, zero, bits)[:, 0]
        error = (w[:, i] - out[:, i]) / u[i, i]
        w[:, i + 1 :] -= error[:, None] * u[i, i + 1 :]
    back = torch.empty_like(out)
    back[:, order] = out
    return back.float()


class Stop(Exception):
    pass


def inputs_of(layer, name, calls):
    """Sum of x x^T over all tokens, at a linear of a layer that is run once more."""
    linear, sums = layer.get_submodule(name), []

    def look(_, args):
        x = args[0].reshape(-1, args[0].shape[-1]).double()
        sums.append(x.T @ x)
        raise Stop

    handle = linear.register_forward_pre_hook(look)
    for args, words in calls:
        try:
            layer(*args, **words)
        except Stop:
            pass
    handle.remove()
    return 2 * sum(sums)


def first_calls(model, sequences):
    calls = []

    def look(_, args, words):
        calls.append((args, words))
        raise Stop

    handle = model.model.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    for ids in sequences:
        try:
            model(torch.tensor([ids]), use_cache=False)
        except Stop:
            pass
    handle.remove()
    return calls


def quantize(folder, sequences, bits, symmetric, act_order, static_groups):
    """The weights of the linears, by their names in the file."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    found = {}
    with torch.no_grad():
        calls = first_calls(model, sequences)
        for index, layer in enumerate(model.model.layers):
            for names in STEPS:
                h = inputs_of(layer, names[0], calls)
                for name in names:
                    weight = layer.get_submodule(name).weight
                    weight.copy_(gptq(weight, h, bits, symmetric, act_order, static_groups))
                    found[f"model.layers.{index}.{name}.weight"] = weight.clone()
            results = [layer(*args, **words) for args, words in calls]
            results = [r[0] if isinstance(r, tuple) else r for r in results]
            calls = [((r, *args[1:]), words) if args else ((), {**words, "hidden_states": r}) for r, (args, words) in zip(results, calls)]
    return found


# ---- comparing --------------------------------------------------------------------------------------------------------------------------

def run(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def perplexity(folder, held_out):
    return json.loads(run(NIBBLE, "eval", folder, "--data", held_out, "--precision", "f32", "--json"))["perplexity"]


def write_documents(path, documents):
    with open(path, "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)


def demo_documents(work):
    """Text of another seed than the base was trained on, without the documents that are in both."""
    folders = [os.path.join(work, name) for name in ("seen", "new")]
    run("make", "-C", ROOT, "build/demo/world")
    texts = []
    for folder, seed in zip(folders, ("1", "2")):
        os.mkdir(folder)
        run(os.path.join(ROOT, "build", "demo", "world"), folder, seed)
        with open(os.path.join(folder, "text.jsonl")) as file:
            texts.append([json.loads(line)["text"] for line in file])
    seen = set(texts[0])
    documents = [t for t in dict.fromkeys(texts[1]) if t not in seen]
    return [documents[:400], documents[400:800]], documents[800:2800]  # of some thirty tokens


def story_documents(_):
    with open(os.path.join(ASSETS, "datasets", "pretrain", "tinystories_1500.txt")) as file:
        stories = [s.strip() for s in file.read().split("<|endoftext|>") if s.strip()]
    return [stories[draw:640:10] for draw in range(DRAWS)], stories[1000:1200]


def ours(folder, out, bits, options, calibration, sequences):
    report = run(NIBBLE, "export", folder, "--format", "gptq", "--bits", bits, "--group", GROUP, "--calibration", calibration, "--quantizer", "gptq",
        "--calibration-samples", 1000, "--calibration-tokens", TOKENS, "--out", out, "--overwrite", "--no-verify", "--json", *options)
    seen = json.loads(report)["calibration"]
    assert (seen["sequences"], seen["tokens"]) == (len(sequences), sum(map(len, sequences))), seen
    return out


def theirs(folder, out, sequences, bits, options):
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    path = os.path.join(out, "model.safetensors")
    tensors = load_file(path)
    tensors.update(quantize(folder, sequences, bits, "--sym" in options, "--act-order" in options, "--static-groups" in options))
    os.chmod(out, 0o755)
    os.remove(path)
    save_file(tensors, path, metadata={"format": "pt"})
    return out


def apart(pairs):
    return math.exp(sum(math.log(a / b) for a, b in pairs) / len(pairs)) - 1


def check(name, folder, documents, work):
    """Prints the perplexities of every pair, ours / the formulas', and how far apart they are on the whole."""
    calibration, held_out = (os.path.join(work, f"{name}_{part}.jsonl") for part in ("calibration", "held_out"))
    draws, rest = documents(work)
    write_documents(held_out, rest)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print(f"{name}: unquantized {perplexity(folder, held_out):.4f}", flush=True)
    failed = 0
    for bits in (4, 3):
        every = []
        for options in VARIANTS:
            pairs = []
            for chosen in draws[: None if bits == 3 else 1]:
                sequences = {text: tokenizer(text).input_ids for text in chosen}
                sequences = {text: ids for text, ids in sequences.items() if len(ids) <= TOKENS}  # longer ones would be cut into pieces
                write_documents(calibration, sequences)
                a = perplexity(ours(folder, os.path.join(work, "ours"), bits, options, calibration, sequences.values()), held_out)
                b = perplexity(theirs(folder, os.path.join(work, "theirs"), sequences.values(), bits, options), held_out)
                pairs.append((a, b))
            every += pairs
            seen = ", ".join(f"{a:.4f}/{b:.4f}" for a, b in pairs)
            print(f"   {name} {bits} bits {' '.join(options)}: {seen}: {100 * apart(pairs):+.2f} %", flush=True)
        good = abs(apart(every)) <= LIMIT
        failed += not good
        print(f"{'ok' if good else 'FAILED'} {name} {bits} bits: {100 * apart(every):+.2f} % over {len(every)} pairs", flush=True)
    return failed


def main():
    models = [("demo", os.path.join(ROOT, "configs", "demo", "base"), demo_documents)]
    stories = os.path.join(ASSETS, "models", "stories3M", "hf")
    if os.path.isdir(stories):
        models.append(("stories3M", stories, story_documents))
    else:
        print("SKIP stories3M: not there")
    with tempfile.TemporaryDirectory() as work:
        failed = sum(check(*model, work) for model in models)
    sys.exit(failed > 0)


main()
