#!/bin/bash
# gpu.sh [test|bench|all]: on a machine with a GPU, tests and measures what build/gpu holds (make gpu-bundle), in under nine minutes,
# and ends with one table. It needs a driver and the CUDA libraries; a toolkit's compute-sanitizer and a Python with PyTorch,
# transformers and PEFT are used where they are. build/gpu may have been made on another machine and carried here.
# NIBBLE_TEST_DEVICE=emu BUNDLE=FOLDER tries the script itself where there is no GPU; give it a tiny ARCH, few TOKENS, and PATIENCE=10:
# ten times as long for everything. FOLDER holds nibble, its plugin, test_* programs, and unit/ with test_parity, test_invariance and test_weights_device.
set -u
cd "$(dirname "$0")/../.." || exit 2
part=${1:-all}
device=${NIBBLE_TEST_DEVICE:-cuda}
bundle=${BUNDLE:-build/gpu}
arch=${ARCH:-configs/arch/llama-3-8b.json}
shapes=${ARCH:-configs/arch/llama-3-8b.json configs/arch/qwen2.5-0.5b.json configs/arch/qwen2.5-7b.json}
small=${ARCH:-configs/arch/qwen2.5-0.5b.json}
huge=${ARCH:-configs/arch/llama-3-70b.json}
tokens=${TOKENS:-4096}
python=${PEERS_PYTHON:-python3}
nibble=$bundle/nibble
case $part in
    test | bench | all) ;;
    *) echo "gpu.sh: want test, bench or all, got $part" >&2 && exit 2 ;;
esac
[[ -x $nibble ]] || { echo "gpu.sh: $bundle is empty: make gpu-bundle fills it, where nvcc is" >&2; exit 1; }
out=$bundle/results
scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
export NIBBLE_PLUGINS=$PWD/$bundle
[[ $bundle != /* ]] || NIBBLE_PLUGINS=$bundle
# Programs find what lies beside them; cuBLAS is the toolkit's, or as PyTorch's wheels bring it.
wheels=$("$python" -c 'import glob, nvidia; print(":".join(f for p in nvidia.__path__ for f in glob.glob(p + "/*/lib")))' 2>/dev/null)
[[ -z $wheels ]] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$wheels
if ! "$nibble" bench optimizer --arch "$small" --tokens 2 --device "$device" >"$out/probe" 2>&1; then
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
        echo "gpu.sh: there is a GPU, and nibble cannot use it: $(tail -n 1 "$out/probe")" >&2
        exit 1
    fi
    echo "skipped: $(tail -n 1 "$out/probe")"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
rows=()
row() { rows+=("$(printf '%-46s %s' "$1" "$2")"); }
start=$SECONDS passed=0 failed=0
patience=${PATIENCE:-1}
left() { echo $((525 * patience - (SECONDS - start))); } # seconds
limit() { local most=$(($1 * patience)) now; now=$(left); echo $((now < most ? now : most)); }

# Commands run beside each other; `done_all` waits for them and says in order what became of each.
names=() pids=() logs=() limits=()
begin() { # NAME SECONDS COMMAND...
    local name=$1 most log
    most=$(limit "$2")
    shift 2
    log=$out/${name//[^a-z0-9]/-}.log
    if ((most < 5)); then
        row "$name" "not run: no time is left"
        return
    fi
    rm -f "$log.end"
    { timeout "$most" "$@"; echo "# status $? after $SECONDS s" >"$log.end"; } >"$log" 2>&1 &
    names+=("$name") pids+=($!) logs+=("$log") limits+=("$most") since=$SECONDS
}
done_all() {
    local i status seconds
    for i in "${!names[@]}"; do
        wait "${pids[$i]}"
        status=1 seconds=$SECONDS
        [[ -s ${logs[$i]}.end ]] && read -r _ _ status _ seconds _ <"${logs[$i]}.end"
        verdict "${names[$i]}" "$status" "${limits[$i]}" $((seconds - since)) "${logs[$i]}"
    done
    names=() pids=() logs=() limits=()
}
verdict() { # NAME STATUS LIMIT SECONDS LOG
    local name=$1 status=$2 most=$3 log=$5
    if ((status == 0)) && ! grep -q '^not ok' "$log"; then
        passed=$((passed + 1))
        row "$name" "passed ($4 s)"
    elif ((status == 124)) && [[ $name == memcheck* || $name == racecheck* ]]; then
        row "$name" "not done after $most s, nothing found until then: $(grep -c '=========' "$log") lines"
    elif ((status == 124)); then
        failed=$((failed + 1))
        row "$name" "FAILED: not done after $most s ($log)"
    else
        failed=$((failed + 1))
        row "$name" "FAILED ($log)"
        grep -v '^ok' "$log" | tail -n 12
    fi
}

has_nccl() {
    local folder
    [[ $device == emu ]] || ldconfig -p 2>/dev/null | grep -q 'libnccl\.so\.2' && return
    for folder in ${wheels//:/ }; do [[ -e $folder/libnccl.so.2 ]] && return; done
    row "a rank through NCCL" "not run: there is no libnccl.so.2"
    false
}

one() { # NAME SECONDS COMMAND...
    begin "$@"
    done_all
}

tests() {
    local program
    for program in "$bundle"/test_*; do
        [[ -x $program ]] || continue
        CMOCKA_MESSAGE_OUTPUT=TAP begin "$(basename "$program")" 60 "$program"
        ((${#names[@]} < 4)) || done_all
    done
    done_all
    # a process a run, most of whose time is its start: beside each other
    NIBBLE=$nibble NIBBLE_TEST_DEVICE=$device NIBBLE_TEST_PROGRAMS=$bundle/unit begin "training, evaluation, generation on the device" 270 bash tests/e2e/emu.sh
    NIBBLE=$nibble NIBBLE_TEST_DEVICE=$device begin "other bases, quantization-aware training" 270 bash tests/e2e/emu_qat.sh
    has_nccl && NIBBLE=$nibble NIBBLE_TEST_DEVICE=$device NIBBLE_TEST_RANKS=1 begin "a rank through NCCL" 120 bash tests/e2e/ranks_gpu.sh
    done_all
}

sanitize() {
    local sanitizer tool name
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    if [[ -z $sanitizer ]]; then
        row "compute-sanitizer" "not installed"
        return
    fi
    for tool in memcheck racecheck; do
        for name in test_dequantize test_norm test_attention test_lora; do
            [[ -x $bundle/$name ]] && CMOCKA_MESSAGE_OUTPUT=TAP one "$tool $name" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bundle/$name"
        done
    done
}

number() { sed -nE "s/.*\"$1\": ([-+.e0-9]+).*/\1/p" "$2" 2>/dev/null | head -n 1; }
word() { sed -nE "s/.*\"$1\": \"?([^\",}]+).*/\1/p" "$2" 2>/dev/null | head -n 1; }
times() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "?" }'; }
gib() { awk -v bytes="${1:-0}" 'BEGIN { printf "%.2f GiB", bytes / 1073741824 }'; }

operations() {
    local kind line
    for kind in dequant gemm attention loss optimizer; do
        (($(left) > 60)) || { row "$kind" "not measured: no time is left" && continue; }
        if timeout "$(limit 60)" "$nibble" bench "$kind" --arch "$arch" --seq "$tokens" --device "$device" >"$out/$kind.txt" 2>"$out/$kind.err"; then
            while IFS= read -r line; do row "$kind" "$line"; done < <(tail -n +2 "$out/$kind.txt")
            row "$kind, ceilings" "$(head -n 1 "$out/$kind.txt")"
        else
            row "$kind" "FAILED: $(tail -n 1 "$out/$kind.err")"
        fi
    done
}

step() { # NAME ARCH TOKENS SECONDS: leaves $out/step-NAME.json
    local log=$out/step-$1.json
    (($(left) > 40)) || { row "step of $1" "not measured: no time is left" && return; }
    if timeout "$(limit "$4")" "$nibble" bench step --arch "$2" --seq "$3" --rank 16 --device "$device" --json >"$log" 2>"$log.err"; then
        row "step of $1, $3 tokens" "$(number tokens_per_second "$log") tokens/s, $(number fraction_of_gemm_peak "$log") of the GEMM peak"
        row "" "dequantization $(number dequantization_share "$log") of it, idle $(number idle_share "$log"), arenas $(gib "$(number device_bytes "$log")"), in use $(gib "$(number peak_bytes "$log")")"
        row "" "$(sed -n 's/.*"choice": "\([^"]*\)".*/\1/p' "$log")"
    else
        row "step of $1" "FAILED: $(tail -n 1 "$log.err")"
    fi
}

loading() {
    (($(left) > 60)) || { row "load" "not measured: no time is left" && return; }
    if timeout "$(limit 60)" "$nibble" synth --arch "$small" --out "$scratch/model" >"$out/synth.txt" 2>&1 &&
        timeout "$(limit 60)" "$nibble" bench load "$scratch/model" --device "$device" >"$out/load.txt" 2>"$out/load.err"; then
        row "load $(basename "$small" .json)" "$(tail -n 1 "$out/load.txt")"
    else
        row "load" "FAILED: $(cat "$out/synth.txt" "$out/load.err" 2>/dev/null | tail -n 1)"
    fi
}

# PEFT on the same shape, side by side: eager and compiled; BF16 where bitsandbytes is missing.
peer() {
    local options log ours less
    if ! "$python" -c 'import torch, transformers, peft; assert torch.cuda.is_available()' 2>/dev/null; then
        row "PEFT" "not measured: no PyTorch with CUDA, transformers and PEFT in $python"
        return
    fi
    ours=$(number tokens_per_second "$out/step-$(basename "$arch" .json).json")
    for options in "" "--compile"; do
        log=$out/peft${options}.json less=
        (($(left) > 40)) || { row "PEFT ${options:-eager}" "not measured: no time is left" && continue; }
        peft "$log" $options
        grep -q OutOfMemory "$log.err" && less=", layers recomputed" && peft "$log" $options --checkpointing
        if [[ -s $log ]]; then
            row "PEFT ${options:-eager}, $(word base "$log")$less" \
                "$(number tokens_per_second "$log") tokens/s, $(gib "$(number peak_bytes "$log")"); nibble is $(times "$ours" "$(number tokens_per_second "$log")") times as fast"
        else
            row "PEFT ${options:-eager}" "FAILED: $(tail -n 1 "$log.err")"
        fi
    done
}
peft() { # LOG WORDS...
    local log=$1
    shift
    timeout "$(limit 150)" "$python" tests/peers/bench_gpu.py --arch "$arch" --tokens "$tokens" --rank 16 "$@" >"$log" 2>"$log.err" || rm -f "$log"
}

measurements() {
    local shape
    operations
    for shape in $shapes; do step "$(basename "$shape" .json)" "$shape" "$tokens" 90; done
    peer
    step "$(basename "$arch" .json)-short" "$arch" $((tokens / 2)) 60
    loading
    step "$(basename "$huge" .json)-huge" "$huge" $((tokens / 4)) 120
}

[[ $part == bench ]] || tests
[[ $part == test ]] || measurements
[[ $part == bench ]] || sanitize
echo
printf '%s\n' "${rows[@]}" | tee "$out/table.txt"
echo "$((SECONDS - start)) s"
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0))
