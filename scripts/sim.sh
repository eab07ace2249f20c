#!/bin/sh
# Builds the simulation (tests/sim) and runs it: SEEDS of them from FIRST on, the first REPLAYS twice with equal traces;
# or SEED=n, one with its trace. Its target directory is its own: all of Berth is built for a simulated world.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

sh scripts/setup.sh test
# tokio_unstable: only with it does tokio take its chances from a seed.
RUSTFLAGS="--cfg berth_sim --cfg tokio_unstable" CARGO_TARGET_DIR="$PWD/target/sim" \
    CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo build --locked -p berth-sim
if [ -n "${SEED:-}" ]; then
    exec target/sim/debug/sim seed "$SEED"
fi
seeds=${SEEDS:-200}
replays=${REPLAYS:-20}
if [ "$replays" -gt "$seeds" ]; then replays=$seeds; fi
exec target/sim/debug/sim seeds "${FIRST:-1}" "$seeds" "$replays"
