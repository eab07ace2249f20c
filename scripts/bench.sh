#!/bin/sh
# Builds for release and prints one table, measured in one run. Arguments go to berth-bench.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

backend=$(sh scripts/preflight.sh bench)
sh scripts/setup.sh bench
PROFILE=release sh scripts/build.sh berth-bench
if [ "$backend" = docker ]; then export BERTH_SANDBOX=docker; fi
if docker_usable; then sh scripts/sandbox-image.sh || say "note: no sandbox image; the table leaves the docker rows out"; fi
export BERTH_AGENT="$PWD/bin/berth-agent" BERTH_BIN_DIR="$PWD/bin"
exec "${CARGO_TARGET_DIR:-target}/release/berth-bench" "$@"
