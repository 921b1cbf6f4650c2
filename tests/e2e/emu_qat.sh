#!/bin/bash
# Bases that come as they are (grouped integers, GGUF blocks), quantization-aware training and distillation on the emulated device
# (tests/cuda_emu), beside the CPU: losses, bytes of the base, the plan to the byte, the same bytes again, exported = trained. TAP.
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
# near FOLDER FOLDER TOLERANCE [FIRST]: losses and evaluations of both runs, one by one; FIRST: of what no update has gone before
near() {
    paste -d' ' <(losses_of "$1") <(losses_of "$2") | awk -v rest="$3" -v first="${4:-$3}" '
        { tolerance = $2 == 0 || ($1 == "step" && $2 == 1) ? first : rest; d = $3 - $6; if (d < 0) d = -d; if (!(d <= tolerance) || $1 != $4 || $2 != $5) { bad = 1; print "# " $0 }; if (d > most) most = d; n++ }
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
        on "$there" pinned --set "model.path=$work/q4_0/model.gguf" --set precision=f32 --set "train.memory=$least" &&
        err_has "; in pinned host memory: the input embedding, " && err_has "the weights of " && same_adapter pinned "$there-q4_0"
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

# ---- quantization-aware training -----------------------------------------------------------------------------------------------
qat() { # DEVICE FOLDER MODE GRID WORDS...
    local device=$1 folder=$2 mode=$3 grid=$4
    shift 4
    on "$device" "$folder" --set method=lora --set lora.dropout=0 --set "qat.mode=$mode" --set "qat.weights=$grid" "$@"
}
# A GPU's exponentials and square roots are approximations, a unit or two off.
equal=2e-6
[[ $there == emu ]] || equal=2e-5
qat_like_the_cpu() { # NAME PRECISION FIRST TOLERANCE MODE GRID WORDS...
    local name=$1 precision=$2 first=$3 tolerance=$4 device
    shift 4
    for device in cpu "$there"; do qat "$device" "$device-$name" "$@" --set "precision=$precision" && err_has "the base is unchanged" || return 1; done
    near "cpu-$name" "$there-$name" "$tolerance" "$first"
}
# The first losses are of equal operands. Later a value at a border between two codes may fall to either side where sums differ in
# their last place (a group's largest value always lies at one): the CPU's own kernels (NIBBLE_CPU) are up to 0.0015 apart at int4.
for grid in int4 int2 int8 nf4 q4_0 q8_0; do
    check "merged, $grid, in F32 has the CPU's losses" qat_like_the_cpu "merged-$grid" f32 "$equal" 0.01 merged "$grid"
done
check "merged, int4 with zero points, in BF16" qat_like_the_cpu zeros bf16 0.002 0.01 merged int4 --set qat.symmetric=false --set qat.group_size=64
check "merged, nf4 on an NF4 base, in F32" qat_like_the_cpu on-nf4 f32 "$equal" 0.01 merged nf4 --set method=qlora
check "merged, int3 on grouped integers, in F32" qat_like_the_cpu on-groups f32 "$equal" 0.01 merged int3 --set method=qlora --set "model.path=$work/packed"
check "separate, int4, in F32" qat_like_the_cpu separate f32 "$equal" 0.01 separate int4 --set lora.dropout=0.1
check "learned scales in parts, then whole, in F32" qat_like_the_cpu learned f32 "$equal" 0.01 merged int3 --set qat.learn_scales=true --set qat.ramp_steps=1
check "searched scales, in F32" qat_like_the_cpu searched f32 "$equal" 0.01 merged int3 --set qat.scales=mse --set qat.group_size=32
check "searched scales of an NF4 base, learned, in BF16" qat_like_the_cpu searched-nf4 bf16 0.002 0.01 merged int4 --set qat.scales=mse --set qat.learn_scales=true --set method=qlora
check "searched scales beside an adapter of its own" qat_like_the_cpu searched-apart f32 "$equal" 0.01 separate int4 --set qat.scales=mse
check "the scales of a gptq base" qat_like_the_cpu kept f32 "$equal" 0.01 merged int4 --set qat.scales=gptq --set qat.group_size=64 --set method=qlora --set "model.path=$work/gptq"
check "those of compressed-tensors, learned" qat_like_the_cpu kept-learned f32 "$equal" 0.01 merged int4 --set qat.scales=gptq --set qat.group_size=64 --set qat.learn_scales=true --set method=qlora --set "model.path=$work/packed"
check "nf4 in parts" qat_like_the_cpu parts f32 "$equal" 0.01 merged nf4 --set qat.ramp_steps=2
check "int8 inputs and an int4 cache" qat_like_the_cpu rounded f32 2e-3 0.01 merged int4 --set qat.activations=int8 --set qat.kv_cache=int4 --set qat.start_step=1
check "int8 inputs with fixed ranges" qat_like_the_cpu fixed f32 5e-4 0.01 merged q8_0 --set qat.activations=int8-static
check "train.loss distill in F32 has the CPU's losses" qat_like_the_cpu distill f32 "$equal" 0.01 merged int2 --set train.loss=distill
check "and in BF16" qat_like_the_cpu distill16 bf16 0.002 0.01 merged int2 --set train.loss=distill

long=(--set train.epochs=3) # graphs are recorded in the second micro-batch and replayed from the third
again() { # NAME WORDS...: the bytes of a run do not depend on recording, late streams or recomputation
    local name=$1
    shift
    qat "$there" "$name-1" "$@" "${long[@]}" && NIBBLE_CUDA_GRAPHS=0 qat "$there" "$name-2" "$@" "${long[@]}" && same_adapter "$name-1" "$name-2" &&
        EMU_STREAMS=lazy EMU_PROTECT=1 qat "$there" "$name-3" "$@" "${long[@]}" --set train.recompute=layers && same_adapter "$name-1" "$name-3"
}
check "recording, late streams and recomputation change no byte" again bits merged nf4 --set qat.start_step=2 --set qat.ramp_steps=1
check "nor of searched scales" again bits-searched merged int4 --set qat.scales=mse --set qat.start_step=2
check "nor of learned scales with a teacher" again bits-learned merged int4 --set qat.learn_scales=true --set train.loss=distill --set qat.start_step=2
resumed() {
    local words=(--set train.epochs=3 --set method=lora --set lora.dropout=0 --set qat.mode=merged --set qat.weights=nf4 --set qat.start_step=2 --set qat.ramp_steps=1)
    NIBBLE_FAULT=kill@step:5 "$nibble" train "$work/config.json" --threads 2 --device "$there" "${short[@]}" "${words[@]}" --set "output.path=$work/killed" >"$work/out" 2>"$work/err"
    (($? == 137)) && on "$there" killed "${words[@]}" --resume && same_adapter killed bits-1
} 2>/dev/null
check "a killed and resumed run has the same bytes" resumed

# The exported model is the one that was trained: read again on the device, it has the loss of the run's last evaluation.
shipped() { # GRID FORMAT WORDS...
    local name=ship-$1 weights=$1 format=$2 what=$work/$1-shipped lost
    shift 2
    qat "$there" "$name" merged "$weights" --set precision=f32 --set data.eval_path="$work/data.jsonl" --set data.eval_fraction=0 "$@" &&
        run 0 export "$work/model" --adapter "$work/$name/adapter" --format "$format" --out "$what" || return 1
    [[ $format == gguf ]] && what=$what/model.gguf
    run 0 eval "$what" --data "$work/data.jsonl" --precision f32 --device "$there" --json || return 1
    lost=$(losses_of "$name" | sort -k1,1 -k2,2n | sed -n 's/^eval [0-9]* //p' | tail -n 1)
    # cuBLAS takes another kernel, whose sums have another order, for other numbers of rows
    awk -v most="$([[ $there == emu ]] && echo 1e-7 || echo 5e-6)" -v a="$lost" -v b="$(sed -nE 's/.*"loss": ([0-9.]+),.*/\1/p' "$work/out")" \
        'BEGIN { d = a - b; if (d < 0) d = -d; print "# trained " a ", exported " b; exit !(a > 0 && d <= most) }' # eight digits are printed
}
check "exported = trained: int4 with learned scales" shipped int4 compressed-tensors --set qat.learn_scales=true
check "exported = trained: int3 with searched scales" shipped int3 compressed-tensors --set qat.scales=mse
check "exported = trained: int2 with zero points" shipped int2 compressed-tensors --set qat.symmetric=false
check "exported = trained: int8" shipped int8 compressed-tensors --set qat.activations=int8
check "exported = trained: nf4" shipped nf4 bnb-nf4
check "exported = trained: q4_0" shipped q4_0 gguf
check "exported = trained: q8_0" shipped q8_0 gguf

# ---- refusals ------------------------------------------------------------------------------------------------------------------
refused() { # MESSAGE WORDS...
    local message=$1
    shift
    train 2 none --device "$there" --set method=lora --set lora.dropout=0 --set qat.mode=merged "$@" && err_has "$message" && [[ ! -e $work/none ]]
}
check "q4_k on a device is refused by name" refused "qat.weights q4_k" --set qat.weights=q4_k
finish
