#!/bin/bash
# The demo from outside: its files are what their sources make, and the run teaches what it promises. Speaks TAP.
set -u
cd "$(dirname "$0")/../.." || exit 2
nibble=$PWD/nibble
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
number=0

check() { # NAME COMMAND...: the command must succeed
    local name=$1
    shift
    number=$((number + 1))
    if "$@" >"$work/log" 2>&1; then
        echo "ok $number - $name"
    else
        echo "not ok $number - $name"
        tail -n 40 "$work/log" | sed 's/^/# /'
    fi
}

same_files() {
    "${CC:-gcc}" -std=gnu17 -O2 configs/demo/source/*.c -o "$work/world" && mkdir "$work/made" && "$work/world" "$work/made" &&
        cmp "$work/made/train.jsonl" configs/demo/train.jsonl && cmp "$work/made/held_out.jsonl" configs/demo/held_out.jsonl &&
        cmp "$work/made/tokenizer.json" configs/demo/base/tokenizer.json
}
check "questions and tokenizer are what the sources make" same_files

apart() { # prompts, before the completion
    sed 's/, "completion.*//' configs/demo/held_out.jsonl | sort -u >"$work/held_out"
    sed 's/, "completion.*//' configs/demo/train.jsonl | sort -u >"$work/train"
    [[ -s $work/train && -s $work/held_out && -z $(comm -12 "$work/train" "$work/held_out") ]]
}
check "no held-out question is trained on" apart

small() { (($(stat -c %s configs/demo/base/model.safetensors) <= 5000000)); }
check "the base model is a few megabytes" small

knows() { [[ $("$nibble" generate configs/demo/base --max-tokens 5 --prompt "The fox lives") == *" in the forest."* ]]; }
check "the base model speaks its text" knows

# A run that is in the way, of two steps, is replaced.
in_the_way() { "$nibble" train configs/train/demo.json --set train.steps=2 --set output.path="$work/run"; }
check "a short run of the demo's config" in_the_way
demo() { DEMO_RUN=$work/run sh tests/tools/demo.sh "$nibble"; } # fails unless under 5 % before and over 90 % after
check "from under 5 % to over 90 % exact answers" demo

left_behind() {
    [[ -s $work/run/report.html && -s $work/run/adapter/adapter_model.safetensors && -s $work/run/adapter/adapter_config.json ]] &&
        (($(grep -c '"step"' "$work/run/metrics.jsonl") > 10))
}
check "it leaves the report and the adapter" left_behind

echo "1..$number"
