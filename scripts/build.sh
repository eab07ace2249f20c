#!/bin/sh
# Builds Berth into ./bin: berth, coordinator, worker, and the static berth-agent beside them.
#   PROFILE=dev|release|image (default dev). OUT=DIR: there, not into ./bin. WEAKENED=1: also what the abuse suite loosens, in ./bin/weakened. Further arguments are packages to build too: scripts/build.sh berth-bench
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

profile=${PROFILE:-dev}
out_dir=${OUT:-bin}
sh scripts/setup.sh build
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}
case "$profile" in dev) out=debug ;; *) out=$profile ;; esac

# An image is small: functions that are the same are there once, and relocations are packed (glibc 2.36). Tried first: not
# every linker can do that, nor every loader.
if [ "$profile" = image ]; then
    smaller="-C link-arg=-Wl,--icf=all -C link-arg=-Wl,-z,pack-relative-relocs"
    trial=$(mktemp)
    # shellcheck disable=SC2086 # words
    if echo 'fn main() {}' | rustc ${RUSTFLAGS:-} $smaller --crate-name trial -o "$trial" - 2>/dev/null && "$trial"; then
        RUSTFLAGS="${RUSTFLAGS:-} $smaller"
        export RUSTFLAGS
    fi
    rm -f "$trial"
fi

packages="-p berth-cli"
for package in "$@"; do packages="$packages -p $package"; done
# For development the whole workspace, so that each crate has the features it has in the tests and is compiled once for
# both. Not the agent again: a dynamic one beside target/debug/worker would be taken for the real one.
if [ "$profile" = dev ]; then packages="--workspace --exclude berth-agent"; fi

# The agent runs in sandboxes of any image, or none: it brings its own libc. Naming the target keeps its flags,
# and so its objects, apart from those of the other crates in the same directory.
build_agent() {
    RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
        cargo build --locked --profile "$profile" -p berth-agent --bin berth-agent --target "$host" "$@"
}
# shellcheck disable=SC2086 # words
build_rest() { (unset CARGO_BUILD_TARGET && cargo build --locked --profile "$profile" $packages "$@"); }

# Never written in place: a berth that runs keeps the file it was started from (and no ETXTBSY).
put() {
    cmp -s "$1" "$out_dir/$2" && return 0
    cp "$1" "$out_dir/$2.new.$$"
    mv -f "$out_dir/$2.new.$$" "$out_dir/$2"
}
mkdir -p "$out_dir"
trap 'rm -f "$out_dir"/*.new."$$" "$out_dir"/weakened/*.new."$$"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# For the abuse suite alone: a worker and an agent that can be told to loosen one protection. First, so that what stays
# in the target directory under these names are the real ones.
if [ "${WEAKENED:-}" = 1 ]; then
    mkdir -p "$out_dir/weakened"
    build_agent --features weakened
    put "$target/$host/$out/berth-agent" weakened/berth-agent
    build_rest --features berth-cli/weakened --bin worker
    put "$target/$out/worker" weakened/worker
fi

build_agent
build_rest --bins
for name in berth coordinator worker; do put "$target/$out/$name" "$name"; done
put "$target/$host/$out/berth-agent" berth-agent
