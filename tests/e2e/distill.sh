#!/bin/bash
# Text sampled from a model, and training towards the model's own distribution. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs 40

sample() { # STATUS FILE WORDS...
    local want=$1 file=$2
    shift 2
    run "$want" distill-data "$work/model" --out "$work/$file" --samples 6 --max-tokens 24 --threads 1 "$@"
}
lines() { [[ $(wc -l <"$work/$1") == "$2" ]]; }
samples() { sample 0 one.jsonl && lines one.jsonl 6 && [[ $(grep -c '^{"text": ".*"}$' "$work/one.jsonl") == 6 ]]; }
check "a line per sample" samples
same() { sample 0 two.jsonl && cmp "$work/one.jsonl" "$work/two.jsonl" && sample 0 three.jsonl --seed 7 && ! cmp -s "$work/one.jsonl" "$work/three.jsonl"; }
check "the seed decides, and nothing else" same
resumed() { # from a file that was cut in the middle of its fourth line
    head -c $(($(head -n 3 "$work/one.jsonl" | wc -c) + 9)) "$work/one.jsonl" >"$work/cut.jsonl"
    sample 0 cut.jsonl --resume && cmp "$work/one.jsonl" "$work/cut.jsonl"
}
check "a cut file is completed to the same bytes" resumed
kept() { sample 2 one.jsonl && err_has "--resume" && lines one.jsonl 6; }
check "a file that is there is not overwritten unasked" kept
check "sampling needs a temperature" fails_with "--temperature: want more than 0" distill-data "$work/model" --out "$work/x" --temperature 0
check "a sample fits the context" fails_with "--max-tokens" distill-data "$work/model" --out "$work/x" --max-tokens 100000000

distill=(--set method=lora --set lora.dropout=0 --set qat.mode=merged --set qat.weights=int3 --set qat.group_size=32 --set train.loss=distill)
loss_falls() { # of the steps
    losses_of "$1" | sort -k1,1 -k2,2n | sed -n "s/^step [0-9]* //p" | awk 'NR == 1 { first = $1 } { last = $1 } END { exit !(NR > 1 && last < first) }' || { echo "# $1 did not learn"; false; }
}
learns() { train 0 taught "${distill[@]}" && loss_falls taught; }
check "a quantized model goes back to its teacher" learns
again() { train 0 taught-again "${distill[@]}" --set train.recompute=layers --threads 1 && same_adapter taught taught-again; }
check "recomputing and threads change no bit" again
beside() { train 0 beside "${distill[@]}" --set qat.mode=separate --set qat.activations=int8 && loss_falls beside; }
check "separate, with rounded activations" beside
planned() { run 0 plan "$work/config.json" "${distill[@]}" && out_has "the teacher's outputs"; }
check "the plan shows the teacher" planned
check "a teacher in 4 bits is refused" fails_with "the teacher is the frozen base in 16 bits" train "$work/config.json" --set train.loss=distill --set lora.dropout=0 --set qat.mode=merged
check "a student without quantization is refused" fails_with "its own best student" train "$work/config.json" --set train.loss=distill --set method=lora
finish
