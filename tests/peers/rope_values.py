"""Prints the RoPE frequencies and attention factors that tests/unit/test_hf_config.c compares with.

Run with transformers 5.23.0 and torch on a CPU: python tests/peers/rope_values.py
Each line: name, FP32 inverse frequencies with 9 significant digits, attention factor.
"""
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def show(name, head_dim, context, parameters, longest=None):
    config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim,
                         max_position_embeddings=context, rope_parameters=parameters)
    inverse, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, None, seq_len=longest)
    print(name, "{" + ", ".join("%.9g" % float(x) for x in inverse) + "}", "%.17g" % factor)


linear = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)
dynamic = dict(linear, rope_type="dynamic")
llama3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192)
yarn = dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=4096)
longrope = dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=4096,
                short_factor=[1.0, 1.05, 1.1, 1.3, 1.6, 2.0, 2.5, 3.0],
                long_factor=[1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 35.0, 60.0])

show("linear", 16, 2048, dict(linear))
show("dynamic, within the context", 16, 2048, dict(dynamic), 100)
show("dynamic, 8192", 16, 2048, dict(dynamic), 8192)
show("llama3", 16, 131072, dict(llama3))
show("llama3, short", 16, 2048, dict(llama3, rope_theta=10000.0, original_max_position_embeddings=128))
show("yarn", 32, 131072, dict(yarn, rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768))
show("yarn, not truncated", 32, 8192, dict(yarn, factor=16.0, original_max_position_embeddings=512, truncate=False,
                                           beta_fast=16.0, beta_slow=2.0))
show("yarn, mscale", 16, 163840, dict(yarn, mscale=1.0, mscale_all_dim=0.8))
show("yarn, attention_factor", 16, 163840, dict(yarn, attention_factor=1.25))
show("longrope, short", 16, 131072, dict(longrope), 4096)
show("longrope, long", 16, 131072, dict(longrope), 4097)
show("longrope, factor", 16, 131072, dict(longrope, factor=8.0), 100)
