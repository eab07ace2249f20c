#!/bin/sh
# Makes the images of the components, berth/coordinator and berth/worker, from binaries that cargo builds here: no registry,
# no base image. In each: the binary with the libraries that it needs, certificates, and busybox for who looks inside.
#   scripts/images.sh [coordinator|worker]...             both, if none is named
#   scripts/images.sh --root DIR [coordinator|worker]...   only their files, in DIR/coordinator and DIR/worker: see Dockerfile
#   scripts/images.sh --settings COMPONENT                 what an image says beside its files, as lines of a Dockerfile
#   TAG=dev: the tag (default: the version, and latest). PROFILE=image (default): small; dev: of what is in ./bin, for tests.
# See docker/component/README.md.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
umask 022

profile=${PROFILE:-image}
only_root=
only_settings=
case "${1:-}" in
    -h | --help)
        sed -n '2,8s/^# //p' scripts/images.sh
        exit 0
        ;;
    --root)
        [ $# -ge 2 ] || die "which directory?" "scripts/images.sh --root DIR"
        only_root=$2
        shift 2
        ;;
    --settings)
        only_settings=1
        shift
        ;;
esac
for name in "$@"; do
    case "$name" in coordinator | worker) ;; *) die "there is no component $name" "coordinator, worker" ;; esac
done
[ $# -gt 0 ] || set -- coordinator worker
settings_of() { # COMPONENT
    case "$1" in
        coordinator)
            title="Berth coordinator" what="Schedules sessions onto workers, and routes every call to them"
            set -- 'USER 10001:10001' 'EXPOSE 50051 8080' 'ENTRYPOINT ["/usr/bin/coordinator"]' \
                'ENV PATH=/usr/bin:/bin:/usr/sbin:/sbin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt BERTH_STATE_DIR=/var/lib/berth BERTH_LOG_FORMAT=json' \
                'HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/bin/coordinator","health"]'
            ;;
        worker)
            title="Berth worker" what="Owns the sandboxes of one machine and serves their sessions"
            # Root: it sets up loop devices and gives files to sessions' users. Its capabilities are the engine's usual ones.
            set -- 'USER 0:0' 'ENTRYPOINT ["/usr/bin/worker"]' \
                'ENV PATH=/usr/bin:/bin:/usr/sbin:/sbin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt BERTH_STATE_DIR=/var/lib/berth/worker BERTH_SANDBOX=docker BERTH_LOG_FORMAT=json' \
                'HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["/usr/bin/worker","health"]'
            ;;
    esac
    for line in "$@" 'WORKDIR /' \
        "LABEL org.opencontainers.image.title=\"$title\"" \
        "LABEL org.opencontainers.image.description=\"$what\"" \
        "LABEL org.opencontainers.image.licenses=\"$(sed -n 's/^license = "\(.*\)"/\1/p' Cargo.toml | head -n 1)\""; do
        printf '%s\n' "$line"
    done
}

# Which build it is.
labels() {
    for line in "LABEL org.opencontainers.image.version=\"${version:-0}\"" \
        "LABEL org.opencontainers.image.revision=\"$revision\"" \
        "LABEL berth.profile=\"$profile\""; do
        printf '%s\n' "$line"
    done
}

if [ -n "$only_settings" ]; then
    settings_of "$1"
    exit 0
fi
[ -n "$only_root" ] || docker_usable || die "$docker_why" "images are made on an engine; binaries alone: make build PROFILE=release"
sh scripts/setup.sh images
host=$(rustc -vV | sed -n 's/^host: //p')
case "$host" in *-linux-gnu) ;; *) die "images are made on Linux with the GNU C library, and this is $host" ;; esac

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
# Its own time makes the same commit the same image.
epoch=$(git log -1 --format=%ct 2>/dev/null || date +%s)

tmp=$(mktemp -d "${TMPDIR:-/tmp}/berth-images.XXXXXX")
chmod 755 "$tmp"
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ "$profile" = dev ]; then
    if ! [ -x bin/coordinator ] || ! [ -x bin/worker ] || ! [ -x bin/berth-agent ]; then sh scripts/build.sh; fi
    bin=bin
else
    bin=${CARGO_TARGET_DIR:-target}/images
    PROFILE=$profile OUT=$bin sh scripts/build.sh
fi

# ---- what an image is made of ----

# A file of this machine at the same path; a link's target under the link's name.
take() { # ROOT FILE
    [ -e "$1$2" ] && return 0
    mkdir -p "$1$(dirname "$2")"
    cp -L "$2" "$1$2"
}

# A program, and the libraries that the loader finds for it.
program() { # ROOT FILE PATH-INSIDE
    mkdir -p "$1$(dirname "$3")"
    cp -L "$2" "$1$3"
    # What is debugged is not in an image: `make build` has it.
    strip --strip-all "$1$3" 2>/dev/null || true
    chmod 755 "$1$3"
    case "$(ldd "$2" 2>&1)" in *"not a dynamic executable"* | *"statically linked"*) return 0 ;; esac
    for library in $(ldd "$2" | sed -n 's/^.*=> \(\/[^ ]*\) .*$/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\) .*$/\1/p'); do
        take "$1" "$library"
    done
}

# The same for all: a shell and its kin, accounts, certificates, licences.
common() { # ROOT
    # Links as on the machines that these libraries come from.
    for dir in bin sbin lib lib64; do
        if [ -L "/$dir" ]; then
            mkdir -p "$1/usr/$dir"
            ln -s "usr/$dir" "$1/$dir"
        else
            mkdir -p "$1/$dir"
        fi
    done
    mkdir -p "$1/etc/ssl/certs" "$1/tmp" "$1/run" "$1/proc" "$1/sys" "$1/dev" "$1/var/lib" "$1/root"
    chmod 1777 "$1/tmp"
    chmod 700 "$1/root"
    cp -L "$(command -v busybox)" "$1/bin/busybox"
    chmod 755 "$1/bin/busybox"
    for applet in $("$1/bin/busybox" --list); do
        case "$applet" in
            # Nothing that changes accounts, loads modules, or starts a machine.
            login | su | sulogin | passwd | adduser | deluser | insmod | rmmod | modprobe | init | linuxrc | reboot | poweroff | halt | mkfs* | losetup) ;;
            *) [ -e "$1/bin/$applet" ] || ln -s busybox "$1/bin/$applet" ;;
        esac
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nberth:x:10001:10001:berth:/var/lib/berth:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$1/etc/passwd"
    printf 'root:x:0:\nberth:x:10001:\nnogroup:x:65534:\n' >"$1/etc/group"
    printf 'hosts: files dns\n' >"$1/etc/nsswitch.conf"
    cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
    mkdir -p "$1/usr/share/doc/berth"
    cp LICENSE "$1/usr/share/doc/berth/"
    for package in busybox-static libc6 libgcc-s1 ca-certificates e2fsprogs; do
        if [ -r "/usr/share/doc/$package/copyright" ]; then take "$1" "/usr/share/doc/$package/copyright"; fi
    done
}

root_of_coordinator() { # ROOT
    program "$1" "$bin/coordinator" /usr/bin/coordinator
    # Checkpoints may be in a volume of their own: a new one takes over who the directory belongs to.
    mkdir -p "$1/var/lib/berth/blobs"
    chmod 700 "$1/var/lib/berth" "$1/var/lib/berth/blobs"
}

root_of_worker() { # ROOT
    program "$1" "$bin/worker" /usr/bin/worker
    program "$1" "$bin/berth-agent" /usr/bin/berth-agent
    # Sessions' file systems.
    for mkfs in /usr/sbin/mkfs.ext4 /sbin/mkfs.ext4; do
        if [ -x "$mkfs" ]; then
            program "$1" "$mkfs" /usr/sbin/mkfs.ext4
            break
        fi
    done
    mkdir -p "$1/var/lib/berth/worker" "$1/var/lib/berth/workspaces"
    chmod 711 "$1/var/lib/berth"/* "$1/var/lib/berth"
}

import() { # COMPONENT TAR
    component=$1 tar=$2
    { settings_of "$component" && labels; } >"$tmp/settings"
    set --
    while IFS= read -r line; do set -- "$@" --change "$line"; done <"$tmp/settings"
    docker import "$@" "$tar" "berth/$component:${TAG:-$version}" >/dev/null
}

for component in "$@"; do
    root=${only_root:-$tmp}/$component
    mkdir -p "$root"
    common "$root"
    "root_of_$component" "$root"
    if [ -n "$only_root" ]; then continue; fi
    # Whoever builds owns nothing in the image. The coordinator's state directory is its own user's.
    (cd "$root" && find . -path ./var/lib/berth -prune -o -print0 | sort -z) >"$tmp/rest"
    tar -c -C "$root" --format=gnu --no-recursion --null -T "$tmp/rest" --mtime="@$epoch" --owner=0 --group=0 --numeric-owner \
        -f "$tmp/$component.tar"
    case "$component" in coordinator) id=10001 ;; *) id=0 ;; esac
    tar -r -C "$root" --format=gnu --mtime="@$epoch" --owner="$id" --group="$id" --numeric-owner -f "$tmp/$component.tar" \
        ./var/lib/berth
    import "$component" "$tmp/$component.tar"
    if [ -z "${TAG:-}" ]; then docker tag "berth/$component:$version" "berth/$component:latest"; fi
    size=$(docker image inspect --format '{{.Size}}' "berth/$component:${TAG:-$version}")
    say "image: berth/$component:${TAG:-$version} ($((size / 100000 / 10)).$((size / 100000 % 10)) MB)"
    rm -rf "$root" "$tmp/$component.tar"
done
