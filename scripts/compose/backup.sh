# shellcheck shell=sh disable=SC2154
# A copy of what a fleet's coordinator knows, and the way back to it; sourced by compose.sh, whose variables and functions it uses.

# A path that somebody gave, from where the command was called.
given() { case "$1" in /*) printf '%s\n' "$1" ;; *) printf '%s/%s\n' "${OLDPWD:-$PWD}" "$1" ;; esac; }

backup() { # DIRECTORY
    [ -n "$1" ] || die "where to?" "make docker-backup TO=backup/monday"
    [ -n "$(ids coordinator)" ] || die "no fleet runs here" "make docker-up"
    to=$(given "$1")
    mkdir -p "$(dirname "$to")"
    client backup --to "$to"
}

# Refused by the very program that would start on it, of the version that BERTH_TAG says. Then the coordinator that was
# stopped for this is started again as it was.
restore() { # DIRECTORY
    [ -n "$1" ] || die "which backup?" "make docker-restore FROM=backup/monday"
    copy=$(given "$1")
    [ -e "$copy/coordinator.db" ] || die "$copy is no backup: there is no file coordinator.db in it" "give the directory that make docker-backup made"
    for file in "$copy"/*.db; do
        [ -r "$file" ] || die "$file can't be read" "call this as its owner: $(stat -c %U "$file")"
    done
    for of in "$image" "berth/worker:${BERTH_TAG:-latest}"; do
        docker image inspect "$of" >/dev/null 2>&1 || die "there is no image $of here" "make docker-build, or docker load; BERTH_TAG names the version"
    done
    not_elsewhere
    preflight
    multi=
    if [ -n "$(ids worker-2)" ]; then multi=multi; fi
    # shellcheck disable=SC2046 # a list of words
    prepare $(workers "$multi")
    # All that can fail for want of something comes before the coordinator is stopped.
    services="coordinator $(workers "$multi" | tr '\n' ' ')"
    for service in $services; do create "$service"; done
    coordinator=$(ids coordinator)
    was=$(docker inspect -f '{{.State.Running}}' "$coordinator")
    # One that was not, perhaps for what this is to mend, is not waited for.
    was_well=
    if well "$coordinator"; then was_well=yes; fi
    trap 'if [ "$was" = true ]; then docker start "$coordinator" >/dev/null; fi' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    say "stopping the coordinator; sessions and their tasks run on"
    docker stop -t 30 "$coordinator" >/dev/null
    if ! put_back; then
        if [ "$was" = true ]; then
            docker start "$coordinator" >/dev/null
            if [ -n "$was_well" ]; then wait_until_well coordinator; fi
        fi
        die "the backup was not put back, and all is as it was" "see above; berth backup restore --help says what it means"
    fi
    trap - EXIT INT TERM
    # All of it with the images of now: on the way back of an upgrade, the older ones.
    # shellcheck disable=SC2086 # a list of words
    start $services
    undrain
    say "the backup is back, and all is well"
}

# In a container of the coordinator's own image with its volume. No file of this machine is mounted: the backup comes as a
# stream. All that is beside the databases, too, since it tells a backup from the directory of one that runs.
put_back() {
    program=/usr/bin/coordinator
    set --
    if [ "$kind" = dev ]; then
        program=/opt/berth/bin/coordinator
        set -- -v "$BERTH_DEV_BIN:/opt/berth/bin:ro"
    fi
    (cd "$copy" && tar -cf - ./*.db*) |
        docker run --rm -i --network none --user "$coordinator_user" --cap-drop ALL --security-opt no-new-privileges \
            --entrypoint /bin/sh -v "${project}_coordinator-state:/var/lib/berth" "$@" "$image" \
            -c "mkdir /tmp/backup && tar -xof - -C /tmp/backup && exec $program restore --from /tmp/backup"
}
