#!/bin/bash
# Memory of a run against its plan, on random-weight models: plan + a fixed baseline = most resident, within 5 %, and loading stays
# under the quantized size plus one layer plus 10 %. The baseline (code, libraries, threads, the data) is what a tiny model's
# run takes beyond its plan. NIBBLE_TEST_LARGE=1: also on configs/arch/synth-500m.json, which writes 1 GB and takes minutes.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs
awk 'BEGIN { for (i = 0; i < 400; i++) printf "{\"prompt\": \"number %d\", \"completion\": \" comes after number %d\"}\n", i, i - 1 }' >"$work/data.jsonl"

# Bytes behind the words $1 in the messages of the last run.
bytes() {
    sed -nE "s/.*$1 ([0-9.]+) ([KMGT]?i?B).*/\1 \2/p" "$work/err" | tail -n 1 |
        awk '{ unit["B"] = 1; unit["KiB"] = 1024; unit["MiB"] = 1024^2; unit["GiB"] = 1024^3; unit["TiB"] = 1024^4
               printf "%.0f\n", $1 * unit[$2] }'
}
mib() { awk -v b="$1" 'BEGIN { printf "%.1f MiB", b / 1048576 }'; }
# One step whose window is full, so that every planned byte is touched; no samples.
measure() { # MODEL WORDS...
    local model=$1
    shift
    train 0 memory --overwrite --set "model.path=$model" --set data.eval_fraction=0 --set train.samples=0 --set train.save_best=false --set train.steps=1 \
        --set train.gradient_accumulation=1 "$@" || return 1
    planned=$(bytes "memory planned") resident=$(bytes "most resident") base=$(bytes "base:") loading=$(bytes "most resident so far")
    [[ -n $planned && -n $resident && -n $base && -n $loading ]]
}

baseline=0
tiny() {
    measure "$work/model" --set train.micro_batch_tokens=128 --set lora.rank=1 || return 1
    baseline=$((resident - planned))
    echo "# baseline $(mib $baseline)"
    ((baseline > 0 && baseline < 64 * 1048576)) # code and libraries; more would hide what is looked for
}
check "a tiny run takes little beyond its plan" tiny

within() { # MODEL RANK WORDS...
    local model=$1
    shift
    measure "$model" "$@" || return 1
    echo "# planned $(mib "$planned") + $(mib $baseline), most resident $(mib "$resident")"
    awk -v want=$((planned + baseline)) -v got="$resident" 'BEGIN { d = (got - want) / want; printf "# %+.2f %%\n", 100 * d; exit !(d <= 0.05 && d >= -0.05) }'
}
loads() { # MODEL BYTES-OF-A-LAYER: with next to nothing trained, the most resident so far is loading's
    measure "$1" --set lora.rank=1 --set lora.target_modules='["q_proj"]' --set train.micro_batch_tokens=64 --set data.max_length=64 || return 1
    local bound=$((base + $2 + (base + $2) / 10 + baseline))
    echo "# base $(mib "$base"), a layer $(mib "$2"), most resident while loading $(mib "$loading"), bound $(mib $bound)"
    ((loading <= bound))
}

suite() { # NAME ARCH LAYER-PARAMETERS TOKENS
    local recompute
    "$nibble" synth --arch "$2" --out "$work/$1" 2>"$work/err" || return 1
    for recompute in none layers; do
        check "$1, recompute $recompute: plan + baseline = most resident" within "$work/$1" --set lora.rank=16 \
            --set train.micro_batch_tokens="$4" --set data.max_length=128 --set train.recompute="\"$recompute\""
    done
    check "$1: loading stays under its bound" loads "$work/$1" $((2 * $3))
    rm -rf "${work:?}/$1"
}
sed -E 's/"hidden_size": [0-9]+/"hidden_size": 512/; s/"intermediate_size": [0-9]+/"intermediate_size": 1536/; s/"num_hidden_layers": [0-9]+/"num_hidden_layers": 12/
    s/"num_attention_heads": [0-9]+/"num_attention_heads": 8/; s/"num_key_value_heads": [0-9]+/"num_key_value_heads": 4/
    s/"vocab_size": [0-9]+/"vocab_size": 80000/' configs/arch/synth-500m.json >"$work/medium.json"
suite medium "$work/medium.json" $((512 * (512 * 3 + 1536 * 3))) 1024
if [[ ${NIBBLE_TEST_LARGE:-0} == 1 ]]; then
    suite synth-500m configs/arch/synth-500m.json $((1536 * (1536 * 2 + 512 * 2 + 4096 * 3))) 512
else
    skip "synth-500m" "it writes 1 GB and takes minutes; NIBBLE_TEST_LARGE=1 runs it"
fi
finish
