#!/bin/sh
# Turns a minimal Debian root into the sandbox root. Run as root with the root's path: as a mmdebstrap hook
# (a path outside) or in a Dockerfile (/). What it leaves does not depend on the machine that built it.
set -eu
root=${1%/}
inside() { if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi; }

# The tasks' account. The worker mounts a session's own files over both directories.
inside groupadd --gid 1000 user
inside useradd --uid 1000 --gid 1000 --no-log-init --create-home --home-dir /home/user --shell /bin/bash user
mkdir "$root/workspace"
chown 1000:1000 "$root/workspace"

ln -snf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"
echo Etc/UTC >"$root/etc/timezone"

# Debian refuses to install into its own Python beside apt (PEP 668). Here no apt ever does, and the root is read-only: what a
# session installs outside of a venv goes into its own ~/.local.
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED

# What is no package of Debian's, if anything (see requirements-full.txt).
if [ -n "${BERTH_WHEELS:-}" ]; then
    mkdir "$root/tmp/wheels"
    cp "$BERTH_WHEELS"/*.whl "$root/tmp/wheels"
    inside sh -c 'python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --root-user-action ignore /tmp/wheels/*.whl'
    rm -rf "$root/tmp/wheels"
    # Where each file came from: a path that is gone.
    find "$root/usr/local/lib" -name direct_url.json -delete
fi

# Nothing here may change its user: tasks run with no_new_privs anyway, and this does not depend on it.
find "$root/" -xdev -type f -perm /6000 -exec chmod ug-s {} +

# The root is read-only at run time, so bytecode is compiled now, and with a hash instead of a time stamp:
# start-up then needs no look at the source, and the files are the same in every build.
find "$root/usr/lib" "$root/usr/local/lib" -name __pycache__ -type d -prune -exec rm -rf {} +
# shellcheck disable=SC2016 # for the shell inside
inside sh -c 'for lib in /usr/lib/python3 /usr/lib/python3.[0-9]* /usr/local/lib/python3.[0-9]*; do
    if [ -d "$lib" ]; then python3 -m compileall -q --invalidation-mode unchecked-hash "$lib" || exit 1; fi
done'

# Documentation nobody reads here; the licenses (copyright files) stay.
find "$root/usr/share/doc" \( -type f ! -name copyright -o -type l \) -delete
find "$root/usr/share/doc" -type d -empty -delete
find "$root/usr/share/locale" -mindepth 1 -maxdepth 1 ! -name locale.alias -exec rm -rf {} +
rm -rf "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/lintian "$root"/usr/share/gitweb

# The builder's mirrors, proxies and name servers, and what apt and dpkg leave behind.
rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/ldconfig/* "$root"/var/cache/debconf/*-old \
    "$root"/var/lib/dpkg/*-old "$root"/var/log/* "$root"/etc/*- "$root"/var/lib/dbus/machine-id
: >"$root/etc/machine-id"
if [ -n "$root" ]; then
    : >"$root/etc/resolv.conf"
    echo sandbox >"$root/etc/hostname"
    printf '127.0.0.1 localhost sandbox\n::1 localhost\n' >"$root/etc/hosts"
fi
echo "${BERTH_RECIPE:-unknown}" >"$root/etc/berth-sandbox"
