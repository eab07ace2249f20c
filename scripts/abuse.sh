#!/bin/sh
# Runs the abuse suite and prints its table: test, backend, result, and what a weakened sandbox gave.
# Arguments go to the test runner, behind its own choice: scripts/abuse.sh -E 'test(a46)'.
set -eu
cd "$(dirname "$0")/.."

rows=$(mktemp "${TMPDIR:-/tmp}/berth-abuse.XXXXXX")
trap 'rm -f "$rows"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export BERTH_ABUSE_LOG="$rows" WEAKENED=1
[ "$#" -gt 0 ] || set -- -E 'binary(abuse)'

status=0
sh scripts/test.sh "$@" || status=$?

echo
# Two rows for each test and backend: the real thing, and the one that is loosened.
sort "$rows" | awk -F '\t' '
    { key = $1 "\t" $2; if (!(key in seen)) { seen[key] = 1; order[++n] = key } }
    $3 == "plain" { result[key] = $4; what[key] = $5; next }
    { how[key] = $3; loose[key] = $4; gave[key] = $5 }
    END {
        form = "%-56s %-7s %-8s %-46s %s\n"
        printf form, "test", "backend", "result", "loosened", "the weakened run"
        for (i = 1; i <= n; i++) {
            split(order[i], k, "\t"); key = order[i]
            printf form, k[1], k[2], (key in result) ? result[key] : "not run", how[key], \
                (key in loose) ? loose[key] ": " gave[key] : "not run"
            if (result[key] == "held") held++
            else if (result[key] == "skipped") { skipped++; why[what[key]]++ }
            else failed++
            if (loose[key] == "red") red++
            else if (loose[key] == "skipped") unseen++
            else failed++
        }
        printf "\n%d held, %d skipped; weakened: %d red, %d skipped; %d failed or not run\n", held, skipped, red, unseen, failed
        for (reason in why) printf "skipped: %d for: %s\n", why[reason], reason
    }'
exit "$status"
