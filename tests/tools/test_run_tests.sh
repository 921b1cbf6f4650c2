#!/bin/bash
# The counts of run_tests.sh are true for programs that pass, fail, skip, crash, hang, stop early or print nothing.
set -u
tools=$(dirname "$(readlink -f "$0")")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place" || exit 1
number=0

# counts WANT STATUS BODY: a tree with one unit program of this body gives this last line and exit status.
counts() {
    local want=$1 status=$2 body=$3 got code
    number=$((number + 1))
    rm -rf tests build
    mkdir -p tests/unit build/tests
    touch tests/unit/test_x.c
    printf '#!/bin/bash\n%s\n' "$body" >build/tests/test_x
    chmod +x build/tests/test_x
    got=$(TEST_LIMIT_SECONDS=${limit:-60} "$tools/run_tests.sh" build "${@:4}" 2>&1)
    code=$?
    if [[ $(tail -n 1 <<<"$got") == "$want" && $code == "$status" ]]; then
        echo "ok $number - $want: ${body//#/}" # a "#" would be read as a directive
    else
        echo "not ok $number - want '$want' and status $status, got status $code and: $got"
    fi
}

counts '2 passed, 0 failed, 0 skipped' 0 'echo 1..2; echo ok 1 - a; echo ok 2 - b'
counts '1 passed, 1 failed, 0 skipped' 1 'echo 1..2; echo ok 1 - a; echo not ok 2 - b; exit 1'
counts '1 passed, 0 failed, 1 skipped' 0 'echo 1..2; echo ok 1 - a; echo "# skip: no assets"; echo "ok 2 # SKIP b"'
counts '0 passed, 1 failed, 1 skipped' 1 'echo 1..2; echo "not ok 1 # SKIP a"; echo not ok 2 - b; exit 1'
counts '1 passed, 0 failed, 1 skipped' 0 'echo 1..2; echo "not ok 1 # SKIP a"; echo ok 2 - b'
counts '1 passed, 1 failed, 0 skipped' 1 'echo 1..2; echo ok 1 - a; kill -SEGV $$'
counts '2 passed, 1 failed, 0 skipped' 1 'echo 1..2; echo ok 1 - a; echo ok 2 - b; exit 1'
counts '1 passed, 1 failed, 0 skipped' 1 'echo 1..2; echo ok 1 - a'
counts '0 passed, 1 failed, 0 skipped' 1 'exit 0'
limit=1 counts '0 passed, 1 failed, 0 skipped' 1 'echo 1..1; sleep 1000; echo ok 1'
mkdir -p scripts
echo 'exit 0' >scripts/pass.sh
echo 'exit 77' >scripts/skip.sh
echo 'exit 1' >scripts/fail.sh
sed -i '1i #!/bin/bash' scripts/*.sh
chmod +x scripts/*.sh
counts '2 passed, 1 failed, 1 skipped' 1 'echo 1..1; echo ok 1' scripts/pass.sh scripts/skip.sh scripts/fail.sh
chmod -x scripts/pass.sh
counts '1 passed, 1 failed, 0 skipped' 1 'echo 1..1; echo ok 1' scripts/pass.sh
echo "1..$number"
