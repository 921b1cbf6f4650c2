#!/usr/bin/env python3
"""Blocks of ggml's types against ggml itself and against the gguf package, byte for byte.

Run from the repository root, after `make peers-programs`, in a Python with numpy, gguf and safetensors:
    python3 tests/peers/ggml_blocks.py build/release --ggml libggml-base.so [--assets ../shared/assets]
        [--golden tests/golden/ggml_blocks.bin]

libggml-base.so: ggml 0.25.3 from the sources of llama-cpp-python 0.3.36 (vendor/llama.cpp/ggml/src: ggml.c, ggml-quants.c,
ggml-alloc.c, ggml-backend.cpp, ggml-backend-meta.cpp, ggml-opt.cpp, ggml-threading.cpp, gguf.cpp, ggml.cpp), compiled with
`-O2 -DNDEBUG -ffp-contract=off -fPIC -shared` and no -march. Without --ggml only the gguf package is compared with (it decodes
every type, and quantizes those with blocks of 32).

--stock LIB: also a build as it is shipped or made for this machine, with FMA where the compiler likes: blocks that differ are counted, at
most 1 % of a type's, and the RMS error of both has to be equal within 0.1 %.

Golden file: "NGB1", i32 tensors; for each i32 rows, cols, cases, f32 x[rows*cols], f32 importance[cols]; for each case i32 type,
is_weighted, i64 bytes, the blocks and, unless weighted, f32 decoded[rows*cols].
"""
import argparse, ctypes, glob, os, struct, subprocess, sys, tempfile

import gguf
import numpy as np

TYPES = "F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
BY_PACKAGE = {"F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"}
UNWEIGHTED = {"F16", "BF16", "Q8_0"}


def number(name):
    return int(getattr(gguf.GGMLQuantizationType, name))


class Ggml:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_void_p]

    def quantize(self, name, x, importance):
        block, size = gguf.GGML_QUANT_SIZES[number(name)]
        out = np.zeros(x.size // block * size, np.uint8)
        weights = None if importance is None else importance.ctypes.data
        n = self.lib.ggml_quantize_chunk(number(name), x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], weights)
        assert n == out.size
        return out

    def dequantize(self, name, data, shape):
        out = np.empty(shape, np.float32)
        convert = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}.get(name, "dequantize_row_" + name.lower().replace("_k", "_K"))
        getattr(self.lib, convert)(ctypes.c_void_p(data.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size))
        return out


class Ours:
    def __init__(self, build, folder):
        self.tool, self.folder, self.threads = os.path.join(build, "peers", "ggml_tool"), folder, 0

    def run(self, verb, name, shape, data, importance, dtype):
        a, b, c = (os.path.join(self.folder, n) for n in "abc")
        data.tofile(a)
        command = [self.tool, verb, name, *map(str, shape), a, b, str(1 + self.threads % 3)]
        self.threads += 1
        if importance is not None:
            importance.tofile(c)
            command.append(c)
        done = subprocess.run(command, capture_output=True, text=True)
        return np.fromfile(b, dtype) if done.returncode == 0 else done.stderr.strip()


def edges(rng):
    """Rows of 256 that hurt: zero blocks, constants, ties, tiny and huge values, denormals, single outliers."""
    rows = [np.zeros(256), -np.zeros(256), np.full(256, 0.7), np.full(256, -0.7), np.tile([1.0, -1.0], 128), np.arange(256) - 128.0]
    rows += [np.where(np.arange(256) % 32 < 16, 0.0, rng.normal(size=256)), np.where(np.arange(256) == 77, 100.0, rng.normal(size=256))]
    rows += [rng.normal(size=256) * s for s in (1e-45, 1e-42, 1e-38, 1e-20, 1e-16, 1e-9, 1e-6, 1e-4, 1e3, 2e4)]
    rows += [np.abs(rng.normal(size=256)), -np.abs(rng.normal(size=256)), 1000 + rng.normal(size=256) * 1e-5, np.round(rng.normal(size=256) * 4) / 2]
    rows += [np.where(np.arange(256) // 16 % 2, rng.normal(size=256) * 1e-3, rng.normal(size=256) * 10), rng.standard_cauchy(256).clip(-5e3, 5e3)]
    rows += [np.repeat(rng.normal(size=16), 16), np.repeat(rng.normal(size=8), 32), np.full(256, 1e-45), np.tile([3e-8, -3e-8, 0, 6e-8], 64)]
    return np.array(rows, np.float64).astype(np.float32)


def tensors(assets):
    rng = np.random.default_rng(6)
    yield "normal", rng.normal(size=(512, 1024)).astype(np.float32)
    yield "small", (rng.normal(size=(256, 2048)) * 0.02).astype(np.float32)
    yield "laplace", rng.laplace(size=(256, 512)).astype(np.float32)
    yield "uniform", rng.uniform(-1, 1, size=(256, 512)).astype(np.float32)
    yield "student", (rng.standard_t(3, size=(512, 256)) * 0.05).astype(np.float32)
    yield "edges", edges(rng)
    for path in sorted(glob.glob(os.path.join(assets, "models", "**", "*.safetensors"), recursive=True)):
        from safetensors import safe_open
        import torch

        with safe_open(path, "pt") as file:
            flat = [file.get_tensor(k).to(torch.float32).numpy().ravel() for k in file.keys() if file.get_slice(k).get_dtype() in ("F32", "BF16", "F16")]
        if flat:
            values = np.concatenate(flat)[: 8 << 20]
            yield os.path.relpath(path, assets), values[: values.size // 1024 * 1024].reshape(-1, 1024).copy()


def same(got, want):
    return isinstance(got, np.ndarray) and got.nbytes == want.nbytes and np.array_equal(got.view(np.uint8).ravel(), want.view(np.uint8).ravel())


def compare(args, ours, ggml):
    failed, blocks, decoded, refused = 0, {}, {}, 0
    for title, x in tensors(args.assets):
        rng = np.random.default_rng(len(title))
        importance = (rng.standard_normal(x.shape[1]) ** 2 + (rng.random(x.shape[1]) < 0.9) * 0.01).astype(np.float32)
        for name in TYPES:
            block, size = gguf.GGML_QUANT_SIZES[number(name)]
            for weights in (None, importance)[: 1 if name in UNWEIGHTED or ggml is None else 2]:
                if ggml is None and name not in BY_PACKAGE:
                    continue
                keep = [i for i in range(len(x)) if title != "edges" or not isinstance(ours.run("quantize", name, (1, 256), x[i : i + 1], weights, np.uint8), str)]
                refused += len(x) - len(keep)
                part = x[keep]
                want = ggml.quantize(name, part, weights) if ggml else gguf.quants.quantize(part, getattr(gguf.GGMLQuantizationType, name))
                got = ours.run("quantize", name, part.shape, part, weights, np.uint8)
                what = "%s %s%s" % (title, name, " weighted" if weights is not None else "")
                if not same(got, want):
                    failed += 1
                    where = got if isinstance(got, str) else "%d of %d blocks" % (np.any(got.reshape(-1, size) != want.view(np.uint8).reshape(-1, size), 1).sum(), got.size // size)
                    print("DIFFERS %s: %s" % (what, where))
                blocks[name, weights is not None] = blocks.get((name, weights is not None), 0) + part.size // block
                if weights is None and name in BY_PACKAGE and title != "edges" and ggml:
                    package = gguf.quants.quantize(part, getattr(gguf.GGMLQuantizationType, name))
                    if not same(got, package):
                        failed += 1
                        print("DIFFERS from the gguf package: %s" % what)
                failed += compare_decoding(ours, ggml, name, want.view(np.uint8).ravel(), part.shape, what)
                decoded[name] = decoded.get(name, 0) + part.size
    for (name, weighted), count in sorted(blocks.items()):
        print("%-5s%-9s %9d blocks compared" % (name, " weighted" if weighted else "", count))
    print("%d values decoded and compared; %d edge rows refused (scales beyond 16-bit floats)" % (sum(decoded.values()), refused))
    return failed


def compare_stock(args, ours, stock):
    """A build with FMA rounds otherwise: how many blocks become others, and what that does to the error."""
    counts, failed = {}, 0
    for title, x in tensors(args.assets):
        if title == "edges":  # one block in four is a tie there
            continue
        importance = (np.random.default_rng(len(title)).standard_normal(x.shape[1]) ** 2).astype(np.float32)
        for name in TYPES:
            size = gguf.GGML_QUANT_SIZES[number(name)][1]
            for weights in (None, importance)[: 1 if name in UNWEIGHTED else 2]:
                both = [ours.run("quantize", name, x.shape, x, weights, np.uint8), stock.quantize(name, x, weights).view(np.uint8).ravel()]
                row = counts.setdefault((name, weights is not None), [0, 0, 0.0, 0.0])
                row[0] += int(np.any(both[0].reshape(-1, size) != both[1].reshape(-1, size), 1).sum())
                row[1] += both[0].size // size
                for i, data in enumerate(both):  # relative to the tensor: some have far larger values than others
                    error = np.subtract(ours.run("dequantize", name, x.shape, data, None, np.float32).reshape(x.shape), x, dtype=np.float64)
                    row[2 + i] += (error**2).sum() / np.square(x, dtype=np.float64).sum()
    for (name, weighted), (differ, blocks, a, b) in sorted(counts.items()):
        rms = abs((a / b) ** 0.5 - 1) if b > 0 else 0.0
        good = differ <= 0.01 * blocks and rms <= 1e-3
        failed += not good
        print("%s %-5s%-9s %6d of %8d blocks differ (%.3f %%); RMS error differs by %.5f %%" % ("ok" if good else "FAILED", name, " weighted" if weighted else "", differ, blocks, 100 * differ / blocks, 100 * rms))
    return failed


def compare_decoding(ours, ggml, name, data, shape, what):
    failed = 0
    got = ours.run("dequantize", name, shape, data, None, np.float32)
    package = gguf.quants.dequantize(data.reshape(shape[0], -1), getattr(gguf.GGMLQuantizationType, name)).astype(np.float32)
    if not (isinstance(got, np.ndarray) and np.array_equal(got.reshape(shape), package)):
        failed += 1
        print("DECODES DIFFERENTLY from the gguf package: %s" % what)
    if ggml and not same(got, ggml.dequantize(name, data, shape)):
        failed += 1
        print("DECODES DIFFERENTLY from ggml: %s" % what)
    return failed


def random_blocks(ours, ggml):
    """Decoding of bytes that no quantizer made."""
    failed, rng = 0, np.random.default_rng(7)
    for name in TYPES:
        block, size = gguf.GGML_QUANT_SIZES[number(name)]
        shape = (64, 1024)
        data = rng.integers(0, 256, 64 * 1024 // block * size, np.uint8)
        scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2)}.get(name, (0,))
        for at in scales if name != "BF16" else ():
            data.reshape(-1, size)[:, at + 1] &= 0xBB  # finite
        if name == "BF16":
            data.reshape(-1, 2)[:, 1] &= 0xBF
        failed += compare_decoding(ours, ggml, name, data, shape, "random bytes " + name)
    return failed


def write_golden(path, ggml):
    rng = np.random.default_rng(11)
    edge = edges(rng)
    chosen = [rng.normal(size=(2, 256)), rng.standard_t(3, size=(2, 256)) * 0.05, edge[[0, 3, 7, 10, 13, 14]]]
    with open(path, "wb") as out:
        out.write(b"NGB1" + struct.pack("<i", len(chosen)))
        for x in chosen:
            x = np.ascontiguousarray(x, np.float32)
            importance = (rng.standard_normal(256) ** 2).astype(np.float32)
            cases = [(n, w) for n in TYPES for w in (0, 1) if not (w and n in UNWEIGHTED)]
            out.write(struct.pack("<iii", *x.shape, len(cases)) + x.tobytes() + importance.tobytes())
            for name, weighted in cases:
                data = ggml.quantize(name, x, importance if weighted else None)
                out.write(struct.pack("<iiq", number(name), weighted, data.size) + data.tobytes())
                if not weighted:
                    out.write(ggml.dequantize(name, data, x.shape).tobytes())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--ggml")
    parser.add_argument("--stock")
    parser.add_argument("--assets", default="../shared/assets")
    parser.add_argument("--golden")
    args = parser.parse_args()
    ggml = Ggml(args.ggml) if args.ggml else None
    if args.golden:
        write_golden(args.golden, ggml)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(args.build, folder)
        failed = compare(args, ours, ggml) + random_blocks(ours, ggml)
        if args.stock:
            failed += compare_stock(args, ours, Ggml(args.stock))
    print("ggml_blocks: %d comparisons failed" % failed)
    return failed > 0


sys.exit(main())
