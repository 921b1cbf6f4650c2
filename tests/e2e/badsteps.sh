#!/bin/bash
# Steps whose gradients are NaN or Inf: skipped, logged with the operation that made them, and too many in a row end the run with
# everything saved.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs

# Column 5 of the embedding is zero for every token but 'Z', and the first norm multiplies it by the greatest BF16 number: only a
# 'Z' makes an Inf.
cp -r "$work/model" "$work/broken"
file=$work/broken/model.safetensors
length=$(od -An -t u8 -N 8 "$file" | tr -d ' ')
header=$(head -c $((8 + length)) "$file" | tail -c "$length")
place_of() { echo $((8 + length + $(sed -E 's/.*"'"$1"'":\{[^}]*"data_offsets":\[([0-9]+),.*/\1/' <<<"$header"))); }
put() { printf "$2" | dd of="$file" bs=1 seek="$1" conv=notrunc status=none; } # OFFSET BYTES
embedding=$(place_of model.embed_tokens.weight)
for ((token = 0; token < 320; token++)); do put $((embedding + token * 128 + 10)) '\0\0'; done
token=$(sed -nE 's/^ *"Z": ([0-9]+),?$/\1/p' "$work/broken/tokenizer.json")
put $((embedding + token * 128 + 10)) '\200\77' # 1.0
put $(($(place_of model.layers.0.input_layernorm.weight) + 10)) '\177\177'
words=(--set "model.path=$work/broken" --set data.eval_fraction=0 --set train.samples=0 --set train.save_best=false)

skipped_of() { grep -c '"skipped":true' "$work/$1/metrics.jsonl"; }
good() { train 0 good "${words[@]}" && [[ $(skipped_of good) == 0 ]] && err_lacks "NaN or Inf"; }
check "a large weight that no text uses does no harm" good

sed -i '10s/say/Z/' "$work/data.jsonl"
sometimes() { # one record of sixty, once an epoch: three steps in all
    train 0 sometimes "${words[@]}" && [[ $(skipped_of sometimes) == 3 ]] && steps_whole sometimes "$(steps_of good | tail -n 1)" || return 1
    err_has "skipped: NaN or Inf, first in " && err_has "(1 in a row)" && err_lacks "too many" || return 1
    grep -E '"skipped":true' "$work/sometimes/metrics.jsonl" | grep -q '"loss":\(null\|[0-9]\)' || return 1
    sed -n 's/.*\(step [0-9]* skipped.*\)/# \1/p' "$work/err"
    ! cmp -s "$(adapter good)" "$(adapter sometimes)"
}
check "bad steps now and then are skipped and named" sometimes
finite() { # no BF16 number has all bits of its exponent set; nor can two letters of the header look like one
    head -c 300 "$(adapter sometimes)" | grep -q '"dtype":"BF16"' || return 1
    od -An -v -t u2 "$(adapter sometimes)" | tr -s ' ' '\n' | awk 'NF && int($1 / 128) % 256 == 255 { bad = 1 } END { exit bad }'
}
check "the adapter is finite" finite

resumed() { # the bad steps count in the resumed run as in the straight one
    NIBBLE_FAULT=kill@step:13 train 137 resumed "${words[@]}" 2>/dev/null
    train 0 resumed --resume "${words[@]}" && same_adapter sometimes resumed && [[ $(skipped_of resumed) == 3 ]]
}
check "a resumed run skips the same steps" resumed

sed -i 's/say/Z/' "$work/data.jsonl"
always() {
    train 1 always "${words[@]}" --set train.max_bad_steps=3 || return 1
    err_has "3 steps in a row gave NaN or Inf, first in " && err_has "too many bad steps: saved step 3" && err_has "train.lr" || return 1
    sed -n 's/.*error: \(.*\)/# \1/p' "$work/err"
    [[ $(newest always) == 3 && $(skipped_of always) == 3 && ! -e $work/always/adapter ]]
}
check "too many bad steps in a row: saves, exits 1, names the operation" always
again() { train 1 always "${words[@]}" --set train.max_bad_steps=3 --resume && err_has "resumed at step 3" && [[ $(newest always) == 4 ]]; }
check "resumed on the same data it stops again" again

finish
