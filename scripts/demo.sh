#!/bin/sh
# `make demo`: a word at once if no sandbox can run here, then build, then show.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

backend=$(sh scripts/preflight.sh demo)
sh scripts/setup.sh demo
sh scripts/build.sh
if [ "$backend" = docker ]; then
    sh scripts/sandbox-image.sh
    export BERTH_SANDBOX=docker
fi
exec ./bin/berth demo "$@"
