# Berth. `make` alone says what there is.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help setup build test lint fmt demo bench abuse fuzz sim chaos sandbox-image night clean

PROFILE ?= dev
export PROFILE

help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## check for what is needed; as root on Debian or Ubuntu, install what is missing
	@sh scripts/setup.sh

build: ## build ./bin/{berth,coordinator,worker,berth-agent} (PROFILE=dev|release)
	@sh scripts/build.sh

demo: ## build, then show a coordinator, two workers and real tasks in sandboxes
	@sh scripts/demo.sh

test: ## run everything that this machine can run; name what it could not, and why
	@sh scripts/test.sh

night: ## the same tests with bigger counts (BERTH_TEST_SCALE=20), then each fuzz target for 10 minutes
	@SEEDS=$${SEEDS:-5000} REPLAYS=$${REPLAYS:-200} BERTH_TEST_SCALE=$${BERTH_TEST_SCALE:-20} BERTH_CHAOS_SECONDS=$${BERTH_CHAOS_SECONDS:-1800} PROPTEST_CASES=$${PROPTEST_CASES:-5000} NEXTEST_PROFILE=night sh scripts/test.sh
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} sh scripts/fuzz.sh

lint: ## formatting, clippy and the shell scripts, without changing anything
	@sh scripts/lint.sh

fmt: ## format the Rust code
	@cargo fmt --all

abuse: ## attack sandboxes, and weakened ones, which must fail; print the table of both
	@sh scripts/abuse.sh

fuzz: ## fuzz each parser for FUZZ_SECONDS=60 (TARGET=name: one); keep what was found in fuzz/corpus
	@sh scripts/fuzz.sh

chaos: ## kill, stop and cut off real processes under load (BERTH_CHAOS_SECONDS=300 BERTH_CHAOS_SEED=n)
	@BERTH_CHAOS_SECONDS=$${BERTH_CHAOS_SECONDS:-300} NEXTEST_PROFILE=night sh scripts/test.sh --no-capture -E 'binary(chaos) & test(loses_nothing)'

sim: ## the simulation: SEEDS=200 of them, REPLAYS=20 of those twice; SEED=n shows one with its trace
	@sh scripts/sim.sh

bench: ## build for release and print the side-by-side table
	@sh scripts/bench.sh

sandbox-image: ## make the image of the docker backend (FORM=full: with Jupyter and build tools; FORCE=1: even if it is there)
	@sh scripts/sandbox-image.sh

clean: ## remove what was built (the sandbox image stays: docker rmi berth/sandbox:base)
	@cargo clean
	@rm -rf bin
