#!/bin/bash
# The token cache: the same run with it as without, also resumed across; a killed tokenization leaves nothing that is taken for
# a cache; memory stays bounded. NIBBLE_TEST_LARGE=1: a JSONL of 2 GB, tokenized with under 1 GiB resident (needs 4 GB in TMPDIR).
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs
cache=(--set "data.cache=$work/cache")
forget() { rm -rf "$work/cache"; }

plain() { train 0 plain --set data.cache=off && err_lacks "token cache"; }
check "a run without the cache" plain
built() { train 0 built "${cache[@]}" && err_has "tokenizing into the cache" && same_adapter plain built; }
check "a run that builds the cache ends with the same bytes" built
found() { train 0 found "${cache[@]}" && err_lacks "tokenizing into the cache" && err_has "token cache" && same_adapter plain found; }
check "a run that finds it ends with the same bytes" found
small() { XDG_CACHE_HOME="$work/xdg" train 0 small && [[ ! -e $work/xdg/nibble/tokens ]] && same_adapter plain small; }
check "auto: small data leave nothing behind" small

across() { # CACHE-BEFORE CACHE-AFTER
    rm -rf "$work/across"
    NIBBLE_FAULT=kill@step:11 "$nibble" train "$work/config.json" --set "output.path=$work/across" --set "data.cache=$1" \
        >"$work/out" 2>"$work/err" </dev/null
    [[ $? == 137 ]] || { echo "# it was not killed"; return 1; }
    train 0 across --resume --set "data.cache=$2" && same_adapter plain across
} 2>/dev/null # bash's own word about the death
check "killed with the cache, resumed with it" across "$work/cache" "$work/cache"
check "killed with the cache, resumed without" across "$work/cache" off
check "killed without, resumed with the cache" across off "$work/cache"

damaged() {
    local shard
    shard=$(ls "$work"/cache/*/shard-00000) || return 1
    printf 'xxxx' | dd of="$shard" bs=1 seek=100 conv=notrunc 2>/dev/null
    train 1 damaged "${cache[@]}" && err_has "shard 0 of the token cache is damaged" &&
        train 0 damaged "${cache[@]}" --overwrite && err_has "tokenizing into the cache" && same_adapter plain damaged
}
check "a damaged shard ends the run with a message, and the next one builds the cache" damaged

# ---- larger data -----------------------------------------------------------------------------------------------------------
large=${NIBBLE_TEST_LARGE:-0}
bytes=$([[ $large == 1 ]] && echo 2000000000 || echo 24000000)
bound=$([[ $large == 1 ]] && echo 1048576 || echo 262144) # KiB: memory must not grow with the data, so 24 MB get far less
awk -v target="$bytes" 'BEGIN { srand(3)
    n = split("the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would", w, " ")
    for (i = 0; bytes < target; i++) {
        a = ""; k = 20 + int(rand() * 120); for (j = 0; j < k; j++) a = a " " w[1 + int(rand() * n)]
        l = "{\"prompt\": \"question " i ":\", \"completion\": \"" a "\"}"; bytes += length(l) + 1; print l } }' >"$work/large.jsonl"
show=(inspect --data "$work/config.json" --json --count 1 --set "data.path=$work/large.jsonl" --set data.eval_fraction=0 --set train.save_best=false --set train.steps=1)
whole() { # nothing in the cache's place but whole caches, locks and notes
    local folder
    [[ -z $(find "$work/cache" -name '*.tmp-*') ]] || { echo "# something temporary is left"; return 1; }
    for folder in "$work"/cache/*/; do [[ -s $folder/meta ]] || return 1; done
}

killed() {
    forget
    "$nibble" "${show[@]}" "${cache[@]}" >"$work/out" 2>"$work/err" </dev/null &
    local pid=$!
    until compgen -G "$work/cache/*.tmp-*/shard-*" >"$work/seen"; do kill -0 $pid || return 1; done
    kill -9 $pid
    wait $pid
    [[ $? == 137 ]] || { echo "# it was done before the kill"; return 1; }
    for folder in "$work"/cache/*/; do [[ $folder == *.tmp-* ]] || { echo "# $folder is there already"; return 1; }; done
    run 0 "${show[@]}" "${cache[@]}" && err_has "tokenizing into the cache" && whole
} 2>/dev/null
check "kill -9 while tokenizing: no half cache, and the next run builds a whole one" killed

measured() { # WORDS...: sets kib, the most that was resident
    [[ -x /usr/bin/time ]] || return 1
    /usr/bin/time -f 'resident %M' -o "$work/time" "$nibble" "$@" >"$work/out" 2>"$work/err" </dev/null
    local status=$?
    kib=$(awk '/^resident/ { print $2 }' "$work/time")
    return $status
}
memory() {
    [[ -x /usr/bin/time ]] || { cannot "there is no /usr/bin/time"; return; }
    forget
    measured "${show[@]}" "${cache[@]}" || return 1
    grep 'tokeniz' "$work/err" | tail -n 3 | sed 's/^/# /'
    echo "# $bytes bytes tokenized, at most $((kib / 1024)) MiB resident, want under $((bound / 1024))"
    [[ $large != 1 ]] || err_has " left" || return 1
    ((kib < bound)) && whole
}
check "tokenizing takes bounded memory" memory
again() { run 0 "${show[@]}" "${cache[@]}" && err_lacks "tokenizing" && err_has "opened in" && grep -o 'token cache.*opened in.*' "$work/err" | sed 's/^/# /'; }
check "the second run opens it" again

bomb() {
    [[ -x /usr/bin/time ]] || { cannot "there is no /usr/bin/time"; return; }
    head -c 1000000000 /dev/zero | gzip -9 >"$work/bomb.jsonl.gz"
    ! measured inspect --data "$work/config.json" --set "data.path=$work/bomb.jsonl.gz" "${cache[@]}" || return 1
    echo "# a gzip bomb: at most $((kib / 1024)) MiB resident"
    err_has "no text does that" && ((kib < 400000)) && whole
}
check "a bomb is refused in bounded memory and leaves no cache" bomb
finish
