#!/bin/sh
# Checks for what a target needs, and as root on Debian or Ubuntu installs what is missing.
#   scripts/setup.sh [build|demo|test|lint|bench|fuzz|images|vm|all]    (all: what `make setup` does)
# Says nothing and costs nothing when all is there. BERTH_NO_INSTALL=1: only check.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

what=${1:-all}
case "$what" in
    build | demo | test | lint | bench | fuzz | images | vm | all) ;;
    *) die "unknown target: $what" "one of build, demo, test, lint, bench, fuzz, images, vm, all" ;;
esac

if ! have cargo || ! have rustc; then
    die "Rust is missing: there is no cargo in PATH" \
        "install Rust 1.94 or newer with rustup (its home page has the one line to type), open a new shell, and try again"
fi

# need PROGRAM PACKAGE: collects what is missing, so that one apt-get brings it all.
packages=
missing=
need() {
    have "$1" && return 0
    packages="$packages $2"
    missing="$missing $1"
}

fetch_promtool() ( # DIRECTORY
    tmp=$(mktemp -d) || return 1
    trap 'rm -rf "$tmp"' EXIT
    # As root apt lets a user of its own download, which has to reach the directory.
    chmod 755 "$tmp"
    say "fetching promtool, out of Debian's package prometheus"
    (cd "$tmp" && apt-get download prometheus >/dev/null 2>&1) || return 1
    dpkg-deb --fsys-tarfile "$tmp"/prometheus_*.deb | tar -xf - -C "$tmp" ./usr/bin/promtool || return 1
    mkdir -p "$1" && mv "$tmp/usr/bin/promtool" "$1/promtool"
)

# Debian's kernel, and those of its modules that scripts/vm.sh needs, out of the package.
fetch_kernel() ( # DIRECTORY
    tmp=$(mktemp -d) || return 1
    trap 'rm -rf "$tmp"' EXIT
    chmod 755 "$tmp"
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
    [ -n "$package" ] || return 1
    say "fetching a kernel for a virtual machine: $package"
    (cd "$tmp" && apt-get download "$package" >/dev/null 2>&1) || return 1
    dpkg-deb --fsys-tarfile "$tmp"/linux-image-*.deb | tar -xf - -C "$tmp" || return 1
    # Where /lib is part of /usr in the package.
    [ -d "$tmp/lib/modules" ] || ln -sfn usr/lib "$tmp/lib"
    version=$(ls "$tmp/lib/modules")
    PATH=$PATH:/usr/sbin:/sbin
    depmod -b "$tmp" "$version" || return 1
    for module in virtio_pci virtio_blk 9pnet_virtio 9p overlay loop ext4; do
        modprobe -d "$tmp" -S "$version" --show-depends "$module" >>"$tmp/needed" || return 1
    done
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' "$tmp/needed" >"$tmp/order"
    rm -rf "$1" && mkdir -p "$1/modules" || return 1
    while read -r file; do cp "$file" "$1/modules" && basename "$file" >>"$1/modules/order" || return 1; done <"$tmp/order"
    # Last, since it tells that all is there.
    mv "$tmp/boot/vmlinuz-$version" "$1/vmlinuz"
)

# SQLite is compiled from its bundled C source, and the linker is the compiler's.
need cc "gcc libc6-dev"
if have cc; then
    # The sandbox agent is linked statically. (cc prints the bare name back when the library is not there.)
    case "$(cc -print-file-name=libc.a 2>/dev/null)" in
        /*) ;;
        *) packages="$packages libc6-dev" missing="$missing libc.a" ;;
    esac
fi
# The default root of a native sandbox is this machine's /usr: its programs are what the tests and the demo run.
case "$what" in
    demo | test | bench | all)
        need /usr/bin/python3 python3
        need git git
        ;;
esac
case "$what" in
    test | all)
        # The documentation is typed on a machine of its own, with an address of its own.
        need ip iproute2
        # A Jupyter kernel for the tests of the interpreter, in the same root. Without it they are skipped, by name.
        if have apt-get && ! [ -d /usr/lib/python3/dist-packages/ipykernel ] && can_apt; then
            apt_install python3-ipykernel python3-matplotlib python3-pandas ||
                say "note: no python3-ipykernel; the tests with a Jupyter kernel are skipped"
        fi
        ;;
esac
case "$what" in
    test | all)
        # A browser for the tests of the dashboard: 124 MB, about half a minute, once. Without it they are skipped, by name.
        if have apt-get && ! have chromium && ! have chromium-browser && ! have google-chrome && can_apt; then
            apt_install chromium || say "note: no chromium; the tests of the dashboard in a browser are skipped"
        fi
        ;;
esac
case "$what" in
    test | all)
        # Prometheus' own tool, for the test of the alert rules: that one program out of Debian's package, which is not
        # installed, so that no server starts here. 20 MB, once. Without it the test is skipped, by name.
        tools=${CARGO_TARGET_DIR:-target}/tools
        if have apt-get && have dpkg-deb && ! have promtool && [ ! -x "$tools/promtool" ] && [ "${BERTH_NO_INSTALL:-}" != 1 ]; then
            fetch_promtool "$tools" || say "note: no promtool; the test of the alert rules by Prometheus' own tool is skipped"
        fi
        ;;
esac
case "$what" in
    test | vm | all)
        # A kernel of the tests' own, in an emulator: 90 MB, once. Without it what needs that is skipped, by name.
        machine=${CARGO_TARGET_DIR:-target}/tools/vm
        if [ ! -f "$machine/vmlinuz" ] || ! have qemu-system-x86_64 || ! have cpio; then
            if [ "$(uname -m)" != x86_64 ] || ! can_apt || ! apt_install cpio kmod e2fsprogs busybox-static || ! fetch_kernel "$machine" || ! apt_install qemu-system-x86; then
                say "note: no virtual machine; the tests on other layouts of cgroups are skipped"
            fi
        fi
        ;;
esac
case "$what" in
    demo | test | bench | images | all)
        # Each session's files are in a file system of their own. (A root's PATH may be without /usr/sbin.)
        if [ ! -x /usr/sbin/mkfs.ext4 ] && [ ! -x /sbin/mkfs.ext4 ]; then need mkfs.ext4 e2fsprogs; fi
        ;;
esac
case "$what" in
    bench | all)
        # Only a yardstick in `make bench`: its absence is a line in the table, not an error.
        if ! have bwrap && can_apt; then apt_install bubblewrap || say "note: no bubblewrap; the benchmark leaves that row out"; fi
        ;;
esac
case "$what" in
    test | all)
        # The tests of the Python package, and those with other projects' clients, make environments for them.
        if have /usr/bin/python3 && ! /usr/bin/python3 -c 'import ensurepip, pip' >/dev/null 2>&1; then
            packages="$packages python3-venv python3-pip" missing="$missing python3-venv"
        fi
        ;;
esac
case "$what" in
    test | images | all)
        # Of these the components' images are made, beside our binaries.
        if ! have busybox || ! busybox --list 2>/dev/null | grep -qx nc || ldd "$(command -v busybox)" >/dev/null 2>&1; then
            packages="$packages busybox-static" missing="$missing busybox"
        fi
        need strip binutils
        [ -r /etc/ssl/certs/ca-certificates.crt ] || packages="$packages ca-certificates" missing="$missing ca-certificates"
        ;;
esac
# libFuzzer is compiled from its C++ source.
case "$what" in fuzz) need c++ g++ ;; esac
case "$what" in
    all)
        need make make
        if ! have mmdebstrap && can_apt && docker_usable; then
            apt_install mmdebstrap || say "note: no mmdebstrap; make sandbox-image looks for another way"
        fi
        ;;
esac

if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # a list of words
    if ! can_apt || ! apt_install $packages; then
        die "missing on this machine:$missing" "on Debian or Ubuntu: sudo apt-get update && sudo apt-get install -y$packages" \
            "elsewhere: a C compiler, the static C library (glibc-static), make, git and python3, under your system's names"
    fi
fi

case "$what" in
    lint | all)
        if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
            have rustup || die "rustfmt or clippy is missing" "install them as you installed Rust"
            rustup component add rustfmt clippy >&2 || die "rustfmt or clippy is missing, and rustup could not add it"
        fi
        ;;
esac
case "$what" in
    test | all)
        if ! have cargo-nextest && [ "${BERTH_NO_INSTALL:-}" != 1 ]; then
            say "installing cargo-nextest, the test runner, once (a few minutes): cargo install cargo-nextest --locked"
            cargo install cargo-nextest --locked >&2 ||
                say "note: that did not work; make test falls back to cargo test"
        fi
        ;;
esac
case "$what" in
    fuzz)
        if ! have cargo-fuzz; then
            if [ "${BERTH_NO_INSTALL:-}" = 1 ]; then die "cargo-fuzz is missing" "cargo install cargo-fuzz --locked"; fi
            say "installing cargo-fuzz, once (a minute or two): cargo install cargo-fuzz --locked"
            cargo install cargo-fuzz --locked >&2 || die "cargo-fuzz is missing, and could not be installed (see above)"
        fi
        ;;
esac
if [ "$what" = all ]; then say "setup: all that Berth needs is here"; fi
