#!/bin/sh
# format.sh OPTION... FILE...: clang-format 14, whose layout is the project's (other versions differ in places).
# Exit status 77 where that version is not installed.
set -eu
for program in clang-format-14 clang-format; do
    if command -v "$program" >/dev/null 2>&1 && "$program" --version | grep -q 'version 14\.'; then
        exec "$program" "$@"
    fi
done
echo "skipped: the format is that of clang-format 14, which is not installed" >&2
exit 77
