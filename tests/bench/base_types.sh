#!/bin/sh
# Held-out loss before and after training, for every type of frozen base: the table of the README.
#
#   tests/bench/base_types.sh MODEL DATA OUT [--set key=value ...]
#
# MODEL is a Hugging Face folder, DATA a data set. One run a type with the same data, seed, steps and batches; the last line is the
# share of the loss gap between the untrained NF4 + double quantization base and the untrained 16-bit base that training closed.
# STEPS (300), TOKENS (1024 a micro-batch), ACCUMULATION (2), LR (1e-3), EVAL (0.05 of the data) and THREADS (0) come from the environment.
set -eu
[ $# -ge 3 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
model=$1 data=$2 out=$3
shift 3
nibble=${NIBBLE:-./nibble}
mkdir -p "$out"

config() { # type
    cat <<JSON
{ "model": {"path": "$model"}, "data": {"path": "$data", "eval_fraction": ${EVAL:-0.05}},
  "lora": {"rank": 16, "alpha": 32},
  "train": {"steps": ${STEPS:-300}, "lr": ${LR:-1e-3}, "micro_batch_tokens": ${TOKENS:-1024}, "samples": 0,
            "gradient_accumulation": ${ACCUMULATION:-2}, "eval_every": 0, "save_every": 0},
  "output": {"path": "$out/$1", "overwrite": true} }
JSON
}

loss() { # type, first|last
    awk -v which="$2" '/"kind": *"eval"/ { match($0, /"loss": *[0-9.eE+-]+/); v = substr($0, RSTART, RLENGTH); sub(/.*: */, "", v)
        if (which == "first" && seen++) next; value = v } END { print value }' "$out/$1/metrics.jsonl"
}

run() { # name, overrides
    name=$1
    shift
    config "$name" >"$out/$name.json"
    "$nibble" train "$out/$name.json" --threads "${THREADS:-0}" "$@" 2>"$out/$name.log" || { tail -n 5 "$out/$name.log" >&2; exit 1; }
}

run bf16 --set method=lora "$@"
run nf4 --set quant.double_quant=false "$@"
run nf4-dq "$@"
run fp4 --set quant.type=fp4 "$@"
run int8 --set quant.type=int8 "$@"
run int4 --set quant.type=int4 "$@"

printf '| base | loss before | loss after | change |\n| --- | ---: | ---: | ---: |\n'
for name in bf16 nf4 nf4-dq fp4 int8 int4; do
    awk -v n="$name" -v a="$(loss $name first)" -v b="$(loss $name last)" 'BEGIN { printf "| %s | %.4f | %.4f | %+.4f |\n", n, a, b, b - a }'
done
awk -v full="$(loss bf16 first)" -v before="$(loss nf4-dq first)" -v after="$(loss nf4-dq last)" -v lora="$(loss bf16 last)" 'BEGIN {
    printf "gap of untrained nf4-dq to untrained bf16: %.4f nats; training closed %.0f %% of it; left to bf16 with LoRA: %.4f\n",
        before - full, 100 * (before - after) / (before - full), after - lora }'
