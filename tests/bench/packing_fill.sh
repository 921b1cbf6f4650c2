#!/bin/sh
# How full best-fit packing makes windows of 2,048 tokens, on real data sets with a real tokenizer.
#
#   tests/bench/packing_fill.sh TOKENIZER DATA...
#
# TOKENIZER is a folder with a tokenizer.json, tokenizer.model or vocab.json. One line a data set. NIBBLE names another binary.
set -eu
[ $# -ge 2 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
tokenizer=$1
shift
nibble=${NIBBLE:-./nibble}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for file in "$tokenizer"/tokenizer* "$tokenizer"/vocab.json "$tokenizer"/merges.txt; do [ ! -f "$file" ] || cp "$file" "$work/"; done
cat >"$work/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
 "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "vocab_size": 300000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
 "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false, "torch_dtype": "float32"}
JSON
cat >"$work/run.json" <<JSON
{ "model": {"path": "$work"}, "data": {"path": "data", "cache": "off", "eval_fraction": 0},
  "train": {"micro_batch_tokens": 2048, "save_best": false} }
JSON
for data in "$@"; do
    "$nibble" inspect --data "$work/run.json" --json --count 0 --set "data.path=$data" 2>"$work/err" >"$work/out" ||
        { tail -n 2 "$work/err" >&2; exit 1; }
    awk -v name="$(basename "$data")" '
        function number(key) { match($0, "\"" key "\": *[0-9.e+-]+"); v = substr($0, RSTART, RLENGTH); sub(/.*: */, "", v); return v }
        { printf "%-24s %8d sequences  %9d tokens  longest %5d  %6d windows  %.2f %% full\n", name, number("sequences"), number("tokens"),
              number("longest"), number("micro_batches"), 100 * number("packing_fill") }' "$work/out"
done
