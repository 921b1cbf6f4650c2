#!/bin/bash
# nibble export with --calibration and --quantizer from outside: every quantizer, refusals, threads, kills. TAP.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
model=configs/demo/base
data=configs/demo/train.jsonl
held_out=configs/demo/held_out.jsonl

export_to() { # FOLDER WORDS...
    local folder=$work/$1
    shift
    run 0 export "$model" --out "$folder" --overwrite "$@"
}
calibrated() { export_to "$@" --calibration "$data" --calibration-samples 40; }

# The mean of a key over the report's weights.
mean_of() { grep -o "\"$2\": [0-9.e-]*" "$work/$1/export_report.json" | awk '{ sum += $2; n++ } END { printf "%.6f", n ? sum / n : 0 }'; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > 0 && a < b) }' || { echo "# want $1 < $2"; false; }; }

rounding() { export_to rtn --format gptq --group 64 && export_to mse --format gptq --group 64 --quantizer mse && less "$(mean_of mse relative_error)" "$(mean_of rtn relative_error)"; }
check "ranges by squared error bring weights nearer than rounding to nearest" rounding
percentile() { export_to percentile --format awq --quantizer percentile --percentile 98 --json && out_has '"quantizer": "percentile"'; }
check "ranges by percentile" percentile
every() {
    calibrated gptq --format gptq --group 64 && calibrated order --format gptq --group 64 --act-order --damping 0.02 &&
        calibrated static --format awq --quantizer gptq --act-order --static-groups && calibrated awq --format awq --group 64 &&
        calibrated packed --format compressed-tensors --bits 3 --asym --act-order && calibrated rows --format compressed-tensors --activations int8 &&
        calibrated weighed --format compressed-tensors --quantizer mse --json && out_has '"sequences": 40'
}
check "gptq and awq in every format of grouped integers" every
better() {
    local name
    for name in gptq order static awq packed rows; do
        less "$(mean_of "$name" output_error)" "$(mean_of "$name" output_error_nearest)" || return 1
    done
}
check "whose outputs are nearer than those of weights rounded to nearest" better
order() { grep -q '"desc_act": true' "$work/order/quantize_config.json" && grep -q '"desc_act": false' "$work/gptq/quantize_config.json" && run 0 eval "$work/order" --data "$held_out"; }
check "an order of columns is in the file and read from it" order
threads() {
    local words=(--calibration "$data" --calibration-samples 20 --no-verify)
    mkdir -p "$work/one/y" "$work/two/y"
    for kind in gptq awq; do
        export_to one/x --format "$kind" --threads 1 "${words[@]}" && export_to two/x --format "$kind" --threads 3 "${words[@]}" &&
            cmp "$work/one/x/model.safetensors" "$work/two/x/model.safetensors" || return 1
    done
    export_to one/y/x --format gguf --threads 1 "${words[@]}" && export_to two/y/x --format gguf --threads 3 "${words[@]}" &&
        cmp "$work/one/y/x/model.gguf" "$work/two/y/x/model.gguf"
}
check "the number of threads changes no byte" threads
weighed() {
    calibrated gguf --format gguf --gguf-type Q4_K_M && err_has "calibration: 40 sequences" && export_to plain --format gguf --gguf-type Q4_K_M &&
        ! cmp -s "$work/gguf/model.gguf" "$work/plain/model.gguf"
}
check "gguf weighs its searches" weighed
refusals() {
    local out=(--out "$work/no")
    fails_with "give --calibration FILE" export "$model" --format gptq --quantizer gptq "${out[@]}" &&
        fails_with "want rtn, gptq, awq, mse or percentile" export "$model" --format gptq --quantizer best "${out[@]}" &&
        fails_with "leave --calibration out" export "$model" --format gptq --quantizer rtn --calibration "$data" "${out[@]}" &&
        fails_with "rounds without looking at data" export "$model" --format hf --calibration "$data" "${out[@]}" &&
        fails_with "belong to --format gptq" export "$model" --format gguf --quantizer mse "${out[@]}" &&
        fails_with "belong to --quantizer gptq" export "$model" --format awq --calibration "$data" --act-order "${out[@]}" &&
        fails_with "add --static-groups" export "$model" --format awq --quantizer gptq --calibration "$data" --act-order "${out[@]}" &&
        fails_with "--damping: want" export "$model" --format gptq --calibration "$data" --damping 3 "${out[@]}" &&
        fails_with "--percentile: want" export "$model" --format gptq --quantizer percentile --percentile 20 "${out[@]}" &&
        fails_with "belong to --calibration" export "$model" --format gguf --calibration-samples 3 "${out[@]}" &&
        fails_with "holds grouped integers already" export "$work/gptq" --format gptq --calibration "$data" "${out[@]}" &&
        run 1 export "$model" --format gptq --calibration "$work/none.jsonl" "${out[@]}" && err_has "none.jsonl" && [[ ! -e $work/no ]]
}
check "what does not go together is refused" refusals
killed() {
    (NIBBLE_FAULT=kill@write:3 exec "$nibble" export "$model" --format gptq --calibration "$data" --calibration-samples 10 --out "$work/killed") >/dev/null 2>&1
    [[ ! -e $work/killed ]]
}
check "a killed export leaves no file that looks complete" killed
finish
