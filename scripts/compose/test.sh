# shellcheck shell=sh disable=SC2154
# `make docker-test`; sourced by compose.sh, whose variables and functions it uses.

# Whether every container is well, and is the one that was started: one that fell and was started again is not.
still_well() {
    for id in $(ids); do
        case "$(state_of "$id") $(docker inspect -f '{{.RestartCount}}' "$id")" in
            "running healthy 0 0") ;;
            *)
                docker logs --tail 15 "$id" >&2
                die "$(docker inspect -f '{{.Name}}' "$id" | tr -d /) is not well any more: $(state_of "$id")" "make docker-test leaves nothing: look above"
                ;;
        esac
    done
}

test_fleet() {
    begun=$(date +%s)
    mkdir -p tmp
    exec 9>tmp/test.lock
    flock -n 9 || die "make docker-test runs here already" "wait for it"
    preflight
    # Of what is here now.
    TAG=$BERTH_TAG sh scripts/images.sh
    trap 'clean >/dev/null 2>&1' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    up multi >/dev/null
    up=$(date +%s)
    say "up after $((up - begun)) s; the contract, and each other door:"
    sh scripts/setup.sh test
    BERTH_TEST_FLEET="$dir" cargo nextest run --locked --workspace --no-fail-fast --color never \
        -E 'binary(contract) & test(/^fleet::/) | binary(e2e) & test(/^deployed::/)'
    tested=$(date +%s)
    left=$((up + ${SOAK:-60} - $(date +%s)))
    if [ "$left" -gt 0 ]; then sleep "$left"; fi
    wait_until_well
    still_well
    say "all is still well after $(($(date +%s) - up)) s"
    trap - EXIT
    clean
    port_taken "$BERTH_HOST_PORT" && die "port $BERTH_HOST_PORT is still taken"
    port_taken "$BERTH_HOST_HTTP_PORT" && die "port $BERTH_HOST_HTTP_PORT is still taken"
    say "taken down. Up in $((up - begun)) s, tested in $((tested - up)) s; nothing is left"
}
