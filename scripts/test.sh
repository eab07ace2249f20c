#!/bin/sh
# Runs everything that this machine can run, and names what it could not and why.
# The last line stands alone: N passed, N failed, N skipped. Exit 0 only if something ran and nothing failed.
# Arguments go to the test runner: scripts/test.sh -E 'test(fleet)'. NEXTEST_PROFILE=night: longer limits.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

backend=$(sh scripts/preflight.sh test)

tmp=$(mktemp -d "${TMPDIR:-/tmp}/berth-test.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
: >"$tmp/skips"
: >"$tmp/not-run"

passed=0 failed=0 skipped=0
not_run() { printf 'not run: %s\n' "$*" >>"$tmp/not-run"; }
# What the runner itself leaves out: #[ignore = "reason"] and the name of the function below it.
ignored() {
    find agent bench checkpoint cli client coordinator fuzz proto tests worker -name '*.rs' -exec awk '
        /#\[ignore = "/ { split($0, q, "\""); reason = q[2] }
        reason && /fn [a-z0-9_]+\(/ { sub(/.*fn /, ""); sub(/\(.*/, ""); print "left out: " $0 ": " reason; reason = "" }' {} +
}
finish() {
    ignored
    if [ -s "$tmp/not-run" ] || [ -s "$tmp/skips" ]; then
        echo
        cat "$tmp/not-run"
        sed 's/^/skipped: /' "$tmp/skips"
    fi
    echo
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
    exit
}

# Runs a command, shows its output as it comes, keeps it in $tmp/NAME, and sets $status. (POSIX sh has no pipefail.)
run() {
    run_log="$tmp/$1"
    shift
    { status=0; "$@" || status=$?; echo "$status" >"$tmp/status"; } 2>&1 </dev/null | tee "$run_log"
    status=$(cat "$tmp/status")
}

# Everything includes that the attacks of the abuse suite get through where a protection is loosened: that takes a
# worker and an agent of their own.
if [ "$#" -eq 0 ]; then export WEAKENED=1; fi
if ! sh scripts/setup.sh test || ! sh scripts/build.sh; then
    failed=1
    not_run "any test: the build failed (see above)"
    finish
fi

export BERTH_AGENT="$PWD/bin/berth-agent" BERTH_BIN_DIR="$PWD/bin" BERTH_SKIP_LOG="$tmp/skips"
# The same cases and the same faults for everybody, so that what is red here is red there; `make night` draws others.
if [ "${NEXTEST_PROFILE:-default}" = default ]; then
    export PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED:-1}" BERTH_CHAOS_SEED="${BERTH_CHAOS_SEED:-1}"
fi
unset BERTH_TEST_DOCKER
if [ "$backend" = docker ]; then export BERTH_SANDBOX=docker; fi
if ! is_root; then not_run "native backend: it needs root"; fi
if ! docker_usable; then
    not_run "docker backend: $docker_why"
elif ! sh scripts/sandbox-image.sh; then
    not_run "docker backend: the engine answers, but the sandbox image could not be made (see above)"
    # Where Docker is the only backend that is no reason to skip.
    if [ "$backend" = docker ]; then failed=1; finish; fi
else
    export BERTH_TEST_DOCKER=1
    # For what needs a Jupyter kernel in an image. Given a choice of tests, those that need it say what makes it.
    if [ "$#" -eq 0 ] && ! FORM=full sh scripts/sandbox-image.sh; then
        not_run "docker backend with a Jupyter kernel: the image could not be made (see above)"
    fi
fi

# Sums "test result:" lines, which libtest prints once per binary.
add_libtest() {
    passed=$((passed + $(sed -n 's/^test result:.* \([0-9][0-9]*\) passed;.*/\1/p' "$1" | awk '{ n += $1 } END { print n + 0 }')))
    failed=$((failed + $(sed -n 's/^test result:.* \([0-9][0-9]*\) failed;.*/\1/p' "$1" | awk '{ n += $1 } END { print n + 0 }')))
    skipped=$((skipped + $(sed -n 's/^test result:.* \([0-9][0-9]*\) ignored;.*/\1/p' "$1" | awk '{ n += $1 } END { print n + 0 }')))
}

# "Summary [ 1.2s] 9 tests run: 6 passed (1 slow), 1 failed, 1 timed out, 1 skipped"; cut short: "5/9 tests run: …".
add_nextest() {
    counts=$(sed -n 's/^ *Summary \[[^]]*\] *\(.*\)/\1/p' "$1" | tail -n 1 | sed 's/([^)]*)//g' | awk -F'[:,] *' '
        { split($1, of, "[ /]"); if (of[2] ~ /^[0-9]+$/) lost = of[2] - of[1]
          for (i = 2; i <= NF; i++) { split($i, w, " ")
              if ($i ~ /passed/) p += w[1]; else if ($i ~ /skipped/) s += w[1]; else f += w[1] }
          print p + 0, f + lost + 0, s + 0 }')
    [ -n "$counts" ] || return 0
    # shellcheck disable=SC2086 # three numbers
    set -- $counts
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
}

if cargo nextest --version >/dev/null 2>&1; then
    run tests cargo nextest run --locked --workspace --no-fail-fast --color never \
        --profile "${NEXTEST_PROFILE:-default}" "$@"
    add_nextest "$tmp/tests"
    sed -n 's/^ *FLAKY [0-9/]* \[[^]]*\] *\(([^)]*) *\)*/passed only when tried again: /p' "$tmp/tests" | sort -u >>"$tmp/not-run"
    # nextest runs no documentation tests.
    doc="cargo test --locked --doc --workspace"
else
    not_run "with nextest: cargo-nextest is not installed, so cargo test ran the suites (make setup installs it)"
    run tests cargo test --locked --workspace --no-fail-fast --lib --bins --tests -- --test-threads=2
    add_libtest "$tmp/tests"
    doc="cargo test --locked --doc --workspace --no-fail-fast"
fi
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
    failed=1
    not_run "all of the suites: the test runner ended with status $status (see above)"
fi
before=$failed
# shellcheck disable=SC2086 # a command and its words
run doctests $doc
add_libtest "$tmp/doctests"
if [ "$status" -ne 0 ] && [ "$failed" -eq "$before" ]; then
    failed=$((failed + 1))
    not_run "the documentation tests: cargo ended with status $status (see above)"
fi

# Given a choice of tests, the simulation is none of them.
if [ "$#" -eq 0 ]; then
    run sim sh scripts/sim.sh
    # Two promises: no seed breaks one, and the same seed is the same run.
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 2))
    else
        failed=$((failed + 1))
        not_run "the rest of the simulation: it ended with status $status (see above)"
    fi
fi

# A test that cannot run here returns early, which a runner counts as passed, and writes "name: reason" to the skip log.
sort -u "$tmp/skips" -o "$tmp/skips"
self_skipped=$(sed 's/: .*//' "$tmp/skips" | sort -u | grep -c . || true)
if [ "$self_skipped" -gt "$passed" ]; then self_skipped=$passed; fi
passed=$((passed - self_skipped)) skipped=$((skipped + self_skipped))
finish
