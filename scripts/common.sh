# shellcheck shell=sh
# What every script here shares; sourced, never run. stdout is data, stderr is talk.

say() { printf '%s\n' "$*" >&2; }
hint() { printf 'hint: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do hint "$line"; done
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# A login shell has rustup's directory in PATH; cron, sudo and CI often do not.
if ! have cargo && [ -x "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
    export PATH
fi

is_root() { [ "$(id -u)" -eq 0 ]; }

# Whether this is a root shell of Debian or Ubuntu, where a script may install what is missing.
can_apt() { is_root && have apt-get && [ "${BERTH_NO_INSTALL:-}" != 1 ]; }

apt_install() {
    have apt-get || return 1
    say "installing with apt-get: $*"
    apt_log=$(mktemp) || return 1
    if { [ -n "${apt_updated:-}" ] || apt-get -o DPkg::Lock::Timeout=120 update; } >"$apt_log" 2>&1 </dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@" \
            >>"$apt_log" 2>&1 </dev/null
    then
        apt_updated=1
        rm -f "$apt_log"
    else
        tail -n 20 "$apt_log" >&2
        rm -f "$apt_log"
        return 1
    fi
}

# Whether a container engine answers this user. Says why not in $docker_why.
docker_usable() {
    docker_why=
    if ! have docker; then
        docker_why="no container engine: docker is not installed"
    elif docker_socket_refuses; then
        docker_why="no container engine answers: $docker_socket_why"
    elif ! timeout 5 docker version >/dev/null 2>&1; then
        docker_why="no container engine answers: \`docker version\` failed or took longer than 5 s"
    fi
    [ -z "$docker_why" ]
}

# The common refusals, told without waiting for the engine's own client.
docker_socket_refuses() {
    docker_socket_why=
    case "${DOCKER_HOST:-unix:///var/run/docker.sock}" in
        unix://*) docker_socket=${DOCKER_HOST:-unix:///var/run/docker.sock} docker_socket=${docker_socket#unix://} ;;
        *) return 1 ;;
    esac
    # A context chosen with `docker context use` (rootless engines) says where else to look.
    if [ -z "${DOCKER_HOST:-}" ] && grep -qs currentContext "${DOCKER_CONFIG:-${HOME:-/root}/.docker}/config.json"; then
        return 1
    fi
    if [ ! -S "$docker_socket" ]; then
        docker_socket_why="there is no $docker_socket"
    elif [ ! -w "$docker_socket" ]; then
        docker_socket_why="$(id -un) may not use $docker_socket"
    fi
    [ -n "$docker_socket_why" ]
}
