#!/usr/bin/env python3
"""NF4, FP4, double quantization and INT8 against bitsandbytes' Python `default` backend, byte for byte.

Run from the repository root, with torch and bitsandbytes (0.50.2 made the committed golden file) and a build:
    make && python3 tests/peers/nf4_exactness.py [--variant ref|avx2|avx512] [--golden tests/golden/quant_4bit.bin]

The reference is the functions of bitsandbytes/backends/default/ops.py themselves (not what the dispatcher would pick on a
CPU, where compiled code takes the 8-bit part), on one torch thread. The one exception that is allowed for: an all-zero
short last block or group, where the reference stores 1e-38 and we store 0.
"""
import argparse, glob, os, struct, subprocess, sys, tempfile

import numpy as np
import torch
import bitsandbytes
from bitsandbytes import _ops  # noqa: F401  (registers the operators)
from bitsandbytes.backends.default import ops as default_ops
from bitsandbytes.functional import create_dynamic_map, get_4bit_type

torch.set_num_threads(1)
FORMATS = {"nf4": 3, "fp4": 4}
INT8 = 5
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def find_default(name):
    """The function that default/ops.py registers under `name`: module-level functions there all are called `_`."""
    import inspect, re, textwrap

    source = inspect.getsource(default_ops)
    match = re.search(r'@register_kernel\("bitsandbytes::%s", "default"\)\n(def _\(.*?)(?=\n\n\n|\Z)' % name, source, re.S)
    scope = dict(vars(default_ops))
    exec(textwrap.dedent(match.group(1)), scope)
    return scope["_"]


default_quantize_4bit = find_default("quantize_4bit")
default_quantize_blockwise = find_default("quantize_blockwise")
default_int8_vectorwise_quant = find_default("int8_vectorwise_quant")


LIBRARIES = ["-lcjson", "-lzstd", "-lxxhash", "-lpcre2-8", "-lutf8proc", "-lm", "-pthread"]


def build_tool(folder):
    tool = os.path.join(folder, "quant_tool")
    library = os.environ.get("NIBBLE_LIB", "build/release/libnibble.a")
    subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-I.", "tests/peers/quant_tool.c", library, *LIBRARIES, "-o", tool],
                   check=True)
    return tool


class Ours:
    def __init__(self, variant=None):
        self.folder = tempfile.TemporaryDirectory()
        tool = build_tool(self.folder.name)
        self.pipe = subprocess.Popen([tool] + ([variant] if variant else []), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, request, *sizes):
        import threading

        def send():
            self.pipe.stdin.write(request)
            self.pipe.stdin.flush()

        sender = threading.Thread(target=send)
        sender.start()
        parts = [self.pipe.stdout.read(n) for n in sizes]
        sender.join()
        assert all(len(p) == n for p, n in zip(parts, sizes)), "quant_tool died"
        return parts

    def quantize(self, x, kind, block, nested, slice_rows=None):
        rows, cols = x.shape
        n, blocks = rows * cols, -(-rows * cols // block)
        head = struct.pack("<6i2q", ord("q"), FORMATS[kind], int(nested), block, TYPES[x.dtype], slice_rows or rows, rows, cols)
        data = x.contiguous().view(torch.uint8).numpy().tobytes()
        sizes = [(n + 1) // 2] + ([4, blocks, -(-blocks // 256) * 4] if nested else [4 * blocks]) + [4 * n]
        parts = self.ask(head + data, *sizes)
        codes = np.frombuffer(parts[0], np.uint8)
        decoded = np.frombuffer(parts[-1], np.float32)
        if nested:
            return (codes, np.frombuffer(parts[1], np.float32)[0], np.frombuffer(parts[2], np.uint8),
                    np.frombuffer(parts[3], np.float32), decoded)
        return codes, np.frombuffer(parts[1], np.float32), decoded

    def quantize_int8(self, x):
        rows, cols = x.shape
        head = struct.pack("<6i2q", ord("q"), INT8, 0, 0, TYPES[x.dtype], max(1, rows // 2), rows, cols)
        codes, scales, _ = self.ask(head + x.contiguous().view(torch.uint8).numpy().tobytes(), rows * cols, 4 * rows, 4 * rows * cols)
        return np.frombuffer(codes, np.int8).reshape(rows, cols), np.frombuffer(scales, np.float32)

    def double(self, absmax, offset):
        request = struct.pack("<iqf", ord("d"), len(absmax), offset) + absmax.astype(np.float32).tobytes()
        codes, nested = self.ask(request, len(absmax), -(-len(absmax) // 256) * 4)
        return np.frombuffer(codes, np.uint8), np.frombuffer(nested, np.float32)

    def folder_weights(self, path):
        """The linears of a model folder as our loader decodes them: name -> f32 array."""
        name = os.fspath(path).encode()
        self.pipe.stdin.write(struct.pack("<ii", ord("f"), len(name)) + name)
        self.pipe.stdin.flush()
        weights = {}
        while length := struct.unpack("<i", self.pipe.stdout.read(4))[0]:
            key = self.pipe.stdout.read(length).decode()
            rows, cols = struct.unpack("<2q", self.pipe.stdout.read(16))
            weights[key] = np.frombuffer(self.pipe.stdout.read(4 * rows * cols), np.float32).reshape(rows, cols)
        return weights

    def map(self):
        return np.frombuffer(self.ask(struct.pack("<i", ord("m")), 1024)[0], np.float32)


def bits(a):
    return np.ascontiguousarray(a).view(np.uint32)


def expect_tail(reference, values, block):
    """The documented exception: 1e-38 of an all-zero short last block is 0 with us."""
    out = reference.copy()
    if len(values) % block and not values[len(values) // block * block:].any():
        out[-1] = 0.0
    return out


def cases(assets):
    g = torch.Generator().manual_seed(1234)
    for scale in (1.0, 0.02, 1e-3, 1e4, 1e-20, 1e-30):
        yield f"normal x{scale}", torch.randn(64, 256, generator=g) * scale
    for block_cols in ((1, 1), (1, 31), (1, 63), (1, 64), (1, 65), (3, 43), (5, 77), (7, 127), (129, 33), (2, 4096), (17, 4097)):
        yield f"shape {block_cols}", torch.randn(*block_cols, generator=g)
    yield "zeros", torch.zeros(16, 96)
    x = torch.randn(8, 256, generator=g)
    x[:, 64:192] = 0
    yield "zero blocks", x
    x = torch.randn(1, 64 * 5 + 21, generator=g)
    x[0, 64 * 5:] = 0
    yield "zero tail", x
    yield "negative zeros", torch.cat([torch.randn(4, 64, generator=g), -torch.zeros(4, 64)])
    yield "denormals", torch.randn(16, 256, generator=g) * 1e-41
    yield "denormal tail", torch.randn(1, 64 + 9, generator=g) * 1e-40
    yield "around 1e-38", torch.randn(64, 64, generator=g) * 1e-38
    yield "one denormal", torch.full((1, 64), 1e-45)
    for kind in FORMATS:
        b, _ = default_ops._get_4bit_quantize_bounds(kind, torch.device("cpu"))
        ties = torch.cat([b, torch.nextafter(b, b + 1), torch.nextafter(b, b - 1)])
        x = torch.zeros(64 * 2)
        x[:45], x[45], x[64:109], x[110] = ties, 1.0, ties, -1.0
        yield f"ties of {kind}", x.reshape(2, 64)
        for scale in (3.0, 0.7, 1.1e-3):
            yield f"ties of {kind} x{scale}", (x * scale).reshape(2, 64)
        short = torch.cat([ties, torch.tensor([1.0, -0.3])])
        yield f"ties of {kind}, short", (short * 0.37).reshape(1, -1)
    x = torch.randn(32, 64, generator=g)
    x[:, 0] = 1.0e36  # beyond about 1e37 the reference's own mean overflows
    yield "large", x
    yield "equal blocks", torch.sign(torch.randn(300, 64, generator=g))
    for dtype in (torch.bfloat16, torch.float16):
        yield f"{dtype}", (torch.randn(100, 333, generator=g) * 0.05).to(dtype)
    yield "4M", torch.randn(2048, 2048, generator=g) * 0.02
    yield "16M", torch.randn(4096, 4096, generator=g) * 0.02
    yield "16M odd", torch.randn(1, 16 * 1024 * 1024 - 3, generator=g)
    from safetensors import safe_open

    for path in sorted(glob.glob(os.path.join(assets, "models/*/hf*/model.safetensors"))):
        with safe_open(path, "pt") as f:
            for name in f.keys():
                tensor = f.get_tensor(name)
                if tensor.ndim == 2:
                    yield os.path.relpath(path, assets) + ":" + name, tensor


def check_case(ours, name, x, kind, block, totals):
    flat = x.reshape(-1).float().numpy()
    ref_codes, ref_absmax = default_quantize_4bit(x, block, kind, torch.uint8)
    ref_codes, ref_absmax = ref_codes.reshape(-1).numpy(), ref_absmax.numpy()
    want = expect_tail(ref_absmax, flat, block)
    slice_rows = max(1, x.shape[0] // 3)
    codes, absmax, decoded = ours.quantize(x, kind, block, False, slice_rows)
    bad_codes, bad_absmax = int((codes != ref_codes).sum()), int((bits(absmax) != bits(want)).sum())

    table = get_4bit_type(kind, "cpu").numpy()
    unpacked = np.stack([codes >> 4, codes & 15], 1).reshape(-1)[:len(flat)]
    want_values = table[unpacked] * np.repeat(absmax, block)[:len(flat)]
    bad_values = int((bits(decoded) != bits(want_values.astype(np.float32))).sum())

    # nested, with the reference's own offset: bytes; with ours: within one 8-bit code
    code_map = create_dynamic_map()
    offset = torch.from_numpy(absmax.copy()).mean()
    z = torch.from_numpy(absmax.copy()) - offset
    ref_nested, ref_nested_absmax = default_quantize_blockwise(z, code_map, 256)
    want_nested = expect_tail(ref_nested_absmax.numpy(), z.numpy(), 256)
    nested, nested_absmax = ours.double(absmax, offset.item())
    bad_nested = int((nested != ref_nested.numpy()).sum()) + int((bits(nested_absmax) != bits(want_nested)).sum())
    own_codes, own_offset, own_nested, own_nested_absmax, _ = ours.quantize(x, kind, block, True, slice_rows)
    m = code_map.numpy()
    steps = np.abs(own_nested.astype(int) - ref_nested.numpy().astype(int))
    groups = np.repeat(np.arange(len(own_nested_absmax)), 256)[:len(absmax)]
    # one code: the reference's decoded constant lies between the values of our neighbouring codes (and the shift of offset)
    low = m[np.maximum(own_nested.astype(int) - 1, 0)] * own_nested_absmax[groups] + own_offset
    high = m[np.minimum(own_nested.astype(int) + 1, 255)] * own_nested_absmax[groups] + own_offset
    ref_value = m[ref_nested.numpy()] * want_nested[groups] + np.float32(offset.item())
    slack = 4 * np.spacing(np.abs(absmax).max().astype(np.float32) + np.float32(1e-45))
    far = int((~((ref_value >= low - slack) & (ref_value <= high + slack))).sum())
    bad_own = int((own_codes != ref_codes).sum())
    totals["values"] += len(flat)
    totals["blocks"] += len(absmax)
    totals["nested exact with own offset"] += int((own_nested == ref_nested.numpy()).sum())
    totals["beyond one step"] += int((steps > 1).sum())
    if bad_codes or bad_absmax or bad_values or bad_nested or far or bad_own:
        totals["failed"] += 1
        print(f"FAIL {kind} {block} {name}: codes {bad_codes}, absmax {bad_absmax}, values {bad_values}, nested {bad_nested}, "
              f"own offset: far {far}, codes {bad_own}")
    totals["cases"] += 1


def check_int8(ours, name, x, totals):
    """LLM.int8 rows. Not compared: rows whose greatest value is below 1e-36 (the reference divides by zero or overflows)."""
    codes, scales, _ = default_int8_vectorwise_quant(x.clone())
    got_codes, got_scales = ours.quantize_int8(x)
    regular = scales.numpy() >= 1e-36
    bad = int((codes.numpy()[regular] != got_codes[regular]).sum()) + int((bits(scales.numpy()) != bits(got_scales)).sum())
    totals["int8 values"] += int(regular.sum()) * x.shape[1]
    if bad:
        totals["failed"] += 1
        print(f"FAIL int8 {name}: {bad} differ")


def write_golden(path, assets):
    """magic; i32 count; map f32[256]; per case: i32 format, block; i64 n; f32 x[n]; codes; f32 absmax; f32 offset; nested codes;
    f32 nested_absmax. Zero tails are stored as 0."""
    out, count = [], 0
    code_map = create_dynamic_map()
    several_groups = torch.randn(1, 32 * 600 + 7, generator=torch.Generator().manual_seed(5)) * 0.02
    small = [(name, x) for name, x in cases(assets) if x.dtype == torch.float32 and x.numel() <= 3000 and "models/" not in name]
    for name, x in small + [("several groups", several_groups)]:
        for kind in FORMATS:
            if ("ties of" in name and kind not in name) or (name == "several groups" and kind == "fp4"):
                continue
            block = 64 if count % 3 and name != "several groups" else 32
            flat = x.reshape(-1).numpy()
            codes, absmax = default_quantize_4bit(x, block, kind, torch.uint8)
            absmax = torch.from_numpy(expect_tail(absmax.numpy(), flat, block))
            offset = absmax.mean()
            nested, nested_absmax = default_quantize_blockwise(absmax - offset, code_map, 256)
            nested_absmax = expect_tail(nested_absmax.numpy(), (absmax - offset).numpy(), 256)
            out += [struct.pack("<iiq", FORMATS[kind], block, len(flat)), flat.tobytes(), codes.numpy().tobytes(),
                    absmax.numpy().tobytes(), struct.pack("<f", offset.item()), nested.numpy().tobytes(), nested_absmax.tobytes()]
            count += 1
    data = b"NBQ1" + struct.pack("<i", count) + code_map.numpy().tobytes() + b"".join(out)
    with open(path, "wb") as f:
        f.write(data)
    print(f"{path}: {count} cases, {len(data)} bytes")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant")
    parser.add_argument("--golden")
    parser.add_argument("--assets", default="../shared/assets")
    args = parser.parse_args()
    print(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}, one thread; ours: {args.variant or 'best'}")
    if args.golden:
        write_golden(args.golden, args.assets)
        return 0
    ours = Ours(args.variant)
    differ = int((bits(ours.map()) != bits(create_dynamic_map().numpy())).sum())
    print(f"dynamic map: {differ} of 256 entries differ")
    totals = dict.fromkeys(("cases", "failed", "values", "blocks", "nested exact with own offset", "beyond one step", "int8 values"), 0)
    for name, x in cases(args.assets):
        check_int8(ours, name, x, totals)
        for kind in FORMATS:
            for block in (64,) if x.numel() > 1 << 22 else (32, 64, 128, 4096):
                check_case(ours, name, x, kind, block, totals)
    print(", ".join(f"{k}: {v}" for k, v in totals.items()))
    return 1 if differ or totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
