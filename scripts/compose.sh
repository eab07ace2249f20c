#!/bin/sh
# The fleet of docker-compose.yml on this machine's engine. `make docker-up` and its kin call it:
#   compose.sh up | up-multi     prepare, look at what would be in the way, start or replace, wait until all is well
#   compose.sh add NAME          one more worker
#   compose.sh down              end the sandboxes, stop; what is stored stays
#   compose.sh clean             the same, and remove volumes, sandboxes and what was prepared
#   compose.sh clean-all         the same for the fleets of dev and of the tests, and remove our images
#   compose.sh backup DIR        copy what the coordinator knows, while it runs
#   compose.sh restore DIR       put such a copy back, with the images of BERTH_TAG: what was there is kept aside
#   compose.sh test              start a fleet of its own, run tests against it by all its doors, look after a minute, end it
#   compose.sh logs [SERVICE] | ps | restart [SERVICE] | shell SERVICE | env
#   compose.sh dev COMMAND       the same with docker-compose.dev.yml: binaries of ./bin, files in tmp/dev
# Settings: see docs/operations.md (BERTH_HOST_PORT, BERTH_HOST_HTTP_PORT, COMPOSE_PROJECT_NAME, …).
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
umask 077

kind=
case "${1:-}" in
    dev)
        kind=dev
        shift
        ;;
    # Beside whatever fleet runs here.
    test)
        kind='test'
        BERTH_TAG=${BERTH_TAG:-test}
        export BERTH_TAG
        BERTH_HOST_PORT=${BERTH_HOST_PORT:-15051}
        BERTH_HOST_HTTP_PORT=${BERTH_HOST_HTTP_PORT:-18080}
        ;;
esac

# Also of the volumes' names.
COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-berth${kind:+-$kind}}
BERTH_HOST_PORT=${BERTH_HOST_PORT:-50051}
BERTH_HOST_HTTP_PORT=${BERTH_HOST_HTTP_PORT:-8080}
# Each fleet has certificates and tokens of its own.
case "$COMPOSE_PROJECT_NAME" in
    berth) dir=tmp/compose ;;
    berth-dev | berth-test) dir=tmp/${COMPOSE_PROJECT_NAME#berth-} ;;
    *) dir=tmp/compose-$COMPOSE_PROJECT_NAME ;;
esac
absolute() { case "$1" in /*) printf '%s\n' "$1" ;; *) printf '%s/%s\n' "$PWD" "$1" ;; esac; }
dir=$(absolute "${BERTH_COMPOSE_DIR:-$dir}")
secrets=$dir/secrets
BERTH_COMPOSE_DIR=$dir
coordinator_user=10001:10001
if [ "$kind" = dev ]; then
    BERTH_DEV_BIN=$(absolute "${BERTH_DEV_BIN:-bin}")
    export BERTH_DEV_BIN
    BERTH_TAG=${BERTH_TAG:-dev}
    coordinator_user=$(id -u):$(id -g)
    BERTH_DEV_USER=$coordinator_user
    export BERTH_TAG BERTH_DEV_USER
fi
export COMPOSE_PROJECT_NAME BERTH_HOST_PORT BERTH_HOST_HTTP_PORT BERTH_COMPOSE_DIR
project=$COMPOSE_PROJECT_NAME
image=berth/coordinator:${BERTH_TAG:-latest}
WAIT=${BERTH_COMPOSE_WAIT:-300}
# Where nothing holds sessions to a disk limit, no loop device is needed: a rootless engine has none to give.
all_since=
without_loops=
if [ "$kind" = dev ] || [ "${BERTH_WORKSPACE:-}" = directory ]; then
    without_loops=1
    BERTH_LOOP_CONTROL=/dev/null
    export BERTH_LOOP_CONTROL
fi
# The workers use the engine that the fleet is on: the one that DOCKER_HOST names, or a context.
if [ -z "${BERTH_ENGINE_SOCKET:-}" ]; then
    engine=${DOCKER_HOST:-$(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null)}
    case "$engine" in unix://*) BERTH_ENGINE_SOCKET=${engine#unix://} ;; esac
    if [ -n "${BERTH_ENGINE_SOCKET:-}" ]; then export BERTH_ENGINE_SOCKET; fi
fi

find_compose() {
    if docker compose version >/dev/null 2>&1; then
        compose_command="docker compose"
    elif have docker-compose; then
        compose_command=docker-compose
    else
        return 1
    fi
}

compose() {
    [ -n "${compose_command:-}" ] || find_compose || die "there is no compose here" "sudo apt-get install docker-compose, or Docker's own plugin"
    # Each before the one that it goes over: added workers' parts for dev, these, dev, and all of it.
    for file in "$dir"/workers/*.dev; do
        if [ -e "$file" ]; then set -- -f "$file" "$@"; fi
    done
    for file in "$dir"/workers/*.yml; do
        if [ -e "$file" ]; then set -- -f "$file" "$@"; fi
    done
    if [ "$kind" = dev ]; then set -- -f docker-compose.dev.yml "$@"; fi
    # Whether or not it runs: without it the second worker is no part of what is asked.
    # shellcheck disable=SC2086 # one word or two
    $compose_command --project-directory "$PWD" --profile multi-worker -f docker-compose.yml "$@"
}

# Containers of the fleet, or of these services of it. Asked of the engine: compose's own `ps` takes a second.
ids() { # [SERVICE...]
    if [ $# -eq 0 ]; then docker ps -aq --filter "label=com.docker.compose.project=$project"; fi
    for service_of in "$@"; do
        docker ps -aq --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=$service_of"
    done
}

# Where the coordinator is published: ADDRESS:PORT of this machine.
published() {
    at=$(docker port "$(ids coordinator)" 50051/tcp 2>/dev/null | head -n 1)
    case "$at" in
        0.0.0.0:*) at=127.0.0.1:${at##*:} ;;
        '') at=127.0.0.1:$BERTH_HOST_PORT ;;
    esac
    printf '%s\n' "$at"
}

# The command line client that belongs to the images.
client() {
    if [ -z "${berth:-}" ]; then
        for berth in "${CARGO_TARGET_DIR:-target}/images/berth" bin/berth ''; do
            if [ -x "$berth" ]; then break; fi
        done
        [ -n "$berth" ] || die "there is no berth command here" "make build"
    fi
    # Nothing else of this shell's: the command refuses settings that it does not know. (And no token in a list of processes.)
    (
        address=https://$(published)
        for name in $(env | sed -n 's/^\(BERTH_[A-Z_]*\|COORDINATOR_ADDR\)=.*/\1/p'); do unset "$name"; done
        BERTH_ADDRESS=$address BERTH_TLS_CA=$dir/tls/ca.pem BERTH_TOKEN=$(cat "$secrets/admin.token")
        export BERTH_ADDRESS BERTH_TLS_CA BERTH_TOKEN
        exec "$berth" "$@"
    )
}

# Those of the file, and those that were added.
workers() {
    echo worker-1
    if [ "${1:-}" = multi ]; then echo worker-2; fi
    for file in "$dir"/workers/*.yml; do
        if [ -e "$file" ]; then basename "$file" .yml; fi
    done
}

# Where the fleet that runs under this name was started from, if not from here.
elsewhere() {
    first=$(ids | head -n 1)
    [ -n "$first" ] || return 1
    from=$(docker inspect -f '{{index .Config.Labels "com.docker.compose.project.working_dir"}}' "$first")
    [ "$from" != "$PWD" ]
}
not_elsewhere() {
    if elsewhere; then die "the fleet $project that runs here was started from $from" "go there, or name yours: COMPOSE_PROJECT_NAME=…"; fi
}

. scripts/compose/preflight.sh
. scripts/compose/down.sh
. scripts/compose/backup.sh
. scripts/compose/test.sh

# ---- what the fleet needs before it starts ----

prepare() { # WORKER...
    if [ "$kind" = dev ]; then
        if [ -z "${NO_BUILD:-}" ]; then (umask 022 && sh scripts/build.sh); fi
        # Of the images only what is around the binaries is used.
        export PROFILE=dev
    fi
    for component in coordinator worker; do
        docker image inspect "berth/$component:${BERTH_TAG:-latest}" >/dev/null 2>&1 || TAG=${BERTH_TAG:-} sh scripts/images.sh "$component"
    done
    docker image inspect "${BERTH_SANDBOX_IMAGE:-berth/sandbox:base}" >/dev/null 2>&1 || (umask 022 && sh scripts/sandbox-image.sh)
    mkdir -p "$secrets"
    for name in admin join; do
        file=$secrets/$name.token
        [ -s "$file" ] || printf 'berth_%s\n' "$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')" >"$file"
    done
    case "${BERTH_HOST_IP:-127.0.0.1}" in 127.0.0.1 | 0.0.0.0) ip= ;; *) ip=$BERTH_HOST_IP ;; esac
    if [ ! -e "$dir/tls/ca.pem" ]; then
        client tls --dir "$dir/tls" init --host coordinator ${BERTH_HOST_NAME:+--host "$BERTH_HOST_NAME"} ${ip:+--host "$ip"} >/dev/null
    fi
    [ -s "$dir/tls/coordinator.key" ] || die "the certificates in $dir/tls are not whole" "rm -r $dir/tls, and once more: nobody has used them yet"
    for worker in "$@"; do
        if [ "$kind" = dev ]; then (umask 022 && mkdir -p "$dir/$worker/workspaces" "$dir/checkpoints"); fi
        [ -s "$dir/tls/workers/$worker/worker.key" ] || client tls --dir "$dir/tls" worker "$worker" >/dev/null
    done
}

# Puts files into a volume, as a user of the image's. No file of this machine is mounted.
seed() { # VOLUME UID (a tar file on stdin)
    docker run --rm -i --network none --user 0:0 --entrypoint /bin/sh -v "${project}_$1:/v" "$image" \
        -c "cd /v && tar xf - && chown -R $2 ." >/dev/null
}

fill_volumes_of() { # SERVICE
    case "$1" in
        coordinator)
            tar -C "$dir/tls" -cf - ca.pem coordinator.pem coordinator.key | seed coordinator-tls "$coordinator_user"
            tokens=$(mktemp -d)
            mkdir "$tokens/credentials"
            cp "$secrets/admin.token" "$secrets/join.token" "$tokens/credentials/"
            tar -C "$tokens" -cf - credentials | seed coordinator-state "$coordinator_user"
            rm -rf "$tokens"
            ;;
        *) tar -C "$dir/tls/workers/$1" -cf - . | seed "$1-tls" 0:0 ;;
    esac
}

# ---- waiting ----

state_of() { docker inspect -f '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}} {{.State.ExitCode}}' "$1" 2>/dev/null || echo "gone - -"; }

# The engine asks rarely (a worker every 30 s). Before it has, the same question is put to the container here.
well() {
    case "$(state_of "$1")" in
        "running healthy "*) return 0 ;;
        "running starting "*) ;;
        *) return 1 ;;
    esac
    # shellcheck disable=SC2046 # its words
    docker exec "$1" $(docker inspect -f '{{range $n, $word := .Config.Healthcheck.Test}}{{if $n}}{{$word}} {{end}}{{end}}' "$1") >/dev/null 2>&1
}

wait_until_well() { # [SERVICE...]
    since=${all_since:-$(date +%s)}
    while :; do
        unready=
        for id in $(ids "$@"); do
            well "$id" || unready="$unready $id"
        done
        [ -n "$unready" ] || return 0
        if [ $(($(date +%s) - since)) -ge "$WAIT" ]; then break; fi
        sleep 1
    done
    for id in $unready; do
        name=$(docker inspect -f '{{.Name}}' "$id" 2>/dev/null | tr -d /)
        # shellcheck disable=SC2046 # three words
        set -- $(state_of "$id")
        printf 'error: %s is not well after %s s: %s, health %s, exit code %s; its last lines:\n' "${name:-$id}" "$WAIT" "$1" "$2" "$3" >&2
        docker logs --tail 15 "$id" 2>&1 | sed 's/^/  /' >&2
    done
    die "not all services are ready" "make docker-logs shows all of it, make docker-down takes it down"
}

# The program that a service's containers run, and whether the one that runs is the one of now. (Only in dev they differ.)
program_of() { case "$1" in coordinator) echo coordinator ;; *) echo worker ;; esac; }
outdated() { # SERVICE
    [ "$kind" = dev ] || return 1
    id=$(ids "$1")
    ran=$(docker exec "$id" sha256sum /proc/1/exe 2>/dev/null | cut -d ' ' -f 1)
    [ -n "$ran" ] && [ "$ran" != "$(sha256sum "$BERTH_DEV_BIN/$(program_of "$1")" | cut -d ' ' -f 1)" ]
}

# Makes its container, if it has none, and puts into its volumes what it finds there: also into those of one that runs, which
# takes renewed certificates up by itself.
create() { # SERVICE
    [ -n "$(ids "$1")" ] || compose up --no-start --no-deps "$1" >/dev/null
    fill_volumes_of "$1"
}

# One after the other, each when the one before it is well: who is replaced is alone in that, and what a worker holds
# lives on.
start() { # SERVICE...
    # All of them have that time together.
    all_since=$(date +%s)
    for service in "$@"; do
        if [ -n "$(ids "$service")" ] && outdated "$service"; then
            say "$service: a newer binary"
            compose restart "$service"
        else
            compose up -d --no-deps "$service"
        fi
        wait_until_well "$service"
    done
    all_since=
}

up() { # [multi]
    preflight
    # shellcheck disable=SC2046 # a list of words
    prepare $(workers "${1:-}")
    services="coordinator $(workers "${1:-}" | tr '\n' ' ')"
    for service in $services; do create "$service"; done
    say "waiting until all is well (at most $WAIT s)"
    # shellcheck disable=SC2086
    start $services
    undrain
    say "up. To use it:"
    show_env
}

# Writes what compose needs of one more worker: the second one's part, under its name.
add() { # NAME
    case "$1" in
        worker-1 | worker-2) die "$1 is there already" "make docker-up-multi starts both" ;;
        *[!a-z0-9-]* | -* | "") die "a worker's name has small letters, digits and dashes: ${1:-none}" "compose.sh add worker-3" ;;
    esac
    [ -n "$(ids coordinator)" ] || die "no fleet runs here" "make docker-up, then once more"
    mkdir -p "$dir/workers"
    awk -v name="$1" '
        /^[a-z]/ { section = $1; service = "" }
        /^x-/ || section ~ /^x-/ { print; next }
        /^services:/ { print; next }
        section == "services:" && /^  [a-z]/ { service = $1 }
        section == "services:" && service == "worker-2:" && !/profiles:/ { gsub(/worker-2/, name); print }
        END { print "volumes:"; for (n = split("state workspaces tls", part, " "); n; n--) print "  " name "-" part[n] ": {}" }
    ' docker-compose.yml >"$dir/workers/$1.yml"
    if [ "$kind" = dev ]; then
        awk -v name="$1" '
            /^[a-z]/ { section = $1; service = "" }
            /^x-/ || section ~ /^x-/ || /^services:/ { print; next }
            /^  [a-z]/ { service = $1 }
            service == "worker-2:" { gsub(/worker-2/, name); print }
        ' docker-compose.dev.yml >"$dir/workers/$1.dev"
    fi
    prepare "$1"
    create "$1"
    start "$1"
    say "$1 is up. On a machine of its own: docs/operations.md"
}

show_env() {
    # shellcheck disable=SC2016 # for whoever pastes it
    printf 'export BERTH_ADDRESS=https://%s BERTH_TLS_CA=%s BERTH_TOKEN=$(cat %s)\n' \
        "$(published)" "$dir/tls/ca.pem" "$secrets/admin.token"
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
    up) up ;;
    up-multi) up multi ;;
    down) down ;;
    add) add "${1:-}" ;;
    clean) clean ;;
    clean-all) clean_all ;;
    test) test_fleet ;;
    backup) backup "${1:-}" ;;
    restore) restore "${1:-}" ;;
    logs) compose logs --tail "${TAIL:-100}" ${FOLLOW:+-f} "$@" ;;
    ps) compose ps "$@" ;;
    restart)
        not_elsewhere
        # shellcheck disable=SC2046 # a list of ids
        docker restart -t 30 $(ids "$@") >/dev/null
        wait_until_well "$@"
        ;;
    shell)
        [ $# -eq 1 ] || die "which service?" "compose.sh shell coordinator"
        compose exec "$1" /bin/sh
        ;;
    env) show_env ;;
    *) die "unknown command: ${command:-none}" "$(sed -n '3,13s/^#   //p' scripts/compose.sh)" ;;
esac
