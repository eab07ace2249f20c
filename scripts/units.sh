#!/bin/sh
# Checks the systemd units without a systemd that runs: make units-check. ROOT: another directory than deploy/systemd.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

root=${1:-deploy/systemd}
have systemd-analyze || die "there is no systemd-analyze here" "apt-get install systemd"
tmp=$(mktemp -d "${TMPDIR:-/tmp}/berth-units.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
problems=
problem() { problems=1; printf 'error: %s\n' "$*" >&2; }

# The programs need not be installed for it.
for unit in berth-coordinator.service berth-worker.service; do
    sed 's#^ExecStart=/usr/local/bin/[a-z]*#ExecStart=/bin/true#' "$root/$unit" >"$tmp/$unit"
done
# A key that an older systemd does not know yet, and leaves out.
told=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify "$tmp/berth-coordinator.service" "$tmp/berth-worker.service" 2>&1 |
    grep "berth-" | grep -v "Unknown key 'DelegateSubgroup'" || true)
[ -z "$told" ] || problem "$told"

# How much is left to each, by systemd's own reckoning, in tenths: whoever takes something away sees it here.
exposed() { # UNIT MOST
    systemd-analyze security --offline=true --no-pager --threshold="$2" "$tmp/$1" >"$tmp/security" 2>&1 ||
        problem "$1 leaves more open than $2 of 100: $(tail -n 1 "$tmp/security" | tr -cd '[:print:]')"
}
exposed berth-coordinator.service 20
exposed berth-worker.service 70

# Its sandboxes' file systems are the machine's to see.
mounts=$(grep -E '^(Protect(System|Home|Proc|KernelTunables|KernelModules|KernelLogs|ControlGroups|Clock|Hostname)|Private[A-Za-z]*|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|TemporaryFileSystem|RootDirectory|BindPaths|DynamicUser|MountFlags)=' \
    "$root/berth-worker.service" || true)
[ -z "$mounts" ] || problem "berth-worker.service would have mounts or devices of its own: $mounts"
for wanted in '^User=berth$' '^KillMode=process$'; do
    grep -qE "$wanted" "$root"/berth-coordinator.service "$root"/berth-worker.service || problem "no unit says $wanted"
done
grep -q '^u berth ' "$root/berth.sysusers.conf" || problem "berth.sysusers.conf makes no account berth"

if [ -n "$problems" ]; then exit 1; fi
say "the units are sound"
