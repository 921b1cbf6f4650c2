#!/bin/bash
# The include check finds planted violations, each of them, and nothing in a tree that obeys.
set -u
check=$(dirname "$(readlink -f "$0")")/check_includes.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
number=0

report() { # description, status
    number=$((number + 1))
    if [[ $2 == 0 ]]; then echo "ok $number - $1"; else echo "not ok $number - $1"; fi
}

# Plants one line in one file of an obedient tree; wants the check to fail and to name the file and line.
refused() {
    local file=$1 line=$2 output
    mkdir -p "$tree/$(dirname "$file")"
    printf '#include <stdio.h>\n%s\n' "$line" >"$tree/$file"
    output=$("$check" "$tree" 2>&1) && { report "$file: $line is refused" 1; rm "$tree/$file"; return; }
    [[ $output == *"$file:2: "* && $output == *", 1 wrong"* ]]
    report "$file: $line is refused" $?
    rm "$tree/$file"
}

allowed() {
    mkdir -p "$tree/$(dirname "$1")"
    printf '%s\n' "$2" >"$tree/$1"
    "$check" "$tree" >/dev/null 2>&1
    report "$1: $2 is allowed" $?
    rm "$tree/$1"
}

mkdir -p "$tree/core"
echo '#include "core/a.h"' >"$tree/core/a.c"

allowed train/x.c '#include "data/x.h"'
allowed train/x.c '#include "autograd/tape.h"'
allowed autograd/x.c '#include "quant/q.h"'
allowed data/x.c '#include "kernels/formats.h"'
allowed data/x.c '#include "quant/q.h"'
allowed kernels/cpu/x.c '#include "kernels/cpu/y.h"'
allowed kernels/cuda/x.cu '#include "core/error.h"'
allowed tests/unit/x.c '#include "train/x.h"'
allowed core/x.c '#include <zstd.h>'
allowed core/x.c '// #include "train/x.h"'
refused core/x.c '#include "kernels/ops.h"'
refused core/x.h '  #  include "train/config.h"'
refused kernels/x.cu '#include "quant/q.h"'
refused kernels/cpu/x.c '#include "data/x.h"'
refused quant/x.c '#include "autograd/tape.h"'
refused quant/x.c '#include "data/safetensors.h"'
refused autograd/x.c '#include "data/x.h"'
refused autograd/x.h '#include "train/x.h"'
refused data/x.c '#include "kernels/ops.h"'
refused data/x.c '#include "autograd/tape.h"'
refused data/x.c '#include "train/config.h"'
refused train/x.c '#include "tests/x.h"'
refused core/x.c '#include "../train/x.h"'
refused core/x.c '#include "core/../train/x.h"'
refused core/x.c '#include "neighbour.h"'
refused core/x.c '#include <train/x.h>'
refused core/x.c '#include"train/x.h"'
refused core/x.c '#include HEADER'
echo "1..$number"
