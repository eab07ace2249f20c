#!/bin/bash
# What a native sandbox does on each layout of cgroups that there is, for the test that reads what this prints. Runs in the
# virtual machine of scripts/vm.sh, whose cgroups these are.
#   cgroups.sh CAPABILITIES     those of our worker in Kubernetes, as setpriv has them: +sys_admin,+kill
set -u
if [ ! -f /run/job/run ] || [ "$(hostname)" != vm ]; then
    echo "this is for the virtual machine of scripts/vm.sh" >&2
    exit 2
fi
export BERTH_STATE_DIR=/tmp/state BERTH_SANDBOX=native PATH="$BERTH_BIN_DIR:$PATH"
cd /tmp || exit

# What the fleet is started by, and the cgroup in which it is alone, as a service is.
as=()
service=
say() { printf 'vm: %s: %s\n' "$layout" "$*"; }
# A task, and all that it says in one line.
task() { say "$1: $(berth run --session box -- bash -c "$2" 2>&1 | tr '\n' ' ')"; }

in_service() {
    if [ -n "$service" ]; then echo "$BASHPID" >"$service/cgroup.procs"; fi
    exec "${as[@]}" "$@"
}
doctor() { say "doctor: $( (in_service berth doctor) 2>&1 | grep -A 1 'native sandboxes' | tr '\n' ' ')"; }

# Of workers and doctors.
trees() { find /sys/fs/cgroup -type d \( -name 'berth-[0-9a-f][0-9a-f]*' -o -name 'berth-doctor*' \) -prune; }

started() {
    (in_service berth up >/tmp/up 2>&1) &
    fleet=$!
    until berth status >/dev/null 2>&1; do
        if ! kill -0 "$fleet" 2>/dev/null; then
            say "it does not come up"
            cat /tmp/up
            return 1
        fi
        sleep 0.2
    done
}

tried() {
    layout=$1
    started || return
    berth create --name box --memory 128M --pids 32 >/dev/null 2>&1 || say "no session"
    doctor
    say "where: $(trees | tr '\n' ' ')"
    task cgroup 'cat /proc/self/cgroup'
    task processes 'python3 -c "
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0: time.sleep(100)
        made += 1
except BlockingIOError: print(made < 32)"'
    task memory 'python3 -c "bytearray(1 << 30)"; echo "ended with $?"'
    task after 'setsid sleep 4711 & echo done'
    say "left of tasks: $(pgrep -c -f 'sleep 4711')"
    finished
}

finished() {
    berth rm box >/dev/null
    berth stop >/dev/null 2>&1
    wait "$fleet"
    say "left of all: $(trees | wc -l) $(grep -c "$BERTH_STATE_DIR" /proc/mounts)"
}

if [ -d /sys/fs/cgroup/memory ]; then
    tried v1
    # The controllers stay where they are.
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup/unified
    tried hybrid
    exit
fi

tried nsdelegate

# Without the right to trace, or to do anything else that only root may, but what our worker in Kubernetes has.
as=(setpriv "--bounding-set=-all,$1")
tried kubernetes
as=()

# The same as a service of systemd has it: a cgroup of its own, which it may divide (Delegate=yes).
service=/sys/fs/cgroup/system.slice/berth-worker.service
mkdir -p "$service"
echo '+memory +pids +cpu' >/sys/fs/cgroup/cgroup.subtree_control
echo '+memory +pids +cpu' >/sys/fs/cgroup/system.slice/cgroup.subtree_control
tried service

# Its machine's other sandboxes stay when it is killed; they are in a cgroup from which it is not started again.
layout=moved
find "$service" -depth -type d -exec rmdir {} +
mkdir "$service"
started && berth create --name box >/dev/null && berth run --session box --detach sleep 4712 >/dev/null
kill -9 "$fleet"
wait "$fleet"
service=
orphans() { berth doctor 2>&1 | grep -c 'of sessions that are gone'; }
session=$(echo "$BERTH_STATE_DIR"/*/sessions/*)
mv "$session" "$BERTH_STATE_DIR/aside"
say "doctor without its directory: $(orphans)"
mv "$BERTH_STATE_DIR/aside" "$session"
say "doctor: $(orphans)"
started && task after 'pgrep -c -x sleep'
finished
say "left of tasks: $(pgrep -c -f 'sleep 4712')"

# No room for a session's cgroups: nothing is started, and doctor says why.
layout=full
service=/sys/fs/cgroup/system.slice/full.service
mkdir "$service"
echo 2 >"$service/cgroup.max.descendants"
doctor
find "$service" -depth -type d -exec rmdir {} +
service=

# Its cgroup namespaces are no walls.
mount -o remount,rw -t cgroup2 cgroup2 /sys/fs/cgroup
tried v2
