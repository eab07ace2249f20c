# shellcheck shell=sh disable=SC2154
# Taking a fleet down, and what it leaves; sourced by compose.sh, whose variables and functions it uses.

# Sessions end, or move; then nothing of them is on the engine.
drain() {
    [ -n "$(ids coordinator)" ] || return 0
    for worker in $(workers multi); do
        [ -n "$(ids "$worker")" ] || continue
        # One that an operator has closed stays closed.
        case "$(client workers "$worker" 2>/dev/null | sed -n 's/^scheduling *//p')" in active) echo "$worker" >>"$dir/drained" ;; esac
        say "draining $worker: its sessions end, or move, within ${BERTH_DRAIN:-10s}"
        client drain "$worker" --deadline "${BERTH_DRAIN:-10s}" >/dev/null ||
            say "note: $worker was not drained; make docker-clean removes what it leaves"
    done
}

# What a stop closed, the next start opens.
undrain() {
    [ -s "$dir/drained" ] || return 0
    sort -u "$dir/drained" | while IFS= read -r worker; do client uncordon "$worker" >/dev/null || true; done
    rm -f "$dir/drained"
}

down() {
    not_elsewhere
    drain
    compose down --remove-orphans
}

# Sandboxes that a worker which is gone has left: by the label with its instance, which is in its volume.
sweep() {
    for worker in $(workers multi); do
        docker volume inspect "${project}_$worker-state" >/dev/null 2>&1 || continue
        instance=$(docker run --rm --network none --user 0:0 --entrypoint /bin/sh -v "${project}_$worker-state:/v:ro" \
            "berth/worker:${BERTH_TAG:-latest}" -c 'cat /v/instance 2>/dev/null' || true)
        [ -n "$instance" ] || continue
        docker ps -aq --filter "label=berth.instance=$instance" | xargs -r docker rm -fv >/dev/null
        docker volume ls -q --filter "label=berth.instance=$instance" | xargs -r docker volume rm >/dev/null
        docker run --rm --network none --user 0:0 --entrypoint /bin/sh -v /sys/fs/cgroup:/v "berth/worker:${BERTH_TAG:-latest}" \
            -c "find /v -depth -type d -path '*/berth-$instance-docker*' -exec rmdir {} ';'" >/dev/null 2>&1 || true
    done
}

clean() {
    down || say "note: not all could be taken down in order"
    sweep
    compose down -v --remove-orphans
    # Only what was made here. What workers and coordinator wrote into the directories of dev is theirs.
    if [ "$kind" = dev ] && docker image inspect "$image" >/dev/null 2>&1; then
        docker run --rm --network none --user 0:0 --entrypoint /bin/sh -v "$dir:/v" "$image" -c 'rm -rf /v/checkpoints /v/worker-*' || true
    fi
    rm -rf "$secrets" "$dir/tls" "$dir/workers" "$dir/drained"
    if [ -d "$dir" ]; then rmdir "$dir" || say "note: what else is in $dir stays"; fi
}

# What of the other fleets and of images there is.
clean_all() {
    clean
    unset COMPOSE_PROJECT_NAME BERTH_COMPOSE_DIR BERTH_TAG BERTH_HOST_PORT BERTH_HOST_HTTP_PORT BERTH_DEV_USER BERTH_DEV_BIN
    if [ -d tmp/dev ]; then sh scripts/compose.sh dev clean; fi
    if [ -d tmp/test ]; then COMPOSE_PROJECT_NAME=berth-test BERTH_TAG=test sh scripts/compose.sh clean; fi
    for reference in berth/coordinator berth/worker berth/sandbox; do
        docker image ls -q "$reference" | sort -u | xargs -r docker rmi -f >/dev/null
    done
}
