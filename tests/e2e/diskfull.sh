#!/bin/bash
# A disk that is full while a run writes: exit 1 with a message, what was saved before is whole, and the resumed run ends with the
# bytes of an undisturbed one.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
seed=${NIBBLE_TEST_SEED:-$(date +%s)}
RANDOM=$seed
echo "# seed $seed"
make_inputs
reference() { train 0 straight; }
check "an undisturbed run" reference

# From the n-th write on nothing more fits.
full_at() { # N
    rm -rf "$work/full"
    NIBBLE_FAULT=enospc@write:$1 train 1 full || return 1
    err_has "cannot write" && err_has "free some space" || return 1
    local saved
    saved=$(newest full 2>/dev/null)
    echo "# full at write $1: the newest checkpoint is ${saved:-none}"
    train 0 full --resume || return 1
    err_lacks "warning: step-" || return 1 # nothing that was saved is damaged
    [[ -z $saved ]] || err_has "resumed at step $saved" || return 1
    same_adapter straight full && steps_whole full 21
}
# A write that a run still has: the greatest of every fourth number at which a full disk is noticed.
for ((writes = 160; writes > 1; writes -= 4)); do
    rm -rf "$work/full"
    NIBBLE_FAULT=enospc@write:$writes train 1 full >"$work/probe.log" 2>&1 && break
done
echo "# a run has $writes writes or a few more"
rounds=$([[ ${NIBBLE_TEST_FULL:-0} == 1 ]] && echo 30 || echo 6)
rounds_of() { local i; for ((i = 0; i < rounds; i++)); do full_at $((RANDOM % writes + 1)) || return 1; done; }
check "full at $rounds different writes" rounds_of

# Exactly while the second checkpoint is written: the write after the last one of step 8.
while_saving() {
    local at
    for ((at = 30; at < 110; at++)); do
        rm -rf "$work/saving"
        NIBBLE_FAULT=enospc@write:$at "$nibble" train "$work/config.json" --threads 2 --set "output.path=$work/saving" \
            >"$work/out" 2>"$work/err" </dev/null
        (($? == 1)) || return 1
        grep -q "cannot save the checkpoint of step" "$work/err" && break
    done
    err_has "older ones are untouched" && err_has "free some space" || return 1
    sed -n 's/.*\(cannot save the checkpoint of step [0-9]*\).*/# \1/p' "$work/err"
    [[ -z $(find "$work/saving/checkpoints" -name '*.tmp-*') ]] || { echo "# the half-written checkpoint is left"; return 1; }
    train 0 saving --resume && err_has "resumed at step" && same_adapter straight saving
}
check "full while a checkpoint is saved" while_saving

# A real full disk.
real() {
    mkdir "$work/disk"
    mount -t tmpfs -o size=400k none "$work/disk" 2>"$work/err" || return 77
    local status=0
    run 1 train "$work/config.json" --threads 2 --set "output.path=$work/disk/run" --set train.keep_last=10 --set train.save_every=2 || status=1
    ((status == 0)) && { err_has "No space left on device" && err_has "free some space" || status=1; }
    if ((status == 0)); then
        cp -r "$work/disk/run" "$work/rescued"
        train 0 rescued --resume --set train.keep_last=10 && err_has "resumed at step" && err_lacks "warning: step-" &&
            same_adapter straight rescued && steps_whole rescued 21 || status=1
    fi
    umount "$work/disk"
    return $status
}
if [[ $(id -u) != 0 ]]; then
    skip "a real full disk" "mounting a small disk needs root"
elif ! (mkdir "$work/probe" && mount -t tmpfs -o size=64k none "$work/probe" && umount "$work/probe") 2>/dev/null; then
    skip "a real full disk" "this machine does not let root mount a small disk"
else
    check "a real full disk" real
fi
finish
