#!/bin/sh
# Says within a second whether this machine can hold sandboxes at all, before anything is built.
# Prints the backend to use: native, docker, or the BERTH_SANDBOX that was asked for. Exit 2: none can work.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

# Namespaces, mounts and cgroups need CAP_SYS_ADMIN (bit 21): root inside a plain container lacks it.
native_can() {
    is_root || return 1
    caps=$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status 2>/dev/null) || return 0
    [ -z "$caps" ] || [ $((0x$caps >> 21 & 1)) -eq 1 ]
}

refuse() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do hint "$line"; done
    exit 2
}

native_why="the native backend needs root"
if is_root; then native_why="this root has no CAP_SYS_ADMIN (a plain container?), which the native backend needs"; fi

# Disk limits are held by mounts, which take the same, or by the engine's mounts of our loop devices. Who wants sandboxes
# without them says so; the tests do.
docker_may() {
    if native_can || { is_root && [ -w /dev/loop-control ]; } || [ "${1:-demo}" = test ] || [ "${BERTH_WORKSPACE:-auto}" = directory ]; then return 0; fi
    refuse "sessions can't be held to their disk limit here: that takes root, and CAP_SYS_ADMIN or loop devices" \
        "run it as root: sudo -E env PATH=\"\$PATH\" make ${1:-demo}" \
        "or, if any session may fill this disk, say so: BERTH_WORKSPACE=directory make ${1:-demo}"
}

case "${BERTH_SANDBOX:-auto}" in
    fake) echo fake ;;
    native)
        native_can || refuse "BERTH_SANDBOX=native, but $native_why" "run it as root: sudo -E env PATH=\"\$PATH\" make ${1:-demo}"
        echo native
        ;;
    docker)
        docker_usable || refuse "BERTH_SANDBOX=docker, but $docker_why"
        docker_may "$@"
        echo docker
        ;;
    auto)
        if native_can; then
            echo native
        elif docker_usable; then
            docker_may "$@"
            echo docker
        elif is_root; then
            refuse "nothing here can hold a sandbox: $native_why; and $docker_why" \
                "mount the engine's socket into the container, or give it CAP_SYS_ADMIN"
        elif have docker; then
            refuse "nothing here can hold a sandbox: $native_why; and $docker_why" \
                "run it as root: sudo -E env PATH=\"\$PATH\" make ${1:-demo}" \
                "or start the engine and let $(id -un) use it: sudo systemctl start docker; sudo usermod -aG docker $(id -un), then log in again"
        else
            refuse "nothing here can hold a sandbox: $native_why; and $docker_why" \
                "run it as root: sudo -E env PATH=\"\$PATH\" make ${1:-demo}" \
                "or install an engine: sudo apt-get install docker.io; sudo usermod -aG docker $(id -un), then log in again"
        fi
        ;;
    *) refuse "BERTH_SANDBOX=$BERTH_SANDBOX is none of auto, native, docker, fake" ;;
esac
