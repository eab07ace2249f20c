#!/bin/sh
# Runs a command as root on a kernel of its own: Debian's, in an emulator, with all controllers on cgroup2, mounted with
# nsdelegate as systemd does it. The files are this machine's, as they are now; what is written is gone in the end, and there is no network.
#   scripts/vm.sh [COMMAND [ARGUMENT...]]     Its exit status is the command's. Without one: the native half of the abuse suite.
#   BERTH_VM_CGROUPS=v1: the controllers are on cgroups of v1, and there are none of v2.
#   BERTH_VM_MEMORY=4G, BERTH_VM_SECONDS=3600 (then it is ended: 124)
# An emulated core is ten to twenty times slower than a real one; limits on time have to allow for that.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

bin=${BERTH_BIN_DIR:-$PWD/bin}
tools=${CARGO_TARGET_DIR:-target}/tools/vm
sh scripts/setup.sh vm
[ -f "$tools/vmlinuz" ] || die "there is no kernel for a virtual machine here" "scripts/setup.sh vm, as root on Debian (x86_64), fetches Debian's"

tmp=$(mktemp -d "${TMPDIR:-/tmp}/berth-vm.XXXXXX")
emulator=
trap 'if [ -n "$emulator" ]; then kill "$emulator" 2>/dev/null || true; wait "$emulator" || true; fi; rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What to run, for the shell of the guest: each word in quotes.
quoted() { for word in "$@"; do printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done; }
mkdir "$tmp/job" "$tmp/root"
if [ "$#" -eq 0 ]; then
    WEAKENED=1 sh scripts/build.sh
    cargo nextest list --locked --workspace --list-type binaries-only --message-format json >"$tmp/job/binaries.json"
    cargo metadata --format-version 1 --locked >"$tmp/job/metadata.json"
    set -- cargo-nextest nextest run --binaries-metadata /run/job/binaries.json --cargo-metadata /run/job/metadata.json \
        --workspace-remap "$PWD" --no-fail-fast --color never --profile night --test-threads 2 -E 'binary(abuse) & test(native)'
fi
# What the guest's own /tmp, /run and /dev would hide.
printf '%s\n' "$PWD" "$bin" >"$tmp/job/dirs"
{
    printf 'export PATH=%s HOME=%s BERTH_BIN_DIR=%s BERTH_AGENT=%s\n' "$(quoted "$PATH")" "$(quoted "${HOME:-/root}")" \
        "$(quoted "$bin")" "$(quoted "$bin/berth-agent")"
    printf 'cd %s || exit\n' "$(quoted "$PWD")"
    quoted "$@"
} >"$tmp/job/run"

# The first program of the guest, and what it needs before it has this machine's files.
mkdir "$tmp/root/bin" "$tmp/root/modules"
cp "$tools"/modules/* "$tmp/root/modules"
cp "$(command -v busybox)" "$tmp/root/bin/busybox"
cp tests/vm/init "$tmp/root/init"
chmod 755 "$tmp/root/init"
(cd "$tmp/root" && find . | cpio -o -H newc 2>/dev/null) | gzip -1 >"$tmp/initrd"
truncate -s 24G "$tmp/disk"
PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 "$tmp/disk"

# Its console is kept for when it does not come up; what the command prints is a second serial line.
timeout -k 10 "${BERTH_VM_SECONDS:-3600}" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m "${BERTH_VM_MEMORY:-4G}" \
    -nodefaults -no-reboot -display none -nic none -serial "file:$tmp/console" -serial "file:$tmp/said" \
    -kernel "$tools/vmlinuz" -initrd "$tmp/initrd" \
    -append "cgroups=${BERTH_VM_CGROUPS:-v2} console=ttyS0 quiet panic=-1 oops=panic lsm=landlock,lockdown,yama,integrity,apparmor,bpf" \
    -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=host,mount_tag=host \
    -fsdev "local,id=job,path=$tmp/job,security_model=none" -device virtio-9p-pci,fsdev=job,mount_tag=job \
    -drive "file=$tmp/disk,if=virtio,format=raw,cache=unsafe" </dev/null >"$tmp/emulator" 2>&1 &
emulator=$!
: >>"$tmp/said"
# Waited for, since a shell that waits for a signal, too, heeds it at once.
tail -n +1 -f --pid "$emulator" -s 0.2 "$tmp/said" &
wait "$!"
status=0
wait "$emulator" || status=$?
emulator=
if [ -s "$tmp/job/status" ]; then exit "$(cat "$tmp/job/status")"; fi
tail -n 60 "$tmp/console" "$tmp/emulator" >&2
if [ "$status" -eq 124 ]; then die "the command was not done within ${BERTH_VM_SECONDS:-3600} s" "BERTH_VM_SECONDS gives it longer"; fi
die "the virtual machine ended before the command did" "its last words are above"
