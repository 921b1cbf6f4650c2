#!/bin/bash
# Several CPU ranks through MPI: the losses of one, the bits of one another, whole or split bases, what happens when a rank dies or
# hangs, and going on afterwards. NIBBLE_TEST_FULL=1: 10 kills, otherwise 2; NIBBLE_TEST_SEED repeats their instants.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
if [[ ! -e $(dirname "$nibble")/libnibble_mpi.so ]] || ! command -v mpirun >/dev/null; then
    skip "ranks through MPI" "libnibble_mpi.so was not built here, or there is no mpirun"
    finish
    exit
fi
kills=$([[ ${NIBBLE_TEST_FULL:-0} == 1 ]] && echo 10 || echo 2)
seed=${NIBBLE_TEST_SEED:-$(date +%s)}
RANDOM=$seed
echo "# seed $seed, $kills kills"
# what --ranks sets for Open MPI, for the runs below that start mpirun themselves
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_orte_execute_quiet=1
limit=5 # distributed.timeout_s: a rank here is never silent for a third of it, and mpirun ends what is left in less

make_inputs 60
sed 's/"num_hidden_layers": 2/"num_hidden_layers": 7/' "$work/arch.json" >"$work/arch7.json"
"$nibble" synth --arch "$work/arch7.json" --out "$work/model7" 2>"$work/err" || exit 2
sed -i -e "s#$work/model\"#$work/model7\"#" -e 's/"gradient_accumulation": 2/"gradient_accumulation": 4/' \
    -e 's/"seed": 5,/"seed": 5, "precision": "f32", "distributed": { "timeout_s": '$limit', "check_every": 1 },/' \
    -e 's/"eval_every": 5/"eval_every": 20/' "$work/config.json"

# ranks STATUS NAME WORDS...: a run in $work/NAME
ranks() {
    local status=$1 name=$2
    shift 2
    run "$status" train "$work/config.json" --threads 1 --set "output.path=$work/$name" "$@"
}
values() { # NAME FIELD [FROM]: of every step
    sed -nE 's/^\{"kind":"(step|eval)","step":([0-9]+),.*"'"$2"'":([-+0-9.e]+).*/\1 \2 \3/p' "$work/$1/metrics.jsonl" |
        awk -v from="${3:-0}" '$2 >= from'
}
# near A B TOLERANCE [FROM]: the same steps and evaluations, losses within; prints the largest difference
near() {
    paste -d ' ' <(values "$1" loss "${4:-0}") <(values "$2" loss "${4:-0}") | awk -v tolerance="$3" -v what="$1 and $2" '
        { if ($1 != $4 || $2 != $5) bad = 1; d = ($3 - $6) / $3; if (d < 0) d = -d; if (d > most) most = d; n++ }
        END { printf "# %s: %d losses, largest relative difference %.2g\n", what, n, most; exit bad || n < 5 || !(most <= tolerance) }'
}
same_adapter() { cmp "$work/$1/adapter/adapter_model.safetensors" "$work/$2/adapter/adapter_model.safetensors"; }
nobody_left() { # PATTERN: all processes of the run are gone
    local i
    for ((i = 0; i < 100; i++)); do pgrep -f "$1" >"$work/left" || return 0; sleep 0.05; done
    echo "# still there: $(xargs <"$work/left")"
    false
}

# ---- the same numbers --------------------------------------------------------------------------------------------------------
one() { ranks 0 one; }
check "one rank" one
several() { ranks 0 "r$1" --ranks "$1" && near one "r$1" 1e-6 && [[ -s $work/r$1/logs/rank-$(($1 - 1)).log ]]; } # the issue's bound; FP32 sums in another grouping
for n in 2 3 4; do check "$n ranks: losses as one rank, masters equal at each step" several $n; done
split() { ranks 0 "s$1" --ranks "$1" --set distributed.shard_base=true && same_adapter "r$1" "s$1" && near "r$1" "s$1" 0; }
for n in 2 4; do check "$n ranks, a split base: bits as with a whole one" split $n; done
recomputed() { ranks 0 s3 --ranks 3 --set distributed.shard_base=true --set train.recompute=layers && same_adapter r3 s3; }
check "3 ranks, a split base, layers recomputed" recomputed

automatic() {
    local tokens few=(--ranks 2 --set train.epochs=1 --set train.memory=64MiB)
    ranks 0 auto2 "${few[@]}" --set train.micro_batch_tokens=auto &&
        tokens=$(grep -oE '"micro_batch_tokens": *[0-9]+' "$work/auto2/config.json" | grep -oE '[0-9]+$') &&
        ((tokens >= 256 && tokens < 8192)) && grep -q "train.micro_batch_tokens auto: $tokens," "$work/auto2/logs/rank-1.log" &&
        ranks 0 given2 "${few[@]}" --set "train.micro_batch_tokens=$tokens" && same_adapter auto2 given2
}
check "2 ranks choose the same micro-batch" automatic

kinds() { # bytes of every format are gathered as they lie
    local kind words
    for kind in quant.type=fp4 quant.type=int8 quant.type=int4 quant.double_quant=false method=lora; do
        words=(--ranks 2 --set train.epochs=1 --set "$kind")
        ranks 0 "whole-$kind" "${words[@]}" && ranks 0 "split-$kind" "${words[@]}" --set distributed.shard_base=true &&
            same_adapter "whole-$kind" "split-$kind" || return 1
    done
}
check "2 ranks, split bases of other formats" kinds
distilled() { # after the first step the last bit of a weight decides to which side it is rounded: only that step is the same
    local words=(--set train.epochs=1 --set method=lora --set lora.dropout=0 --set qat.mode=merged --set qat.weights=int4 --set train.loss=distill)
    ranks 0 teach1 "${words[@]}" && ranks 0 teach2 --ranks 2 "${words[@]}" &&
        paste -d ' ' <(values teach1 loss | head -n 2) <(values teach2 loss | head -n 2) |
        awk '{ d = ($3 - $6) / $3; if (!(d * d <= 1e-12)) bad = 1; n++; print "# " $1, $2, $3, $6 } END { exit bad || n != 2 }' &&
        ranks 2 none --ranks 2 "${words[@]}" --set distributed.shard_base=true && err_has "distributed.shard_base and qat.mode merged do not go together yet"
}
check "2 ranks learn from the base, quantized; not from a split one" distilled
shared() {
    local n words
    sed 's/.*"completion": "\(.*\)"}/\1/' "$work/data.jsonl" >"$work/text.txt"
    for words in "$work/data.jsonl" "$work/text.txt --window 64 --stride 16"; do
        read -ra words <<<"$words"
        run 0 eval "$work/model7" --device cpu --json --data "${words[@]}" && sed 's/, "seconds.*//' "$work/out" >"$work/alone" || return 1
        for n in 2 3; do
            mpirun -n $n "$nibble" eval "$work/model7" --device cpu --json --data "${words[@]}" >"$work/out" 2>"$work/err" </dev/null || return 1
            sed 's/, "seconds.*//' "$work/out" | cmp - "$work/alone" || return 1
        done
    done
    sed 's/.*"loss"/# "loss"/' "$work/alone"
}
check "eval by 2 and 3 ranks: the number of one, printed once" shared
not_shared() {
    mpirun -n 2 "$nibble" generate "$work/model7" --prompt x >"$work/out" 2>"$work/err" </dev/null
    [[ $? == 2 ]] && err_has "nibble generate runs as one process, and this is rank 0 of 2"
}
check "a command for one process refuses to be a rank" not_shared

optimizer() { # bits as with a whole one; saved by one kind and read by the other
    ranks 0 o3 --ranks 3 --set distributed.shard_optimizer=true --set train.save_every=4 && same_adapter r3 o3 || return 1
    local step
    for step in "$work"/r3/checkpoints/step-*; do cmp "$step/params.zst" "$work/o3/checkpoints/${step##*/}/params.zst" || return 1; done
    rm -r "$work/o3/checkpoints/step-11" "$work/o3/adapter"
    ranks 0 o3 --ranks 3 --resume && err_has "resumed at step 8" && same_adapter r3 o3 || return 1
    rm -r "$work/o3/checkpoints/step-11" "$work/o3/adapter"
    ranks 0 o3 --ranks 3 --resume --set distributed.shard_optimizer=true --set distributed.shard_base=true && err_has "resumed at step 8" && same_adapter r3 o3
}
check "3 ranks, a split optimizer: bits and checkpoints of a whole one" optimizer
plan_of() { "$nibble" plan "$work/config.json" --threads 1 --json "$@" 2>/dev/null; }
number_of() { sed -nE 's/.*"'"$1"'": ([0-9]+).*/\1/p'; }
memory() { # packed weights and room on a rank against 1/N + three layers of seven + 5 %
    local n whole split room
    whole=$(($(plan_of | number_of linear) + $(plan_of | number_of constants)))
    for n in 2 4; do
        split=$(plan_of --ranks $n --set distributed.shard_base=true | number_of linear)
        room=$(plan_of --ranks $n --set distributed.shard_base=true | number_of gathered)
        echo "# $n ranks: $split + $room bytes, of $whole"
        awk -v have=$((split + room)) -v whole="$whole" -v n=$n 'BEGIN { exit !(have <= (whole / n + 3 * whole / 7) * 1.05) }' || return 1
    done
}
check "a rank of a split base holds 1/N and three layers, within 5 %" memory
volume() { # step 2 and 3 follow a step; the plan counts such
    local name words
    for name in "r3 " "s4 distributed.shard_base=true" "o3 distributed.shard_optimizer=true"; do
        words=${name#* }
        plan_of --ranks "${name:1:1}" ${words:+--set "$words"} >"$work/plan.json"
        [[ $(grep -c "^step [23] .* sent $(number_of gradients <"$work/plan.json") bytes for gradients, $(number_of base <"$work/plan.json") for the base, $(number_of control <"$work/plan.json") for control, $(number_of stepped <"$work/plan.json") for what is trained" \
            "$work/${name%% *}/logs/rank-0.log") == 2 ]] || { grep '^step [23] ' "$work/${name%% *}/logs/rank-0.log"; tr ',' '\n' <"$work/plan.json" | grep -A2 sent; return 1; }
    done
    grep '^step 3 ' "$work/s4/logs/rank-0.log" | sed 's/^/# counted: /'
}
check "bytes sent in a step are the plan's" volume

# ---- what is refused ------------------------------------------------------------------------------------------------------------
without() { ! ldd "$nibble" | grep -qi mpi && NIBBLE_PLUGINS=/nowhere ranks 1 none --ranks 2 && err_has "libnibble_mpi.so cannot be loaded"; }
check "the program starts without MPI, and says so when it is needed" without
torchrun() { RANK=1 WORLD_SIZE=2 ranks 2 none && err_has "torchrun says that this is rank 1 of 2" && err_has "--ranks 2"; }
check "torchrun's variables on CPUs" torchrun
other_config() {
    mpirun -n 1 "$nibble" train "$work/config.json" --threads 1 --set "output.path=$work/other" : \
        -n 1 "$nibble" train "$work/config.json" --threads 1 --set "output.path=$work/other" --set train.lr=2e-3 >"$work/out" 2>"$work/err" </dev/null
    [[ $? == 1 ]] && err_has "the config, or what --set made of it is not the same on all ranks as on rank 0: it differs on 1"
}
check "another config on one rank" other_config
other_program() {
    cp "$nibble" "$work/nibble2" && echo >>"$work/nibble2"
    NIBBLE_PLUGINS=$(dirname "$nibble") mpirun -n 1 "$nibble" train "$work/config.json" --threads 1 --set "output.path=$work/other2" : \
        -n 1 "$work/nibble2" train "$work/config.json" --threads 1 --set "output.path=$work/other2" >"$work/out" 2>"$work/err" </dev/null
    [[ $? == 1 ]] && err_has "the program (XXH3 of its file) is not the same"
}
check "another program on one rank" other_program

elsewhere() { # the same words in two folders: the data or the base that they mean is not the same
    mkdir -p "$work/a" "$work/b"
    cp "$work/data.jsonl" "$work/a" && sed 's/w1/w2/' "$work/data.jsonl" >"$work/b/data.jsonl" && cp -r "$work/model7" "$work/a/base" && cp -r "$work/a/base" "$work/b/base"
    local words=("$nibble" train "$work/config.json" --threads 1 --set data.path=data.jsonl --set model.path=base --set "output.path=$work/other3")
    mpirun -wdir "$work/a" -n 1 "${words[@]}" : -wdir "$work/b" -n 1 "${words[@]}" >"$work/out" 2>"$work/err" </dev/null
    [[ $? == 1 ]] && err_has "the data (files, tokenizer or template) is not the same on all ranks as on rank 0: it differs on 1" || return 1
    cp "$work/a/data.jsonl" "$work/b"
    words+=(--overwrite)
    "$nibble" synth --arch "$work/arch7.json" --seed 9 --out "$work/b/base" --overwrite 2>"$work/err" || return 1
    mpirun -wdir "$work/a" -n 1 "${words[@]}" : -wdir "$work/b" -n 1 "${words[@]}" >"$work/out" 2>"$work/err" </dev/null
    [[ $? == 1 ]] && err_has "the base model is not the same on all ranks as on rank 0: it differs on 1"
}
check "other data, another base on one rank" elsewhere

# ---- ranks that die or hang ---------------------------------------------------------------------------------------------------
long=(--ranks 3 --set train.epochs=16 --set train.save_every=2 --set train.save_best=false)
reference() { ranks 0 long "${long[@]}"; }
check "a longer run of 3 ranks" reference
start() { # NAME WORDS...: in the background; waits until the third step is recorded
    local name=$1 i
    shift
    "$nibble" train "$work/config.json" --threads 1 --set "output.path=$work/$name" "$@" >"$work/out" 2>"$work/err" </dev/null &
    launcher=$!
    for ((i = 0; i < 600; i++)); do
        grep -qs '"kind":"step","step":3,' "$work/$name/metrics.jsonl" && return 0
        kill -0 $launcher 2>/dev/null || return 1
        sleep 0.05
    done
    return 1
}
process_of() { # NAME RANK
    local pid
    for pid in $(pgrep -f "output.path=$work/$1"); do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=$2" && echo "$pid" && return
    done
}
# ends NAME SECONDS: waits for the launcher; all processes are gone within these seconds
ends() {
    local begin=$EPOCHREALTIME
    wait $launcher
    status=$?
    nobody_left "output.path=$work/$1" || return 1
    awk -v a="$begin" -v b="$EPOCHREALTIME" -v limit="$2" 'BEGIN { printf "# ended after %.1f s\n", b - a; exit !(b - a <= limit) }'
}
killed() {
    local i rank
    for ((i = 0; i < kills; i++)); do
        rank=$((RANDOM % 3))
        rm -rf "$work/killed"
        start killed "${long[@]}" || return 1
        sleep "0.$((RANDOM % 10))"
        kill -9 "$(process_of killed $rank)" || return 1
        ends killed $limit || return 1
        [[ $status == 1 ]] && err_has "rank $rank (process " && err_has " died at step " || return 1
    done
    grep died "$work/err" | sed 's/^/# /'
} 2>/dev/null
check "$kills times SIGKILL for a rank: named, nothing left within the limit" killed
resumed() { ranks 0 killed "${long[@]}" --resume && err_has "resumed at step" && same_adapter long killed; }
check "resumed with as many ranks: the bytes of the undisturbed run" resumed
hanging() {
    start hanging "${long[@]}" || return 1
    kill -STOP "$(process_of hanging 1)" || return 1
    ends hanging $((limit + 4)) || return 1 # the limit since its last sign, then mpirun ends the one that hangs
    [[ $status == 1 ]] && err_has "rank 1 gave no sign of life for $limit s (distributed.timeout_s) at step"
} 2>/dev/null
check "a rank that hangs is named, and ended" hanging
signalled() {
    start signalled "${long[@]}" || return 1
    kill -TERM $launcher
    ends signalled 10 || return 1
    [[ $status == 130 ]] && err_has "go on with --resume" && [[ $(grep -c "saved step" "$work/err") == 1 ]]
} 2>/dev/null
check "SIGTERM reaches all ranks: one checkpoint, status 130" signalled
fewer() {
    local from
    from=$(sed -nE 's/.*saved step ([0-9]+).*/\1/p' "$work/err" | tail -n 1)
    ranks 0 signalled "${long[@]}" --ranks 2 --resume && near long signalled 1e-5 $((from + 1)) && # the issue's bound
        diff <(values long lr) <(values signalled lr) && diff <(values long tokens) <(values signalled tokens)
}
check "resumed with 2 ranks: same steps, samples and rates, losses within 1e-5" fewer
orphans() {
    rm -rf "$work/killed"
    start killed "${long[@]}" || return 1
    kill -9 $launcher
    wait $launcher
    nobody_left "output.path=$work/killed"
} 2>/dev/null
check "SIGKILL for the launcher: no orphans" orphans
finish
