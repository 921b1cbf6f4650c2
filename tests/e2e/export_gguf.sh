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
loss_of() { run 0 eval "$@" --data "$work/data.jsonl" --precision f32 --json && grep -o '"loss": [0-9.]*' "$work/out"; }
lora() {
    export_to lora --adapter "$adapter" --format lora-gguf && out_has "read back: every value" && run 0 inspect "$work/lora/adapter.gguf" &&
        out_has "blk.0.ffn_down.weight.lora_a" && out_has "adapter.lora.alpha"
}
check "lora-gguf holds A and B under their weights' names" lora
lora_as_adapter() { # the same numbers: the run's loss to the last digit, and the same merge
    local own file folder
    own=$(loss_of "$model" --adapter "$adapter") && file=$(loss_of "$model" --adapter "$work/lora/adapter.gguf") && folder=$(loss_of "$model" --adapter "$work/lora") &&
        [[ -n $own && $own == "$file" && $own == "$folder" ]] || { echo "# $own, $file, $folder"; return 1; }
    export_to m1 --adapter "$adapter" --onto original --format hf --dtype f32 --no-verify && export_to m2 --adapter "$work/lora" --onto original --format hf --dtype f32 --no-verify &&
        cmp "$work/m1/model.safetensors" "$work/m2/model.safetensors" && run 0 inspect "$work/lora" && out_has "as --adapter" &&
        export_to p1 --adapter "$adapter" --format peft --dtype f32 && export_to p2 --adapter "$work/lora" --format peft && cmp "$work/p1/adapter_model.safetensors" "$work/p2/adapter_model.safetensors" &&
        run 0 generate "$model" --adapter "$work/lora" --prompt say --max-tokens 2 && run 1 eval "$work/lora/adapter.gguf" --data "$work/data.jsonl" && err_has "give it as --adapter"
}
check "a GGUF adapter is read where a PEFT folder is" lora_as_adapter
folder_as_model() { [[ $(loss_of "$work/f32") == "$(loss_of "$work/f32/model.gguf")" ]] && run 0 inspect "$work/f32" && out_has "runs here" && run 0 generate "$work/f32" --prompt say --max-tokens 2; }
check "the folder that was written is a model too" folder_as_model
refusals() {
    fails_with "--gguf-type: want" export "$model" --format gguf --gguf-type Q9 --out "$work/no" &&
        fails_with "belongs to --format gguf" export "$model" --format hf --gguf-type Q8_0 --out "$work/no" &&
        fails_with "gguf takes --gguf-type" export "$model" --format gguf --dtype f16 --out "$work/no" &&
        fails_with "want one --adapter" export "$model" --format lora-gguf --out "$work/no" &&
        fails_with "is not empty" export "$model" --format gguf --out "$work/f32" && [[ ! -e $work/no ]]
}
check "what does not go together is refused" refusals
# another gate than the one that llama.cpp computes for the architecture
gelu() {
    run 0 inspect --json tests/golden/parity/llama_gelu && out_has '"activation": "gelu_pytorch_tanh"' &&
        run 1 export tests/golden/parity/llama_gelu --format gguf --out "$work/no" && err_has "computes SiLU" && [[ ! -e $work/no ]]
}
check "a model gated by GELU is refused" gelu
killed() {
    (NIBBLE_FAULT=kill@write:3 exec "$nibble" export "$model" --format gguf --out "$work/killed") >/dev/null 2>&1
    [[ ! -e $work/killed ]] && NIBBLE_FAULT=enospc@write:3 run 1 export "$model" --format gguf --out "$work/killed" && [[ ! -e $work/killed ]]
}
check "a killed export and a full disk leave no file that looks complete" killed
kept_blocks() {
    local type
    mkdir -p "$work/three" "$work/four"
    for type in F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K_M; do
        export_to three/x --format gguf --gguf-type "$type" --no-verify &&
            run 0 export "$work/three/x/model.gguf" --format gguf --gguf-type "$type" --out "$work/four/x" --overwrite &&
            cmp "$work/three/x/model.gguf" "$work/four/x/model.gguf" || return 1
    done
}
check "an unmodified GGUF file exported to its own type is the same file" kept_blocks
same_loss() {
    local folder file
    folder=$(loss_of "$model") && file=$(loss_of "$work/f32/model.gguf") && [[ -n $folder && $folder == "$file" ]] || { echo "# $folder, $file"; false; }
}
check "an F32 file has the loss of its folder" same_loss
generates() {
    run 0 generate "$work/t_Q4_K_M/model.gguf" --prompt "say" --max-tokens 4 --seed 1 && run 0 inspect "$work/t_Q4_K_M/model.gguf" &&
        out_has "runs here" && out_has "yes"
}
check "generate runs a quantized file and inspect says that it can" generates
quantized_base() {
    run 0 plan "$work/config.json" --set "model.path=$work/t_Q8_0/model.gguf" && out_has "gguf base" &&
        train 0 gguf_run --set "model.path=$work/t_Q8_0/model.gguf" --set train.steps=4 --set train.lr=1e-2 && err_has "linears Q8_0" &&
        run 0 export "$work/t_Q8_0/model.gguf" --adapter "$work/gguf_run/adapter" --format gguf --gguf-type F32 --out "$work/back" \
            --eval "$work/data.jsonl" && out_has "live" && out_has "exported" &&
        run 0 export "$work/t_Q8_0/model.gguf" --adapter "$work/gguf_run/adapter" --format peft --out "$work/back_peft" &&
        run 0 export "$work/t_Q8_0/model.gguf" --format hf --out "$work/back_hf" && run 0 inspect "$work/back_hf" &&
        fails_with "method qlora trains on it as it is" train "$work/config.json" --set method=lora --set "model.path=$work/t_Q8_0/model.gguf" \
            --set "output.path=$work/no"
}
check "a quantized file is the frozen base of a run, and exports go on from it" quantized_base
weights_in_names() {
    export_to w1 --adapter "$adapter:0.5" --adapter "$adapter:0.25" --format hf --dtype f32 --no-verify &&
        export_to w2 --adapter "$adapter" --weight 0.75 --format hf --dtype f32 --json && out_has '"weight": 0.75' &&
        fails_with "has a weight of its own" export "$model" --adapter "$adapter:0.5" --weight 1 --format hf --out "$work/no" &&
        fails_with "want a number" export "$model" --adapter "$adapter:x" --format hf --out "$work/no"
}
check "an adapter takes its weight with it" weights_in_names
finish
