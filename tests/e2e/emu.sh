#!/bin/bash
# The CUDA backend as it trains, evaluates and generates, on the emulated device (tests/cuda_emu), beside the CPU: losses and
# answers, the same bytes again and after a kill, the frozen base, memory, and what is said where there is no device.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs 24
there=${NIBBLE_TEST_DEVICE:-emu} # cuda: the same on a real device (tests/tools/gpu.sh)

# ---- what needs no device -------------------------------------------------------------------------------------------------
alone() { NIBBLE_PLUGINS=$work run "$@"; }
auto_trains() {
    alone 0 train "$work/config.json" --device auto --set "output.path=$work/auto" --set train.steps=1 --set train.samples=0 &&
        err_has "device auto: cpu, because" && err_has "libnibble_cuda.so" && [[ -s $(adapter auto) ]]
}
check "--device auto trains on the CPU and says why" auto_trains
cuda_fails() { alone 1 train "$work/config.json" --device cuda --set "output.path=$work/none" && err_has "libnibble_cuda.so" && [[ ! -e $work/none ]]; }
check "--device cuda without the plugin fails and says why" cuda_fails
check "--device with another word" fails_with "--device: want auto, cpu, cuda or emu" generate "$work/model" --prompt x --device gpu
linked() { ! ldd "$nibble" | awk '{ print $1 }' | grep -iE 'cuda|cublas|nvidia'; }
check "the program links no CUDA library" linked

plugin=$(dirname "$nibble")/libnibble_$there.so
if [[ ! -e $plugin ]]; then
    skip "the emulated device" "$plugin is not there: make emu builds it where the headers of the CUDA toolkit are"
    finish
    exit
fi
export NIBBLE_PLUGINS
NIBBLE_PLUGINS=$(dirname "$plugin")

plan() {
    run 0 plan configs/train/tinyllama.json --device "$there" --memory 16GiB && out_has "activations" && out_has "unknown" &&
        run 2 plan configs/train/tinyllama.json --device "$there" && err_has "--memory"
}
check "plan for a device that is not opened" plan

# ---- training -------------------------------------------------------------------------------------------------------------
short=(--set train.epochs=1 --set train.eval_every=2 --set train.save_every=2 --set train.dequantized_layers=0)
on() { # DEVICE FOLDER WORDS...
    local device=$1 folder=$2
    shift 2
    train 0 "$folder" --device "$device" "${short[@]}" "$@"
}
# near FOLDER FOLDER TOLERANCE [LEAST]: losses and evaluations of both runs, one by one; at least so many (3)
near() {
    paste -d' ' <(losses_of "$1") <(losses_of "$2") | awk -v tolerance="$3" -v least="${4:-3}" '
        { d = $3 - $6; if (d < 0) d = -d; if (!(d <= tolerance) || $1 != $4 || $2 != $5) { bad = 1; print "# " $0 }; if (d > most) most = d; n++ }
        END { printf "# %d losses, at most %.2g apart\n", n, most; exit bad || n < least }'
}
sed -i.full '/"lora"/d' "$work/config.json" && mv "$work/config.json" "$work/full.json" && mv "$work/config.json.full" "$work/config.json"
kinds=("qlora nf4" "qlora fp4" "qlora int8" "qlora int4" "lora dense" "full dense")
like_the_cpu() { # METHOD TYPE PRECISION TOLERANCE
    local settings=(--set "method=$1" --set "precision=$3") config=$work/config.json device
    case $1 in
        qlora) settings+=(--set "quant.type=$2") ;;
        full) config=$work/full.json ;;
    esac
    for device in cpu "$there"; do
        run 0 train "$config" --threads 2 --device "$device" "${short[@]}" --set "output.path=$work/$device-$1-$2-$3" "${settings[@]}" || return 1
        [[ $1 == full ]] || grep -o 'XXH3 [0-9a-f]*' "$work/err" >"$work/base-$device" || return 1
    done
    near "cpu-$1-$2-$3" "$there-$1-$2-$3" "$4" && { [[ $1 == full ]] || cmp "$work/base-cpu" "$work/base-$there"; }
}
# Losses near 5.8. In F32 only the order of sums differs, some units in the last place; in BF16 a value may round to either
# neighbour, 0.4 % apart, and the mean over a micro-batch's rows takes most of that away again: 0.0003 were seen.
for kind in "${kinds[@]}"; do check "$kind in F32 has the CPU's losses, and the CPU's bytes of the base" like_the_cpu $kind f32 2e-5; done
for kind in "qlora nf4" "full dense"; do check "$kind in BF16 has the CPU's losses" like_the_cpu $kind bf16 0.005; done
frozen() { on "$there" again && err_has "the base is unchanged" && err_has "on the device: planned and taken"; }
check "the base stays as it is, read back from the device" frozen
check "the same run again has the same bytes" same_adapter again "$there-qlora-nf4-bf16"
# Members of q, k, v and gate, up that begin at odd places of their rows, where single elements are read; the weights of a dense base
# leave gaps there, and are products of their own.
odd() {
    sed 's/"hidden_size": 64/"hidden_size": 44/; s/size": 192/size": 101/; s/n_heads": 4/n_heads": 2/; s/e_heads": 2/e_heads": 1/' "$work/arch.json" >"$work/odd.json" &&
        run 0 synth --arch "$work/odd.json" --out "$work/odd" || return 1
    local method device
    for method in qlora lora; do
        for device in cpu "$there"; do on "$device" "odd-$device-$method" --set "model.path=$work/odd" --set "method=$method" --set precision=f32 || return 1; done
        near "odd-cpu-$method" "odd-$there-$method" 2e-5 || return 1
    done
    on "$there" odd-dense --set "model.path=$work/odd" --set precision=f32 --set train.dequantized_layers=auto &&
        err_has "2 of 2 layers stay dequantized" && same_adapter odd-dense "odd-$there-qlora"
}
check "sizes that fit no vector have the CPU's losses" odd
# Weights that come in two parts, with rows that end inside a block: the bytes of the base are the CPU's.
parts() {
    sed 's/"hidden_size": 64/"hidden_size": 520/; s/size": 192/size": 8196/; s/heads": 4/heads": 5/; s/heads": 2/heads": 1/; s/layers": 2/layers": 1/; s/float32/bfloat16/' \
        "$work/arch.json" >"$work/wide.json" && run 0 synth --arch "$work/wide.json" --out "$work/wide" || return 1
    local device
    for device in cpu "$there"; do
        on "$device" "wide-$device" --set "model.path=$work/wide" --set train.steps=1 --set train.samples=0 \
            --set data.eval_fraction=0 --set train.save_best=false --set train.micro_batch_tokens=64 --set train.gradient_accumulation=1 &&
            grep -o 'XXH3 [0-9a-f]*' "$work/err" >"$work/base-$device" || return 1
    done
    cmp "$work/base-cpu" "$work/base-$there"
}
check "weights that come in parts have the CPU's bytes" parts
not_finite() { # the last but two of up_proj's values, in the second part of it
    local file=$work/wide/model.safetensors header
    header=$(od -An -tu8 -N8 "$file" | tr -d ' ') && at=$(grep -aoE 'up_proj.weight":[^]]*][^]]*' "$file" | grep -oE '[0-9]+$') &&
        printf '\xc0\x7f' | dd of="$file" bs=1 conv=notrunc seek=$((8 + header + at - 6)) 2>>"$work/err" &&
        train 1 none --device "$there" --set "model.path=$work/wide" && err_has "up_proj.weight: row 8195, column 517 is NaN"
}
check "NaN in a weight is refused by its place" not_finite
# config.json says torch_dtype; what counts are the tensors.
other_types() {
    local type device
    cp -r "$work/model" "$work/typed" || return 1
    for type in float32 float16 bfloat16; do
        sed -i 's/"torch_dtype":[[:space:]]*"[a-z0-9]*"/"torch_dtype": "'$type'"/' "$work/typed/config.json" && grep -q "\"$type\"" "$work/typed/config.json" || return 1
        for device in cpu "$there"; do
            on "$device" "typed-$type-$device" --set "model.path=$work/typed" --set precision=f32 --set train.steps=1 --set train.samples=0 &&
                same_adapter "typed-$type-$device" "typed-float32-$device" || return 1
        done
    done
}
check "a config.json that names another type changes nothing" other_types
# Folders that are packed already, of a model whose up_proj comes in two parts, and whose lines end inside of a tile.
base_of() { # DEVICE MODEL: the base's hash after a step
    on "$1" "packed-$1" --set "model.path=$2" --set train.steps=1 --set train.samples=0 --set data.eval_fraction=0 --set train.save_best=false \
        --set train.micro_batch_tokens=64 --set train.gradient_accumulation=1 --set output.overwrite=true && grep -o "XXH3 [0-9a-f]*" "$work/err" >"$work/base-$1"
}
arrives() { # FOLDER WORDS...: written so, the CPU and the device hold the same bytes of it
    local folder=$1
    shift
    run 0 "$@" --out "$folder" || return 1
    [[ ! -e $folder/model.gguf ]] || folder+=/model.gguf
    base_of cpu "$folder" && base_of "$there" "$folder" && cmp "$work/base-cpu" "$work/base-$there" && near packed-cpu "packed-$there" 0.005 1
}
sed 's/"hidden_size": 64/"hidden_size": 2112/; s/size": 192/size": 8200/; s/value_heads": 2/value_heads": 1/; s/attention_heads": 4/attention_heads": 2/; s/layers": 2/layers": 1/; s/float32/bfloat16/; s/"vocab_size"/"head_dim": 64, "vocab_size"/' \
    "$work/arch.json" >"$work/broad.json" && run 0 synth --arch "$work/broad.json" --out "$work/broad" || exit 2
check "a packed NF4 folder arrives as it is" arrives "$work/packed-nf4" quantize "$work/model"
check "one without double quantization" arrives "$work/packed-plain" quantize "$work/model" --no-double-quant
check "blocks of a size that config.json does not say" arrives "$work/packed-128" quantize "$work/model" --block-size 128
check "LLM.int8 is decoded and quantized again as on the CPU" arrives "$work/packed-int8" quantize "$work/model" --type int8
check "gptq in parts" arrives "$work/packed-gptq" export "$work/broad" --format gptq --bits 8 --no-verify
check "awq in parts" arrives "$work/packed-awq" export "$work/broad" --format awq --no-verify
check "compressed-tensors" arrives "$work/packed-ints" export "$work/model" --format compressed-tensors --asym --no-verify
check "rows of int8" arrives "$work/packed-rows" export "$work/model" --format compressed-tensors --activations int8 --no-verify
check "blocks of a GGUF file, in parts" arrives "$work/packed-gguf" export "$work/broad" --format gguf --gguf-type Q5_0 --no-verify
rm -rf "$work"/broad "$work"/packed-*
cut_short() { # a file that ends early
    run 0 quantize "$work/model" --out "$work/short" && truncate -s -100 "$work/short/model.safetensors" &&
        train 1 none --device "$there" --set "model.path=$work/short" && err_has "model.safetensors"
}
check "a packed folder that was cut short is refused" cut_short
strict() { EMU_STREAMS=lazy EMU_PROTECT=1 on "$there" strict && same_adapter strict again; }
check "late streams and protected memory change no byte" strict
eager() { NIBBLE_CUDA_GRAPHS=0 on "$there" eager && same_adapter eager again; }
check "captured and uncaptured steps have the same bytes" eager
recomputed() { on "$there" recomputed --set train.recompute=layers && same_adapter recomputed again; }
check "recomputed layers change no byte" recomputed
light() {
    on "$there" light --set train.recompute=light && same_adapter light again &&
        NIBBLE_CUDA_GRAPHS=0 EMU_STREAMS=lazy EMU_PROTECT=1 on "$there" light-late --set train.recompute=light &&
        same_adapter light-late again
}
check "nor do recomputed norms and gates" light
dequantized() {
    on "$there" dequantized --set train.dequantized_layers=auto && err_has "activations are kept, 2 of 2 layers stay dequantized" && same_adapter dequantized again
}
check "layers that stay dequantized change no byte" dequantized
# planned NAME WORDS...: that number of the plan's JSON
planned() {
    local name=$1
    shift
    "$nibble" plan "$work/config.json" --device "$there" --json "${short[@]}" "$@" | grep -oE "\"$name\": [0-9]+" | head -n 1 | grep -oE '[0-9]+$'
}
pinned() {
    local least
    least=$(planned total --memory 1KiB) && on "$there" pinned --set "train.memory=$least" &&
        err_has "layers are recomputed; in pinned host memory: the input embedding, the weights of 2 of 2 layers" &&
        same_adapter pinned again && err_has "the base is unchanged"
}
check "an embedding and layers in pinned host memory change no byte" pinned
# Five layers: the inputs of the first four leave and come back.
sed 's/layers": 2/layers": 5/' "$work/arch.json" >"$work/deep.json" && run 0 synth --arch "$work/deep.json" --out "$work/deep" || exit 2
few=(--set "model.path=$work/deep" --set train.samples=0 --set train.steps=3 --set data.eval_fraction=0 --set train.save_best=false)
deep() { # NAME WORDS...
    local name=$1
    shift
    on "$there" "$name" "${few[@]}" "$@"
}
inputs() {
    deep kept --set train.recompute=none && deep stashed --set train.recompute=host &&
        err_has "layers are recomputed; in pinned host memory: the inputs of 4 of 5 layers" && same_adapter stashed kept
}
check "layers' inputs in pinned host memory change no byte" inputs
orders() { # streams other than the first as late, and as early, as what they wait for lets them be
    local streams graphs
    for streams in lazy ahead; do
        for graphs in 0 1; do
            NIBBLE_CUDA_GRAPHS=$graphs EMU_STREAMS=$streams deep "stashed-$streams-$graphs" --set train.recompute=host &&
                same_adapter "stashed-$streams-$graphs" kept || return 1
        done
    done
}
check "nor do late and early copies of them, captured or not" orders
fewest() { # one byte less than layers recomputed and the embedding elsewhere take; the planner's words are the trainer's
    local least
    least=$(planned total --memory 1GiB "${few[@]}" --set train.recompute=layers) &&
        least=$((least - $(planned embedding --memory 1GiB "${few[@]}"))) &&
        deep fewest --set "train.memory=$((least - 1))" && same_adapter fewest kept &&
        err_has "in pinned host memory: the input embedding, the inputs of " && err_lacks "the weights of"
}
check "as few inputs as must be go there, before any weight does" fewest
only_beside() { train 2 none --set train.recompute=host && err_has "train.recompute: host is for a device"; }
check "the CPU, which has no other memory, refuses it by name" only_beside
window() {
    on "$there" window --set train.micro_batch_tokens=auto --set train.memory=64MiB --set train.steps=1 && err_has "train.micro_batch_tokens auto: " &&
        on "$there" window --set train.micro_batch_tokens=auto --set train.memory=1GiB --set train.steps=1 --resume
}
check "train.micro_batch_tokens auto takes what fits, and stays with it" window
resumed() {
    NIBBLE_FAULT=kill@step:3 "$nibble" train "$work/config.json" --threads 2 --device "$there" "${short[@]}" --set "output.path=$work/killed" >"$work/out" 2>"$work/err"
    (($? == 137)) && on "$there" killed --resume && same_adapter killed again
} 2>/dev/null
check "a killed and resumed run has the same bytes" resumed

# ---- what the CPU's kernels are held to: logits, gradients and a curve of 50 steps by transformers; cutting of batches, recomputation ----
programs=${NIBBLE_TEST_PROGRAMS:-build/release/tests}
held() { # PROGRAM
    [[ -x $programs/$1 ]] || { cannot "$programs/$1 is not built: make unit-programs" || return; }
    EMU_STREAMS=lazy NIBBLE_TEST_DEVICE=$there "$programs/$1" >"$work/out" 2>"$work/err" </dev/null
}
for program in test_parity test_invariance test_weights_device test_weights_hostile test_weights_grouped; do check "$program passes on the device" held $program; done

# ---- evaluation and generation ------------------------------------------------------------------------------------------------
answer() { run 0 generate "$work/model" --prompt "say 3" --max-tokens 12 --device "$1" --precision f32 --quant nf4 --adapter "$work/again/adapter" && cp "$work/out" "$work/answer-$1"; }
answers() { answer cpu && answer "$there" && cmp "$work/answer-cpu" "$work/answer-$there"; }
check "greedy generation gives the CPU's words" answers
score() { # DEVICE NAME OPTIONS...
    local device=$1 name=$2
    shift 2
    run 0 eval "$work/model" --data "$work/data.jsonl" --quant nf4 --device "$device" --precision f32 --json "$@" && cp "$work/out" "$work/eval-$name"
}
loss_of() { grep -oE '"loss": ?[0-9.]+' "$work/eval-$1" | head -n 1 | grep -oE '[0-9.]+$'; }
apart() { # NAME NAME LEAST MOST
    awk -v a="$(loss_of "$1")" -v b="$(loss_of "$2")" -v least="$3" -v most="$4" \
        'BEGIN { d = a - b; if (d < 0) d = -d; print "# " d " apart"; exit !(a > 0 && d >= least && d <= most) }'
}
scores() { score cpu cpu && score "$there" "$there" && apart cpu "$there" 0 1e-4; } # sums in another order
check "eval gives the CPU's loss" scores
# A sum in another order puts a value near a border into the next code, and what follows moves with it: the CPU's own kernels are
# 1e-5 apart with int8 inputs and 5e-4 with int4 keys. Rounding itself moves the loss by 2e-4 and 2e-3.
rounded() { # NAME OPTION VALUE MOST LEAST
    score cpu "cpu-$1" "$2" "$3" && score "$there" "$there-$1" "$2" "$3" && apart "cpu-$1" "$there-$1" 0 "$4" && apart "$there" "$there-$1" "$5" 1
}
check "inputs of linears are rounded as on the CPU" rounded inputs --activations int8 8e-5 1e-4
check "keys and values are rounded as on the CPU" rounded keys --kv-cache int4 1e-3 1.2e-3

# ---- measurements ------------------------------------------------------------------------------------------------------------
measured() {
    local kind
    for kind in dequant gemm attention loss optimizer; do
        run 0 bench "$kind" --arch "$work/arch.json" --tokens 32 --device "$there" --json && out_has '"fraction": ' || return 1
    done
    run 0 bench load "$work/model" --device "$there" --json && out_has '"fraction": ' || return 1
    run 0 bench step --arch "$work/arch.json" --seq 32 --rank 8 --steps 1 --device "$there" && out_has "in its arenas" &&
        out_has "2 of 2 layers stay dequantized" || return 1
    run 0 bench step --arch "$work/arch.json" --seq 32 --rank 8 --steps 1 --device "$there" --json && out_has '"fraction_of_gemm_peak": ' &&
        out_has '"dequantization_share": ' && out_has '"idle_share": ' && out_has '"peak_bytes": '
}
check "bench measures the device" measured

# ---- refusals --------------------------------------------------------------------------------------------------------------
[[ $there == emu ]] || { finish && exit; }
libraries() { on emu again --set output.overwrite=true && err_has "; 32.00 MiB more"; } # cuBLAS's workspace
check "beyond the plan there are only the libraries" libraries
# One step more, of two layers with seven weights; the first layer's inputs need no gradient, which spares q, k, v one dequantization.
# A layer's products: q, k, v | o | gate, up | down, forward and backward; the head has two.
counts() {
    EMU_COUNT=$work/counts-$1 run 0 bench step --arch "$work/arch.json" --tokens 32 --steps "$1" --device emu --set train.dequantized_layers=0
}
once() {
    counts 1 && counts 2 && awk '/dequantize_vectors/ { weights[FILENAME] = $1 } /cublas/ { products[FILENAME] = $1 }
        END { a = ARGV[1]; b = ARGV[2]; w = weights[b] - weights[a]; p = products[b] - products[a]
            print "# " w, p; exit !(w == 14 + 11 && p == 2 * 4 + 7 + 2) }' "$work/counts-1" "$work/counts-2"
}
check "a weight is dequantized once a pass; q, k, v and gate, up are one product each way" once
old() { EMU_CAPABILITY=75 run 1 generate "$work/model" --prompt x --device emu && err_has "7.5" && err_has "BF16" && err_has "--device cpu"; }
check "a device older than sm_80 is refused with the reason" old
launches() { # which have no status of their own
    local kernel
    for kernel in adamw square_parts; do
        EMU_FAIL=$kernel train 1 refused --device emu --set train.samples=0 --set output.overwrite=true &&
            err_has "$([[ $kernel == adamw ]] && echo cuda_adamw || echo cuda_sum_squares) failed" || return 1
    done
    EMU_FAIL=square_total run 1 generate "$work/model" --prompt x --device emu && err_has "the first kernel failed"
}
check "a kernel that cannot be launched is named" launches
# 32 MiB of it are cuBLAS's workspace
small() { EMU_DEVICE_MEM=34000000 train 1 small --device emu && err_has "this run needs" && err_has "are left"; }
check "a run that does not fit the device is refused with its plan" small
tight() { EMU_DEVICE_MEM=33700000 run 1 generate "$work/model" --prompt x --device emu && err_has "are left on the device"; }
check "so is a model that is to answer" tight
finish
