#!/bin/bash
# check_includes.sh [ROOT]: folders include each other only downwards. Every include of our own is written from the root, so
# that this check can read it; one that is not, or that names its file by a macro, is refused as well.
#
#   train -> autograd -> quant -> kernels -> core;  data -> quant, kernels/formats.h, core;  tests -> all
set -u
cd "${1:-.}" || exit 2
exec awk '
    BEGIN {
        allowed["core"] = "core"
        allowed["kernels"] = "kernels core"
        allowed["quant"] = "quant kernels core"
        allowed["autograd"] = "autograd quant kernels core"
        allowed["data"] = "data quant core"
        allowed["train"] = "train autograd data quant kernels core"
        allowed["tests"] = "tests train autograd data quant kernels core"
        n = split("core kernels quant autograd data train tests", folders)
        for (i = 1; i <= n; i++) {
            command = "find " folders[i] " -type f 2>/dev/null"
            while ((command | getline file) > 0)
                if (file ~ /\.(c|h|cu|cuh|cpp|inc|def|inl)$/) check_file(folders[i], file)
            close(command)
        }
        if (files == 0) complain("no source files here", 0)
        printf "check-includes: %d files, %d includes of our own, %d wrong\n", files, includes, wrong
        exit wrong > 0
    }
    function complain(file, line, why) {
        printf "%s:%d: %s\n", file, line, why > "/dev/stderr"
        wrong++
    }
    function check_file(folder, file,    line, number, name, top, own) {
        files++
        while ((getline line < file) > 0) {
            number++
            if (line !~ /^[ \t]*#[ \t]*(include|include_next|import|embed)([^a-z_]|$)/) continue
            sub(/^[ \t]*#[ \t]*[a-z_]+[ \t]*/, "", line)
            own = line ~ /^"/
            if (line !~ /^["<]/) {
                complain(file, number, "include of a macro: this check cannot follow it; name the file")
                continue
            }
            name = line
            sub(/^["<]/, "", name)
            sub(/[">].*/, "", name)
            top = name
            sub(/\/.*/, "", top)
            if (!own && !((top in allowed) && name ~ /\//)) continue # a library
            includes++
            if (name ~ /(^|\/)\.\.?(\/|$)/ || name ~ /^\// || name ~ /\/\// || !(name ~ /\//) || !(top in allowed))
                complain(file, number, "\"" name "\": want a path from the root of the project, such as \"core/error.h\"")
            else if (folder == "data" && name == "kernels/formats.h") continue
            else if (index(" " allowed[folder] " ", " " top " ") == 0)
                complain(file, number, folder " must not include " name (folder == "data" && top == "kernels" ? " (only kernels/formats.h)" : ""))
        }
        close(file)
    }'
