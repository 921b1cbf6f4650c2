#!/bin/bash
# nibble compare from outside: arms trained and rounded, results that repeat, refusals. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs 30
sed -i 's/"dropout": 0.1/"dropout": 0.0/; s/"samples": 1, "save_best": true/"samples": 0/; s/"epochs": 3/"steps": 8/' "$work/config.json"
cat >"$work/experiment.json" <<END
// comments are allowed
{ "config": "$work/config.json", "output": "$work/out-runs", "seeds": [1, 2], "learning_rates": [1e-3, 1e-2],
  "arms": [
    { "name": "bf16", "set": ["method=lora"] },
    { "name": "ptq", "rounds": "bf16", "set": ["method=lora", "qat.mode=merged", "qat.weights=int2"] },
    { "name": "qat", "against": "ptq", "set": ["method=lora", "qat.mode=merged", "qat.weights=int2"] },
    { "name": "late", "against": "ptq", "set": ["method=lora", "qat.mode=merged", "qat.weights=int2", "qat.start_step=4"] },
    { "name": "again", "rounds": "qat", "against": "ptq", "set": ["method=lora", "qat.mode=merged", "qat.weights=int2"] }
  ] }
END
runs() { run 0 compare "$work/experiment.json" --json --threads 2 && cp "$work/out" "$work/first.json" && out_has '"name": "qat"'; }
check "an experiment runs" runs
written() { cmp "$work/first.json" "$work/out-runs/compare.json" && grep -q "<svg" "$work/out-runs/compare.html"; }
check "its results are written beside the runs" written
every_run() { [[ $(find "$work/out-runs" -name metrics.jsonl | wc -l) == 12 ]]; }
check "every seed and learning rate of the trained arms is a run" every_run
repeats() { run 0 compare "$work/experiment.json" --json --threads 1 && cmp "$work/out" "$work/first.json" && err_has "is complete"; }
check "called again it trains nothing and gives the same numbers" repeats
arm_losses() { sed -nE "s/.*\"name\": \"$1\".*\"recovery\": (.*)\}.*/\1/p" "$work/first.json"; }
lossless() { [[ -n $(arm_losses qat) && $(arm_losses qat) == "$(arm_losses again)" ]] || { cat "$work/first.json"; false; }; }
check "rounding what was trained merged changes nothing, to the bit" lossless
table() { run 0 compare "$work/experiment.json" && out_has "recovery" && out_has "2.500"; }
check "the table shows bits and recovery" table

refuse() { # MESSAGE SED-SCRIPT
    sed "$2" "$work/experiment.json" >"$work/bad.json"
    fails_with "$1" compare "$work/bad.json"
}
unknown() { refuse 'no earlier arm is called "fp16"' 's/"rounds": "bf16"/"rounds": "fp16"/'; }
check "an arm that is not there is refused" unknown
typo() { refuse '"seed" is not known; want config, output, seeds' 's/"seeds"/"seed"/'; }
check "an unknown key is refused" typo
twice() { refuse "two are called bf16" 's/"name": "ptq"/"name": "bf16"/; s/"against": "ptq", //'; }
check "two arms of one name are refused" twice
outside() { refuse "a name is a folder's" 's/"name": "again"/"name": "..\/x"/'; }
check "a name that leaves the folder is refused" outside
not_rounded() { refuse "against: want an arm that rounds another" 's/"against": "ptq"/"against": "bf16"/'; }
check "recovery against a trained arm is refused" not_rounded

other_shape() {
    run 2 train "$work/config.json" --set method=lora --set "lora.init=$work/out-runs/bf16/seed-1-lr-0.001/adapter" --set lora.rank=8 \
        --set "output.path=$work/init" && err_has "lora.init" && err_has "other modules, ranks or scales"
}
check "lora.init with another rank is refused" other_shape
goes_on() {
    run 0 train "$work/config.json" --set method=lora --set "lora.init=$work/out-runs/bf16/seed-1-lr-0.01/adapter" --set train.lr=1e-9 \
        --set seed=1 --set "output.path=$work/init" || return 1
    local end begin
    end=$(sed -nE 's/^\{"kind":"eval".*"loss":([^,]+),.*/\1/p' "$work/out-runs/bf16/seed-1-lr-0.01/metrics.jsonl" | tail -n 1)
    begin=$(sed -nE 's/^\{"kind":"eval".*"loss":([^,]+),.*/\1/p' "$work/init/metrics.jsonl" | head -n 1)
    [[ -n $end && $end == "$begin" ]] || { echo "# $end, then $begin"; false; }
}
check "lora.init starts where the other run ended" goes_on
finish
