#!/bin/bash
# Signals: the run saves the last complete step and exits with 130; resumed, it ends with the bytes of an undisturbed one.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs
# Long enough that it is mostly still running when the signal comes (else once more); checkpoints at the end only.
words=(--set train.steps=60 --set train.gradient_accumulation=8 --set train.save_every=0 --set train.eval_every=50)

reference() { train 0 straight "${words[@]}" && steps_whole straight 60; }
check "an undisturbed run" reference

start() { # FOLDER WORDS...: in the background, as $pid
    local folder=$1
    shift
    "$nibble" train "$work/config.json" --threads 2 --set "output.path=$work/$folder" "$@" >"$work/out" 2>"$work/err" </dev/null &
    pid=$!
}
ends_with() { # STATUS
    local status
    wait "$pid"
    status=$?
    ((status == $1)) || { echo "# want status $1, got $status"; false; }
}
has_step() { grep -q "\"kind\":\"step\",\"step\":$2," "$work/$1/metrics.jsonl" 2>/dev/null || ! kill -0 "$pid" 2>/dev/null; }

# interrupt_at SIGNAL FOLDER STEP WORDS...: sends the signal once the step is recorded. A run that ended before it came says
# nothing about signals: it is made again.
interrupt_at() {
    local signal=$1 folder=$2 step=$3 try status
    shift 3
    rm -rf "$work/before" && { [[ ! -e $work/$folder ]] || cp -r "$work/$folder" "$work/before"; }
    for ((try = 0; try < 10; try++)); do
        start "$folder" "$@"
        wait_for 60 has_step "$folder" "$step" || return 1
        kill -"$signal" "$pid" 2>/dev/null
        wait "$pid"
        status=$?
        ((status == 0)) || break
        rm -rf "${work:?}/$folder" && { [[ ! -e $work/before ]] || cp -r "$work/before" "$work/$folder"; }
    done
    ((status == 130)) || { echo "# want status 130, got $status"; return 1; }
    err_has "stopped by SIG$signal after step"
}

stopped_by() { # SIGNAL
    rm -rf "$work/stopped"
    interrupt_at "$1" stopped 7 "${words[@]}" || return 1
    local step
    step=$(newest stopped)
    err_has "SIG$1: saved step $step" && steps_whole stopped "$step" && ((step >= 7 && step < 60)) || return 1
    [[ ! -e $work/stopped/adapter ]] || return 1
    train 0 stopped --resume "${words[@]}" && err_has "resumed at step $step" && same_adapter straight stopped && steps_whole stopped 60
}
for name in INT TERM USR1; do check "SIG$name saves, exits 130, and the run resumes" stopped_by $name; done

twice_interrupted() { # stop, resume, stop again, resume
    interrupt_at INT twice 3 "${words[@]}" || return 1
    local first
    first=$(newest twice)
    interrupt_at TERM twice $((first + 5)) --resume "${words[@]}" || return 1
    (($(newest twice) > first)) || return 1
    train 0 twice --resume "${words[@]}" && same_adapter straight twice && steps_whole twice 60
}
check "interrupted twice" twice_interrupted

# ---- before the first step -------------------------------------------------------------------------------------------------
awk 'BEGIN { for (i = 0; i < 6000; i++) printf "{\"prompt\": \"held out %d\", \"completion\": \" nothing of note\"}\n", i }' >"$work/eval.jsonl"
slow=(--set data.eval_fraction=0 --set "data.eval_path=$work/eval.jsonl" --set train.steps=4 --set train.eval_every=2)
slow_reference() { train 0 slow "${slow[@]}"; }
check "an undisturbed run with a long evaluation" slow_reference

has_record() { grep -q "$2" "$work/$1/metrics.jsonl" 2>/dev/null || ! kill -0 "$pid" 2>/dev/null; }
first_evaluation() { # the sample is written, the evaluation runs
    start early "${slow[@]}"
    wait_for 60 has_record early '"kind":"sample"' && kill -TERM "$pid" && ends_with 130 || return 1
    err_has "after step 0 of 4" && ! grep -q '"kind":"eval"' "$work/early/metrics.jsonl" || return 1
    train 0 early --resume "${slow[@]}" && same_adapter slow early && cmp <(losses_of slow) <(losses_of early)
}
check "a signal during the first evaluation" first_evaluation

middle_evaluation() { # after step 2, whose evaluation the resumed run makes up for
    start middle "${slow[@]}"
    wait_for 60 has_record middle '"kind":"step","step":2,' && kill -INT "$pid" && ends_with 130 || return 1
    [[ $(newest middle) == 2 ]] && ! grep -q '"kind":"eval","step":2,' "$work/middle/metrics.jsonl" || return 1
    train 0 middle --resume "${slow[@]}" && same_adapter slow middle && cmp <(losses_of slow) <(losses_of middle) || return 1
    [[ $(grep -c '"kind":"eval"' "$work/middle/metrics.jsonl") == 3 ]]
}
check "a signal during an evaluation: it is made up for" middle_evaluation

last_evaluation() {
    start last "${slow[@]}"
    wait_for 60 has_record last '"kind":"step","step":4,' && kill -INT "$pid" && ends_with 130 || return 1
    [[ $(newest last) == 4 && ! -e $work/last/adapter ]] || return 1
    train 0 last --resume "${slow[@]}" && same_adapter slow last && cmp <(losses_of slow) <(losses_of last)
}
check "a signal during the last evaluation" last_evaluation

first_samples() {
    start sampling "${slow[@]}" --set train.samples=100
    wait_for 60 test -e "$work/sampling/metrics.jsonl" && kill -USR1 "$pid" && ends_with 130 || return 1
    [[ ! -s $work/sampling/metrics.jsonl ]] || ! grep -q '"kind":"sample"' "$work/sampling/metrics.jsonl" || return 1
    train 0 sampling --resume "${slow[@]}" --set train.samples=1 && same_adapter slow sampling && steps_whole sampling 4 || return 1
    [[ $(grep -c '"kind":"sample"' "$work/sampling/metrics.jsonl") == 2 ]]
}
check "a signal during the first samples" first_samples

# ---- a second SIGINT -------------------------------------------------------------------------------------------------------
awk 'BEGIN { for (i = 0; i < 4000; i++) printf "{\"prompt\": \"number %d\", \"completion\": \" comes after number %d\"}\n", i, i - 1 }' >"$work/long.jsonl"
long=(--set "data.path=$work/long.jsonl" --set train.micro_batch_tokens=32768 --set data.max_length=128 --set train.samples=0 --set train.steps=50)
interrupt() { kill -INT "$pid" 2>/dev/null || true; ! kill -0 "$pid" 2>/dev/null; }
twice() { # the first waits for the end of a micro-batch of 32,768 tokens; the next does not
    local try
    for try in 1 2 3 4 5; do # the first may come between two micro-batches: it is obeyed before there is a second
        start "at_once$try" "${long[@]}"
        wait_for 60 has_record "at_once$try" '"kind":"eval"' && wait_for 60 interrupt && ends_with 130 || return 1
        grep -q "stopped by" "$work/err" || return 0
    done
    return 1
}
check "a second SIGINT quits at once" twice

# While a run is prepared there is nothing to save: the data comes from a pipe that nobody fills.
preparing() {
    awk 'BEGIN { for (i = 0; i < 400000; i++) printf "{\"prompt\": \"number %d\", \"completion\": \" comes after number %d\"}\n", i, i - 1 }' >"$work/huge.jsonl"
    start preparing --set "data.path=$work/huge.jsonl"
    wait_for 10 test -e "/proc/$pid/fd" || true
    wait_for 60 reads_data && kill -TERM "$pid" && ends_with 130 && [[ ! -e $work/preparing ]]
}
reads_data() { find "/proc/$pid/fd" -lname '*huge.jsonl' 2>/dev/null | grep -q . || ! kill -0 "$pid" 2>/dev/null; }
if [[ -d /proc/self/fd ]]; then check "a signal before the run begins" preparing; else skip "a signal before the run begins" "there is no /proc"; fi
finish
