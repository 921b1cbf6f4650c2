"""What the parity scripts share: small models of every supported family, batches, and the probe program.

Scripts are run by tests/peers/run.sh, or by hand: PYTHON tests/peers/forward_parity.py [build folder].
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing here runs long enough to be worth compiling
warnings.filterwarnings("ignore")

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ASSETS = os.path.join(os.path.dirname(ROOT), "shared", "assets")
BUILD = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else os.path.join(ROOT, "build", "release")
PROBE = os.path.join(BUILD, "peers", "probe")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

torch.set_num_threads(2)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def variants():
    """The CPU variants that this machine runs."""
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    offered = (("avx2", "avx2"), ("avx512", "avx512bw"), ("avx512bf16", "avx512_bf16"))
    return ["ref"] + [name for name, flag in offered if flag in flags]


# ---- models --------------------------------------------------------------------------------------------------------------

COMMON = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)


def rope(kind, **values):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=values.pop("theta", 10000.0), **values))


LLAMA3 = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16, theta=500.0
)

# name: (class prefix, what differs from COMMON)
MODELS = {
    "llama_gqa": ("Llama", {}),
    "llama_tied_mha": ("Llama", dict(tie_word_embeddings=True, num_key_value_heads=4, intermediate_size=64)),
    "llama3_rope": ("Llama", dict(**LLAMA3, num_key_value_heads=1)),
    "llama_linear_rope": ("Llama", rope("linear", factor=2.5)),
    "llama_dynamic_rope": ("Llama", dict(rope("dynamic", factor=2.0), max_position_embeddings=24)),
    "llama_yarn_rope": (
        "Llama",
        dict(rope("yarn", factor=4.0, original_max_position_embeddings=16, theta=100.0), max_position_embeddings=64),
    ),
    "llama_biases_odd": (
        "Llama",
        dict(
            attention_bias=True,
            mlp_bias=True,
            hidden_size=36,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=10,
            intermediate_size=50,
            vocab_size=101,
        ),
    ),
    "mistral_window": ("Mistral", dict(sliding_window=9)),
    "qwen2": ("Qwen2", dict(rms_norm_eps=1e-6)),
    "qwen2_window": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=7, max_window_layers=1, num_hidden_layers=3, tie_word_embeddings=True),
    ),
    "qwen3": ("Qwen3", dict(head_dim=20, rms_norm_eps=1e-6, tie_word_embeddings=True)),
    "llama_gelu": ("Llama", dict(hidden_act="gelu_pytorch_tanh")),
}


def random_model(name):
    """A model with weights large enough that every part of it matters, on values that bfloat16 holds exactly."""
    prefix, changes = MODELS[name]
    config = getattr(transformers, prefix + "Config")(**{**COMMON, **changes})
    torch.manual_seed(1 + list(MODELS).index(name))
    with contextlib.redirect_stdout(io.StringIO()):
        model = getattr(transformers, prefix + "ForCausalLM")._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key:
                value.copy_(1.0 + 0.3 * torch.randn_like(value))
            elif key.endswith("bias"):
                value.copy_(0.3 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) * (0.8 if "embed" in key else 1.5 / value.shape[-1] ** 0.5))
            value.copy_(value.to(torch.bfloat16).float())
    return model.eval()


def load_model(folder, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def save_model(model, folder, dtype=torch.float32):
    """dtype: of the file. The model itself stays as it is."""
    copy = model.__class__._from_config(model.config, attn_implementation="eager")
    copy.load_state_dict(model.state_dict())
    copy.to(dtype).save_pretrained(folder)


# ---- batches: a list of steps, each a list of micro-batches, each a list of (ids, trained) -------------------------------------


def random_batches(seed, vocab, steps=1, micro_batches=1, lengths=(5, 17, 1, 30, 11), trained=0.6):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(steps):
        batches.append([])
        for _ in range(micro_batches):
            rows = []
            for length in lengths:
                ids = torch.randint(0, vocab, (length,), generator=generator).tolist()
                mask = (torch.rand(length, generator=generator) < trained).tolist()
                mask[0] = False
                rows.append((ids, mask))
            batches[-1].append(rows)
    return batches


def write_batches(batches, path):
    with open(path, "w") as file:
        for step in batches:
            for micro_batch in step:
                for ids, mask in micro_batch:
                    file.write(" ".join(f"{i}{'*' if m else ''}" for i, m in zip(ids, mask)) + "\n")
                file.write("-\n")
            file.write("=\n")


def step_loss(model, step):
    """Sum of the losses of every trained token over their number, each sequence on its own."""
    total, count = 0.0, 0
    for micro_batch in step:
        for ids, mask in micro_batch:
            targets = torch.tensor(ids[1:])
            chosen = torch.tensor(mask[1:], dtype=torch.bool)
            count += int(chosen.sum())
            if not chosen.any():
                continue
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            total = total + torch.nn.functional.cross_entropy(logits[chosen], targets[chosen], reduction="sum")
    return total / count


# ---- the probe ---------------------------------------------------------------------------------------------------------------


def probe(*arguments, fails=False):
    """Output of the probe; with fails, its message."""
    done = subprocess.run([PROBE, *map(str, arguments)], capture_output=True, text=True)
    if fails:
        assert done.returncode == 1, f"want a refusal, got exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stderr
    if done.returncode != 0:
        raise SystemExit(f"probe {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def settings(**values):
    """train_lr=1 becomes --set train.lr=1: the first underscore is the dot, unless the key has none."""
    flat = ("precision", "method", "seed")
    out = []
    for key, value in values.items():
        out += ["--set", f"{key if key in flat else key.replace('_', '.', 1)}={value if isinstance(value, str) else json.dumps(value)}"]
    return out


class Folder:
    """A temporary folder, removed at the end."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="nibble-peers-")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path)

    def __call__(self, *names):
        return os.path.join(self.path, *names)


class Checks:
    """Counts what held; prints what did not. A NaN fails."""

    def __init__(self):
        self.passed = self.failed = 0

    def at_most(self, what, value, limit):
        good = value <= limit
        self.passed += good
        self.failed += not good
        print(f"{'ok' if good else 'NOT OK'} {what}: {value:.3g} (limit {limit:.3g})", flush=True)

    def true(self, what, good, detail=""):
        self.passed += bool(good)
        self.failed += not good
        print(f"{'ok' if good else 'NOT OK'} {what} {detail if not good else ''}", flush=True)

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed else 0)


def difference(a, b):
    return float((a.double() - b.double()).abs().max())


def relative(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def read_tensors(path):
    return load_file(path)
