#!/bin/bash
# run_tests.sh BUILD [SCRIPT]...: runs every BUILD/tests/test_* and the scripts, prints what failed or was skipped, and as the
# last line "N passed, N failed, N skipped". Logs are kept in BUILD/logs.
#
# Both kinds of program report in TAP: a plan "1..N" and lines "ok ...", "not ok ...", "ok ... # SKIP why". cmocka does so
# when told to. A script may instead print none of it: then its exit status is one test (77: skipped). A program that
# dies, stops before the end of its plan, or fails without saying where, counts as a failure.
set -u

limit=${TEST_LIMIT_SECONDS:-1200} # a hang is a failure too

XDG_CACHE_HOME=$(mktemp -d) && export XDG_CACHE_HOME || exit 2 # nothing is left behind in the user's
trap 'rm -rf "$XDG_CACHE_HOME"' EXIT

# One program: log beside the counts "passed failed skipped".
run_one() {
    local program=$1 logs=$2 name log status passed failed skipped planned seen
    name=$(basename "$program" .sh)
    log=$logs/$name.log
    CMOCKA_MESSAGE_OUTPUT=TAP timeout --kill-after=10 "$limit" "$program" >"$log" 2>&1 </dev/null
    status=$?
    passed=$(grep -acE '^ok( |$)' "$log")
    skipped=$(grep -aciE '^(not )?ok .*# *skip' "$log") # "not ok 2 # SKIP name" is how cmocka 1.1 spells it
    failed=$(grep -aE '^not ok( |$)' "$log" | grep -cviE '# *skip')
    planned=$(sed -nE 's/^1\.\.([0-9]+).*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
    passed=$((passed - $(grep -aciE '^ok .*# *skip' "$log")))
    seen=$((passed + failed + skipped))
    if [[ $program == *.sh && $seen == 0 && $planned == 0 ]]; then
        case $status in
            0) passed=1 ;;
            77) skipped=1 ;;
            *) failed=1 ;;
        esac
    elif ((seen != planned)); then
        failed=$((failed + 1))
        echo "run_tests: $name stopped after $seen of $planned tests (exit status $status)" >>"$log"
    elif ((seen == 0 || (status != 0 && failed == 0))); then
        failed=$((failed + 1))
        echo "run_tests: $name ran $seen tests and left with exit status $status" >>"$log"
    fi
    echo "$passed $failed $skipped" >"$logs/$name.counts"
    if ((failed > 0)); then
        printf '%s\n' "FAILED $name ($log)" "$(grep -avE '^(ok|1\.\.)' "$log" | tail -n 40 | sed 's/^/    /')"
    else
        echo "passed $name ($passed)"
    fi
    # why something was skipped is the message before the line or on it
    ((skipped == 0)) || grep -aiE '^#? *skip|# *skip' "$log" | sed "s/^/    skipped in $name: /"
}

if [[ ${1:-} == --one ]]; then
    run_one "$2" "$3"
    exit 0
fi

build=${1:?usage: run_tests.sh BUILD [SCRIPT]...}
shift
logs=$build/logs
rm -rf "$logs"
mkdir -p "$logs"
shopt -s nullglob
programs=()
# A program whose source is gone is not a test any more.
for source in tests/unit/test_*.c; do programs+=("$build/tests/$(basename "$source" .c)"); done
for script in "$@"; do [[ -e $script ]] && programs+=("$script"); done
if ((${#programs[@]} == 0)); then
    echo "run_tests: no tests found under $build/tests" >&2
    exit 1
fi
printf '%s\0' "${programs[@]}" | xargs -0 -P "${TEST_JOBS:-2}" -I '{}' "$0" --one '{}' "$logs"
# A program that left no counts never started.
missing=$((${#programs[@]} - $(find "$logs" -name '*.counts' | wc -l)))
find "$logs" -name '*.counts' -exec cat {} + | awk -v missing="$missing" '
    { passed += $1; failed += $2; skipped += $3 }
    END { failed += missing; printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }'
