#!/bin/bash
# gpu_ranks.sh [N]: on a machine with N GPUs (all that are visible), what build/gpu holds (make gpu-bundle) as N ranks through NCCL:
# tests/e2e/ranks_gpu.sh on them, then a step of a larger model on 1 rank and on N, whole and split, beside what the plan says of the
# bytes. Ends with a table. One GPU shows that NCCL works with one rank. It needs a driver, cuBLAS and libnccl.so.2.
# ARCH: the larger model (configs/arch/llama-3.2-1b.json), written with random weights to SCRATCH (a folder under /tmp).
# NIBBLE_TEST_DEVICE=emu NIBBLE=./nibble tries the script itself where there is no GPU; give it a tiny ARCH.
set -u
cd "$(dirname "$0")/../.." || exit 2
device=${NIBBLE_TEST_DEVICE:-cuda}
nibble=${NIBBLE:-build/gpu/nibble}
arch=${ARCH:-configs/arch/llama-3.2-1b.json}
tokens=${TOKENS:-4096}
python=${PEERS_PYTHON:-python3}
scratch=${SCRATCH:-$(mktemp -d)} || exit 2
out=build/gpu/results
mkdir -p "$out" "$scratch"
[[ -n ${SCRATCH:-} ]] || trap 'rm -rf "$scratch"' EXIT
# cuBLAS and NCCL as PyTorch's wheels bring them
wheels=$("$python" -c 'import glob, nvidia; print(":".join(f for p in nvidia.__path__ for f in glob.glob(p + "/*/lib")))' 2>/dev/null)
[[ -z $wheels ]] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$wheels
[[ -x $nibble ]] || { echo "gpu_ranks.sh: build/gpu is empty: make gpu-bundle fills it, where nvcc is" >&2; exit 1; }
ranks=${1:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')}
if ((ranks == 0)); then
    echo "skipped: nvidia-smi finds no GPU here"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
rows=()
row() { rows+=("$(printf '%-44s %s' "$1" "$2")"); }
passed=0 failed=0
log=$out/ranks_gpu.log
NIBBLE=$nibble NIBBLE_PLUGINS=$(dirname "$nibble") NIBBLE_TEST_DEVICE=$device NIBBLE_TEST_RANKS=$ranks bash tests/e2e/ranks_gpu.sh >"$log" 2>&1
passed=$(grep -c '^ok' "$log") failed=$(grep -c '^not ok' "$log")
row "tests/e2e/ranks_gpu.sh, $ranks ranks" "$passed passed, $failed failed ($log)"
grep -A 12 '^not ok' "$log"

# ---- a larger model -----------------------------------------------------------------------------------------------------
"$nibble" synth --arch "$arch" --out "$scratch/model" --overwrite 2>"$out/synth.err" || { cat "$out/synth.err" >&2; exit 1; }
awk -v bytes=$((tokens * ranks * 60)) 'BEGIN { srand(7); while (n < bytes) { line = ""; for (i = 0; i < 200; i++) line = line " w" int(rand() * 100)
    n += length(line); printf "{\"text\": \"%s\"}\n", line } }' >"$scratch/data.jsonl"
cat >"$scratch/config.json" <<END
{ "seed": 1, "model": { "path": "$scratch/model" }, "lora": { "rank": 16, "alpha": 32, "dropout": 0.0 },
  "data": { "path": "$scratch/data.jsonl", "eval_fraction": 0 },
  "train": { "steps": 8, "lr": 1e-4, "micro_batch_tokens": $tokens, "gradient_accumulation": $((2 * ranks)), "eval_every": 0, "samples": 0 },
  "output": { "path": "$scratch/run", "overwrite": true } }
END
# measure NAME WORDS...: tokens a second of all ranks from the third step on, into $rate
measure() {
    local name=$1
    shift
    rate=0
    if ! "$nibble" train "$scratch/config.json" --device "$device" --set "output.path=$scratch/$name" "$@" >"$out/$name.out" 2>"$out/$name.err"; then
        failed=$((failed + 1))
        row "$name" "FAILED: $(tail -n 1 "$out/$name.err")"
        return 1
    fi
    passed=$((passed + 1))
    rate=$(sed -nE 's/^\{"kind":"step","step":([0-9]+),.*"tokens":([0-9]+),.*"seconds":([0-9.e+-]+).*/\1 \2 \3/p' "$scratch/$name/metrics.jsonl" |
        awk '$1 >= 3 { t += $2; s += $3 } END { if (s > 0) printf "%.1f", t / s }')
    row "$name: $(basename "$arch" .json), $tokens tokens" "$rate tokens/s"
}
measure one && alone=$rate
if ((ranks > 1)); then
    for base in whole split; do
        measure "$base-$ranks" --gpus "$ranks" --set distributed.shard_base=$([[ $base == split ]] && echo true || echo false) || continue
        row "    of $ranks times one rank" "$(awk -v a="$alone" -v b="$rate" -v n="$ranks" 'BEGIN { printf "%.1f %%", 100 * b / (n * a) }')"
        row "    counted in step 4" "$(sed -n 's/^step 4 of .*; sent/sent/p' "$scratch/$base-$ranks/logs/rank-0.log")"
    done
else
    NIBBLE_JOIN_ALONE=1 measure joined
    row "    NCCL" "$(sed -n 's/.*, through //p' "$scratch/joined/logs/rank-0.log" | head -n 1)"
fi
echo
printf '%s\n' "${rows[@]}" | tee "$out/ranks_table.txt"
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0))
