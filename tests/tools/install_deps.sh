#!/bin/sh
# Installs what nibble needs on Debian and Ubuntu, and only when something is missing: build, test (more), ci (all).
# Asks for nothing but root or sudo. Elsewhere it names the packages and fails.
# `check COMPILER` installs nothing: it says which libraries that compiler does not find, and fails.
set -eu

kind=${1:-}
case $kind in build | test | ci) compiler=gcc ;; check) compiler=${2:-gcc} ;; *)
    echo "usage: install_deps.sh build|test|ci|check COMPILER" >&2
    exit 2
    ;;
esac

# header, library, package
libraries="cjson/cJSON.h:cjson:libcjson-dev zstd.h:zstd:libzstd-dev zlib.h:z:zlib1g-dev pcre2.h:pcre2-8:libpcre2-dev
utf8proc.h:utf8proc:libutf8proc-dev xxhash.h:xxhash:libxxhash-dev"
build_packages="gcc libc6-dev make libcjson-dev libzstd-dev zlib1g-dev libpcre2-dev libutf8proc-dev libxxhash-dev"
test_packages="libcmocka-dev openmpi-bin libopenmpi-dev iproute2 procps"
ci_packages="clang clang-format"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Whether $1 (words) compiles and links stdin with the flags that follow.
links() {
    words=$1
    shift
    # shellcheck disable=SC2086 # "ccache gcc" is two words
    command -v ${words%% *} >/dev/null 2>&1 && $words -x c - -o "$scratch/probe" "$@" >/dev/null 2>&1
}

have_build() {
    links "$compiler" -lcjson -lzstd -lz -lpcre2-8 -lutf8proc -lxxhash -lm -pthread <<'C'
#define PCRE2_CODE_UNIT_WIDTH 8
#include <cjson/cJSON.h>
#include <pcre2.h>
#include <utf8proc.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>
int main(void) {
    unsigned text = 0;
    (void)pcre2_config(PCRE2_CONFIG_UNICODE, &text);
    return cJSON_Version() == 0 || ZSTD_versionNumber() == 0 || XXH3_64bits("", 0) == 0 || utf8proc_version() == 0 ||
           zlibVersion() == 0;
}
C
}

have_test() {
    links gcc -lcmocka <<'C'
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
static void one(void **state) { (void)state; }
int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(one)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
C
}

# Ranks on CPUs; the program itself is built and runs without.
have_mpi() {
    command -v mpirun >/dev/null 2>&1 && command -v pgrep >/dev/null 2>&1 && command -v ip >/dev/null 2>&1 && links mpicc <<'C'
#include <mpi.h>
int main(int argc, char **argv) { return MPI_Init(&argc, &argv) != MPI_SUCCESS; }
C
}

have_fuzzer() {
    links clang -fsanitize=address,undefined,fuzzer <<'C'
#include <stddef.h>
#include <stdint.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return (void)data, (void)size, 0; }
C
}

have_all() {
    command -v make >/dev/null 2>&1 && have_build || return 1
    [ "$kind" = build ] && return 0
    have_test && have_mpi || return 1
    [ "$kind" = test ] && return 0
    have_fuzzer && command -v clang-format >/dev/null 2>&1
}

other_systems() {
    cat >&2 <<'TEXT'
  Fedora: dnf install gcc make cjson-devel libzstd-devel zlib-devel pcre2-devel utf8proc-devel xxhash-devel
          for tests libcmocka-devel, openmpi-devel, iproute, procps-ng; for fuzzing and the format check clang clang-tools-extra compiler-rt
  Arch:   pacman -S gcc make cjson zstd zlib pcre2 libutf8proc xxhash
          for tests cmocka, openmpi, iproute2, procps-ng; for fuzzing and the format check clang compiler-rt
TEXT
}

if [ "$kind" = check ]; then
    if have_build; then exit 0; fi
    if ! echo 'int main(void) { return 0; }' | links "$compiler"; then
        echo "nibble: $compiler cannot build a program; Debian and Ubuntu: apt-get install gcc libc6-dev" >&2
        exit 1
    fi
    for row in $libraries; do
        header=${row%%:*} library=${row#*:} package=${row##*:}
        library=${library%%:*}
        printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <stddef.h>\n#include <%s>\nint main(void) { return 0; }\n' "$header" |
            links "$compiler" "-l$library" ||
            echo "nibble: $compiler does not find <$header> and lib$library; package $package on Debian and Ubuntu" >&2
    done
    echo "nibble: want cJSON, zstd, zlib, PCRE2, utf8proc and xxHash (0.8 or newer) to build; \`make deps-build\` installs them on Debian and Ubuntu" >&2
    other_systems
    exit 1
fi

if have_all; then exit 0; fi

if ! command -v apt-get >/dev/null 2>&1; then
    echo "nibble: a library or tool is missing, and only Debian and Ubuntu are set up automatically. Install and try again:" >&2
    other_systems
    exit 1
fi

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root=sudo
else
    echo "nibble: packages are missing, and installing them needs root or sudo; run as root: sh $0 $kind" >&2
    exit 1
fi

apt() {
    # `env` passes the setting through sudo; the timeout outlasts an unattended upgrade that holds the lock
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
}

packages=$build_packages
[ "$kind" = build ] || packages="$packages $test_packages"
[ "$kind" != ci ] || packages="$packages $ci_packages"
echo "nibble: installing $packages" >&2
apt update >&2 || echo "nibble: apt-get update failed; going on with the package lists at hand" >&2
# shellcheck disable=SC2086 # a list of words
if ! apt install -y --no-install-recommends $packages >&2; then
    echo "nibble: apt-get could not install them; on Ubuntu some are in universe: add-apt-repository universe" >&2
    exit 1
fi
# The sanitizers' runtime is a package of its own, named after the version of clang, where clang does not bring it.
if [ "$kind" = ci ] && ! have_fuzzer; then
    version=$(clang -dumpversion | cut -d. -f1)
    apt install -y --no-install-recommends "libclang-rt-$version-dev" >&2
fi
if ! have_all; then
    echo "nibble: packages were installed, yet something for '$kind' still does not compile or link; see $0" >&2
    exit 1
fi
