//! The file system: where a task may write, how much, and that no file gives it another identity.

use std::os::unix::fs::MetadataExt;

use berth_proto::v1::{self, outcome::Kind};
use nix::libc;

use crate::arena::{Arena, Finding, hold};

fn disk(arena: &Arena) -> v1::Limits {
    v1::Limits {
        disk_bytes: Some(arena.pick(8, 64) << 20),
        memory_bytes: Some(256 << 20),
        ..Default::default()
    }
}

/// Directories that a task may write to. (The engine shows the queues of the sandbox's own IPC namespace as files.)
const OWN: &str = "/dev/mqueue /dev/shm /home/user /tmp /var/tmp /workspace";

/// Loosened: the test mounts one more directory that anybody may write to.
pub async fn a09_only_its_own_directories_are_writable(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        std::fs::set_permissions(&arena.canary, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("set");
        sandbox.loosen("bind", &[arena.canary.to_str().expect("UTF-8"), "/run"]);
    }
    let code = "import os, errno\nfor p in ('/usr/x', '/etc/x', '/x', '/usr/bin/x', '/dev/x', '/root/x', '/home/x', '/var/x'):\n\
        \x20   try: open(p, 'w'); print(p, 'made')\n    except OSError as e: print(p, errno.errorcode[e.errno])\n\
        own = 'OWN'.split()\nseen = set()\n\
        for top, dirs, files in os.walk('/'):\n    if top in own or top == '/proc': dirs[:] = []; continue\n    if os.access(top, os.W_OK): print(top, 'writable')\n\
        \x20   dirs[:] = [d for d in dirs if not os.path.islink(os.path.join(top, d))]";
    let text = sandbox.py(&code.replace("OWN", OWN)).await.ok();
    for line in text.lines() {
        hold(["EROFS", "EACCES", "ENOENT"].iter().any(|errno| line.ends_with(errno)), line)?;
    }
    Ok(text.replace('\n', ", "))
}

/// By errno: in a directory that is not there. Loosened: the filter lets mknod through.
pub async fn a10_no_devices_are_made(arena: &Arena) -> Finding {
    let (block, character) = (libc::S_IFBLK | 0o600, libc::S_IFCHR | 0o600);
    crate::kernel::refused(
        arena,
        &[
            ("block", libc::SYS_mknodat, &format!("-100, b'/nonexistent/b', {block}, 254 << 8")),
            ("character", libc::SYS_mknodat, &format!("-100, b'/nonexistent/c', {character}, 1 << 8 | 3")),
        ],
    )
    .await
}

/// Loosened: 64 MiB instead of 8.
pub async fn a11_dd_fills_only_its_quota(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox_with(disk(arena)).await;
    // What the host gives for the session's files: all of it, from the beginning.
    let image = sandbox.directory().join("files.img");
    let given = || std::fs::metadata(&image).map(|image| image.blocks() * 512).expect("the session's image");
    let before = given();
    let ran = sandbox.sh("dd if=/dev/zero of=f bs=1M count=32 2>&1").await;
    hold(ran.outcome() != Kind::Exited(0), "32 MiB were written")?;
    hold(ran.text().contains("No space left") || ran.text().contains("quota"), ran.text())?;
    hold(given() == before, format!("{before} bytes of the host's have become {}", given()))?;
    hold(sandbox.sh("rm f; echo x > g; cat g").await.ok() == "x", "nothing can be written after the rm")?;
    Ok(ran.text().replace('\n', " "))
}

/// Loosened: 64 MiB instead of 8, with as many more inodes.
pub async fn a12_files_are_counted(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox_with(disk(arena)).await;
    let code = "import errno\nn = 0\ntry:\n    while n < 8000: open(f'f{n}', 'w').close(); n += 1\nexcept OSError as e: print(errno.errorcode[e.errno])\nprint(n)";
    let text = sandbox.py(code).await.ok();
    hold(text.starts_with("ENOSPC") || text.starts_with("EDQUOT"), format!("{text} files"))?;
    Ok(text.replace('\n', " after "))
}

/// Loosened: tasks have no limit on a file's size.
pub async fn a13_a_sparse_file_is_no_way_round(arena: &Arena) -> Finding {
    let disk = v1::Limits { disk_bytes: Some(8 << 20), ..disk(arena) };
    let sandbox = arena.sandbox_with(disk).await;
    let huge = sandbox.sh("ulimit -f unlimited 2>/dev/null; truncate -s 1T f 2>&1").await;
    let size = sandbox.sh("stat -c %s f").await.text();
    hold(huge.outcome() != Kind::Exited(0), format!("a file of {size} says that it has 1 TiB"))?;
    let filled =
        sandbox.sh("truncate -s 100M f; dd if=/dev/zero of=f bs=1M count=32 conv=notrunc 2>&1").await;
    hold(filled.outcome() != Kind::Exited(0), "32 MiB of it were filled")?;
    let request = v1::CheckpointSessionRequest { session_id: sandbox.id.clone(), ..Default::default() };
    let taken = arena.cluster.checkpoints().checkpoint_session(request).await;
    hold(taken.is_err(), "a checkpoint took all of it")?;
    sandbox.sh("rm -f f").await.ok();
    Ok(format!("truncate: {}; {}", huge.text(), filled.text().replace('\n', " ")))
}

/// Loosened: a file of another's, on the workspace's own mount, that anybody may write to.
pub async fn a14_no_foreign_file_is_linked(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        let foreign = sandbox.directory().join("files/workspace/foreign");
        std::fs::write(&foreign, "x").expect("written");
        std::fs::set_permissions(&foreign, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("set");
    }
    let code = "import os, errno, sys\nfor p in (sys.executable, os.path.realpath('/bin/sh'), '/etc/passwd', '/.berth/agent', '/proc/self/exe', '/workspace/foreign'):\n\
        \x20   for d in ('/workspace', '/tmp', '/home/user', '/dev/shm'):\n        try: os.link(p, d + '/h'); os.unlink(d + '/h'); print(p, d, 'linked')\n\
        \x20       except OSError as e: print(p, d, errno.errorcode[e.errno])";
    let text = sandbox.py(code).await.ok();
    for line in text.lines() {
        hold(["EXDEV", "EPERM", "EACCES", "ENOENT"].iter().any(|errno| line.ends_with(errno)), line)?;
    }
    Ok("EXDEV".into())
}

/// Loosened: the agent leaves tasks a second, unprivileged identity to change to.
pub async fn a15_nobody_becomes_another(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let own = sandbox.sh("id -u").await.ok();
    let set = sandbox.sh("cp /bin/sh s && chmod 6755 s && ./s -c 'id -u; id -ru'").await.text();
    hold(set.lines().all(|line| line == own), format!("a set-user-id copy runs as {set}"))?;
    let code = "import os\nfor uid in (0, 1, 65534, os.getuid() + 1):\n    try: os.setresuid(-1, uid, -1); print('became', os.geteuid())\n    except PermissionError: pass\n\
        for gid in (0, 5, 65534):\n    try: os.setresgid(gid, gid, gid); print('became group', gid)\n    except PermissionError: pass\n\
        try: os.setgroups([0]); print('joined 0')\nexcept PermissionError: pass";
    let text = sandbox.py(code).await.ok();
    hold(text.is_empty(), text.clone())?;
    // Every set-user-id program that there is, with what makes it start.
    let programs = "for p in $(find / -xdev -perm /6000 -type f 2>/dev/null); do grep -q 'NoNewPrivs:.1' /proc/self/status || echo $p; done; \
        grep -E '^(NoNewPrivs|CapEff|CapBnd|CapPrm|CapAmb)' /proc/self/status | tr -s '\\t\\n' ' '";
    let status = sandbox.sh(programs).await.ok();
    let zero = "0000000000000000";
    let expected = format!("CapPrm: {zero} CapEff: {zero} CapBnd: {zero} CapAmb: {zero} NoNewPrivs: 1");
    hold(status.trim() == expected, status.clone())?;
    Ok(format!("uid {own} it stays; {status}"))
}

/// Loosened: 256 MiB of memory instead of 64, and with it a larger /dev/shm.
pub async fn a16_memory_files_have_a_size(arena: &Arena) -> Finding {
    let limits = v1::Limits { memory_bytes: Some(arena.pick(64, 256) << 20), ..Default::default() };
    let sandbox = arena.sandbox_with(limits).await;
    let ran =
        sandbox.sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>&1; r=$?; rm /dev/shm/x; exit $r").await;
    hold(ran.outcome() != Kind::Exited(0), "40 MiB were written to /dev/shm")?;
    hold(ran.text().contains("No space left"), ran.text())?;
    let code = "import errno\nn = 0\ntry:\n    while n < 9000: open(f'/dev/shm/f{n}', 'w').close(); n += 1\nexcept OSError as e: print(errno.errorcode[e.errno], n)";
    let files = sandbox.py(code).await.ok();
    hold(files.starts_with("ENOSPC"), "9000 empty files in memory")?;
    Ok(format!("ENOSPC; of empty files: {files}"))
}
