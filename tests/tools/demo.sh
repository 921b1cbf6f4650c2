#!/bin/sh
# demo.sh NIBBLE: teaches the small base model of configs/demo to answer questions, and shows what it says before and after.
# Fails unless it goes from under 5 % to over 90 % of held-out questions answered exactly. DEMO_RUN: another run folder;
# DEMO_SET: a key=value that the config is overridden with.
set -eu

nibble=${1:?usage: demo.sh NIBBLE}
base=configs/demo/base
held_out=configs/demo/held_out.jsonl
run=${DEMO_RUN:-runs/demo}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Runs nibble; its messages are shown only when it fails.
quietly() {
    "$nibble" "$@" 2>"$scratch/messages" && return
    cat "$scratch/messages" >&2
    exit 1
}

# A few held-out questions with the model's answers; the base is quantized as it is in training. More options follow.
samples() {
    for line in 1 3 6 10 12; do
        prompt=$(printf '%b' "$(sed -n "${line}s/^{\"prompt\": \"\(.*\)\", \"completion\".*/\1/p" "$held_out")")
        answer=$(quietly generate "$base" --quant nf4 --max-tokens 12 --prompt "$prompt" "$@")
        printf '%s%s\n' "$prompt" "$answer" | sed 's/^/    /'
    done
}

# Exactly right answers, as "129 of 130".
exact() {
    quietly eval "$base" --quant nf4 --data "$held_out" --exact-match --json "$@" >"$scratch/result"
    sed -n 's/.*"matched": *\([0-9]*\).*"scored": *\([0-9]*\).*/\1 of \2/p' "$scratch/result"
}

percent() { # "129 of 130" as a number
    echo "$1" | awk '{ printf "%.1f", 100 * $1 / $3 }'
}

bytes=$(wc -c <"$base/model.safetensors")
echo
echo "A language model of $((bytes / 100000 / 10)).$((bytes / 100000 % 10)) MB that knows a small world from plain statements. It was never asked a question:"
echo
samples
before=$(exact)
cat <<TEXT

$before questions answered exactly. Now QLoRA: the model is frozen in 4 bits, and an adapter beside it learns to answer, from
$(wc -l <configs/demo/train.jsonl) questions about other facts.

TEXT
began=$(date +%s)
"$nibble" train configs/train/demo.json --set output.path="$run" ${DEMO_SET:+--set "$DEMO_SET"}
seconds=$(($(date +%s) - began))
printf '\nThe same questions, with the adapter:\n\n'
samples --adapter "$run/adapter"
after=$(exact --adapter "$run/adapter")
cat <<TEXT

Held-out questions answered exactly: $(percent "$before") % before, $(percent "$after") % after ($after); training took $seconds seconds.
The curves: $run/report.html
The adapter, which PEFT loads: $run/adapter
TEXT
awk -v before="$(percent "$before")" -v after="$(percent "$after")" 'BEGIN { exit !(before < 5 && after > 90) }' || {
    echo "demo: want under 5 % before and over 90 % after" >&2
    exit 1
}
