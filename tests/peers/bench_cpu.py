"""A LoRA step of Hugging Face transformers + PEFT on this CPU, on random weights of a config's shape, beside `nibble bench step` of the
same shape, tokens, rank and threads, alternating in one run; medians. The base in NF4 with double quantization (bitsandbytes, where
it is installed) and in BF16. Prints tokens a second and their ratios.

    python tests/peers/bench_cpu.py [./nibble] [--arch configs/arch/smollm-135m.json] [--tokens 512] [--rank 16] [--threads 2] [--rounds 3]
"""
import argparse
import json
import statistics
import subprocess
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def quantize(model):
    """Replaces the layers' linears by bitsandbytes' NF4 ones."""
    import bitsandbytes as bnb
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                small = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16,
                                          compress_statistics=True, quant_type="nf4")
                small.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
                setattr(block, name, small.to("cpu"))
    return model


def make_step(arch, rank, tokens, nf4):
    config = AutoConfig.for_model(**json.load(open(arch)))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if nf4:
        model = quantize(model)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.randint(0, config.vocab_size, (1, tokens))

    def step():
        begin = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return tokens / (time.perf_counter() - begin)

    step()
    return step


def ours(options, settings):
    words = [options.nibble, "bench", "step", "--arch", options.arch, "--tokens", str(options.tokens), "--threads", str(options.threads), "--json",
             "--set", f"lora.rank={options.rank}"]
    for setting in settings:
        words += ["--set", setting]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", nargs="?", default="./nibble")
    parser.add_argument("--arch", default="configs/arch/smollm-135m.json")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, nf4, settings in (("NF4 + double quantization", True, []), ("BF16", False, ["method=lora"])):
        try:
            step = make_step(options.arch, options.rank, options.tokens, nf4)
        except ImportError as reason:
            print(f"skipped: {name}: {reason}")
            continue
        pairs = [(ours(options, settings), step()) for _ in range(options.rounds)]
        mine, theirs = (statistics.median(side) for side in zip(*pairs))
        print(f"{name}: nibble {mine:.1f} tokens/s, PEFT {theirs:.1f} tokens/s, {mine / theirs:.2f} times "
              f"(each round: {', '.join(f'{a / b:.2f}' for a, b in pairs)})", flush=True)


if __name__ == "__main__":
    main()
