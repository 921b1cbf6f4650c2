#!/bin/bash
# nibble export from outside: merges, formats, proofs, refusals, and exports that are killed. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs 30
model=$work/model
train 0 run --set train.steps=30 --set train.lr=1e-2 || exit 2
adapter=$work/run/adapter

value() { sed -nE "s/.*\"$1\": \"?([^,\"}]+).*/\1/p" "${2:-$work/out}" | head -n 1; }
export_to() { # FOLDER WORDS...
    local folder=$work/$1
    shift
    run 0 export "$model" --out "$folder" --overwrite "$@"
}
loss() { run 0 eval "$@" --data "$work/data.jsonl" --precision f32 --json && value loss >"$work/loss"; }
near() { awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(d <= t) }'; }
digest() { (cd "$1" && find . -type f ! -name export_report.json | LC_ALL=C sort | xargs sha256sum | sha256sum); }

help_text() { run 0 export --help && out_has "usage: nibble export" && out_has "example:"; }
check "--help has an example" help_text

# ---- hf ----------------------------------------------------------------------------------------------------------------
default_base() {
    export_to hf --adapter "$adapter" --format hf --json && err_has "merging onto dequantized" &&
        [[ $(value onto) == dequantized && $(value adapted) == 14 && $(value mostly_vanished) == 0 ]]
}
check "a qlora run's adapter is merged onto the dequantized base" default_base
exported_equals_live() { # F32 throughout: what is left is the order of the sums
    export_to f32 --adapter "$adapter" --format hf --dtype f32 --eval "$work/data.jsonl" --json || return 1
    loss "$work/f32" || return 1
    local merged
    merged=$(cat "$work/loss")
    loss "$model" --quant nf4 --adapter "$adapter" || return 1
    near "$merged" "$(cat "$work/loss")" 1e-4 && grep -q '"argmax_agreement_with_exported": 1}' "$work/f32/export_report.json"
}
check "the F32 export has the live model's loss and most likely tokens" exported_equals_live
onto_original() {
    export_to orig --adapter "$adapter" --format hf --onto original && out_has "onto original" && out_has "as --onto says" || return 1
    loss "$work/orig" || return 1
    local merged
    merged=$(cat "$work/loss")
    loss "$model" --adapter "$adapter" && near "$merged" "$(cat "$work/loss")" 1e-4
}
check "--onto original merges onto the folder's own weights" onto_original
unknown_run() {
    cp -r "$adapter" "$work/loose" && export_to loose-hf --adapter "$work/loose" --format hf && out_has "lies in no run folder"
}
check "an adapter outside a run folder is merged onto the original, and that is said" unknown_run
unchanged() {
    export_to copy --format hf && cmp "$work/copy/model.safetensors" "$model/model.safetensors" &&
        cmp "$work/copy/config.json" "$model/config.json" && cmp "$work/copy/tokenizer.json" "$model/tokenizer.json"
}
check "without an adapter every byte is the source's" unchanged
typed() {
    local type
    for type in bf16:bfloat16 f16:float16; do
        export_to typed --adapter "$adapter" --format hf --dtype ${type%:*} || return 1
        grep -Eq "\"torch_dtype\":[[:space:]]*\"${type#*:}\"" "$work/typed/config.json" || return 1
        loss "$work/typed" || return 1
    done
}
check "--dtype" typed
shards() { # a model of several files, from one and from several, whole
    sed -e 's/"hidden_size": 64/"hidden_size": 512/' -e 's/"intermediate_size": [0-9]*/"intermediate_size": 1024/' "$work/arch.json" >"$work/wide.json"
    "$nibble" synth --arch "$work/wide.json" --out "$work/wide" 2>/dev/null && run 0 export "$work/wide" --format hf --shard-size 4 --out "$work/shards" || return 1
    [[ $(find "$work/shards" -name 'model-*-of-*.safetensors' | wc -l) -gt 2 && -e $work/shards/model.safetensors.index.json ]] || return 1
    run 0 export "$work/shards" --format hf --out "$work/joined" && cmp "$work/joined/model.safetensors" "$work/wide/model.safetensors" &&
        run 0 export "$work/shards" --format gptq --shard-size 1 --out "$work/shards-gptq" && [[ -e $work/shards-gptq/model.safetensors.index.json ]] &&
        run 0 export "$work/shards-gptq" --format gptq --out "$work/joined-gptq" && run 0 export "$work/wide" --format gptq --out "$work/wide-gptq" &&
        cmp "$work/joined-gptq/model.safetensors" "$work/wide-gptq/model.safetensors" &&
        fails_with "--shard-size belongs to" export "$work/wide" --format gguf --shard-size 4 --out "$work/no" &&
        fails_with "--shard-size: want" export "$work/wide" --format hf --shard-size -1 --out "$work/no"
}
check "--shard-size splits what is written, and any number of files is read" shards
threads_agree() {
    export_to t1 --adapter "$adapter" --format hf --dtype bf16 --threads 1 && export_to t3 --adapter "$adapter" --format hf --dtype bf16 --threads 3 &&
        [[ $(digest "$work/t1") == "$(digest "$work/t3")" ]]
}
check "the number of threads changes no byte" threads_agree
cancel() { # a - a: the base alone, up to the rounding of the sums
    export_to both --adapter "$adapter" --adapter "$adapter" --weight 1 --weight -1 --format hf --onto original &&
        loss "$work/both" || return 1
    local merged
    merged=$(cat "$work/loss")
    loss "$model" && near "$merged" "$(cat "$work/loss")" 1e-5
}
check "two adapters with opposite weights cancel" cancel

# ---- bnb-nf4 -----------------------------------------------------------------------------------------------------------
nf4_base_equals_quantize() {
    export_to q --format bnb-nf4 && run 0 quantize "$model" --out "$work/quantized" --overwrite &&
        cmp "$work/q/model.safetensors" "$work/quantized/model.safetensors" && cmp "$work/q/config.json" "$work/quantized/config.json"
}
check "without an adapter bnb-nf4 is nibble quantize, byte for byte" nf4_base_equals_quantize
nf4_again() {
    run 0 export "$work/quantized" --format bnb-nf4 --out "$work/again" &&
        cmp "$work/again/model.safetensors" "$work/quantized/model.safetensors"
}
check "a quantized folder passes through without a change to codes and constants" nf4_again
nf4_merged() {
    export_to nf4 --adapter "$adapter" --format bnb-nf4 --eval "$work/data.jsonl" && out_has "exported" && out_has "merged" &&
        [[ ! -e $work/nf4/merged.tmp ]] && loss "$work/nf4"
}
check "a merge in NF4, with its evaluation" nf4_merged
from_quantized() {
    run 0 export "$work/quantized" --adapter "$adapter" --format hf --dtype f32 --out "$work/from-q" && out_has "onto dequantized" &&
        cmp "$work/from-q/model.safetensors" "$work/f32/model.safetensors" && ! grep -q quantization_config "$work/from-q/config.json"
}
check "a quantized folder and --onto dequantized give the same merge" from_quantized
vanished() { # a change of a thousandth of itself is below the steps of 4 bits
    export_to gone --adapter "$adapter" --weight 0.001 --format bnb-nf4 && err_has "THE MERGE HAS MOSTLY VANISHED" && err_has "--format hf"
}
check "a merge that vanishes is said loudly, with advice" vanished

# ---- peft --------------------------------------------------------------------------------------------------------------
peft() {
    export_to peft --adapter "$adapter" --format peft && cmp "$work/peft/adapter_model.safetensors" "$adapter/adapter_model.safetensors" ||
        return 1
    loss "$model" --adapter "$work/peft" || return 1
    local again
    again=$(cat "$work/loss")
    loss "$model" --adapter "$adapter" && [[ $again == "$(cat "$work/loss")" ]]
}
check "an adapter in and out is the same adapter" peft

# ---- refusals ----------------------------------------------------------------------------------------------------------
refusals() {
    fails_with "want --out DIR" export "$model" --format hf && fails_with "--format: want" export "$model" --format onnx --out "$work/no" &&
        fails_with "--onto original" export "$work/quantized" --onto original --format hf --out "$work/no" &&
        fails_with "want one --adapter, got 2" export "$model" --adapter a --adapter b --format peft --out "$work/no" &&
        fails_with "one for each of the 1 adapters" export "$model" --adapter "$adapter" --weight 1 --weight 2 --format hf --out "$work/no" &&
        fails_with "give --overwrite" export "$model" --format hf --out "$work/hf" &&
        fails_with "which is read" export "$model" --adapter "$adapter" --format hf --out "$model" --overwrite &&
        fails_with "which is read" export "$model" --adapter "$adapter" --format peft --out "$adapter" --overwrite &&
        fails_with "part of the verification" export "$model" --format hf --out "$work/no" --no-verify --eval x &&
        [[ ! -e $work/no ]]
}
check "what cannot be done is refused by name" refusals
wrong_shapes() {
    sed 's/"hidden_size": 64/"hidden_size": 32/' "$work/arch.json" >"$work/other.json"
    "$nibble" synth --arch "$work/other.json" --out "$work/other" 2>/dev/null || return 1
    run 1 export "$work/other" --adapter "$adapter" --onto original --format hf --out "$work/no" && err_has "does the adapter belong" &&
        [[ ! -e $work/no ]]
}
check "an adapter of another shape is refused" wrong_shapes

trained_grid() { # the grid that was trained is the one that is written
    train 0 grid --set method=lora --set lora.dropout=0 --set qat.mode=merged --set qat.weights=nf4 --set qat.double_quant=false \
        --set train.steps=3 && run 0 export "$model" --adapter "$work/grid/adapter" --format bnb-nf4 --out "$work/grid-nf4" &&
        grep -q '"bnb_4bit_use_double_quant": false' "$work/grid-nf4/config.json"
}
check "bnb-nf4 without double quantization where the run trained so" trained_grid

# ---- interrupted -------------------------------------------------------------------------------------------------------
killed() { # at every write, sync and rename: the folder is absent or whole
    local kind at status whole format
    for format in hf bnb-nf4 peft gguf lora-gguf; do
        mkdir -p "$work/reference" # a GGUF file has its folder's name inside
        export_to reference/killed --adapter "$adapter" --format $format || return 1
        whole=$(digest "$work/reference/killed")
        rm -rf "$work/reference"
        for kind in write fsync rename; do
            for ((at = 1; at < 400; at += 1)); do
                rm -rf "$work"/killed*
                (NIBBLE_FAULT=kill@$kind:$at exec "$nibble" export "$model" --adapter "$adapter" --format $format \
                    --out "$work/killed") >"$work/out" 2>"$work/err" &
                wait $! 2>/dev/null # no message of the shell's about each of them
                status=$?
                if [[ -e $work/killed ]]; then
                    [[ $(digest "$work/killed") == "$whole" ]] || { echo "# not whole after kill@$kind:$at"; return 1; }
                fi
                ((status == 137)) || break
            done
            echo "# $format: killed at $at ${kind}s"
            ((status == 0)) || return 1
        done
    done
}
check "an export that is killed leaves no folder, or a whole one" killed
full_disk() {
    NIBBLE_FAULT=enospc@write:3 run 1 export "$model" --adapter "$adapter" --format hf --out "$work/full" && [[ ! -e $work/full ]] &&
        [[ -z $(find "$work" -maxdepth 1 -name 'full*') ]]
}
check "a full disk leaves nothing" full_disk
interrupted() { # politely: status 130 and nothing is left; a model that takes seconds
    sed -e 's/"vocab_size": 320/"vocab_size": 100000/' -e 's/"hidden_size": 64/"hidden_size": 512/' "$work/arch.json" >"$work/big.json"
    "$nibble" synth --arch "$work/big.json" --out "$work/big" 2>/dev/null || return 1
    local attempt pid status
    for attempt in 1 2 3 4 5 6; do # one that was done before the signal came shows nothing: once more
        rm -rf "$work/stopped"
        : >"$work/err"
        "$nibble" export "$work/big" --format hf --dtype f32 --out "$work/stopped" >"$work/out" 2>"$work/err" &
        pid=$!
        wait_for 60 grep -q "merging onto" "$work/err"
        kill -INT $pid
        wait $pid
        status=$?
        ((status == 0)) || break
    done
    ((status == 130)) && err_has "nothing was written" && [[ -z $(find "$work" -maxdepth 1 -name 'stopped*') ]]
}
check "SIGINT stops between weights and leaves nothing" interrupted
finish
