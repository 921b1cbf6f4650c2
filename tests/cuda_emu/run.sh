#!/bin/bash
# Every test program of tests/cuda_emu in its three builds: plain under several schedules and with lazy streams and protected
# memory, ASan+UBSan under two, the race checker once (it does not depend on the schedule). The last line counts.
# run.sh [NAME]...: only tests/cuda_emu/test_NAME.c
set -u
cd "$(dirname "$0")/../.." || exit 2
shopt -s nullglob
logs=build/emu/logs
rm -rf "$logs"
mkdir -p "$logs"
passed=0 failed=0

# one BUILD SCHEDULE STREAMS PROGRAM
one() {
    local build=$1 schedule=$2 streams=$3 name log status
    name=$(basename "$4")
    log=$logs/$name-$build-${schedule/:/}-$streams.log
    (
        export EMU_SCHED=$schedule CMOCKA_MESSAGE_OUTPUT=TAP
        [[ $streams == eager ]] || export EMU_STREAMS=$streams EMU_PROTECT=1
        timeout --kill-after=10 "${TEST_LIMIT_SECONDS:-600}" "$4"
    ) >"$log" 2>&1 </dev/null
    status=$?
    if ((status == 0)) && grep -q '^ok ' "$log" && ! grep -q '^not ok' "$log"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $name, build $build, schedule $schedule, $streams streams (status $status, $log)"
        grep -av '^ok ' "$log" | tail -n 20 | sed 's/^/    /'
    fi
}

only=("$@")
names=()
for source in tests/cuda_emu/test_*.c; do names+=("$(basename "$source" .c)"); done
((${#only[@]} == 0)) || names=("${only[@]/#/test_}")
for name in "${names[@]}"; do
    for schedule in seq rev rand:1 prio:1 prio:2; do one plain "$schedule" eager "build/emu/plain/$name"; done
    one plain prio:3 lazy "build/emu/plain/$name"
    ! grep -q nibble_device_plugin "tests/cuda_emu/$name.c" || one plain seq ahead "build/emu/plain/$name" # it has streams of its own
    for schedule in seq prio:1; do one asan "$schedule" eager "build/emu/asan/$name"; done
    one race seq eager "build/emu/race/$name"
done
# The least shared memory of the architectures that the plugin is built for.
export EMU_CAPABILITY=86
for name in "${names[@]}"; do
    ! grep -q 'attention\|lora\|fake_rows' <<<"$name" || one plain rev eager "build/emu/plain/$name"
done
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0 && passed > 0))
