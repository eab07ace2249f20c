#!/bin/sh
# Builds Berth into ./bin: berth, coordinator, worker, and the static berth-agent beside them.
#   PROFILE=dev|release (default dev). Further arguments are packages to build too: scripts/build.sh berth-bench
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

profile=${PROFILE:-dev}
sh scripts/setup.sh build
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}
case "$profile" in dev) out=debug ;; *) out=$profile ;; esac

# The agent runs in sandboxes of any image, or none: it brings its own libc. Naming the target keeps its flags,
# and so its objects, apart from those of the other crates in the same directory.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --locked --profile "$profile" -p berth-agent --bin berth-agent --target "$host"
unset CARGO_BUILD_TARGET
packages="-p berth-cli"
for package in "$@"; do packages="$packages -p $package"; done
# For development the whole workspace, so that each crate has the features it has in the tests and is compiled once for
# both. Not the agent again: a dynamic one beside target/debug/worker would be taken for the real one.
if [ "$profile" = dev ]; then packages="--workspace --exclude berth-agent"; fi
# shellcheck disable=SC2086 # words
cargo build --locked --profile "$profile" --bins $packages

# Never written in place: a berth that runs keeps the file it was started from (and no ETXTBSY).
put() {
    cmp -s "$1" "bin/$2" && return 0
    cp "$1" "bin/.$2.$$"
    mv -f "bin/.$2.$$" "bin/$2"
}
mkdir -p bin
trap 'rm -f bin/.*."$$"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for name in berth coordinator worker; do put "$target/$out/$name" "$name"; done
put "$target/$host/$out/berth-agent" berth-agent
