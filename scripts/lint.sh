#!/bin/sh
# All checks that run nothing: formatting, clippy, the shell scripts. Every one is run; one word on each that failed.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

sh scripts/setup.sh lint
bad=
check() {
    check_name=$1
    shift
    say "lint: $check_name"
    "$@" || bad="$bad, $check_name"
}
scripts() { # the POSIX ones, then those for bash
    for script in scripts/*.sh scripts/*/*.sh docker/sandbox/*.sh deploy/kubernetes/*/*.sh tests/vm/init; do sh -n "$script" || return 1; done
    if have bash; then
        for script in .ci/run tests/pages/*.sh tests/vm/*.sh; do bash -n "$script" || return 1; done
    fi
    if have shellcheck; then
        shellcheck -x scripts/*.sh scripts/*/*.sh docker/sandbox/*.sh deploy/kubernetes/*/*.sh tests/pages/*.sh tests/vm/*.sh .ci/run
    else
        say "note: shellcheck is not installed; the scripts were only parsed"
    fi
}
check "formatting (make fmt mends it)" cargo fmt --all --check
check "clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
check "scripts" scripts
if [ -n "$bad" ]; then die "lint failed: ${bad#, }"; fi
