#!/bin/bash
# The bytes of the adapter depend neither on the number of threads nor on recomputation; exit statuses and the rules of output
# folders.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs

# with N WORDS...: a run with N threads.
with() {
    local threads=$1 folder=$2
    shift 2
    run 0 train "$work/config.json" --threads "$threads" --set "output.path=$work/$folder" "$@"
}
same_run() { with "$1" other --overwrite "${@:3}" && same_adapter "$2" other && cmp <(losses_of "$2") <(losses_of other); }
for precision in bf16 f32; do
    one() { with 1 "$precision" --set precision="\"$precision\"" --set train.recompute='"none"'; }
    check "$precision: one thread" one
    for threads in 2 3; do check "$precision: $threads threads, the same bytes" same_run $threads $precision --set precision="\"$precision\""; done
    for threads in 1 3; do
        check "$precision: layers recomputed, $threads threads, the same bytes" same_run $threads $precision \
            --set precision="\"$precision\"" --set train.recompute='"layers"'
    done
done
different() { ! cmp -s "$(adapter bf16)" "$(adapter f32)"; }
check "the comparison can fail: precisions differ" different
types() { # every base type on one and on three threads
    local type
    for type in nf4 fp4 int8 int4; do
        with 1 "$type" --set "quant.type=\"$type\"" && same_run 3 "$type" --set "quant.type=\"$type\"" --set train.recompute='"layers"' || return 1
    done
}
check "every base type: 1 thread = 3 threads, kept = recomputed" types
mixed() { # a compressed file and a pattern, with weights
    gzip -c "$work/data.jsonl" >"$work/mix.jsonl.gz" && cp "$work/data.jsonl" "$work/part-1.jsonl" || return 1
    local path="data.path=[{\"path\": \"$work/mix.jsonl.gz\", \"weight\": 0.5}, {\"path\": \"$work/part-*.jsonl\", \"weight\": 1.25}]"
    with 1 mixed --set "$path" && same_run 3 mixed --set "$path" && ! cmp -s "$(adapter bf16)" "$(adapter mixed)"
}
check "mixed files with weights: 1 thread = 3 threads" mixed
full() {
    sed '/"lora":/d' "$work/config.json" >"$work/full.json"
    local threads
    for threads in 1 3; do
        run 0 train "$work/full.json" --threads $threads --set "output.path=$work/full$threads" --set method='"full"' --set train.epochs=1 || return 1
    done
    cmp "$work/full1/model/model.safetensors" "$work/full3/model/model.safetensors"
}
check "full training: 1 thread = 3 threads" full

# ---- folders ---------------------------------------------------------------------------------------------------------------
refuses() {
    local message=$1 folder=$2
    shift 2
    find "$work/$folder" -exec ls -ld --time-style=full-iso {} + | sort >"$work/before"
    train 2 "$folder" "$@" && err_has "$message" && [[ ! -s $work/out ]] || return 1
    find "$work/$folder" -exec ls -ld --time-style=full-iso {} + | sort | cmp - "$work/before"
}
check "a run's folder is not overwritten" refuses "is not empty; go on with --resume, replace it with --overwrite" bf16
check "--resume and --overwrite contradict" refuses "contradict" bf16 --resume --overwrite
mkdir "$work/thesis" && echo text >"$work/thesis/chapter1.txt"
check "a stranger's folder is not overwritten" refuses "does not look like a run's folder" thesis --overwrite
check "nor resumed into" refuses "it is not a run's folder" thesis --resume
check "a model's folder is not overwritten" refuses "does not look like a run's folder" model --overwrite
touch "$work/file"
check "a file is no folder" refuses "is not a folder" file
cp -r "$work/bf16" "$work/holds" && cp "$work/data.jsonl" "$work/holds/data.jsonl"
check "a folder that holds the data is not overwritten" refuses "would remove data.path" holds --overwrite --set data.path="\"$work/holds/data.jsonl\""
check "nor one that holds a pattern's data" refuses "would remove data.path" holds --overwrite --set data.path="\"$work/hol*/dat?.jsonl\""
replaced() { cp -r "$work/bf16" "$work/old" && touch "$work/old/stale" && train 0 old --overwrite && [[ ! -e $work/old/stale ]] && same_adapter bf16 old; }
check "--overwrite replaces the whole folder" replaced
killed_overwriting() { # at every rename of its beginning: the folder is the old run, nothing, or the new run
    local at
    for at in 1 2 3; do
        rm -rf "$work/torn" && cp -r "$work/bf16" "$work/torn"
        NIBBLE_FAULT=kill@rename:$at train 137 torn --overwrite 2>/dev/null
        train 0 torn --overwrite && same_adapter bf16 torn || return 1
    done
}
check "killed while overwriting" killed_overwriting

# ---- mistakes come before weights --------------------------------------------------------------------------------------------
early() { # MESSAGE WORDS...: status 2, no folder made
    local message=$1
    shift
    train 2 none "$@" && err_has "$message" && [[ ! -e $work/none ]]
}
mv "$work/model/model.safetensors" "$work/weights"
check "a wrong key, with no weights there" early "train.lrr is not a key; did you mean train.lr?" --set train.lrr=1
check "a wrong value" early "train.lr" --set train.lr=-1
check "a wrong type" early "train.steps" --set train.steps='"many"'
check "a feature that has not landed" early "not supported yet" --set qat.weights='"mxfp4"'
check "a contradiction" early "max_length" --set data.max_length=4096 --set train.micro_batch_tokens=128
check "a target that the model does not have" early "nonesuch" --set lora.target_modules='["nonesuch"]'
check "a group that does not divide the width" early "48" --set quant.type='"int4"' --set quant.block_size=48
check "a group that does not divide this model's width" early "groups of 128 do not divide the width" --set quant.type='"int4"' --set quant.block_size=128
late_mistake() { train 2 bf16 --resume --set train.lr=5e-3 && err_has "train.lr: 0.001"; }
check "another config on a resume, with no weights there" late_mistake
no_weights() { train 1 none && err_has "safetensors" && [[ ! -e $work/none ]]; }
check "missing weights are a failure, not a mistake" no_weights
mv "$work/weights" "$work/model/model.safetensors"
long_warns() { train 0 long --set train.steps=1 --set train.micro_batch_tokens=4096 --set data.max_length=4096 && err_has "data.max_length: 4096 tokens are more than the model's context"; }
check "a max_length above the model's context is a warning" long_warns
lone() {
    head -n 1 "$work/data.jsonl" >"$work/lone.jsonl" && train 0 lone --set data.path="\"$work/lone.jsonl\"" --set data.eval_fraction=0.1 --set train.steps=1 &&
        err_has "nothing is evaluated"
}
check "a lone record is trained on, and the missing evaluation is said" lone
no_model() { train 1 none --set model.path="\"$work/nowhere\"" && err_has "nowhere" && [[ ! -e $work/none ]]; }
check "a missing model is a failure" no_model
no_data() { train 1 none --set data.path="\"$work/nothing.jsonl\"" && err_has "nothing.jsonl" && [[ ! -e $work/none ]]; }
check "missing data are a failure" no_data
no_memory() { train 1 none --set train.memory='"4MiB"' --set train.micro_batch_tokens=4096 && err_has "what would fit" && err_has "activations" && [[ ! -e $work/none ]]; }
check "too little memory: the plan, and what would fit" no_memory
no_folder() { train 2 "file/run" && err_has "file is not a folder"; }
check "a folder that cannot be made" no_folder
finish
