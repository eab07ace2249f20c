#!/bin/sh
# Makes the image of the docker backend, berth/sandbox:base (BERTH_SANDBOX_IMAGE names another), or the same root in a
# directory (--rootfs DIR). Does nothing if it is there and the recipe has not changed; FORCE=1 makes it anew.
# FORM=full makes berth/sandbox:full, with a Jupyter kernel, numpy, pandas, matplotlib and build tools in it.
# See docker/sandbox/README.md. docker is the only command here that needs an engine, and --rootfs needs none.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
umask 022

form=${FORM:-base}
recipe_dir=$PWD/docker/sandbox
package_lists=$recipe_dir/packages.txt
requirements=
case "$form" in
    base) what="Debian bookworm with Python 3, git and bash: where an agent's tasks run" ;;
    full)
        package_lists="$package_lists $recipe_dir/packages-full.txt"
        requirements=$recipe_dir/requirements-full.txt
        what="Debian bookworm with Python 3, a Jupyter kernel, numpy, pandas, matplotlib and build tools"
        ;;
    *) die "unknown FORM: $form" "FORM=base or FORM=full" ;;
esac
image=${BERTH_SANDBOX_IMAGE:-berth/sandbox:$form}
suite=bookworm
# Time stamps are cut to this, the day of bookworm's first release: the same packages make the same root.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1686355200}
export SOURCE_DATE_EPOCH LC_ALL=C.UTF-8

rootfs=
case "${1:-}" in
    '') ;;
    --rootfs)
        rootfs=${2:-}
        [ -n "$rootfs" ] || die "--rootfs needs a directory"
        case "$rootfs" in /*) ;; *) rootfs=${OLDPWD:-$PWD}/$rootfs ;; esac
        rootfs=${rootfs%/}
        [ -n "$rootfs" ] || die "--rootfs / would replace this machine's own root"
        ;;
    -h | --help)
        sed -n '2,5s/^# //p' scripts/sandbox-image.sh
        exit 0
        ;;
    *) die "unknown argument: $1" "scripts/sandbox-image.sh [--rootfs DIR]" ;;
esac

# shellcheck disable=SC2086 # one or two files, and one or none
BERTH_RECIPE=$(cat scripts/sandbox-image.sh $package_lists $requirements docker/sandbox/customize.sh docker/sandbox/Dockerfile |
    sha256sum | cut -c 1-16)
export BERTH_RECIPE

# ---- is it there already? ----
if [ -n "$rootfs" ]; then
    is_root || die "--rootfs needs root: the files belong to several users" "sudo sh scripts/sandbox-image.sh --rootfs $rootfs"
    if [ -e "$rootfs" ]; then
        stamp=$(cat "$rootfs/etc/berth-sandbox" 2>/dev/null || true)
        if [ -z "$stamp" ] && [ -n "$(ls -A "$rootfs")" ]; then
            die "$rootfs is there, and is not a sandbox root that this script made" "name an empty or new directory"
        fi
        if [ "$stamp" = "$BERTH_RECIPE" ] && [ "${FORCE:-}" != 1 ]; then
            say "sandbox root: $rootfs is there and current (FORCE=1 makes it anew)"
            exit 0
        fi
    fi
else
    docker_usable || die "$docker_why" "the sandbox image is for the docker backend only; the native backend needs none"
    have_recipe=$(docker image inspect --format '{{index .Config.Labels "berth.recipe"}}' "$image" 2>/dev/null || true)
    if [ "$have_recipe" = "$BERTH_RECIPE" ] && [ "${FORCE:-}" != 1 ]; then
        say "sandbox image: $image is there and current (FORCE=1 makes it anew)"
        exit 0
    fi
fi

# ---- a place to work in, gone whatever happens ----
tmp=$(mktemp -d "${TMPDIR:-/tmp}/berth-image.XXXXXX")
chmod 755 "$tmp"
child=
clean_up() {
    trap '' INT TERM HUP
    if [ -n "$child" ]; then
        kill -TERM "-$child" 2>/dev/null || kill -TERM "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    rm -rf --one-file-system "$tmp"
    if [ -n "$rootfs" ]; then rm -rf --one-file-system "$rootfs.new.$$"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# In the background, so that a signal to this shell is heard while the command runs; in a process group of its own,
# because mmdebstrap stops only when its children are told too.
run() {
    setsid "$@" &
    child=$!
    run_status=0
    wait "$child" || run_status=$?
    child=
    return "$run_status"
}

labels() { # $1 is put before each
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    cat <<LABELS
$1org.opencontainers.image.title="Berth sandbox"
$1org.opencontainers.image.description="$what"
$1org.opencontainers.image.version="${version:-0}"
$1org.opencontainers.image.licenses="LicenseRef-Debian-packages"
$1berth.recipe="$BERTH_RECIPE"
LABELS
}

# ---- the root as a tar file, from the Debian mirrors that this machine itself uses ----

# One-line entries for the suite's main component, if this machine's apt has them; mmdebstrap knows the default ones.
host_sources() {
    have apt-get || return 0
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    option=
    if [ -e "$keyring" ]; then option="[signed-by=$keyring] "; fi
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$suite" -v option="$option" '
            $1 == "Debian" && $3 == "main" && ($2 == suite || $2 == suite "-updates" || $2 == suite "-security") {
                if ($2 == suite) base = 1
                lines = lines "deb " option $4 " " $2 " main\n" }
            END { if (base) printf "%s", lines }' | sort -u
}

# Proxies, certificates and the like, which mmdebstrap does not take over by itself. customize.sh removes them again.
host_apt_options() {
    have apt-config || return 0
    apt-config dump 2>/dev/null |
        grep -E '^Acquire::(https?::[^ ]+|Proxy[^ ]*|Retries|Check-Valid-Until|Check-Date|ForceIPv[46]) "[^"]+";$' || true
    echo 'Acquire::Languages "none";'
}

# What is no package of Debian's, with this machine's pip and its settings. The image can do without.
fetch_wheels() {
    [ -n "$requirements" ] || return 0
    if ! python3 -m pip --version >/dev/null 2>&1 && can_apt; then apt_install python3-pip || true; fi
    if python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r "$requirements" \
        -d "$tmp/wheels" >"$tmp/pip.log" 2>&1; then
        export BERTH_WHEELS="$tmp/wheels"
    else
        tail -n 3 "$tmp/pip.log" >&2
        say "note: no package index answers here, so the image is without $(sed -n 's/ .*//; s/==.*//; /^[a-z]/p' "$requirements")"
        hint "FORM=full FORCE=1 scripts/sandbox-image.sh makes it anew"
    fi
}

make_tar() {
    if ! have mmdebstrap; then
        if can_apt; then apt_install mmdebstrap debian-archive-keyring || return 1; else return 1; fi
    fi
    # Where apt has never fetched its lists it can't say which of its sources are Debian's.
    sources=$(host_sources)
    if [ -z "$sources" ] && can_apt && [ -z "${apt_updated:-}" ]; then
        apt-get -o DPkg::Lock::Timeout=120 update >/dev/null 2>&1 </dev/null || true
        sources=$(host_sources)
    fi
    if [ -n "$sources" ]; then printf '%s\n' "$sources" >"$tmp/sources.list"; fi
    host_apt_options >"$tmp/apt.conf"
    fetch_wheels
    # shellcheck disable=SC2086 # one or two files
    packages=$(sed 's/#.*//' $package_lists | tr -s ' \n' ',,' | sed 's/^,//; s/,$//')
    export BERTH_RECIPE_DIR="$recipe_dir"
    # shellcheck disable=SC2016 # for mmdebstrap's shell
    set -- --variant=minbase --components=main --include="$packages" --aptopt="$tmp/apt.conf" --logfile="$tmp/log" \
        --customize-hook='sh "$BERTH_RECIPE_DIR/customize.sh" "$1"' --skip=output/dev "$suite" "$tmp/root.tar"
    if [ -s "$tmp/sources.list" ]; then set -- "$@" "$tmp/sources.list"; fi
    say "making a Debian $suite root with mmdebstrap (about half a minute; FORM=full: some minutes)"
    if ! run env TMPDIR="$tmp" mmdebstrap "$@"; then
        say "mmdebstrap failed; its last lines:"
        tail -n 30 "$tmp/log" >&2 2>/dev/null || true
        return 1
    fi
}

if [ -n "$rootfs" ]; then
    make_tar || die "the root could not be made" "as root on Debian or Ubuntu: apt-get update && apt-get install mmdebstrap"
    mkdir -p "$rootfs.new.$$"
    chmod 755 "$rootfs.new.$$"
    run tar -x --numeric-owner --same-permissions --same-owner -C "$rootfs.new.$$" -f "$tmp/root.tar"
    # An empty /dev to mount on: mmdebstrap leaves it out together with its device nodes.
    mkdir -p "$rootfs.new.$$/dev"
    touch -d "@$SOURCE_DATE_EPOCH" "$rootfs.new.$$/dev" "$rootfs.new.$$"
    if [ -e "$rootfs" ]; then rm -rf --one-file-system "$rootfs"; fi
    mv -T "$rootfs.new.$$" "$rootfs"
    say "sandbox root: $rootfs ($(du -sm "$rootfs" | cut -f 1) MB)"
    exit 0
fi

old=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null || true)

# As root, or with user namespaces, mmdebstrap; else the engine's own builder.
if make_tar; then
    set -- --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin LANG=C.UTF-8' \
        --change 'WORKDIR /workspace' --change 'CMD ["/bin/bash"]'
    labels '' >"$tmp/labels"
    while IFS= read -r label; do set -- "$@" --change "LABEL $label"; done <"$tmp/labels"
    run docker import "$@" "$tmp/root.tar" "$image" >/dev/null
else
    say "no root from mmdebstrap here: asking the engine to build one on debian:$suite-slim"
    labels '' | tr -d '"' >"$tmp/labels"
    set -- --build-arg "BERTH_RECIPE=$BERTH_RECIPE" --build-arg "FORM=$form" --tag "$image"
    while IFS= read -r label; do set -- "$@" --label "$label"; done <"$tmp/labels"
    run docker build "$@" docker/sandbox >&2 ||
        die "the sandbox image could not be made: neither with mmdebstrap nor by the engine (see above)" \
            "on Debian or Ubuntu: sudo apt-get install mmdebstrap uidmap, then make sandbox-image" \
            "or load an image from another machine: docker save $image | ssh THIS docker load"
fi
# The image that had the name until now, unless it has another one or a container still uses it.
if [ "$(docker image inspect --format '{{len .RepoTags}}' "${old:-none}" 2>/dev/null || true)" = 0 ]; then
    docker rmi "$old" >/dev/null 2>&1 || true
fi
size=$(docker image inspect --format '{{.Size}}' "$image")
say "sandbox image: $image ($((size / 1000000)) MB)"
