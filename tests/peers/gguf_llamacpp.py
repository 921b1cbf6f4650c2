"""GGUF files and GGUF adapters that nibble writes, run by llama.cpp (llama-cpp-python, F32 cache).

F32 files: its tokenizer gives our ids; logits at most 1e-3 apart; the same greedy text. Quantized files: every weight dequantized
by the gguf package lies where it belongs (the proof's error, computed again from outside), argmax and KL against the same
weights in FP32; types and bytes of every tensor are those of llama-quantize. Files that llama-quantize has written, as MODEL of
nibble: weights equal the gguf package's bit for bit, logits and KL as above, and an export to the same type copies them. Adapters: logits on an F32 file equal the live adapter's. Models of llama, qwen2, qwen3, tied and untied; text
and 4-bit figures on the demo's base, whose widths fit every block.
"""

import json
import os
import shutil
import subprocess

import gguf
import llama_cpp
import numpy as np
import peft
import torch
import transformers

from parity import LLAMA3, ROOT, Checks, Folder, load_model, probe, read_tensors, rope, save_model, settings, write_batches

checks = Checks()
NIBBLE = os.path.join(ROOT, "nibble")
DEMO = os.path.join(ROOT, "configs", "demo", "base")
WIDE = dict(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=1023,
)
MODELS = {
    "llama": ("Llama", dict(tie_word_embeddings=False)),
    "llama tied": ("Llama", dict(tie_word_embeddings=True)),
    "llama3 rope": ("Llama", dict(**LLAMA3, num_key_value_heads=1, tie_word_embeddings=False)),
    "llama linear rope": ("Llama", dict(rope("linear", factor=2.5), tie_word_embeddings=False)),
    "llama yarn rope": ("Llama", dict(rope("yarn", factor=4.0, original_max_position_embeddings=32), tie_word_embeddings=False)),
    "llama biases": ("Llama", dict(attention_bias=True, tie_word_embeddings=False)),
    "mistral": ("Mistral", dict(sliding_window=None, tie_word_embeddings=False)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=False, rms_norm_eps=1e-6)),
    "qwen2 tied": ("Qwen2", dict(tie_word_embeddings=True, rms_norm_eps=1e-6)),
    "qwen3": ("Qwen3", dict(tie_word_embeddings=False, head_dim=32, rms_norm_eps=1e-6)),
    "qwen3 tied": ("Qwen3", dict(tie_word_embeddings=True, head_dim=64, rms_norm_eps=1e-6)),
}
TYPES = "F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q3_K_M Q4_K_S Q4_K_M Q5_K_M".split()
TEXTS = ["Where does Nora live?", "  two  spaces\n\nand lines\t1234567 don't", "déjà vu — 日本語 🙂", "a", "I'll SAY it's 3.14"]


def nibble(*words):
    return subprocess.run([NIBBLE, *map(str, words)], check=True, capture_output=True, text=True).stdout


def export(folder, out, kind, *words):
    nibble("export", folder, "--format", "gguf", "--gguf-type", kind, "--out", out, "--overwrite", *words)
    return os.path.join(out, "model.gguf")


def llama(path, lora=None):
    # n_ubatch covers the text: one pass, as ours
    return llama_cpp.Llama(
        model_path=path, lora_path=lora, logits_all=True, n_ctx=128, n_threads=1, type_k=0, type_v=0, verbose=False
    )


def their_logits(model, ids):
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def our_logits_of(f, folder, texts, method):
    write_batches([[[(ids, [True] * len(ids))] for ids in texts]], f("batches"))
    probe("logits", folder, f("batches"), f("ours"), *settings(precision="f32", method=method))
    tensors = read_tensors(f("ours"))
    return [tensors[f"logits.{i}"].numpy() for i in range(len(texts))]


def our_logits(f, folder, ids):
    return our_logits_of(f, folder, [ids], "lora")[0]


def make(name, folder):
    prefix, changes = MODELS[name]
    config = getattr(transformers, prefix + "Config")(**{**WIDE, **changes})
    torch.manual_seed(1 + list(MODELS).index(name))
    model = getattr(transformers, prefix + "ForCausalLM")._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, value in model.named_parameters():
            scale = 1.0 if "norm" not in key else 0.3
            value.copy_(torch.randn_like(value) * scale * (1.0 / 16 if value.ndim == 2 else 0.3) + (1.0 if "norm" in key else 0.0))
    save_model(model.eval(), folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(DEMO, file), folder)
    return model


def random_ids(seed, count=40):
    return torch.randint(3, 1000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def compare_logits(name):
    with Folder() as f:
        make(name, f("model"))
        ids = random_ids(5)
        theirs = their_logits(llama(export(f("model"), f("out"), "F32")), ids)
        ours = our_logits(f, f("model"), ids)
        checks.at_most(f"{name}: F32 logits", float(np.abs(ours - theirs).max()), 1e-3)
        checks.at_most(f"{name}: F32 argmax that differ", int((ours.argmax(-1) != theirs.argmax(-1)).sum()), 0)


def random_adapter(folder, out, rslora):
    model = peft.get_peft_model(
        load_model(folder),
        peft.LoraConfig(r=4, lora_alpha=6, use_rslora=rslora, target_modules="all-linear", rank_pattern={"v_proj": 7}),
    )
    torch.manual_seed(9)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.copy_(torch.randn_like(value) * 0.05)
    model.save_pretrained(out)


def compare_adapter(name, rslora):
    with Folder() as f:
        make(name, f("model"))
        random_adapter(f("model"), f("adapter"), rslora)
        nibble("export", f("model"), "--adapter", f("adapter"), "--format", "lora-gguf", "--out", f("lora"))
        base = export(f("model"), f("out"), "F32")
        ids = random_ids(6)
        theirs = their_logits(llama(base, os.path.join(f("lora"), "adapter.gguf")), ids)
        with torch.no_grad():
            live = peft.PeftModel.from_pretrained(load_model(f("model")), f("adapter"))
            ours = live(input_ids=torch.tensor([ids])).logits[0].numpy()
        label = f"{name}: adapter{' (rsLoRA)' if rslora else ''}"
        checks.at_most(f"{label} logits", float(np.abs(ours - theirs).max()), 1e-3)
        alone = their_logits(llama(base), ids)
        checks.at_most(f"{label} changes nothing", int(np.abs(alone - theirs).max() < 0.01), 0)  # or the test is empty


def compare_text(name, folder, texts):
    with Folder() as f:
        model = llama(export(folder, f("out"), "F32"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        wrong = 0
        for text in texts:
            ours = tokenizer(text).input_ids
            theirs = model.tokenize(text.encode(), add_bos=True, special=True)
            wrong += ours != theirs
        checks.at_most(f"{name}: texts with other ids", wrong, 0)
        ours = json.loads(nibble("generate", folder, "--prompt", TEXTS[0], "--max-tokens", 24, "--precision", "f32", "--json"))
        ids, theirs = model.tokenize(TEXTS[0].encode(), add_bos=True, special=True), []
        while len(theirs) < len(ours["ids"]):
            theirs.append(int(their_logits(model, ids + theirs)[-1].argmax()))
        checks.at_most(f"{name}: greedy ids that differ", sum(a != b for a, b in zip(ours["ids"], theirs)), 0)


def unpermute(weight, heads):
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def load_dequantized(path, folder):
    """The file's weights, by the gguf package, as the transformers model of `folder`."""
    model = load_model(folder)
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    worst = 0.0
    with torch.no_grad():
        for key, value in model.named_parameters():
            tensor = tensors[names.get_name(key, try_suffixes=(".weight", ".bias"))]
            data = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
            if "q_proj" in key or "k_proj" in key:
                data = unpermute(data, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
            new = torch.from_numpy(np.array(data, dtype=np.float32))
            worst = max(worst, float((new.double() - value.double()).norm() / value.double().norm()))
            value.copy_(new)
    return model, worst


def compare_types(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with open(os.path.join(os.path.dirname(folder), "held_out.jsonl"), encoding="utf-8") as file:
        texts = [" ".join(str(v) for v in json.loads(line).values()) for line in file][:40]
    for kind in TYPES:
        with Folder() as f:
            path = export(folder, f("out"), kind)
            with open(os.path.join(f("out"), "export_report.json"), encoding="utf-8") as file:
                said = max(weight["relative_error"] for weight in json.load(file)["weights"])
            model, worst = load_dequantized(path, folder)
            theirs, same, total, divergence = llama(path), 0, 0, 0.0
            for text in texts:
                ids = tokenizer(text).input_ids[:100]
                with torch.no_grad():
                    ours = model(input_ids=torch.tensor([ids])).logits[0].double()
                got = torch.from_numpy(their_logits(theirs, ids)).double()
                same += int((ours.argmax(-1) == got.argmax(-1)).sum())
                total += len(ids)
                p = ours.log_softmax(-1)
                divergence += float((p.exp() * (p - got.log_softmax(-1))).sum())
            checks.at_most(f"{kind}: reported worst error against the gguf package's", abs(said - worst), 1e-5 * worst + 1e-9)
            checks.at_most(f"{kind}: argmax that differ, of {total}", (total - same) / total, 0.02)
            checks.at_most(f"{kind}: mean KL", divergence / total, 1e-2)


FILE_TYPES = dict(F16=1, BF16=32, Q8_0=7, Q4_0=2, Q4_1=3, Q5_0=8, Q5_1=9, Q2_K=10, Q3_K=11, Q5_K=16, Q6_K=18)
FILE_TYPES.update(Q3_K_M=12, Q4_K_S=14, Q4_K_M=15, Q5_K_M=17)


def compare_quantize(folder):
    """llama-quantize on our F32 file against our own file: each tensor's type and bytes. Q4_K is no choice of llama-quantize's."""
    with Folder() as f:
        source = export(folder, f("f32"), "F32", "--no-verify")
        for kind, file_type in FILE_TYPES.items():
            quantized_by_llama(source, f("theirs"), file_type)
            ours = {t.name: t for t in gguf.GGUFReader(export(folder, f("out"), kind, "--no-verify")).tensors}
            theirs = {t.name: t for t in gguf.GGUFReader(f("theirs")).tensors}
            same = ours.keys() == theirs.keys()
            types = [name for name in theirs if not same or ours[name].tensor_type != theirs[name].tensor_type]
            data = [name for name in theirs if not types and not np.array_equal(ours[name].data, theirs[name].data)]
            checks.at_most(f"{kind}: tensors of another type than llama-quantize's", len(types), 0)
            checks.at_most(f"{kind}: tensors with other bytes", len(data), 0)


def quantized_by_llama(source, out, file_type):
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 1
    assert llama_cpp.llama_model_quantize(source.encode(), out.encode(), parameters) == 0, out
    return out


def wrong_weights(path, config, out, method):
    """Names of the weights that nibble decodes otherwise than the gguf package."""
    probe("dense", path, out, *settings(precision="f32", method=method))
    ours, wrong = read_tensors(out), []
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
    names = gguf.get_tensor_name_map(arch[config.model_type], config.num_hidden_layers)
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for key, value in ours.items():
        tensor = tensors[names.get_name(key, try_suffixes=(".weight", ".bias"))]
        data = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if config.model_type in ("llama", "mistral") and ("q_proj" in key or "k_proj" in key):
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            data = unpermute(data.reshape(-1, 1 if data.ndim == 1 else data.shape[-1]), heads)
        if not np.array_equal(value.numpy().reshape(-1).view(np.uint32), np.ascontiguousarray(data).reshape(-1).view(np.uint32)):
            wrong.append(key)
    wrong += [name for name in tensors if name != "rope_freqs.weight" and len(tensors) - ("rope_freqs.weight" in tensors) != len(ours)]
    return wrong


def read_back(name, folder, kinds, texts=None):
    """Files by llama-quantize as nibble's MODEL. texts: ids whose logits are compared (of random weights 4-bit logits say little)."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with Folder() as f:
        source = export(folder, f("f32"), "F32", "--no-verify")
        ids = random_ids(7)
        ours = our_logits(f, source, ids)
        checks.at_most(f"{name}: F32 file as MODEL, logits", float(np.abs(ours - their_logits(llama(source), ids)).max()), 1e-3)
        for kind in kinds:
            path = quantized_by_llama(source, f("theirs.gguf"), FILE_TYPES[kind])
            method = "lora" if kind in ("F16", "BF16") else "qlora"  # which keeps blocks as they are, and would quantize these
            checks.at_most(f"{name} {kind} as MODEL: weights with other bits", len(wrong_weights(path, config, f("dense"), method)), 0)
            again = export(path, f("again"), kind, "--no-verify")
            a, b = ({t.name: t for t in gguf.GGUFReader(p).tensors} for p in (path, again))
            copied = [k for k in a if k in b and a[k].tensor_type == b[k].tensor_type and np.array_equal(a[k].data, b[k].data)]
            checks.at_most(f"{name} {kind} exported to {kind}: tensors that differ", len(a) - len(copied) + len(b) - len(a), 0)
            if texts is None:
                continue
            theirs, same, total, divergence = llama(path), 0, 0, 0.0
            for ids, ours in zip(texts, our_logits_of(f, path, texts, method)):
                ours = torch.from_numpy(ours).double()
                got = torch.from_numpy(their_logits(theirs, ids)).double()
                same += int((ours.argmax(-1) == got.argmax(-1)).sum())
                total += len(ids)
                p = ours.log_softmax(-1)
                divergence += float((p.exp() * (p - got.log_softmax(-1))).sum())
            checks.at_most(f"{name} {kind} as MODEL: argmax that differ, of {total}", (total - same) / total, 0.02)
            checks.at_most(f"{name} {kind} as MODEL: mean KL", divergence / total, 1e-2)


def read_all():
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    with open(os.path.join(os.path.dirname(DEMO), "held_out.jsonl"), encoding="utf-8") as file:
        texts = [" ".join(str(v) for v in json.loads(line).values()) for line in file][:40]
    read_back("demo base", DEMO, FILE_TYPES, [tokenizer(text).input_ids[:100] for text in texts])
    for name in MODELS:
        with Folder() as f:
            make(name, f("model"))
            read_back(name, f("model"), ("Q8_0", "Q4_0", "Q4_K_M", "Q2_K", "F16"))


for name in MODELS:
    compare_logits(name)
for name in ("llama", "qwen2 tied", "qwen3"):
    compare_adapter(name, rslora=False)
compare_adapter("llama", rslora=True)
compare_text("demo base", DEMO, TEXTS)
STORIES = os.path.join(os.path.dirname(ROOT), "shared", "assets", "models", "stories3M", "hf")
if os.path.isdir(STORIES):
    # its tokenizer.json adds no space in front of one; llama.cpp always does, and the export says so
    compare_text("stories3M", STORIES, [text for text in TEXTS if text[0] != " "])
else:
    print(f"SKIP stories3M: {STORIES} is not there")
compare_types(DEMO)
compare_quantize(DEMO)
read_all()
checks.finish()
