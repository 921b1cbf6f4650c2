"""A LoRA step of Hugging Face transformers + PEFT on the GPU at hand, on random weights of a config's shape: what `nibble bench step
--device cuda` is put beside. 4-bit NF4 with bitsandbytes where it is installed, else BF16. Prints one JSON object. As the Trainer runs
it with bf16: adapters in FP32 under autocast, SDPA, the fused AdamW. --compile compiles the decoder layers, which are one code object, so
that it takes seconds; the head and the loss stay eager. --device cpu tries the script itself.

    python tests/peers/bench_gpu.py --arch configs/arch/llama-3-8b.json --tokens 4096 --rank 16 [--compile] [--steps 3]
"""
import argparse
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def quantize(model):
    """Replaces the layers' linears by bitsandbytes' NF4 ones, double-quantized; False where it is not installed."""
    try:
        import bitsandbytes as bnb
    except ImportError:
        return False
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                small = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=linear.bias is not None,
                                          compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4")
                small.weight = bnb.nn.Params4bit(linear.weight.data.cpu(), requires_grad=False, compress_statistics=True,
                                                 quant_type="nf4")
                if linear.bias is not None:
                    small.bias = torch.nn.Parameter(linear.bias.data, requires_grad=False)
                setattr(block, name, small.to("cuda"))
                del linear
    torch.cuda.empty_cache()
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    config = AutoConfig.for_model(**json.load(open(options.arch)))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    on_gpu = options.device == "cuda"
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    base = "nf4" if on_gpu and quantize(model) else "bf16"
    model = get_peft_model(model, LoraConfig(r=options.rank, lora_alpha=2 * options.rank, lora_dropout=0.0,
                                             target_modules=LINEARS, task_type="CAUSAL_LM"))
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    if options.compile:
        for layer in model.get_base_model().model.layers:
            layer.compile()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(0, config.vocab_size, (1, options.tokens), device=options.device)

    def step():
        with torch.autocast(options.device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait():
        if on_gpu:
            torch.cuda.synchronize()

    for _ in range(2):
        step()
    wait()
    begin = time.perf_counter()
    for _ in range(options.steps):
        step()
    wait()
    seconds = (time.perf_counter() - begin) / options.steps
    print(json.dumps({"base": base, "compiled": options.compile, "checkpointing": options.checkpointing,
                      "tokens_per_second": round(options.tokens / seconds, 1), "seconds": round(seconds, 4),
                      "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
                      "device": torch.cuda.get_device_name() if on_gpu else "cpu"}))


if __name__ == "__main__":
    main()
