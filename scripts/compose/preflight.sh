# shellcheck shell=sh disable=SC2154
# What would be in the way of a fleet; sourced by compose.sh, whose variables and functions it uses.

preflight() {
    problems=
    problem() { problems=1; printf 'error: %s\n' "$1" >&2; shift; for line in "$@"; do hint "$line"; done; }
    docker_usable || { problem "$docker_why" "start it: sudo systemctl start docker"; die "docker-up can't begin"; }
    engine=$(docker version --format '{{.Server.Version}}' 2>/dev/null || echo 0)
    if find_compose; then
        # shellcheck disable=SC2086
        version=$($compose_command version --short 2>/dev/null | tr -d v)
        case "$version" in
            0.* | 1.[0-9].* | 1.1[0-9].* | 1.2[0-6].*) problem "compose $version is older than 1.27" "sudo apt-get install docker-compose, or Docker's own plugin" ;;
            1.*) if [ "${engine%%.*}" -ge 25 ] 2>/dev/null; then problem "docker-compose $version can't replace containers of engine $engine" "install Docker's own plugin (Compose v2)"; fi ;;
        esac
    else
        problem "there is no compose here" "sudo apt-get install docker-compose, or Docker's own plugin"
    fi
    api=$(docker version --format '{{.Server.APIVersion}}' 2>/dev/null || echo 0)
    case "$api" in
        0.* | 1.[0-9] | 1.[0-3][0-9] | 1.40) problem "the engine speaks API $api, older than 1.41" "install Docker 20.10 or newer" ;;
    esac
    if [ -n "$(docker ps -q --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=coordinator")" ]; then
        if elsewhere; then
            problem "a fleet of this name ($project) runs already, from $from" "take it down there, or start this one beside it: COMPOSE_PROJECT_NAME=… BERTH_HOST_PORT=… BERTH_HOST_HTTP_PORT=…"
        fi
    else
        for port in "$BERTH_HOST_PORT" "$BERTH_HOST_HTTP_PORT"; do
            other=$(docker ps --filter "publish=$port" --format '{{.Names}} ({{.Image}})' | head -n 1)
            owner=
            if have ss; then owner=$(ss -Hltnp "sport = :$port" 2>/dev/null | sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1, pid \2/p' | head -n 1); fi
            if [ -n "$other" ]; then
                problem "port $port is taken by the container $other" "stop it, or choose another: BERTH_HOST_PORT=… BERTH_HOST_HTTP_PORT=…"
            elif port_taken "$port"; then
                problem "port $port is taken${owner:+ by $owner}" "stop that (a \`berth up\`: berth stop), or choose another: BERTH_HOST_PORT=… BERTH_HOST_HTTP_PORT=…"
            fi
        done
    fi
    [ -n "$without_loops" ] || [ -e /dev/loop-control ] || problem "there are no loop devices (/dev/loop-control), which hold sandboxes to their disk limit" "sudo modprobe loop"
    root=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null || echo /)
    free=$(df -Pk "$root" 2>/dev/null | awk 'NR == 2 { print int($4 / 1024) }')
    if [ "${free:-99999}" -lt 4096 ]; then problem "only $free MiB are free for the engine ($root)" "make room: 4 GiB are wanted, and each session takes its disk limit at once"; fi
    # A volume that somebody else has filled.
    checkpoints=${project}_coordinator-checkpoints
    if [ "$kind" != dev ] && docker image inspect "$image" >/dev/null 2>&1 && docker volume inspect "$checkpoints" >/dev/null 2>&1; then
        owner=$(docker run --rm --network none --user 0:0 --entrypoint /bin/stat -v "$checkpoints:/v:ro" "$image" -c %u /v)
        if [ "$owner" != 10001 ]; then
            problem "the volume $checkpoints is user $owner's, and the coordinator is user 10001" \
                "docker run --rm --user 0:0 --entrypoint /bin/chown -v $checkpoints:/v $image -R 10001:10001 /v"
        fi
    fi
    if [ -d "$dir" ] && [ ! -w "$dir" ]; then problem "$dir is not $(id -un)'s to write" "sudo chown -R $(id -un) $dir"; fi
    if [ -n "$problems" ]; then die "docker-up can't begin: see above"; fi
}

# Whether something listens there, by the kernel's own list.
port_taken() {
    hex=$(printf ':%04X ' "$1")
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == "0A" { print $2 " " }' | grep -q "$hex"
}
