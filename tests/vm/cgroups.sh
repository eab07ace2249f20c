#!/bin/bash
# What a native sandbox does on each layout of cgroups that there is, for the test that reads what this prints. Runs in the
# virtual machine of scripts/vm.sh, whose cgroups these are.
set -u
if [ ! -f /run/job/run ] || [ "$(hostname)" != vm ]; then
    echo "this is for the virtual machine of scripts/vm.sh" >&2
    exit 2
fi
export BERTH_STATE_DIR=/tmp/state BERTH_SANDBOX=native PATH="$BERTH_BIN_DIR:$PATH"
cd /tmp || exit

say() { printf 'vm: %s: %s\n' "$layout" "$*"; }
# A task, and all that it says in one line.
task() { say "$1: $(berth run --session box -- bash -c "$2" 2>&1 | tr '\n' ' ')"; }

tried() {
    layout=$1
    if ! berth up -d >/tmp/up 2>&1; then
        say "it does not come up"
        cat /tmp/up
        tail -n 20 "$BERTH_STATE_DIR/berth.log"
        return
    fi
    berth create --name box --memory 128M --pids 32 >/dev/null 2>&1 || say "no session"
    say "doctor: $(berth doctor 2>&1 | grep 'native sandboxes' | tr '\n' ' ')"
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
    berth rm box >/dev/null
    berth stop >/dev/null 2>&1
    say "left of all: $(find /sys/fs/cgroup -name 'berth-*' -type d | wc -l) $(grep -c "$BERTH_STATE_DIR" /proc/mounts)"
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

# The same as a service of systemd has it: a cgroup of its own, which it may divide (Delegate=yes).
service=/sys/fs/cgroup/system.slice/berth.service
mkdir -p "$service"
echo '+memory +pids +cpu' >/sys/fs/cgroup/cgroup.subtree_control
echo '+memory +pids +cpu' >/sys/fs/cgroup/system.slice/cgroup.subtree_control
echo $$ >"$service/cgroup.procs"
tried service
echo $$ >/sys/fs/cgroup/cgroup.procs
rmdir "$service"

# Its cgroup namespaces are no walls.
mount -o remount,rw -t cgroup2 cgroup2 /sys/fs/cgroup
tried v2
