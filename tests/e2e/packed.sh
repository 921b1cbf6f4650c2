#!/bin/bash
# Folders of grouped integers (gptq, awq, compressed-tensors) from outside: written, used wherever a model can stand, copied,
# trained on, exported from quantization-aware runs; exports that are killed or refused leave nothing. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs 40
model=$work/model

export_to() { # FOLDER MODEL WORDS...
    local folder=$work/$1 from=$2
    shift 2
    run 0 export "$from" --out "$folder" --overwrite "$@"
}
same_model() { cmp "$work/$1/model.safetensors" "$work/$2/model.safetensors" && cmp "$work/$1/config.json" "$work/$2/config.json"; }
no_leftovers() { ! compgen -G "$work/$1*" >/dev/null || { echo "# left: $(compgen -G "$work/$1*")"; false; }; }

for format in gptq awq compressed-tensors; do
    # ---- every command that takes a model ----
    writes() { export_to "$format" "$model" --format "$format" --eval "$work/data.jsonl" --json && out_has '"format": "'"$format" && out_has '"exported"'; }
    check "$format is written, read back and measured" writes
    evaluates() { run 0 eval "$work/$format" --data "$work/data.jsonl" --json && out_has '"loss"' && err_has "stays as it is"; }
    check "eval of $format" evaluates
    generates() { run 0 generate "$work/$format" --prompt "say 1" --max-tokens 4 && run 0 generate "$work/$format" --prompt "say 1" --max-tokens 4 --precision f32; }
    check "generate with $format" generates
    chats() { echo "say 1" | "$nibble" chat "$work/$format" --template chatml --max-tokens 4 >"$work/out" 2>"$work/err"; }
    check "chat with $format" chats
    inspects() { run 0 inspect "$work/$format" && out_has "quantization" && out_has "$format" && out_has "4 bits, groups of 64"; }
    check "inspect of $format" inspects
    plans() { run 0 plan "$work/config.json" --set "model.path=$work/$format" && out_has "base: constants"; }
    check "plan for $format" plans

    # ---- copies ----
    copies() { export_to copy "$work/$format" --format "$format" && same_model copy "$format" && out_has "0 of 14 linears"; }
    check "an unmodified $format folder is copied bit for bit" copies
    threads() { export_to one "$model" --format "$format" --threads 1 && same_model one "$format"; }
    check "$format does not depend on threads" threads

    # ---- a frozen base ----
    trains() { # the base stays the integers that it is; resuming gives the same bytes
        train 0 "on-$format" --set "model.path=$work/$format" --set train.steps=8 && err_has "the base is unchanged" || return 1
        NIBBLE_FAULT=kill@step:6 "$nibble" train "$work/config.json" --threads 2 --set "model.path=$work/$format" \
            --set train.steps=8 --set "output.path=$work/half-$format" >"$work/out" 2>"$work/err"
        (($? == 137)) || { echo "# was not killed"; return 1; }
        train 0 "half-$format" --set "model.path=$work/$format" --set train.steps=8 --resume && same_adapter "on-$format" "half-$format"
    }
    check "a run on a $format base, killed and resumed" trains
    merges() {
        export_to merged "$work/$format" --adapter "$work/on-$format/adapter" --format hf && out_has "the folder is quantized" &&
            run 0 eval "$work/merged" --data "$work/data.jsonl" --json && export_to back "$work/$format" --adapter "$work/on-$format/adapter" --format "$format" &&
            out_has "14 of 14 linears" && run 0 eval "$work/back" --data "$work/data.jsonl" --json
    }
    check "its adapter is merged into 16 bits and into $format" merges
    dense_only() { fails_with "is already quantized" train "$work/config.json" --set "model.path=$work/$format" --set method=lora --set "output.path=$work/no"; }
    check "16-bit LoRA on $format is refused" dense_only

    # ---- exports that do not end ----
    killed() { # at every write of the files
        local at
        for at in 1 2 3 4; do
            NIBBLE_FAULT=kill@write:$at "$nibble" export "$model" --format "$format" --out "$work/kill-$format" >"$work/out" 2>"$work/err"
            (($? == 137)) && [[ ! -e $work/kill-$format ]] || { echo "# write $at: not killed, or an unfinished folder"; return 1; }
        done
    }
    check "a killed $format export leaves no folder that looks complete" killed
    full() { # written in full or not at all
        NIBBLE_FAULT=enospc@write:3 "$nibble" export "$model" --format "$format" --out "$work/full-$format" >"$work/out" 2>"$work/err"
        (($? != 0)) && no_leftovers "full-$format"
    }
    check "a full disk leaves nothing of a $format export" full
done

damaged() {
    cp -r "$work/gptq" "$work/damaged" && sed -i 's/"checkpoint_format": "gptq"/"checkpoint_format": "marlin"/' "$work/damaged/config.json" &&
        run 1 eval "$work/damaged" --data "$work/data.jsonl" && err_has "'marlin' is not supported"
}
check "a layout that is not read is refused by name" damaged
left_out() { # from one layout to another, where it holds the same numbers
    export_to other "$work/gptq" --format compressed-tensors && export_to again "$work/other" --format gptq && cmp "$work/again/model.safetensors" "$work/gptq/model.safetensors"
}
check "gptq through compressed-tensors is the same gptq" left_out
floats() { # decoded into numbers of the type of their scales and quantized again: groups that lie on a grid stay on it
    local words
    for words in "--bits 4 --group 32" "--bits 3 --group 64" "--bits 8 --group -1"; do
        # shellcheck disable=SC2086 # options
        export_to grid "$model" --format compressed-tensors $words && export_to floats "$work/grid" --format hf --dtype bf16 &&
            export_to again "$work/floats" --format compressed-tensors $words &&
            cmp "$work/grid/model.safetensors" "$work/again/model.safetensors" || return 1
    done
}
check "symmetric groups decoded into floats and quantized again are the same" floats
loss_of() { run 0 eval "$@" --data "$work/data.jsonl" --json && sed -nE 's/.*"loss": ([0-9.]+).*/\1/p' "$work/out" >"$work/loss"; }
eight() {
    export_to w8a8 "$model" --format compressed-tensors --activations int8 && grep -q '"format": "int-quantized"' "$work/w8a8/config.json" &&
        loss_of "$work/w8a8" && err_has "rounded to int8 per token" && mv "$work/loss" "$work/loss-int8" && loss_of "$work/w8a8" --activations none &&
        ! cmp -s "$work/loss" "$work/loss-int8" && export_to dense "$work/w8a8" --format hf --dtype bf16 && loss_of "$work/dense" && cmp "$work/loss" "$work/loss-int8"
}
check "W8A8 rounds what linears read, and so does what is made of it" eight

# ---- quantization-aware training ----
for grid in int4 int3 int8; do
    groups=(--set qat.group_size=64)
    [[ $grid == int8 ]] && groups=()
    shipped() {
        train 0 "qat-$grid" --set lora.dropout=0 --set qat.mode=merged --set "qat.weights=$grid" "${groups[@]}" --set method=lora --set precision=bf16 --set train.steps=8 &&
            export_to "shipped-$grid" "$model" --adapter "$work/qat-$grid/adapter" --format compressed-tensors && out_has "${grid}, " && err_lacks "warning" &&
            run 0 eval "$work/shipped-$grid" --data "$work/data.jsonl" --json
    }
    check "a run on $grid is exported to its own grid" shipped
done
# tests/unit/test_qat.c compares operands and losses, bit for bit.
other_grid() { export_to rounded "$model" --adapter "$work/qat-int4/adapter" --format gptq && err_has "the run trained on another grid"; }
check "a format that cannot hold the trained scales says so" other_grid
finish
