#!/bin/bash
# A run that is killed again and again, at a write, an fsync, a rename or a step drawn from a printed seed, and resumed each time
# on another number of threads, ends with the bytes of a run that nobody disturbed. NIBBLE_TEST_FULL=1: 20 kills, otherwise 6; NIBBLE_TEST_SEED repeats one.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
kills=$([[ ${NIBBLE_TEST_FULL:-0} == 1 ]] && echo 20 || echo 6)
seed=${NIBBLE_TEST_SEED:-$(date +%s)}
RANDOM=$seed
echo "# seed $seed, $kills kills"
make_inputs

reference() { train 0 straight && steps_whole straight 21 && [[ -s $(adapter straight) ]]; }
check "an undisturbed run" reference

# How often each kind of event comes in a whole run, and so from where a kill is drawn: with few kills from all of a run, with
# many from less of it, so that the run does not end before them.
spread=$((kills > 6 ? 4 : 2))
draw() { # sets kind and at
    local -A most=([write]=$((110 / spread)) [fsync]=$((60 / spread)) [rename]=$((30 / spread)) [step]=$((20 / spread)))
    local kinds=(write fsync rename step)
    kind=${kinds[RANDOM % 4]}
    at=$((RANDOM % most[$kind] + 1))
}
killed_and_resumed() {
    local done=0 attempts=0 status kind at
    local resume=()
    while ((done < kills)); do
        attempts=$((attempts + 1))
        ((attempts <= 10 * kills)) || { echo "# only $done of $kills kills came to pass"; return 1; }
        draw
        NIBBLE_FAULT=kill@$kind:$at "$nibble" train "$work/config.json" --threads $((RANDOM % 3 + 1)) --set "output.path=$work/killed" \
            "${resume[@]}" >"$work/out" 2>"$work/err" </dev/null
        status=$?
        resume=(--resume)
        case $status in
            137) done=$((done + 1)) && echo "# killed at $kind $at: $(grep -c . "$work/killed/metrics.jsonl" 2>/dev/null) records" ;;
            0) # it got through: checked, and the kills go on with a new run
                same_adapter straight killed && steps_whole killed 21 || return 1
                rm -rf "$work/killed"
                resume=()
                ;;
            *) echo "# status $status after kill@$kind:$at" && return 1 ;;
        esac
    done
    train 0 killed --resume
} 2>/dev/null # bash's own word about each death
check "$kills kills, each resumed" killed_and_resumed
check "the adapter has the same bytes" same_adapter straight killed
check "every step is recorded once" steps_whole killed 21
same_losses() { cmp <(losses_of straight) <(losses_of killed) >>"$work/err"; }
check "losses and evaluations are the same" same_losses
best() { cmp "$work/straight/adapter-best/adapter_model.safetensors" "$work/killed/adapter-best/adapter_model.safetensors"; }
check "the best adapter has the same bytes" best
nothing_left() { [[ -z $(find "$work/$1" -name '*.tmp*' -o -name '*.old') ]] || { find "$work/$1" -name '*.tmp*' | sed 's/^/# /'; false; }; }
check "no half-written file is left" nothing_left killed

# Each of a short run's events in turn: nothing but luck protects what a random kill does not hit.
everywhere() {
    local kind at status
    for kind in rename fsync; do
        for ((at = 1; ; at += step)); do
            rm -rf "$work/each"
            NIBBLE_FAULT=kill@$kind:$at "$nibble" train "$work/config.json" --threads 1 --set "output.path=$work/each" \
                --set train.epochs=0.7 --set train.eval_every=2 --set train.save_every=1 >"$work/out" 2>"$work/err" </dev/null
            status=$?
            ((status == 0)) && break
            ((status == 137)) || { echo "# kill@$kind:$at: status $status"; return 1; }
            run 0 train "$work/config.json" --threads 1 --set "output.path=$work/each" --set train.epochs=0.7 --set train.eval_every=2 \
                --set train.save_every=1 --resume || { echo "# resumed after kill@$kind:$at"; return 1; }
            same_adapter short each && steps_whole each 5 && nothing_left each || { echo "# after kill@$kind:$at"; return 1; }
        done
        echo "# $kind: killed at each of $((at - 1)), in steps of $step"
    done
} 2>/dev/null
step=$([[ ${NIBBLE_TEST_FULL:-0} == 1 ]] && echo 1 || echo 5)
short() { train 0 short --set train.epochs=0.7 --set train.eval_every=2 --set train.save_every=1 && steps_whole short 5; }
check "a short run, whose last step has one micro-batch of two" short
check "killed at every rename and fsync of it" everywhere

# ---- what ended well -------------------------------------------------------------------------------------------------------
complete() {
    find "$work/straight" -type f -exec md5sum {} + | sort >"$work/before"
    train 0 straight --resume && err_has "is complete" || return 1
    find "$work/straight" -type f -exec md5sum {} + | sort | cmp -s - "$work/before"
}
check "resuming a complete run changes nothing" complete
lost_adapter() { rm -r "$work/killed/adapter" && train 0 killed --resume && same_adapter straight killed && steps_whole killed 21; }
check "resuming a complete run whose adapter was removed writes it again" lost_adapter
from_nothing() { train 0 fresh --resume && err_has "starting at step 0" && same_adapter straight fresh; }
check "--resume without a run begins one" from_nothing
by_minutes() { # every step takes longer than a millionth of a minute is; two are kept
    train 0 minutes --set train.save_every=0 --set train.save_minutes=1e-9 --set train.keep_last=2 && same_adapter straight minutes || return 1
    [[ $(newest minutes) == 21 && $(newest minutes 2) == 20 && $(find "$work/minutes/checkpoints" -mindepth 1 -maxdepth 1 | wc -l) == 2 ]]
}
check "checkpoints by minutes; old ones go" by_minutes
at_the_end() { train 0 end --set train.save_every=0 && same_adapter straight end && [[ $(ls "$work/end/checkpoints") == step-21 ]]; }
check "without save_every there is one at the end" at_the_end
frozen() { err_has "the base is unchanged"; }
check "the base was hashed at the end" frozen
finish
