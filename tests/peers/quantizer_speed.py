"""How fast weights are quantized, beside the programs that write the same formats: processor seconds of one thread each, taken in one
run, alternating, the best of some.

    python3 tests/peers/quantizer_speed.py build/release

NF4: tests/peers/speed_tool.c against bitsandbytes' quantize_4bit on a CPU tensor. Q4_K_M: `nibble export` of an F32 GGUF file against
llama.cpp's llama_model_quantize of the same file (llama-cpp-python, as pip builds it); both read, quantize and write. The tensors of both
files are compared: what differs is FMA in a stock build.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NIBBLE = os.path.join(ROOT, "nibble")
ROUNDS = 3
ARCH = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": None,
    "eos_token_id": 8191,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def run_timed(*words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def here_timed(work):
    begin = time.process_time()
    work()
    return time.process_time() - begin


def report(what, ours, theirs, values):
    print("%-28s ours %8.1f   theirs %8.1f   million values a second of one thread: %.2f times" % (what, values / ours / 1e6, values / theirs / 1e6, theirs / ours))
    return theirs / ours


def nf4(build):
    import torch
    import bitsandbytes.functional as F

    torch.set_num_threads(1)
    x = torch.randn(2048, 4096)
    worst = np.inf
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x")
        x.numpy().tofile(path)
        for nested in (0, 1):
            ours = theirs = np.inf
            F.quantize_4bit(x[:64], quant_type="nf4", compress_statistics=bool(nested))
            for _ in range(ROUNDS):
                tool = subprocess.run([os.path.join(build, "peers", "speed_tool"), path, "2048", "4096", str(nested)], check=True, capture_output=True, text=True)
                ours = min(ours, float(tool.stdout))
                theirs = min(theirs, here_timed(lambda: F.quantize_4bit(x, quant_type="nf4", compress_statistics=bool(nested))))
            worst = min(worst, report("NF4" + (" + DQ" if nested else ""), ours, theirs, x.numel()))
    return worst >= 3.0


def tensors(path):
    import gguf

    return {t.name: (t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def q4_k_m():
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        arch, model, plain = (os.path.join(folder, n) for n in ("arch.json", "model", "plain"))
        with open(arch, "w") as f:
            json.dump(ARCH, f)
        run_timed(NIBBLE, "synth", "--arch", arch, "--out", model)
        run_timed(NIBBLE, "export", model, "--format", "gguf", "--gguf-type", "F32", "--no-verify", "--out", plain)
        source = os.path.join(plain, "model.gguf")
        theirs_path, ours_path = os.path.join(folder, "theirs.gguf"), os.path.join(folder, "ours")
        params = llama_cpp.llama_model_quantize_default_params()
        params.nthread, params.ftype = 1, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        values = sum(int(np.prod(t.shape)) for t in __import__("gguf").GGUFReader(source).tensors if len(t.shape) == 2)
        ours = theirs = np.inf
        for _ in range(ROUNDS):
            ours = min(ours, run_timed(NIBBLE, "export", source, "--format", "gguf", "--gguf-type", "Q4_K_M", "--no-verify", "--threads", "1", "--overwrite", "--out", ours_path))
            theirs = min(theirs, here_timed(lambda: llama_cpp.llama_model_quantize(source.encode(), theirs_path.encode(), params)))
        a, b = tensors(os.path.join(ours_path, "model.gguf")), tensors(theirs_path)
        same = sum(len(a[n][1]) for n in a if a[n] == b.get(n))
        assert {n: t for n, (t, _) in a.items()} == {n: t for n, (t, _) in b.items()}, "types differ"
        off = sum(np.count_nonzero(np.frombuffer(a[n][1], np.uint8) != np.frombuffer(b[n][1], np.uint8)) for n in a)
        print("%d of %d bytes in tensors that are equal throughout; %.4f %% of all bytes differ" % (same, sum(len(d) for _, d in a.values()), 100.0 * off / sum(len(d) for _, d in a.values())))
        return report("Q4_K_M, file to file", ours, theirs, values) >= 1.0


def main():
    ok = nf4(sys.argv[1])
    try:
        import llama_cpp  # noqa: F401

        ok = q4_k_m() and ok
    except ImportError:
        print("SKIP Q4_K_M: no module llama_cpp")
    print("quantizer_speed: %s" % ("as fast as wanted (NF4 3 times, Q4_K_M once)" if ok else "SLOWER than wanted"))
    return not ok


sys.exit(main())
