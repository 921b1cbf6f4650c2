# shellcheck shell=bash
# Sourced by the scripts in tests/e2e: a scratch folder, TAP lines, a tiny model with its data, and runs of `nibble train`.
# NIBBLE names another binary (a sanitizer's). Nothing outside the scratch folder is written.
set -u
nibble=${NIBBLE:-$PWD/nibble}
[[ $nibble == /* ]] || nibble=$PWD/$nibble
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME=$work/cache
number=0

# check NAME COMMAND...: the command must succeed; what nibble last printed is shown where it does not. A command that finds
# that it cannot do its work here returns `cannot REASON`: that is a skip.
check() {
    local name=$1 status
    shift
    number=$((number + 1))
    rm -f "$work/reason"
    "$@"
    status=$?
    if ((status == 0)); then
        echo "ok $number - $name"
    elif ((status == 77)) && [[ -s $work/reason ]]; then
        echo "ok $number - $name # SKIP $(cat "$work/reason")"
    else
        echo "not ok $number - $name"
        { head -c 2000 "$work/out" && tail -n 25 "$work/err"; } 2>/dev/null | sed 's/^/# /'
    fi
}
cannot() { echo "$1" >"$work/reason" && return 77; }

skip() { # NAME REASON
    number=$((number + 1))
    echo "ok $number - $1 # SKIP $2"
}

finish() { echo "1..$number"; }

out_has() { grep -qF -- "$1" "$work/out" || { echo "# want in the results: $1"; false; }; }
err_has() { grep -qF -- "$1" "$work/err" || { echo "# want in the messages: $1"; false; }; }
err_lacks() { ! grep -qF -- "$1" "$work/err" || { echo "# want not in the messages: $1"; false; }; }

# run STATUS WORDS...: nibble's exit status; results and messages are kept in $work/out and $work/err.
run() {
    local want=$1 got
    shift
    "$nibble" "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    ((got == want)) || echo "# nibble $*: want status $want, got $got"
    ((got == want))
}

fails_with() { # MESSAGE WORDS...: status 2, nothing on stdout, the message on stderr with the program's name
    local message=$1
    shift
    run 2 "$@" && [[ ! -s $work/out ]] && err_has "nibble: error: " && err_has "$message"
}

# A model of random weights, 2 layers of width 64, and $1 (60) ragged prompts with answers.
make_inputs() {
    cat >"$work/arch.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
 "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "vocab_size": 320, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
 "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false, "torch_dtype": "float32"}
END
    "$nibble" synth --arch "$work/arch.json" --out "$work/model" 2>"$work/err" || { cat "$work/err" >&2; exit 2; }
    awk -v count="${1:-60}" 'BEGIN { srand(7); for (i = 0; i < count; i++) {
        text = ""; words = int(rand() * 12) + 1
        for (j = 0; j < words; j++) text = text " w" int(rand() * 100)
        printf "{\"prompt\": \"say %d\", \"completion\": \"%s\"}\n", i, text } }' >"$work/data.jsonl"
    cat >"$work/config.json" <<END
{ "seed": 5, "model": { "path": "$work/model" },
  "lora": { "rank": 4, "alpha": 8, "dropout": 0.1 },
  "data": { "path": "$work/data.jsonl", "eval_fraction": 0.1 },
  "train": { "epochs": 3, "lr": 1e-3, "micro_batch_tokens": 128, "gradient_accumulation": 2, "eval_every": 5,
             "save_every": 4, "samples": 1, "save_best": true },
  "output": { "path": "$work/run" } }
END
}

# train STATUS FOLDER WORDS...: a run into $work/FOLDER with two threads.
train() {
    local want=$1 folder=$2
    shift 2
    run "$want" train "$work/config.json" --threads 2 --set "output.path=$work/$folder" "$@"
}

adapter() { echo "$work/$1/adapter/adapter_model.safetensors"; }
same_adapter() { cmp "$(adapter "$1")" "$(adapter "$2")" >>"$work/err" 2>&1 || { echo "# the adapters of $1 and $2 differ"; false; }; }

# The numbers of the step records of a run, in order of appearance.
steps_of() { sed -nE 's/^\{"kind":"step","step":([0-9]+),.*/\1/p' "$work/$1/metrics.jsonl"; }
# Every step once, in order, 1 to the last.
steps_whole() { steps_of "$1" | awk -v want="$2" '$1 != NR { bad = 1 } END { exit bad || NR != want }' || { echo "# steps of $1: $(steps_of "$1" | tr '\n' ' ')"; false; }; }
# Losses and learning rates of all steps: what must not depend on where a run was interrupted.
losses_of() { sed -nE 's/^\{"kind":"(step|eval)","step":([0-9]+),.*"loss":([^,]+),.*/\1 \2 \3/p' "$work/$1/metrics.jsonl" | sort -u; }
newest() { find "$work/$1/checkpoints" -maxdepth 1 -name 'step-*' ! -name '*.*' | sed 's/.*step-//' | sort -n | tail -n "${2:-1}" | head -n 1; }

# wait_for SECONDS COMMAND...: polls until it succeeds; the bound is against hangs only.
wait_for() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < until)) || return 1
        sleep 0.02
    done
}
