#!/bin/bash
# run_fuzz.sh BUILD SECONDS: every fuzz target for so long, from its seeds in tests/fuzz/corpus/NAME where there are any.
# New inputs go to BUILD/corpus, what crashes to BUILD/findings. Last line: "N passed, N failed, N skipped".
set -u
build=${1:?usage: run_fuzz.sh BUILD SECONDS} seconds=${2:?seconds for each target}
shopt -s nullglob
passed=0 failed=0
mkdir -p "$build/findings" "$build/logs"
for source in tests/fuzz/fuzz_*.c; do
    program=$(basename "$source" .c)
    name=${program#fuzz_}
    mkdir -p "$build/corpus/$name"
    folders=("$build/corpus/$name")
    [[ -d tests/fuzz/corpus/$name ]] && folders+=("tests/fuzz/corpus/$name")
    log=$build/logs/$program.log
    if "$build/$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$build/findings/$name-" "${folders[@]}" >"$log" 2>&1 </dev/null; then
        passed=$((passed + 1))
        echo "passed $program: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs in $seconds s"
    else
        failed=$((failed + 1))
        printf '%s\n' "FAILED $program ($log)" "$(tail -n 30 "$log" | sed 's/^/    /')"
    fi
done
if ((passed + failed == 0)); then
    echo "skipped: no tests/fuzz/fuzz_*.c"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0))
