"""Quantization-aware training against PyTorch autograd with straight-through fake quantizers written here from the definitions, F32.

Every linear's weight is FQ(W + s B A) (merged) or FQ(W) with the adapter beside it (separate). Relative norm error of every gradient: at most 1e-4. Where torchao is
installed, its symmetric and asymmetric group primitives are compared with ours as well.
"""

import torch

from parity import Checks, Folder, probe, random_batches, random_model, read_tensors, relative, save_model
from parity import settings, step_loss, variants, write_batches

checks = Checks()


class RoundClamp(torch.autograd.Function):
    """Passes the gradient where the rounded integer lies in the range, its ends included: torch.clamp's own gradient at an end has
    been 1 and 0 in different releases, and x + (round(x) - x).detach() may miss the integer by an ulp."""

    @staticmethod
    def forward(ctx, x, low, high):
        q = torch.round(x)
        ctx.save_for_backward((q >= low) & (q <= high))
        return q.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


def fake_int(w, bits, group, symmetric):
    """Scales and zero points without a gradient; clamp passes it inside of the range, tested on the rounded integer."""
    v = w.reshape(-1, group or w.shape[-1])
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    with torch.no_grad():
        lo, hi = v.amin(1, keepdim=True).clamp(max=0), v.amax(1, keepdim=True).clamp(min=0)
        span = torch.maximum(-lo, hi) / ((high - low) / 2) if symmetric else (hi - lo) / (high - low)
        scale = torch.where(span == 0, torch.finfo(torch.float32).eps, span)
        zero = torch.zeros_like(scale) if symmetric else torch.clamp(torch.round(low - lo / scale), low, high)
    q = RoundClamp.apply(v / scale + zero, low, high)
    return ((q - zero) * scale).reshape(w.shape)


def learned_int(w, base, theta, bits, group):
    """LSQ (Esser et al. 2020): a scale per group of the frozen base times theta, its gradient times 1 / sqrt(values * greatest code)."""
    v, low, high = w.reshape(-1, group or w.shape[-1]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    first = base.reshape(v.shape).abs().amax(1, keepdim=True) / ((high - low) / 2)
    scale = torch.where(first == 0, torch.finfo(torch.float32).eps, first) * theta.reshape(-1, 1)
    factor = (v.shape[1] * high) ** -0.5
    scale.register_hook(lambda gradient: gradient * factor)
    return (RoundClamp.apply(v / scale, low, high) * scale).reshape(w.shape)


def fake_rows(x, symmetric, bits=8):
    """int8 per token: torchao's formulas (kernels/ops.h), all FP32; scales and zero points without a gradient."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    with torch.no_grad():
        lo, hi = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        span = torch.maximum(-lo, hi) / ((high - low) / 2) if symmetric else (hi - lo) / (high - low)
        scale = span.clamp(min=2**-23)
        zero = torch.zeros_like(scale) if symmetric else torch.clamp(low - torch.round(lo / scale), low, high)
    inverse = 1 / scale

    class Codes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            u = torch.round(x * inverse) + zero
            ctx.inside = (u >= low) & (u <= high)
            return (u.clamp(low, high) - zero) * scale

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.inside

    return Codes.apply(x)


def fake_q4_0(w):
    v = w.reshape(-1, 32)
    with torch.no_grad():
        at = v.abs().argmax(1, keepdim=True)
        d = v.gather(1, at) / -8
        inverse = torch.where(d == 0, 0.0, 1 / d)
        stored = d.half().float()
        raw = torch.floor(v * inverse + 8.5)
        value = (raw.clamp(max=15) - 8) * stored
    passed = torch.where(raw < 16, v, v.detach())
    return (value - passed.detach() + passed).reshape(w.shape)


def fake_q8_0(w):
    v = w.reshape(-1, 32)
    with torch.no_grad():
        d = v.abs().amax(1, keepdim=True) / 127
        inverse = torch.where(d == 0, 0.0, 1 / d)
        x = v * inverse
        value = torch.sign(x) * torch.floor(x.abs() + 0.5) * d.half().float()  # ties away from zero
    return (value + (v - v.detach())).reshape(w.shape)


NF4 = torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])


def fake_nf4(w):
    v = w.reshape(-1, 64)
    with torch.no_grad():
        absmax = v.abs().amax(1, keepdim=True)
        codes = torch.bucketize(v * (1 / absmax), (NF4[1:] + NF4[:-1]) / 2)
        value = NF4[codes] * absmax
    return (value + (v - v.detach())).reshape(w.shape)


GRIDS = {
    "int4 g32": (dict(qat_weights="int4"), lambda w: fake_int(w, 4, 32, True)),
    "int4 g32 asymmetric": (dict(qat_weights="int4", qat_symmetric=False), lambda w: fake_int(w, 4, 32, False)),
    "int3 g32": (dict(qat_weights="int3"), lambda w: fake_int(w, 3, 32, True)),
    "int2 g32 asymmetric": (dict(qat_weights="int2", qat_symmetric=False), lambda w: fake_int(w, 2, 32, False)),
    "int8": (dict(qat_weights="int8"), lambda w: fake_int(w, 8, 0, True)),
    "q4_0": (dict(qat_weights="q4_0"), fake_q4_0),
    "q8_0": (dict(qat_weights="q8_0"), fake_q8_0),
    "int4 g32 learned": (dict(qat_weights="int4", qat_learn_scales=True), (4, 32)),
    "int8 learned": (dict(qat_weights="int8", qat_learn_scales=True), (8, 0)),
    "int2 g32 learned": (dict(qat_weights="int2", qat_learn_scales=True), (2, 32)),
    "int8 with int8 activations": (dict(qat_weights="int8", qat_activations="int8-asymmetric"), lambda w: fake_int(w, 8, 0, True)),
    "nf4": (dict(qat_weights="nf4", qat_double_quant=False), fake_nf4),
}


rounded_inputs = False


class Linear(torch.nn.Module):
    def __init__(self, inner, a, b, scale, fake, merged):
        super().__init__()
        self.weight, self.a, self.b = inner.weight.detach(), torch.nn.Parameter(a), torch.nn.Parameter(b)
        self.bias, self.scale, self.fake, self.merged, self.theta = inner.bias, scale, fake, merged, None
        if isinstance(fake, tuple):
            bits, group = fake
            self.theta = torch.nn.Parameter(torch.ones(inner.weight.shape[0], inner.weight.shape[1] // group if group else 1))
            self.fake = lambda w: learned_int(w, self.weight, self.theta, bits, group)

    def forward(self, x):
        if rounded_inputs:
            x = fake_rows(x, symmetric=False)
        if self.merged:
            # summed in index order, as we do: with another last bit a row's greatest value, which lies on the border of the
            # clamp (amax / 7.5 and the like), may fall to its other side and win or lose its gradient
            delta = sum(self.b[:, r : r + 1] * self.a[r : r + 1] for r in range(self.a.shape[0]))
            return torch.nn.functional.linear(x, self.fake(self.weight + torch.tensor(self.scale) * delta), self.bias)
        y = torch.nn.functional.linear(x, self.fake(self.weight), self.bias)
        return y + self.scale * (x @ self.a.T) @ self.b.T


def quantize_aware(model, adapter, scale, fake, merged):
    """Replaces every adapted linear; returns {name of the gradient: parameter}."""
    prefix, parameters = "base_model.model.", {}
    for key in sorted(key for key in adapter if key.endswith(".lora_A.weight")):
        path = key.removeprefix(prefix).removesuffix(".lora_A.weight")
        parent, _, leaf = path.rpartition(".")
        inner = model.get_submodule(path)
        linear = Linear(inner, adapter[key], adapter[key.replace("lora_A", "lora_B")], scale, fake, merged)
        setattr(model.get_submodule(parent), leaf, linear)
        parameters[path + ".lora_A"], parameters[path + ".lora_B"] = linear.a, linear.b
        if linear.theta is not None:
            parameters[path + ".scale"] = linear.theta
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters


def compare(name, grid, mode):
    global rounded_inputs
    keys, fake = GRIDS[grid]
    rounded_inputs = "qat_activations" in keys
    options = settings(method="lora", lora_rank=5, lora_alpha=13, train_lr=0.0, qat_mode=mode, **keys)
    model = random_model(name)
    with Folder() as f:
        save_model(model, f("model"))
        batches = random_batches(11, model.config.vocab_size, 1, 3, (5, 17, 1, 40, 11))
        write_batches(batches, f("batches"))
        probe("adapter", f("model"), f("adapter"), *options)
        parameters = quantize_aware(model, read_tensors(f("adapter/adapter_model.safetensors")), 13 / 5, fake, mode == "merged")
        loss = step_loss(model, batches[0])
        loss.backward()
        for variant, recompute in [(v, "none") for v in variants()] + [(variants()[-1], "layers")]:
            out = probe("gradients", f("model"), f("batches"), f("out"), "--adapter", f("adapter"), "--cpu", variant, *options,
                        *settings(train_recompute=recompute))
            got = read_tensors(f("out"))
            label = f"{name} {grid} {mode} {variant} recompute {recompute}"
            checks.at_most(f"{label} loss", abs(float(out.split()[0]) - float(loss.detach())), 1e-5)
            short = {key.removeprefix("base_model.model."): value for key, value in got.items()}
            checks.true(f"{label} names", set(short) == set(parameters), f"{set(short) ^ set(parameters)}")
            worst = max((relative(short[k], p.grad) for k, p in parameters.items() if k in short), default=float("nan"))
            checks.at_most(f"{label}: worst of {len(parameters)} gradients", worst, 1e-4)
            checks.true(f"{label}: none is zero", all(float(p.grad.norm()) > 0 for p in parameters.values()))


def compare_torchao():
    """The definitions that are the same: symmetric group quantization to amax / 7.5, and affine min-max, both in FP32."""
    try:
        from torchao.quantization.quant_primitives import MappingType, _fake_quantize_affine, choose_qparams_affine
    except ImportError as reason:
        print(f"# torchao: not compared: {reason}")
        return
    torch.manual_seed(3)
    w = torch.randn(64, 256)
    for symmetric, mapping in ((True, MappingType.SYMMETRIC), (False, MappingType.ASYMMETRIC)):
        scale, zero = choose_qparams_affine(w, mapping, (1, 32), torch.int8, -8, 7, torch.finfo(torch.float32).eps, torch.float32,
                                            torch.int32)
        theirs = _fake_quantize_affine(w, (1, 32), scale, zero, torch.int8, -8, 7)
        ours = fake_int(w, 4, 32, symmetric)
        # they multiply by 1/scale: within an ulp of a tie a value may fall to its other side, as a group's greatest does, which
        # lies on 7.5
        inside = w.abs() < w.abs().reshape(64, 8, 32).amax(2).repeat_interleave(32, 1)
        far = (((theirs - ours).abs() > 1e-6 * ours.abs()) & inside).float().mean()
        checks.at_most(f"torchao {'symmetric' if symmetric else 'asymmetric'}: part of values apart but for the greatest", float(far), 1e-3)
    x = torch.randn(512, 384) * torch.logspace(-6, 4, 512)[:, None]
    x[0], x[1], x[2], x[3] = 0, x[1].abs(), -x[2].abs(), 1e-30
    for bits in (4, 8):  # activations, keys and values: the same formula
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        for symmetric, mapping in ((True, MappingType.SYMMETRIC), (False, MappingType.ASYMMETRIC)):
            scale, zero = choose_qparams_affine(x, mapping, (1, 384), torch.int8, low, high, torch.finfo(torch.float32).eps,
                                                torch.float32, torch.int32)
            theirs = _fake_quantize_affine(x, (1, 384), scale, zero, torch.int8, low, high)
            checks.true(f"torchao rows of int{bits} {'symmetric' if symmetric else 'asymmetric'}", torch.equal(theirs, fake_rows(x, symmetric, bits)),
                        "values apart")


for grid in GRIDS:
    compare("llama_tied_mha", grid, "merged")
compare("llama_tied_mha", "int4 g32", "separate")
compare("llama_tied_mha", "q4_0", "separate")
compare("llama_tied_mha", "int4 g32 learned", "separate")
compare("llama_gqa", "int8", "merged")
compare("qwen2", "int8", "merged")
compare_torchao()
checks.finish()
