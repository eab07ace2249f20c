# Berth. `make` alone says what there is.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help setup build test lint fmt demo bench abuse vm fuzz sim chaos sandbox-image docker-build docker-build-coordinator \
	docker-build-worker docker-up docker-up-dev docker-up-multi docker-down docker-down-dev docker-backup docker-restore docker-add-worker docker-test docker-clean \
	docker-clean-all docker-ps docker-logs docker-logs-coordinator docker-logs-worker \
	docker-restart docker-restart-worker docker-shell-coordinator docker-shell-worker settings kubernetes-check units-check release night clean

PROFILE ?= dev
export PROFILE
# Small, and built anew within a minute.
docker-build docker-build-coordinator docker-build-worker docker-up docker-up-multi docker-add-worker docker-restore docker-test: PROFILE = image

help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-24s %s\n", $$1, $$2 }' Makefile

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

vm: ## the native attacks on Debian's own kernel with all of cgroup v2, in an emulator (about an hour)
	@sh scripts/vm.sh

chaos: ## kill, stop and cut off real processes under load (BERTH_CHAOS_SECONDS=300 BERTH_CHAOS_SEED=n)
	@BERTH_CHAOS_SECONDS=$${BERTH_CHAOS_SECONDS:-300} NEXTEST_PROFILE=night sh scripts/test.sh --no-capture -E 'binary(chaos) & test(loses_nothing)'

sim: ## the simulation: SEEDS=200 of them, REPLAYS=20 of those twice; SEED=n shows one with its trace
	@sh scripts/sim.sh

bench: ## build for release and print the side-by-side table
	@sh scripts/bench.sh

sandbox-image: ## make the image of the docker backend (FORM=full: with Jupyter and build tools; FORCE=1: even if it is there)
	@sh scripts/sandbox-image.sh

docker-build: ## make the images berth/coordinator and berth/worker, from binaries built here
	@sh scripts/images.sh

docker-build-coordinator: ## the coordinator's alone
	@sh scripts/images.sh coordinator

docker-build-worker: ## the worker's alone
	@sh scripts/images.sh worker

docker-up: ## start the fleet of docker-compose.yml, and wait until all is well
	@sh scripts/compose.sh up

docker-up-multi: ## the same with a second worker
	@sh scripts/compose.sh up-multi

docker-up-dev: ## build, and start the fleet with the binaries of ./bin; again: reload what changed, sessions live on
	@sh scripts/compose.sh dev up

docker-down-dev: ## end that one's sessions, and stop it
	@sh scripts/compose.sh dev down

docker-add-worker: ## one more worker (NAME=worker-3)
	@sh scripts/compose.sh add "$(NAME)"

docker-test: ## start a fleet of its own, run tests against it by all its doors, look at it after a minute, take it down
	@sh scripts/compose.sh test

docker-backup: ## copy what its coordinator knows, while it runs (TO=backup/monday)
	@sh scripts/compose.sh backup "$(TO)"

docker-restore: ## put such a copy back, and start with it (FROM=backup/monday; BERTH_TAG=VERSION: the older images)
	@sh scripts/compose.sh restore "$(FROM)"

docker-down: ## end its sessions, and stop it; what it stored stays
	@sh scripts/compose.sh down

docker-clean: ## the same, and remove its volumes, certificates and tokens, and sandboxes that were left
	@sh scripts/compose.sh clean

docker-clean-all: ## the same for the fleets of dev and of the tests, and remove our images
	@sh scripts/compose.sh clean-all

docker-ps: ## its containers
	@sh scripts/compose.sh ps

docker-logs: ## what its containers print (TAIL=100 FOLLOW=1)
	@sh scripts/compose.sh logs

docker-logs-coordinator: ## what the coordinator prints
	@sh scripts/compose.sh logs coordinator

docker-logs-worker: ## what the first worker prints
	@sh scripts/compose.sh logs worker-1

docker-restart: ## restart all of it; sandboxes live on
	@sh scripts/compose.sh restart

docker-restart-worker: ## restart the first worker; its sandboxes live on
	@sh scripts/compose.sh restart worker-1

docker-shell-coordinator: ## a shell in the coordinator's container
	@sh scripts/compose.sh shell coordinator

docker-shell-worker: ## a shell in the first worker's
	@sh scripts/compose.sh shell worker-1

settings: build ## write docs/settings.md anew: all settings, as the programs have them
	@bin/berth env --reference > docs/settings.md.new && mv docs/settings.md.new docs/settings.md

kubernetes-check: ## hold deploy/kubernetes to the API's schemas, to itself and to Berth (no cluster, no network)
	@sh scripts/kubernetes.sh check

units-check: ## hold deploy/systemd to what systemd knows, and to how much it leaves open
	@sh scripts/units.sh

release: ## make dist/: an archive of the programs, its bill of materials, checksums (IMAGES=1: the images too)
	@PROFILE=$(if $(filter command line,$(origin PROFILE)),$(PROFILE),release) sh scripts/release.sh

clean: ## remove what was built (the sandbox image stays: docker rmi berth/sandbox:base)
	@cargo clean
	@rm -rf bin dist
