#!/bin/bash
# gpu.sh [test|bench|all]: on a machine with a GPU, tests and measures what build/gpu holds (make gpu-bundle), in under nine minutes,
# and ends with one table. It needs a driver and the CUDA libraries; a toolkit's compute-sanitizer and a Python with PyTorch,
# transformers and PEFT are used where they are. build/gpu may have been made on another machine and carried here.
set -u
cd "$(dirname "$0")/../.." || exit 2
part=${1:-all}
out=build/gpu/results
nibble=build/gpu/nibble
python=${PEERS_PYTHON:-python3}
mkdir -p "$out"
export LD_LIBRARY_PATH=$PWD/build/gpu:${LD_LIBRARY_PATH:-}
for folder in $("$python" -c 'import glob, site; print(" ".join(glob.glob(site.getsitepackages()[0] + "/nvidia/*/lib")))' 2>/dev/null); do
    LD_LIBRARY_PATH+=:$folder # cuBLAS as PyTorch's wheels bring it
done
[[ -x $nibble ]] || { echo "gpu.sh: build/gpu is empty: make gpu-bundle fills it, where nvcc is" >&2; exit 1; }
if ! "$nibble" bench optimizer --arch configs/arch/qwen2.5-0.5b.json --tokens 2 --device cuda >"$out/probe" 2>&1; then
    echo "skipped: $(tail -n 1 "$out/probe")"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
rows=()
row() { rows+=("$(printf '%-58s %s' "$1" "$2")"); }
start=$SECONDS passed=0 failed=0
left() { echo $((530 - (SECONDS - start))); } # seconds

one() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 log
    shift 2
    log=$out/${name//[^a-z0-9]/-}.log
    ((limit > $(left))) && limit=$(left)
    if ((limit > 5)) && timeout "$limit" "$@" >"$log" 2>&1 && ! grep -q '^not ok' "$log"; then
        passed=$((passed + 1))
        row "$name" "passed"
    else
        failed=$((failed + 1))
        row "$name" "FAILED ($log)"
        grep -v '^ok' "$log" | tail -n 12
    fi
}

if [[ $part != bench ]]; then
    for program in build/gpu/test_*; do CMOCKA_MESSAGE_OUTPUT=TAP one "$(basename "$program")" 60 "$program"; done
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    if [[ -n $sanitizer ]]; then
        for tool in memcheck racecheck; do
            for name in test_dequantize test_norm test_attention test_lora; do
                [[ -x build/gpu/$name ]] && one "$tool $name" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "build/gpu/$name"
            done
        done
    else
        row "compute-sanitizer" "not installed"
    fi
    NIBBLE=$nibble NIBBLE_PLUGINS=$PWD/build/gpu NIBBLE_TEST_DEVICE=cuda one "training, evaluation, generation on the device" 150 bash tests/e2e/emu.sh
fi

number() { sed -nE "s/.*\"$1\": ([-+.e0-9]+).*/\1/p" "$2" | head -n 1; }
if [[ $part != test ]]; then
    arch=configs/arch/llama-3-8b.json
    for kind in dequant gemm attention loss optimizer; do
        (($(left) > 60)) || break
        if timeout 60 "$nibble" bench "$kind" --arch "$arch" --tokens 4096 --length 4096 --device cuda >"$out/$kind.txt" 2>&1; then
            while IFS= read -r line; do row "8B: $kind" "$line"; done < <(tail -n +2 "$out/$kind.txt")
            row "8B: $kind, ceilings" "$(head -n 1 "$out/$kind.txt")"
        else
            row "8B: $kind" "FAILED: $(tail -n 1 "$out/$kind.txt")"
        fi
    done
    for shape in llama-3-8b qwen2.5-0.5b qwen2.5-7b; do
        (($(left) > 90)) || break
        log=$out/step-$shape.json
        if timeout 120 "$nibble" bench step --arch "configs/arch/$shape.json" --tokens 4096 --length 4096 --set lora.rank=16 --device cuda --json \
            >"$log" 2>"$log.err"; then
            row "$shape: step, 4096 tokens" "$(number tokens_per_second "$log") tokens/s, $(number peak_fraction "$log") of the GEMM peak, $(number device_bytes "$log") bytes"
        else
            row "$shape: step" "FAILED: $(tail -n 1 "$log.err")"
        fi
    done
    if "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
        for options in "" "--compile"; do
            (($(left) > 60)) || break
            # shellcheck disable=SC2086 # a word or none
            row "PEFT ${options:-eager}: 8B step" "$(timeout $(($(left) < 150 ? $(left) : 150)) "$python" tests/peers/bench_gpu.py --arch "$arch" --tokens 4096 --rank 16 $options 2>"$out/peft.err" | tail -n 1)"
        done
    else
        row "PEFT" "not measured: no PyTorch, transformers and PEFT in $python"
    fi
fi
echo
printf '%s\n' "${rows[@]}" | tee "$out/table.txt"
echo "$((SECONDS - start)) s"
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0))
