#!/bin/bash
# Damaged checkpoints: the newest one that is whole is used, the message says which were not and why, and the run still ends with
# the bytes of an undisturbed one.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
seed=${NIBBLE_TEST_SEED:-$(date +%s)}
RANDOM=$seed
echo "# seed $seed"
make_inputs

reference() { train 0 straight && same_adapter straight straight; }
check "an undisturbed run" reference

# Stopped by a kill after step 17: checkpoints of steps 8, 12 and 16.
stopped() { NIBBLE_FAULT=kill@step:17 train 137 stopped 2>/dev/null; [[ $(newest stopped) == 16 && $(newest stopped 2) == 12 ]]; }
check "a stopped run has its checkpoints" stopped

flip() { # FILE: one bit, anywhere
    local at byte
    at=$(((RANDOM * 32768 + RANDOM) % $(stat -c %s "$1")))
    byte=$(od -An -t u1 -j "$at" -N 1 "$1")
    printf "$(printf '\\%03o' $((byte ^ (1 << RANDOM % 8))))" | dd of="$1" bs=1 seek="$at" conv=notrunc status=none
    echo "# flipped a bit of byte $at of $(basename "$1")"
}
halve() { truncate -s $(($(stat -c %s "$1") / 2)) "$1"; }
empty() { : >"$1"; }
remove() { rm "$1"; }
grow() { printf x >>"$1"; }
rename_step() { mv "$(dirname "$1")" "$work/damaged/checkpoints/step-18"; }

damaged() { # HOW FILE: that file of the newest checkpoint; the one before is used
    rm -rf "$work/damaged"
    cp -r "$work/stopped" "$work/damaged"
    "$1" "$work/damaged/checkpoints/step-16/$2"
    local name=step-16
    [[ $1 == rename_step ]] && name=step-18
    train 0 damaged --resume && err_has "warning: $name: " && err_has "resumed at step 12" && same_adapter straight damaged && steps_whole damaged 21
}
for file in params.zst state.json; do
    for how in halve empty remove grow flip; do check "$how $file of the newest: the one before is used" damaged $how $file; done
done
check "a renamed checkpoint is not trusted" damaged rename_step state.json

# Any bit of either file: nothing damaged is ever used without a word.
flips=$([[ ${NIBBLE_TEST_FULL:-0} == 1 ]] && echo 100 || echo 10)
many_flips() {
    local i
    for ((i = 0; i < flips; i++)); do damaged flip "$( ((i % 2)) && echo params.zst || echo state.json)" >"$work/flips" || { cat "$work/flips"; return 1; }; done
}
check "$flips more flipped bits" many_flips

both() { # the newest two in different ways
    rm -rf "$work/damaged"
    cp -r "$work/stopped" "$work/damaged"
    halve "$work/damaged/checkpoints/step-16/params.zst"
    flip "$work/damaged/checkpoints/step-12/params.zst"
    train 0 damaged --resume && err_has "warning: step-16: " && err_has "warning: step-12: " && err_has "resumed at step 8" && same_adapter straight damaged
}
check "two damaged: the third is used" both

all() {
    rm -rf "$work/damaged"
    cp -r "$work/stopped" "$work/damaged"
    local file
    for file in "$work"/damaged/checkpoints/step-*/params.zst; do flip "$file"; done
    train 0 damaged --resume && err_has "warning: step-8: " && err_has "no valid checkpoint in" && err_has "starting at step 0" &&
        same_adapter straight damaged && steps_whole damaged 21
}
check "all damaged: the run starts over and says so" all

# ---- whole, but of something else -------------------------------------------------------------------------------------------
refused() { # STATUS MESSAGE WORDS...: and the folder stays as it is
    local status=$1 message=$2
    shift 2
    find "$work/stopped" -type f -exec md5sum {} + | sort >"$work/before"
    train "$status" stopped --resume "$@" && err_has "$message" || return 1
    find "$work/stopped" -type f -exec md5sum {} + | sort | cmp - "$work/before"
}
check "another learning rate is a mistake, named" refused 2 "train.lr: 0.001" --set train.lr=2e-3
check "another rank is a mistake, named" refused 2 "lora.rank: 4" --set lora.rank=8
echo '{"prompt": "one more", "completion": "line"}' >>"$work/data.jsonl"
check "other data is refused" refused 1 "the data is not what the checkpoint was made with"
sed -i '$d' "$work/data.jsonl"
mv "$work/model" "$work/model.kept"
"$nibble" synth --arch "$work/arch.json" --out "$work/model" --seed 99 2>/dev/null
check "another base model is refused" refused 1 "is not the one the checkpoint was made with"
rm -r "$work/model" && mv "$work/model.kept" "$work/model"
free_keys() { train 0 stopped --resume --set train.save_every=2 --set train.keep_last=1 --set train.recompute='"layers"' && same_adapter straight stopped; }
check "what decides no number may change" free_keys
finish
