"""One sequence's tokens a second beside llama.cpp's on this CPU: random weights of a config's shape, NF4 with double quantization here
(`nibble bench generate`), Q4_0 with an F16 output tensor there, the same prompt and threads, alternating in one run; medians. Prints
tokens a second, the bytes that a token reads of the weights and of keys and values, and the two's product. Also with --head q8_0 here and
a Q8_0 output tensor there.

    python tests/peers/bench_generate.py [./nibble] [--arch configs/arch/tinyllama-1.1b.json] [--threads 1,2] [--rounds 5] [--prompt 128]

Needs gguf, numpy and llama-cpp-python. The model file lies in a temporary folder (0.8 GB for the default shape).
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time

import gguf
import llama_cpp
import numpy as np

TOKENS = 17  # of a round; the first is not timed, as in nibble bench generate


def quantized(kind, rows, columns, random):
    """Rows of random blocks with scales of a usual size."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    scale = 0.02 if kind == gguf.GGMLQuantizationType.Q4_0 else 0.0005
    data[:, :, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return data.reshape(rows, -1)


def write_model(path, arch, head_kind):
    """Returns the bytes that a token reads of it: all tensors but the embedding."""
    random = np.random.default_rng(0)
    hidden, inner, layers, vocab = (arch[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    heads, kv_heads = arch["num_attention_heads"], arch["num_key_value_heads"]
    head_dim = arch.get("head_dim", hidden // heads)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(arch["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(arch["rope_theta"])
    writer.add_layer_norm_rms_eps(arch["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)] + [b"t%d" % i for i in range(vocab - 259)])
    writer.add_token_scores([0.0] * vocab)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * (vocab - 259))
    read = 0

    def add(name, data, kind=None):
        nonlocal read
        writer.add_tensor(name, data, raw_dtype=kind)
        read += data.nbytes if name != "token_embd.weight" else 0

    q4 = gguf.GGMLQuantizationType.Q4_0
    add("token_embd.weight", (random.standard_normal((vocab, hidden), dtype=np.float32) * 0.02).astype(np.float16))
    for i in range(layers):
        shapes = (("attn_q", heads * head_dim, hidden), ("attn_k", kv_heads * head_dim, hidden), ("attn_v", kv_heads * head_dim, hidden),
                  ("attn_output", hidden, heads * head_dim), ("ffn_gate", inner, hidden), ("ffn_up", inner, hidden), ("ffn_down", hidden, inner))
        for name, rows, columns in shapes:
            add(f"blk.{i}.{name}.weight", quantized(q4, rows, columns, random), q4)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{name}.weight", np.ones(hidden, np.float32))
    add("output_norm.weight", np.ones(hidden, np.float32))
    if head_kind == "f16":
        add("output.weight", (random.standard_normal((vocab, hidden), dtype=np.float32) * 0.02).astype(np.float16))
    else:
        q8 = gguf.GGMLQuantizationType.Q8_0
        add("output.weight", quantized(q8, vocab, hidden, random), q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


class Theirs:
    def __init__(self, path, arch, threads, prompt, steps):
        self.llama = llama_cpp.Llama(path, n_ctx=prompt + TOKENS * (steps + 1), n_threads=threads, n_threads_batch=threads, verbose=False)
        self.context, self.vocab, self.steps = self.llama.ctx, arch["vocab_size"], steps
        self.prompt = [(i * 7919 + 13) % self.vocab for i in range(prompt)]
        heads = arch["num_attention_heads"]
        self.row = 2 * 2 * arch["num_hidden_layers"] * arch["num_key_value_heads"] * arch.get("head_dim", arch["hidden_size"] // heads)

    def decode(self, ids):
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(ids))) != 0:
            raise SystemExit("llama_decode failed")

    def next(self):
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.argmax(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocab,))))

    def run(self):
        """Tokens a second of each round, and the mean bytes of the cache that a token read."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.decode(self.prompt)
        rates = []
        for _ in range(self.steps + 1):
            self.decode([self.next()])
            begin = time.perf_counter()
            for _ in range(TOKENS - 1):
                self.decode([self.next()])
            rates.append((TOKENS - 1) / (time.perf_counter() - begin))
        return rates[1:], self.row * (len(self.prompt) + TOKENS * (self.steps + 2) / 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble", nargs="?", default="./nibble")
    parser.add_argument("--arch", default="configs/arch/tinyllama-1.1b.json")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--heads", default="f16,q8_0")
    options = parser.parse_args()
    arch = json.load(open(options.arch))
    print(f"llama-cpp-python {llama_cpp.__version__}: {llama_cpp.llama_print_system_info().decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        for head in options.heads.split(","):
            path = os.path.join(folder, f"{head}.gguf")
            weights = write_model(path, arch, head)
            for threads in (int(n) for n in options.threads.split(",")):
                theirs = Theirs(path, arch, threads, options.prompt, options.steps)
                words = [options.nibble, "bench", "generate", "--arch", options.arch, "--threads", str(threads), "--tokens", str(options.prompt),
                         "--steps", str(options.steps), "--head", "none" if head == "f16" else head, "--json"]
                mine, other = [], []
                for _ in range(options.rounds):
                    mine.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
                    rates, cache = theirs.run()
                    other.append(statistics.median(rates))
                del theirs
                pairs = [(a["tokens_per_second"], b) for a, b in zip(mine, other)]
                speed, rival = (statistics.median(side) for side in zip(*pairs))
                my_bytes, their_bytes = mine[0]["bytes_per_step"], weights + cache
                print(f"{threads} threads, head {'16 bit' if head == 'f16' else head}: nibble {speed:.1f} tokens/s of {my_bytes / 1e6:.0f} MB = "
                      f"{speed * my_bytes / 1e9:.1f} GB/s ({100 * statistics.median(m['fraction'] for m in mine):.0f} % of the read bandwidth); "
                      f"llama.cpp {rival:.1f} of {their_bytes / 1e6:.0f} MB = {rival * their_bytes / 1e9:.1f} GB/s; "
                      f"{statistics.median(a / b for a, b in pairs):.2f} times the tokens, "
                      f"{statistics.median(a * my_bytes / (b * their_bytes) for a, b in pairs):.2f} times the bytes a second "
                      f"(tokens, each round: {', '.join(f'{a / b:.2f}' for a, b in pairs)})", flush=True)
            os.remove(path)


if __name__ == "__main__":
    main()
