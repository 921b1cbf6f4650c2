#!/bin/bash
# eval --suite from outside: prompts, shots, results that repeat, refusals; and the real subjects where they are. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
assets=$PWD/../shared/assets

cat >"$work/tiny.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
 "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "vocab_size": 320, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
 "bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": false, "initializer_range": 0.2,
 "torch_dtype": "float32"}
END
model=$work/model
"$nibble" synth --arch "$work/tiny.json" --out "$model" 2>/dev/null || exit 2
mkdir -p "$work/mmlu/test" "$work/mmlu/dev" "$work/gsm8k"
{
    echo 'question,choice0,choice1,choice2,choice3,answer'
    echo 'One?,a,b,c,d,1'
    echo '"With ""quotes"", a comma'
    echo 'and a line end",x,y,z,w,D'
    echo 'Three?,1,2,3,4,0'
} >"$work/mmlu/test/first_thing_test.csv"
for i in 1 2 3 4 5; do echo "Shot $i?,p,q,r,s,2"; done >"$work/mmlu/dev/first_thing_dev.csv"
cp "$work/mmlu/test/first_thing_test.csv" "$work/mmlu/test/another_test.csv"
cp "$work/mmlu/dev/first_thing_dev.csv" "$work/mmlu/dev/another_dev.csv"
for i in 1 2 3; do echo "{\"question\": \"What is $i and $i?\", \"answer\": \"Adding.\\n#### 1,00$i\"}"; done >"$work/gsm8k/test.jsonl"
for i in 1 2 3 4 5 6; do echo "{\"question\": \"And $i?\", \"answer\": \"So.\\n#### $i\"}"; done >"$work/gsm8k/train.jsonl"

suite() { run 0 eval "$model" --suite "$@" --details "$work/details"; }
field() { sed -nE "s/.*\"$1\": \"?([^,\"}]+).*/\1/p" "$2"; }
choices() {
    suite "mmlu:$work/mmlu" && out_has "first_thing" && out_has "another" && out_has "of 6;" && [[ $(wc -l <"$work/details") == 6 ]]
}
check "multiple choice: a line a subject, all questions of quoted and unquoted rows" choices
answers_read() { [[ $(field answer "$work/details" | tr '\n' ' ') == "1 3 0 1 3 0 " ]]; }
check "answers as digits and as letters" answers_read
repeats() {
    cp "$work/details" "$work/before" && suite mmlu --data "$work/mmlu" --threads 1 && cmp "$work/before" "$work/details"
}
check "the same bits again, with another number of threads, and with --data" repeats
shots() { # 512 tokens hold some of five shots of a byte each; without shots prompts are shorter
    suite "mmlu:$work/mmlu" --shots 0 --limit 1 --json && [[ $(field shots "$work/details" | sort -u) == 0 ]] &&
        [[ $(field questions "$work/out") ]] && grep -q '"shots": 0, "questions": 2,' "$work/out" || return 1
    local none few
    none=$(field prompt_tokens "$work/details" | head -n 1)
    suite "mmlu:$work/mmlu" --shots 2 --limit 1 && few=$(field prompt_tokens "$work/details" | head -n 1) && ((few > none + 50))
}
check "--shots and --limit" shots
dropped() { # each shot is some 45 bytes, so that 5 of them and a long question do not fit
    printf '%0430d?,a,b,c,d,1\n' 7 >"$work/mmlu/test/another_test.csv"
    suite "mmlu:$work/mmlu" && out_has "dropped from the front of 1 prompts" || return 1
    printf '%0600d?,a,b,c,d,1\n' 7 >"$work/mmlu/test/another_test.csv"
    suite "mmlu:$work/mmlu" && out_has "1 prompts lost their beginning" && grep -q '"prompt_tokens": 504, "shots": 0, "cut": true' "$work/details"
}
check "what the context does not hold drops shots, then the beginning, and says so" dropped
numbers() {
    suite "gsm8k:$work/gsm8k/test.jsonl" --json && grep -q '"questions": 3' "$work/out" && [[ $(field answer "$work/details" | head -n 1) == 1001 ]] &&
        cp "$work/details" "$work/before" && suite "gsm8k:$work/gsm8k" --threads 1 && cmp "$work/before" "$work/details"
}
check "gsm8k generates, compares numbers and repeats" numbers
refusals() {
    run 2 eval "$model" --suite arc:/x && err_has "want mmlu or gsm8k" || return 1
    run 2 eval "$model" --suite mmlu && err_has "where is its data" || return 1
    run 2 eval "$model" --suite "mmlu:$work/mmlu" --exact-match && err_has "prompts of its own" || return 1
    run 1 eval "$model" --suite "mmlu:$work/mmlu" --shots 6 && err_has "5 examples, and --shots is 6" || return 1
    echo 'too,few' >"$work/mmlu/test/another_test.csv"
    run 1 eval "$model" --suite "mmlu:$work/mmlu" && err_has "another_test.csv: row 1: fewer than six fields" || return 1
    echo '"open' >"$work/mmlu/test/another_test.csv"
    run 1 eval "$model" --suite "mmlu:$work/mmlu" && err_has "not closed" || return 1
    echo '{"question": "x"}' >"$work/gsm8k/test.jsonl"
    run 1 eval "$model" --suite "gsm8k:$work/gsm8k" && err_has "test.jsonl:1: want an object"
}
check "what cannot be asked is refused by name" refusals

if [[ -d $assets/datasets/mmlu && -d $assets/models/stories3M/hf ]]; then
    real() {
        run 0 eval "$assets/models/stories3M/hf" --suite "mmlu:$assets/datasets/mmlu" --limit 3 && out_has "accuracy" &&
            run 0 eval "$assets/models/stories3M/hf" --suite "gsm8k:$assets/datasets/gsm8k" --limit 3 && out_has "exact match"
    }
    check "MMLU's subjects and GSM8K on stories3M" real
else
    skip "MMLU's subjects and GSM8K on stories3M" "no ../shared/assets"
fi
finish
