#!/bin/bash
# What each exported format costs: perplexity on text that the model has not seen, as the tables of the README.
#
#   tests/bench/export_quality.sh demo                         the demo's base; text of another seed
#   tests/bench/export_quality.sh stories3M                    of ../shared/assets; 1,000 stories to calibrate, 300 held out
#   tests/bench/export_quality.sh MODEL CALIBRATION HELD_OUT
#
# GROUP (64) is the group of the integer formats, SAMPLES (512) how many sequences calibrate. Fails where Q4_K_M is not better than Q4_0,
# or GPTQ is better than neither AWQ nor rounding to nearest.
set -eu
[ $# -eq 1 ] || [ $# -eq 3 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
nibble=${NIBBLE:-./nibble} group=${GROUP:-64} samples=${SAMPLES:-512}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

prepare_demo() { # the base was trained on seed 1; what both seeds tell is left out
    make -s build/demo/world >&2
    mkdir "$work/1" "$work/2"
    build/demo/world "$work/1" 1
    build/demo/world "$work/2" 2
    awk 'NR == FNR { seen[$0]; next } !($0 in seen) && !again[$0]++' "$work/1/text.jsonl" "$work/2/text.jsonl" >"$work/new"
    head -n 2000 "$work/new" >"$work/held_out.jsonl"
    tail -n +2001 "$work/new" >"$work/calibration.jsonl"
    model=configs/demo/base calibration=$work/calibration.jsonl held_out=$work/held_out.jsonl
}
prepare_stories() { # stories end with a line <|endoftext|>; some begin with an empty one
    local text=../shared/assets/datasets/pretrain/tinystories_1500.txt
    sed '/^$/d' "$text" | awk -v a="$work/calibration.txt" -v b="$work/held_out.txt" '{ print > (n < 1000 ? a : b) }
        /<\|endoftext\|>/ && ++n == 1300 { exit }'
    model=../shared/assets/models/stories3M/hf calibration=$work/calibration.txt held_out=$work/held_out.txt
}
case $1 in
demo) prepare_demo ;;
stories3M) prepare_stories ;;
*) model=$1 calibration=${2:?CALIBRATION} held_out=${3:?HELD_OUT} ;;
esac

perplexity() { # MODEL
    "$nibble" eval "$1" --data "$held_out" --precision f32 --json 2>/dev/null | sed -nE 's/.*"perplexity": ?([0-9.e+]+).*/\1/p'
}
declare -A found
row() { # NAME WORDS...: one line of a table
    local name=$1 path=$work/out
    shift
    "$nibble" export "$model" --out "$work/out" --overwrite --no-verify "$@" >/dev/null 2>"$work/err" || { cat "$work/err" >&2; exit 1; }
    [ -f "$path/model.gguf" ] && path=$path/model.gguf
    found[$name]=$(perplexity "$path")
    printf '| %s | %s | %.5f |\n' "$name" "$(du -bc "$work/out"/model* | tail -n 1 | cut -f 1)" "${found[$name]}"
    rm -rf "$work/out"
}
calibrated=(--calibration "$calibration" --calibration-samples "$samples")

printf '%s: F32 %.5f\n\n| gguf | bytes | perplexity |\n| --- | ---: | ---: |\n' "$1" "$(perplexity "$model")"
for type in F16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0 Q3_K_M Q2_K; do row $type --format gguf --gguf-type $type; done
for type in Q4_K_M Q3_K_M Q2_K; do row "$type, calibrated" --format gguf --gguf-type $type "${calibrated[@]}"; done
printf '\n| integers, groups of %s | bytes | perplexity |\n| --- | ---: | ---: |\n' "$group"
for bits in 4 3; do
    to=(--format compressed-tensors --bits "$bits" --group "$group")
    row "$bits bits, to nearest" "${to[@]}"
    row "$bits bits, mse" "${to[@]}" --quantizer mse
    row "$bits bits, awq" "${to[@]}" --quantizer awq "${calibrated[@]}"
    row "$bits bits, gptq" "${to[@]}" --quantizer gptq "${calibrated[@]}"
    row "$bits bits, gptq, act-order" "${to[@]}" --quantizer gptq --act-order --static-groups "${calibrated[@]}"
done

worse() { awk -v a="${found[$1]}" -v b="${found[$2]}" 'BEGIN { exit !(a > b) }'; }
failed=0
worse Q4_K_M Q4_0 && echo "Q4_K_M is worse than Q4_0" && failed=1
for bits in 4 3; do
    worse "$bits bits, gptq" "$bits bits, awq" && worse "$bits bits, gptq" "$bits bits, to nearest" && echo "gptq at $bits bits is worse than both" && failed=1
done
exit $failed
