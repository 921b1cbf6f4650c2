#!/bin/bash
# Several GPU ranks through NCCL, played by emulated devices and a stand-in for NCCL over shared memory (tests/cuda_emu), a process a
# rank: the losses of one, split bases, every way of starting, a rank that dies. NIBBLE_TEST_DEVICE=cuda with NIBBLE_TEST_RANKS=N:
# the same on N real GPUs (tests/tools/gpu_ranks.sh); 1 is what a machine with one GPU can show.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
there=${NIBBLE_TEST_DEVICE:-emu}
most=${NIBBLE_TEST_RANKS:-3}
make_inputs 24
patience=5 # seconds
[[ $there == emu ]] || patience=60 # real devices and NCCL take some to begin
sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 5/' "$work/arch.json"
rm -rf "$work/model"
"$nibble" synth --arch "$work/arch.json" --out "$work/model" 2>"$work/err" || exit 2
sed -i -e 's/"seed": 5,/"seed": 5, "precision": "f32", "distributed": { "timeout_s": '$patience', "check_every": 1 },/' \
    -e 's/"gradient_accumulation": 2/"gradient_accumulation": 3/' -e 's/"samples": 1/"samples": 0/' \
    -e 's/"eval_every": 5/"eval_every": 2/' -e 's/"save_every": 4/"save_every": 1/' "$work/config.json"

# ---- what needs no device -------------------------------------------------------------------------------------------------
words() { run 2 train "$work/config.json" --gpus "$@"; }
contradiction() { words 2 --device cpu && err_has "--ranks starts CPU ranks" && words 2 --ranks 2 && err_has "give one of them"; }
check "--gpus with --device cpu or --ranks" contradiction
absent() { NIBBLE_PLUGINS=$work run 1 train "$work/config.json" --gpus 2 --set "output.path=$work/none" && err_has "libnibble_cuda.so" && [[ ! -e $work/none ]]; }
check "--gpus without the plugin fails once and says why" absent
plugin=$(dirname "$nibble")/libnibble_$there.so
if [[ ! -e $plugin ]] || ! grep -q nibble_comm_plugin "$plugin"; then
    skip "GPU ranks" "$plugin is not there or has no NCCL: make $there builds it where the headers of the CUDA toolkit and of NCCL are"
    finish
    exit
fi
linked() { ! ldd "$plugin" | awk '{ print $1 }' | grep -i nccl; }
check "the plugin starts without NCCL's library" linked

# ---- the same numbers -----------------------------------------------------------------------------------------------------
short=(--threads 1 --set train.steps=2)
ranks() { # STATUS FOLDER WORDS...
    local status=$1 folder=$2
    shift 2
    run "$status" train "$work/config.json" "${short[@]}" --device "$there" --set "output.path=$work/$folder" "$@"
}
near() { # FOLDER FOLDER: losses and evaluations within the issue's 1e-6: sums of FP32 in another grouping
    paste -d' ' <(losses_of "$1") <(losses_of "$2") | awk '
        { d = ($3 - $6) / $3; if (d < 0) d = -d; if (!(d <= 1e-6) || $1 != $4 || $2 != $5) { bad = 1; print "# " $0 } if (d > most) most = d; n++ }
        END { printf "# %d losses, at most %.2g apart\n", n, most; exit bad || n < 4 }'
}
one() { ranks 0 one; }
check "one rank" one
alone() { NIBBLE_JOIN_ALONE=1 ranks 0 alone && same_adapter one alone && [[ -s $work/alone/logs/rank-0.log ]] && grep -q "NCCL" "$work/alone/logs/rank-0.log"; }
check "one rank through NCCL: the bytes of one without" alone
for ((n = 2; n <= most; n++)); do
    several() { ranks 0 "r$1" --gpus "$1" && near one "r$1" && [[ -s $work/r$1/logs/rank-$(($1 - 1)).log ]]; }
    check "$n ranks: losses as one rank, masters equal at each step" several $n
done
if ((most == 1)); then
    skip "more ranks" "there is one GPU"
    finish
    exit
fi
split() { ranks 0 split --gpus "$most" --set distributed.shard_base=true && same_adapter "r$most" split; }
check "$most ranks, a split base: the bytes of a whole one" split
packed_split() { # read in parts by one rank each, and dealt out on the devices
    local kind=$1
    ranks 0 "whole-$kind" --gpus "$most" --set "model.path=$work/$kind" && ranks 0 "split-$kind" --gpus "$most" --set "model.path=$work/$kind" --set distributed.shard_base=true &&
        same_adapter "whole-$kind" "split-$kind"
}
for kind in nf4 gptq; do
    if [[ $kind == nf4 ]]; then run 0 quantize "$work/model" --out "$work/nf4"; else run 0 export "$work/model" --format gptq --out "$work/gptq" --no-verify; fi
    check "$most ranks, a split base out of a packed folder ($kind): the bytes of a whole one" packed_split "$kind"
done
optimizer() { ranks 0 optimizer --gpus "$most" --set distributed.shard_optimizer=true && same_adapter "r$most" optimizer; }
check "$most ranks, a split optimizer: the bytes of a whole one" optimizer
number_of() { sed -nE 's/.*"'"$1"'": ([0-9]+).*/\1/p' "$work/plan.json"; }
volume() { # step 2 follows a step and its evaluation; the plan counts such
    local name words
    for name in "r$most" split optimizer; do
        words=distributed.check_every=1
        [[ $name != split ]] || words=distributed.shard_base=true
        [[ $name != optimizer ]] || words=distributed.shard_optimizer=true
        "$nibble" plan "$work/config.json" --device "$there" --memory 8GiB --ranks "$most" --set "$words" --json >"$work/plan.json" 2>"$work/err" || return 1
        grep '^step 2 ' "$work/$name/logs/rank-0.log" | sed 's/^/# counted: /'
        grep -q "^step 2 .* sent $(number_of gradients) bytes for gradients, $(number_of base) for the base, $(number_of control) for control, $(number_of stepped) for what is trained" "$work/$name/logs/rank-0.log" ||
            { sed 's/^/# /' "$work/plan.json"; return 1; }
    done
}
check "bytes sent in a step are the plan's" volume

# ---- ways of starting -------------------------------------------------------------------------------------------------------
by_hand() { # torchrun's variables
    local r pids=() status=0
    for ((r = 0; r < most; r++)); do
        RANK=$r WORLD_SIZE=$most LOCAL_RANK=$r LOCAL_WORLD_SIZE=$most MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ % 20000)) \
            "$nibble" train "$work/config.json" "${short[@]}" --device "$there" --set "output.path=$work/torchrun" >"$work/out$r" 2>"$work/err$r" </dev/null &
        pids+=($!)
    done
    for r in "${!pids[@]}"; do wait "${pids[r]}" || status=$?; done
    cat "$work"/err[0-9]* >"$work/err"
    ((status == 0)) && [[ ! -s $work/err1 ]] && same_adapter "r$most" torchrun
}
check "torchrun's variables: rank 0 speaks, the same bytes" by_hand
nowhere() { RANK=1 WORLD_SIZE=2 ranks 2 none && err_has "MASTER_ADDR and MASTER_PORT"; }
check "torchrun's variables without an address" nowhere
if [[ -e $(dirname "$nibble")/libnibble_mpi.so ]] && command -v mpirun >/dev/null; then
    by_mpi() {
        OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -n "$most" "$nibble" train "$work/config.json" "${short[@]}" \
            --device "$there" --set "output.path=$work/mpi" >"$work/out" 2>"$work/err" </dev/null && same_adapter "r$most" mpi
    }
    check "mpirun: ranks meet through MPI and sum through NCCL, the same bytes" by_mpi
else
    skip "mpirun" "libnibble_mpi.so was not built here, or there is no mpirun"
fi

# ---- a rank that dies -------------------------------------------------------------------------------------------------------
launcher= victim=
trap '[[ -z $launcher ]] || kill -9 $launcher 2>/dev/null; rm -rf "$work"' EXIT
gone() { ! pgrep -f "output.path=$work/$1" >"$work/left"; }
dies() {
    local begin
    "$nibble" train "$work/config.json" --threads 1 --device "$there" --gpus "$most" --set "output.path=$work/dies" --set train.steps=500 >"$work/out" 2>"$work/err" </dev/null &
    launcher=$!
    wait_for 120 grep -qs '"kind":"step","step":2,' "$work/dies/metrics.jsonl" || return 1
    for victim in $(pgrep -f "output.path=$work/dies"); do
        tr '\0' '\n' <"/proc/$victim/environ" | grep -qx "RANK=1" && break
    done
    begin=$EPOCHREALTIME
    kill -9 "$victim"
    wait $launcher
    (($? == 1)) || return 1
    gone dies || { echo "# still there: $(xargs <"$work/left")"; return 1; }
    awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "# ended after %.1f s\n", b - a; exit !(b - a <= 5) }' && # distributed.timeout_s
        err_has "rank 1 (process " && err_has "died at step"
} 2>/dev/null
check "SIGKILL for a rank: named, nothing left within the limit" dies
hangs() {
    rm -rf "$work/dies"
    "$nibble" train "$work/config.json" --threads 1 --device "$there" --gpus "$most" --set "output.path=$work/dies" --set train.steps=500 >"$work/out" 2>"$work/err" </dev/null &
    launcher=$!
    wait_for 120 grep -qs '"kind":"step","step":2,' "$work/dies/metrics.jsonl" || return 1
    for victim in $(pgrep -f "output.path=$work/dies"); do
        tr '\0' '\n' <"/proc/$victim/environ" | grep -qx "RANK=1" && break
    done
    kill -STOP "$victim"
    wait $launcher
    (($? == 1)) && gone dies && err_has "rank 1 gave no sign of life for 5 s (distributed.timeout_s) at step"
} 2>/dev/null
check "a rank that hangs is named, and ended" hangs
stopped() {
    "$nibble" train "$work/config.json" --threads 1 --device "$there" --gpus "$most" --set "output.path=$work/dies" --set train.steps=500 --resume >"$work/out" 2>"$work/err" </dev/null &
    launcher=$!
    wait_for 120 grep -qs '"kind":"step","step":3,' "$work/dies/metrics.jsonl" || return 1
    kill -TERM $launcher
    wait $launcher
    (($? == 130)) && gone dies && err_has "resumed at step" && [[ $(grep -c "saved step" "$work/err") == 1 ]]
} 2>/dev/null
check "resumed; SIGTERM reaches all ranks: one checkpoint, status 130" stopped
[[ $there == emu ]] || { finish && exit; }
late() { EMU_STREAMS=lazy EMU_PROTECT=1 ranks 0 late --gpus "$most" --set distributed.shard_base=true && same_adapter split late; }
check "late streams and protected memory change no byte" late
finish
