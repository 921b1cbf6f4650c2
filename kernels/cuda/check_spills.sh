#!/bin/sh
# check_spills.sh REPORT...: what ptxas -v says of every kernel: a spill to local memory is an error. Kernels that may spill are
# named, with the reason, in kernels/cuda/spills.txt ("mangled-name-part reason").
set -eu
cd "$(dirname "$0")/../.."
allowed=kernels/cuda/spills.txt
[ $# -gt 0 ] || { echo 'check-spills: no kernels'; exit 0; }
awk -v allowed="$allowed" '
    BEGIN {
        while ((getline line < allowed) > 0)
            if (line !~ /^#/ && line != "") { split(line, part, " "); names[++count] = part[1] }
    }
    /Compiling entry function/ { name = $0; sub(/.*function ./, "", name); sub(/. for.*/, "", name); arch = $NF; kernels++ }
    /bytes spill stores/ {
        if ($0 ~ /, 0 bytes spill stores, 0 bytes spill loads/) next
        for (i = 1; i <= count; i++)
            if (index(name, names[i])) { known++; next }
        printf "check-spills: %s %s: %s\n", name, arch, $0 > "/dev/stderr"
        wrong++
    }
    END {
        printf "check-spills: %d kernels of all architectures, %d spill as explained, %d spill\n", kernels, known, wrong
        exit wrong > 0
    }' "$@"
