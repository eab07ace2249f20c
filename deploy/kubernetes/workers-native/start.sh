#!/bin/sh
# Starts a worker whose sandboxes are in its own pod. A container's runtime leaves three things in a state in which no sandbox
# can be made; with CAP_SYS_ADMIN they are put right here, in this container's own namespaces:
set -eu

# 1. Its cgroups are mounted read-only. They are its own part of the tree, below the pod's limits, and stay that.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -o remount,bind,rw /sys/fs/cgroup
    # On v2 a cgroup with processes in it has no controllers to give: the worker goes one down.
    mkdir -p /sys/fs/cgroup/berth-supervisor
    echo $$ >/sys/fs/cgroup/berth-supervisor/cgroup.procs
else
    for controller in memory pids cpu; do mount -o remount,bind,rw "/sys/fs/cgroup/$controller"; done
fi

# 2. Parts of its /proc are covered, and the kernel mounts no new one in a user namespace while no other shows all of it.
mkdir -p /run/berth/proc
mount -t proc -o nosuid,nodev,noexec proc /run/berth/proc

# 3. Nothing of the sandboxes' mounts is to leave.
mount --make-rprivate /

exec /usr/bin/worker
