#!/bin/bash
# The demo from outside: its files are what their sources make, and the run teaches what it promises. Speaks TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh

same_files() {
    "${CC:-gcc}" -std=gnu17 -O2 configs/demo/source/*.c -o "$work/world" 2>"$work/err" && mkdir "$work/made" &&
        "$work/world" "$work/made" && cmp "$work/made/train.jsonl" configs/demo/train.jsonl &&
        cmp "$work/made/held_out.jsonl" configs/demo/held_out.jsonl &&
        cmp "$work/made/tokenizer.json" configs/demo/base/tokenizer.json
}
check "questions and tokenizer are what the sources make" same_files

prompts() { sed 's/, "completion.*//' "configs/demo/$1.jsonl" | sort -u; }
apart() { (($(prompts train | wc -l) > 500 && $(prompts held_out | wc -l) > 100)) && [[ -z $(comm -12 <(prompts train) <(prompts held_out)) ]]; }
check "no held-out question is trained on" apart

small() { (($(stat -c %s configs/demo/base/model.safetensors) <= 5000000)); }
check "the base model is a few megabytes" small

knows() { run 0 generate configs/demo/base --max-tokens 5 --prompt "The fox lives" && grep -qF " in the forest." "$work/out"; }
check "the base model speaks its text" knows

two_steps() { run 0 train configs/train/demo.json --set train.steps=2 --set output.path="$work/run"; }
check "a short run of the demo's config" two_steps
fails() { ! DEMO_SET=train.steps=2 DEMO_RUN=$work/run sh tests/tools/demo.sh "$nibble" >"$work/out" 2>"$work/err" && err_has "over 90 %"; }
check "a run that teaches too little is a failure, and replaces the one before" fails
learns() { DEMO_RUN=$work/run sh tests/tools/demo.sh "$nibble" >"$work/out" 2>"$work/err"; }
check "from under 5 % to over 90 % exact answers" learns

left_behind() {
    [[ -s $work/run/report.html && -s $work/run/adapter/adapter_model.safetensors && -s $work/run/adapter/adapter_config.json ]] &&
        (($(steps_of run | wc -l) > 100))
}
check "it leaves the report and the adapter" left_behind

finish
