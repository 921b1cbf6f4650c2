#!/bin/bash
# Bases that come as they are (grouped integers, GGUF blocks) on the emulated device (tests/cuda_emu), beside the CPU: losses, bytes of
# the base, the plan to the byte, and the same bytes with late streams. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
there=${NIBBLE_TEST_DEVICE:-emu} # cuda: the same on a real device (tests/tools/gpu.sh)
plugin=$(dirname "$nibble")/libnibble_$there.so
if [[ ! -e $plugin ]]; then
    skip "the emulated device" "$plugin is not there: make emu builds it where the headers of the CUDA toolkit are"
    finish
    exit
fi
export NIBBLE_PLUGINS
NIBBLE_PLUGINS=$(dirname "$plugin")
make_inputs 24

short=(--set train.epochs=1 --set train.eval_every=2 --set train.save_every=2 --set train.samples=0)
on() { # DEVICE FOLDER WORDS...
    local device=$1 folder=$2
    shift 2
    train 0 "$folder" --device "$device" "${short[@]}" "$@"
}
# near FOLDER FOLDER TOLERANCE: losses and evaluations of both runs, one by one
near() {
    paste -d' ' <(losses_of "$1") <(losses_of "$2") | awk -v tolerance="$3" '
        { d = $3 - $6; if (d < 0) d = -d; if (!(d <= tolerance) || $1 != $4 || $2 != $5) { bad = 1; print "# " $0 }; if (d > most) most = d; n++ }
        END { printf "# %d losses, at most %.2g apart\n", n, most; exit bad || n < 3 }'
}

# ---- bases that come as they are ------------------------------------------------------------------------------------------------
base() { # NAME WORDS...: the model in another format
    local name=$1
    shift
    run 0 export "$work/model" --out "$work/$name" --overwrite "$@"
}
like_the_cpu() { # NAME FILE PRECISION TOLERANCE WORDS...
    local name=$1 file=$2 precision=$3 tolerance=$4 device
    shift 4
    base "$name" "$@" || return 1
    for device in cpu "$there"; do
        on "$device" "$device-$name" --set "model.path=$work/$name$file" --set "precision=$precision" --set train.dequantized_layers=auto &&
            err_has "the base is unchanged" || return 1
        grep -o 'XXH3 [0-9a-f]*' "$work/err" >"$work/base-$device"
    done
    near "cpu-$name" "$there-$name" "$tolerance" && cmp "$work/base-cpu" "$work/base-$there"
}
# In F32 only the order of sums differs; in BF16 a value may round to either neighbour, and the mean over rows takes most of it away.
check "gptq in BF16 has the CPU's losses, and the CPU's bytes of the base" like_the_cpu gptq "" bf16 0.005 --format gptq
check "awq, with zero points, in BF16" like_the_cpu awq "" bf16 0.005 --format awq
check "compressed-tensors with 8 bits a row in F32" like_the_cpu rows "" f32 2e-5 --format compressed-tensors --bits 8
check "compressed-tensors with 4 bits in F32" like_the_cpu packed "" f32 2e-5 --format compressed-tensors
check "a GGUF file of Q4_0 in F32" like_the_cpu q4_0 /model.gguf f32 2e-5 --format gguf --gguf-type Q4_0
check "a GGUF file of Q5_1 in BF16" like_the_cpu q5_1 /model.gguf bf16 0.005 --format gguf --gguf-type Q5_1
check "a GGUF file of F16 in F32" like_the_cpu f16 /model.gguf f32 2e-5 --format gguf --gguf-type F16
strict() { # NAME FILE
    EMU_STREAMS=lazy EMU_PROTECT=1 on "$there" strict --set "model.path=$work/$1$2" --set precision=f32 --set output.overwrite=true \
        --set train.dequantized_layers=0 && same_adapter strict "$there-$1"
}
check "late streams and layers that are dequantized each time change no byte of a run on integers" strict packed ""
check "nor of one on Q4_0" strict q4_0 /model.gguf
pinned() { # the embedding and a layer of blocks where the host has them
    local least
    least=$("$nibble" plan "$work/config.json" --device "$there" --json "${short[@]}" --set "model.path=$work/q4_0/model.gguf" --set precision=f32 --memory 1KiB |
        grep -oE '"total": [0-9]+' | head -n 1 | grep -oE '[0-9]+$') &&
        on "$there" pinned --set "model.path=$work/q4_0/model.gguf" --set precision=f32 --set "train.memory=$((least - 1))" &&
        err_has "the input embedding lies in pinned host memory, and so do" && same_adapter pinned "$there-q4_0"
}
check "blocks in pinned host memory change no byte" pinned
answers() { # NAME FILE
    local device
    for device in cpu "$there"; do
        run 0 generate "$work/$1$2" --prompt "say 3" --max-tokens 8 --device "$device" --precision f32 && cp "$work/out" "$work/answer-$device" || return 1
    done
    cmp "$work/answer-cpu" "$work/answer-$there"
}
check "greedy generation with gptq gives the CPU's words" answers gptq ""
check "and with Q4_0" answers q4_0 /model.gguf
finish
