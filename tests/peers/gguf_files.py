#!/usr/bin/env python3
"""GGUF files both ways: the gguf package reads what we write, we read what it writes, and both agree on the files given.

Run from the repository root, after `make peers-programs`, in a Python with numpy, gguf (0.19.0) and xxhash:
    python3 tests/peers/gguf_files.py build/release [FILE.gguf ...]
"""
import json, math, os, subprocess, sys, tempfile

import gguf
import numpy as np
import xxhash

TYPES = gguf.GGUFValueType


def listing(build, path):
    done = subprocess.run([os.path.join(build, "peers", "gguf_tool"), "list", path], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.split("\n")[:-1]]
    return {l["key"]: l for l in lines if "key" in l}, {l["tensor"]: l for l in lines if "tensor" in l}


def same(ours, theirs):
    if isinstance(theirs, (float, np.floating)):
        return math.isclose(ours, float(theirs), rel_tol=1e-8, abs_tol=0)  # nine digits are printed of an FP32 number
    return ours == theirs


def agree(build, path):
    """Keys, types, values, names, shapes and bytes as the package's reader has them."""
    keys, tensors = listing(build, path)
    reader = gguf.GGUFReader(path)
    theirs = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert list(keys) == list(theirs), "keys"
    for key, field in theirs.items():
        value, ours = field.contents(), keys[key]
        assert ours["is_array"] == (field.types[0] == TYPES.ARRAY), key
        if ours["is_array"] and not ours["items"]:
            assert len(field.data) == 0, key
            continue
        kind = {"float32": "f32", "float64": "f64", "string": "string", "bool": "bool"}.get(field.types[-1].name.lower(), field.types[-1].name.lower().replace("uint", "u").replace("int", "i"))
        assert ours["type"] == kind, (key, ours["type"], kind)
        items = value if ours["is_array"] else [value]
        assert len(items) == len(ours["items"]) and all(same(a, b) for a, b in zip(ours["items"], items)), key
    assert list(tensors) == [t.name for t in reader.tensors], "tensors"
    for tensor in reader.tensors:
        ours = tensors[tensor.name]
        assert ours["type"] == tensor.tensor_type.name, tensor.name
        assert ours["shape"][: ours["ndim"]] == [int(n) for n in tensor.shape], tensor.name
        assert int(ours["hash"], 16) == xxhash.xxh3_64(np.ascontiguousarray(tensor.data).tobytes()).intdigest(), tensor.name
    print("%s: %d keys, %d tensors agree" % (os.path.basename(path), len(keys), len(tensors)))


def write_theirs(path):
    writer = gguf.GGUFWriter(path, "llama")
    rng = np.random.default_rng(3)
    writer.add_array("words", ["a", "", "\u2581b", "line\nbreak"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("reals", [0.5, -1e-7])
    writer.add_bool("yes", True)
    for name in "uint8 int8 uint16 int16 uint32 int32 uint64 int64".split():
        getattr(writer, "add_" + name)("one." + name, 100)
    writer.add_float32("one.f32", 0.1)
    writer.add_float64("one.f64", 0.1)
    writer.add_tensor("plain", rng.normal(size=(3, 5)).astype(np.float32))
    writer.add_tensor("half", rng.normal(size=(7,)).astype(np.float16))
    quantized = gguf.quants.quantize(rng.normal(size=(4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q5_0)
    writer.add_tensor("quantized", quantized, raw_dtype=gguf.GGMLQuantizationType.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_values(path):
    """The values of our own file, from the floats they were made of."""
    i = np.arange(3 * 256, dtype=np.float64)
    x = (np.sin(i) * i / 700).astype(np.float32).reshape(3, 256)
    for tensor in gguf.GGUFReader(path).tensors:
        decoded = gguf.quants.dequantize(np.ascontiguousarray(tensor.data).view(np.uint8).reshape(3, -1), tensor.tensor_type) if tensor.tensor_type != 0 else tensor.data
        error = np.sqrt(np.mean((decoded - x) ** 2) / np.mean(x**2))
        assert error <= 0.35, (tensor.name, error)  # Q2_K, the coarsest, is at about a quarter
    print("values of %d tensors agree" % len(gguf.GGUFReader(path).tensors))


def main():
    build, files = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = os.path.join(folder, "ours.gguf"), os.path.join(folder, "theirs.gguf")
        subprocess.run([os.path.join(build, "peers", "gguf_tool"), "write", ours], check=True)
        agree(build, ours)
        check_values(ours)
        write_theirs(theirs)
        agree(build, theirs)
    for path in files:
        agree(build, path)
    return 0


sys.exit(main())
