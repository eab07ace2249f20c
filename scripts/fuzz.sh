#!/bin/sh
# Builds the fuzz targets (fuzz/targets) with cargo-fuzz, runs each for FUZZ_SECONDS (60), and prints what came of it.
#   TARGET=name: that one alone. FUZZ_SANITIZER=none: faster, and blind to what unsafe code does (default: address).
# Inputs that reach code that nothing in fuzz/corpus reaches are added there: commit them. An input that breaks a promise
# is kept in fuzz/artifacts, and the exit code is 1.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

sh scripts/setup.sh fuzz
seconds=${FUZZ_SECONDS:-60}
sanitizer=${FUZZ_SANITIZER:-address}
all=$(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/targets/Cargo.toml)
targets=${TARGET:-$all}
case "$seconds" in '' | *[!0-9]*) die "FUZZ_SECONDS=$seconds is no number of seconds" ;; esac
for target in $targets; do
    printf '%s\n' "$all" | grep -qx "$target" || die "there is no fuzz target $target" "one of:" "$all"
done

# Stable Rust: the two flags that it has not (coverage needs none) are let through. The versions are those of what is
# shipped, and libFuzzer's beside them.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$PWD/target/fuzz"
cp Cargo.lock fuzz/targets/Cargo.lock
build() { cargo fuzz build --fuzz-dir fuzz/targets --sanitizer "$sanitizer" "$@"; }
if [ -n "${TARGET:-}" ]; then
    for target in $targets; do build "$target" >&2; done
else
    build >&2
fi
host=$(rustc -vV | sed -n 's/^host: //p')

tmp=$(mktemp -d "${TMPDIR:-/tmp}/berth-fuzz.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

stat() { sed -n "s/^stat::$1: *//p" "$2" | tail -n 1; }
row() { printf '%-16s %12s %8s %10s  %s\n' "$@"; }
# Bounds of one input: what it may take in memory and time. The parsers of heads look at up to 16 KiB.
bounds() {
    case "$1" in
        proxy_request | client_hello) length=20000 ;;
        *) length=4096 ;;
    esac
    printf '%s\n' "-max_len=$length -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512"
}

# Inputs of a target that are kept at most.
KEPT=800
broken=
table="$tmp/table"
row target runs new coverage result >"$table"
for target in $targets; do
    say "fuzz: $target for $seconds s"
    bin="$CARGO_TARGET_DIR/$host/release/$target" log="$tmp/$target.log" found="$tmp/$target"
    corpus="fuzz/corpus/$target" artifacts="fuzz/artifacts/$target"
    mkdir -p "$found" "$corpus" "$artifacts"
    before=$(find "$corpus" -type f | wc -l)
    # shellcheck disable=SC2046 # words
    if "$bin" $(bounds "$target") -max_total_time="$seconds" -print_final_stats=1 -artifact_prefix="$artifacts/" \
        "$found" "$corpus" >"$log" 2>&1 </dev/null
    then
        result=ok
    else
        result=BROKEN
        broken="$broken $target"
    fi
    coverage=$(sed -n 's/^#.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    # What was found is kept as far as it reaches something new.
    # shellcheck disable=SC2046 # words
    "$bin" $(bounds "$target") -merge=1 -artifact_prefix="$artifacts/" "$corpus" "$found" >"$tmp/merge.log" 2>&1 </dev/null ||
        say "note: the corpus of $target could not be merged: $(tail -n 1 "$tmp/merge.log")"
    # A corpus is for everybody's tests, too: the smallest inputs that are new, up to so many in all.
    after=$(find "$corpus" -type f | wc -l)
    if [ "$after" -gt "$KEPT" ]; then
        git ls-files --others -- "$corpus" | while IFS= read -r file; do printf '%s %s\n' "$(wc -c <"$file")" "$file"; done |
            sort -rn | head -n $((after - KEPT)) | cut -d ' ' -f 2- | xargs -r rm -f
        after=$(find "$corpus" -type f | wc -l)
    fi
    row "$target" "$(stat number_of_executed_units "$log")" "$((after - before))" "${coverage:--}" "$result" >>"$table"
    if [ "$result" != ok ]; then
        file=$(sed -n 's/^.*Test unit written to //p' "$log" | tail -n 1)
        grep -m 3 -E 'panicked at|^SUMMARY|ERROR: ' "$log" >&2 || tail -n 20 "$log" >&2
        {
            printf '  %s: %s\n' "$target" "${file:-no input was kept: see the lines above}"
            [ -z "$file" ] || printf '    %s %s\n' "${bin#"$PWD"/}" "$file"
        } >>"$tmp/broken"
    fi
done

cat "$table"
if [ -n "$broken" ]; then
    echo
    echo "promises were broken; each input, and how to run it again:"
    cat "$tmp/broken"
    die "fuzzing found something in:$broken" \
        "mend it, and move the input to fuzz/corpus/TARGET/regression-WHAT: then make test feeds it to every later build"
fi
