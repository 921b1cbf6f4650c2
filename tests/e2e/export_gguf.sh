#!/bin/bash
# nibble export --format gguf and lora-gguf from outside: files, proofs, refusals, and exports that are killed. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs 30
model=$work/model
train 0 run --set train.steps=10 --set train.lr=1e-2 || exit 2
adapter=$work/run/adapter

export_to() { # FOLDER WORDS...
    local folder=$work/$1
    shift
    run 0 export "$model" --out "$folder" --overwrite "$@"
}

plain() {
    export_to f32 --format gguf --gguf-type f32 && [[ -s $work/f32/model.gguf && -s $work/f32/export_report.json ]] &&
        run 0 inspect "$work/f32/model.gguf" && out_has "token_embd.weight" && out_has "blk.0.ffn_down.weight" && out_has "tokenizer.ggml.pre"
}
check "an F32 file has llama.cpp's names and the tokenizer" plain
exact() { ! grep -Eq '"relative_error": [^0]' "$work/f32/export_report.json" && grep -q '"relative_error": 0' "$work/f32/export_report.json"; }
check "and gives every weight back" exact
every_type() {
    local type
    for type in F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q3_K_M Q4_K_S Q4_K_M Q5_K_M; do
        export_to "t_$type" --format gguf --gguf-type "$type" --json && out_has "\"type\": \"$type\"" && out_has '"verified": true' || return 1
    done
}
check "every type is written and read back" every_type
merged() { export_to merged --adapter "$adapter" --format gguf --gguf-type F32 --json && out_has '"surviving": 1' && out_has '"adapted": 14'; }
check "an adapter is merged and survives in F32" merged
same_but_name() { # general.name is the folder's
    export_to one/x --format gguf --gguf-type Q4_0 --threads 1 && export_to two/x --format gguf --gguf-type Q4_0 --threads 2 &&
        cmp "$work/one/x/model.gguf" "$work/two/x/model.gguf"
}
mkdir -p "$work/one" "$work/two"
check "the number of threads changes no byte" same_but_name
lora() {
    export_to lora --adapter "$adapter" --format lora-gguf && out_has "read back: every value" && run 0 inspect "$work/lora/adapter.gguf" &&
        out_has "blk.0.ffn_down.weight.lora_a" && out_has "adapter.lora.alpha"
}
check "lora-gguf holds A and B under their weights' names" lora
refusals() {
    fails_with "--gguf-type: want" export "$model" --format gguf --gguf-type Q9 --out "$work/no" &&
        fails_with "belongs to --format gguf" export "$model" --format hf --gguf-type Q8_0 --out "$work/no" &&
        fails_with "gguf takes --gguf-type" export "$model" --format gguf --dtype f16 --out "$work/no" &&
        fails_with "want one --adapter" export "$model" --format lora-gguf --out "$work/no" &&
        fails_with "leave --eval out" export "$model" --format gguf --eval "$work/data.jsonl" --out "$work/no" &&
        fails_with "is not empty" export "$model" --format gguf --out "$work/f32" && [[ ! -e $work/no ]]
}
check "what does not go together is refused" refusals
killed() {
    (NIBBLE_FAULT=kill@write:3 exec "$nibble" export "$model" --format gguf --out "$work/killed") >/dev/null 2>&1
    [[ ! -e $work/killed ]] && NIBBLE_FAULT=enospc@write:3 run 1 export "$model" --format gguf --out "$work/killed" && [[ ! -e $work/killed ]]
}
check "a killed export and a full disk leave no file that looks complete" killed
finish
