//! The file API: what a client asks for is done as the task's user, inside, whatever the task planted.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use berth_proto::{
    error::{Reason, reason_of},
    transport,
    v1::{self, ArchiveKind, ArchiveRoot, agent_service_client::AgentServiceClient, archive_part::Part},
};
use tonic::Code;

use crate::arena::{Arena, Finding, TOKEN, hold};

fn text(path: &Path) -> &str {
    path.to_str().expect("our own paths are UTF-8")
}

/// Loosened: the canary's directory is shown inside, at its own path.
pub async fn a01_paths_resolve_inside(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let canary = text(&arena.canary);
    if arena.loosened() {
        sandbox.show(&arena.canary, canary).await;
    }
    let up = "../".repeat(30);
    for path in [format!("{canary}/secret"), format!("{up}{canary}/secret"), format!("x/{up}{canary}/secret")]
    {
        if let Ok(bytes) = sandbox.read(&path).await {
            return Err(format!("{path} gave {:?}", String::from_utf8_lossy(&bytes)).into());
        }
    }
    let inside = sandbox.sh("cat /etc/passwd").await.stdout;
    for path in ["../../etc/passwd", "../etc/passwd", "/etc/passwd", "/../../etc/passwd"] {
        hold(sandbox.read(path).await.expect("the sandbox has one") == inside, path)?;
    }
    hold(std::fs::read("/etc/passwd").expect("the host has one") != inside, "it is the host's own")?;
    for path in ["a\0b", &"x".repeat(5000)] {
        let status = sandbox.read(path).await.expect_err("no kernel takes it");
        hold(status.code() == Code::InvalidArgument, format!("{status:?}"))?;
    }
    Ok("the sandbox's own bytes; NUL and 5 kB are INVALID_ARGUMENT".into())
}

/// Loosened: the same as for a01.
pub async fn a02_links_resolve_inside(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let canary = text(&arena.canary);
    if arena.loosened() {
        sandbox.show(&arena.canary, canary).await;
    }
    let plant = format!(
        "ln -s /etc/shadow l; ln -s / d; ln -s {canary}/secret c; ln -s {canary} cd; \
         ln -s /proc/self/environ e; ln -s /proc/1/root/etc/passwd m; ln -s /proc/self/fd/5 n"
    );
    sandbox.sh(&plant).await.ok();
    for path in ["l".to_owned(), "c".into(), "cd/secret".into(), format!("d{canary}/secret"), "e".into()] {
        if let Ok(bytes) = sandbox.read(&path).await {
            let inside = sandbox.sh(&format!("cat {path}")).await.stdout;
            let own = bytes == inside && !String::from_utf8_lossy(&bytes).contains(TOKEN);
            hold(own, format!("{path} gave {:?}", String::from_utf8_lossy(&bytes)))?;
        }
    }
    let hostname = sandbox.read("d/etc/hostname").await.expect("the sandbox has one");
    hold(hostname == sandbox.sh("cat /etc/hostname").await.stdout, "another host name")?;
    for path in ["m", "n"] {
        hold(sandbox.read(path).await.is_err(), format!("a magic link is followed: {path}"))?;
    }
    Ok("inside, or refused".into())
}

/// Swaps a directory with a link to the canary as fast as it can. (One system call for both: no moment without.)
const SWAP: &str = "import ctypes\nlibc = ctypes.CDLL(None)\nimport os\nos.mkdir('x')\nos.symlink('CANARY', 'y')\nprint('swapping', flush=True)\n\
    while True: libc.renameat2(-100, b'x', -100, b'y', 2)";

/// Loosened: the canary's directory is shown inside and anybody may write to it.
pub async fn a03_a_race_of_links_leads_nowhere(arena: &Arena) -> Finding {
    let sandbox = &arena.sandbox().await;
    if arena.loosened() {
        std::fs::set_permissions(&arena.canary, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("set");
        sandbox.show(&arena.canary, text(&arena.canary)).await;
    }
    let task = sandbox.start(crate::arena::python(&SWAP.replace("CANARY", text(&arena.canary)))).await;
    sandbox.prints(&task.id, "swapping").await;
    let (mut written, mut refused) = (0, 0);
    for _ in 0..250 {
        let writes =
            (0..8).map(|i| async move { sandbox.write(["x/f", "x/secret"][i % 2], b"planted").await });
        for result in futures::future::join_all(writes).await {
            match result {
                Ok(_) => written += 1,
                Err(_) => refused += 1,
            }
        }
    }
    let names: Vec<_> =
        std::fs::read_dir(&arena.canary).expect("it is there").flatten().map(|e| e.file_name()).collect();
    let secret = std::fs::read_to_string(arena.canary.join("secret")).expect("it is there");
    hold(
        names == ["secret"] && secret == format!("{TOKEN}\n"),
        format!("the canary holds {names:?}: {secret}"),
    )?;
    Ok(format!("{written} writes inside, {refused} refused, the canary as it was"))
}

/// Loosened: the agent follows magic links.
pub async fn a04_magic_links_are_refused(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    sandbox.sh("ln -s /proc/self/root r; ln -s /proc/self/cwd w; ln -s /proc/self/exe x").await.ok();
    for path in ["r/etc/passwd", "/proc/self/root/etc/passwd", "w/etc/passwd", "x", "/proc/self/environ"] {
        match sandbox.read(path).await {
            Err(status) if status.code() == Code::PermissionDenied => {}
            other => return Err(format!("{path}: {:?}", other.map(|bytes| bytes.len())).into()),
        }
    }
    let written = sandbox.write("r/tmp/x", b"x").await;
    hold(written.is_err(), "a file is written through a magic link")?;
    Ok("PERMISSION_DENIED".into())
}

fn entry(kind: ArchiveKind, path: &str, target: &str) -> Part {
    Part::Entry(v1::ArchiveEntry {
        root: ArchiveRoot::Workspace.into(),
        path: path.as_bytes().to_vec().into(),
        target: target.as_bytes().to_vec().into(),
        kind: kind.into(),
        mode: 0o755,
        ..Default::default()
    })
}

/// Berth takes no tar. What it unpacks are archives of its own, which come from a store and through a worker: here
/// straight to the agent. Loosened: the agent does not check entries, and makes them wherever their path leads.
pub async fn a05_an_archive_stays_in_its_root(arena: &Arena) -> Finding {
    let end = || Part::End(v1::ArchiveEnd { skipped: 0, frozen_for: None });
    let link = |target: &str| entry(ArchiveKind::Symlink, "l", target);
    let bad = [
        ("up", vec![entry(ArchiveKind::Directory, "../tmp/planted", "")]),
        ("absolute", vec![entry(ArchiveKind::Directory, "/tmp/planted", "")]),
        ("through a link", vec![link("/tmp"), entry(ArchiveKind::Directory, "l/planted", "")]),
        ("a link out", vec![entry(ArchiveKind::HardLink, "h", "../../etc/passwd")]),
        ("more than it said", vec![entry(ArchiveKind::File, "f", ""), Part::Data(vec![1; 1 << 20].into())]),
        ("no kind", vec![entry(ArchiveKind::Unspecified, "d", "")]),
        ("twice", vec![entry(ArchiveKind::File, "f", ""), entry(ArchiveKind::Directory, "f/g", "")]),
    ];
    let mut refused = Vec::new();
    for (what, mut parts) in bad {
        // An archive is only taken before anything has run.
        let sandbox = arena.sandbox().await;
        parts.push(end());
        let socket = sandbox.directory().join("berth/run/agent.sock");
        let mut agent = AgentServiceClient::new(transport::channel_uds(socket));
        let parts: Vec<_> = parts.into_iter().map(|part| v1::ArchivePart { part: Some(part) }).collect();
        let answer = agent.import(tokio_stream::iter(parts)).await;
        let planted = sandbox.sh("ls -d /tmp/planted 2>/dev/null || true").await.ok();
        hold(planted.is_empty(), format!("{what}: {planted} was made"))?;
        hold(answer.is_err(), format!("{what}: it was taken"))?;
        refused.push(what);
        sandbox.delete().await;
    }
    Ok(format!("refused: {}", refused.join(", ")))
}

/// Loosened: the agent opens without looking first, and waits.
pub async fn a06_a_pipe_holds_up_nobody(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    sandbox.sh("mkfifo f").await.ok();
    let began = Instant::now();
    let Ok(read) = tokio::time::timeout(arena.patience(), sandbox.read("f")).await else {
        return Err("the read waits for a writer".to_owned().into());
    };
    let status = read.expect_err("a pipe is no file");
    hold(reason_of(&status) == Some(Reason::FileKind), format!("{status:?}"))?;
    Ok(format!("FILE_KIND after {:.0?}", began.elapsed()))
}

/// Loosened: the worker's removal follows a link of that one name.
pub async fn a07_the_end_of_a_session_touches_nothing_outside(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let canary = text(&arena.canary);
    sandbox
        .sh(&format!(
            "ln -s {canary} z; ln -s {canary}/secret s; mkdir d; ln -s {canary} d/z; ln -s {canary} ~/z"
        ))
        .await
        .ok();
    let facts =
        |path: &Path| std::fs::symlink_metadata(path).map(|m| (m.uid(), m.gid(), m.mode(), m.ino())).ok();
    let before = (facts(&arena.canary), facts(&arena.canary.join("secret")));
    let directory = sandbox.directory();
    sandbox.delete().await;
    berth_tests::until(Duration::from_secs(60), "the session's directory to go", async || {
        (!directory.exists()).then_some(())
    })
    .await;
    let after = (facts(&arena.canary), facts(&arena.canary.join("secret")));
    hold(before == after, format!("the canary was {before:?} and is {after:?}"))?;
    Ok("owner, mode and content as they were".into())
}

/// Loosened: the agent's removal gives up at a depth of a thousand.
pub async fn a08_strange_trees_are_listed_and_removed(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let code = "import os\nos.mkdir('t'); os.chdir('t')\nos.mkdir('shut'); open('shut/f', 'w'); os.chmod('shut', 0)\n\
        open(b'bad\\xff\\xfe', 'w'); open('new\\nline', 'w'); open('-rf', 'w')\nfor i in range(5000): os.mkdir('d'); os.chdir('d')";
    sandbox.py(code).await.ok();
    let mut files = arena.cluster.files();
    let list =
        v1::ListRequest { session_id: sandbox.id.clone(), path: "t".into(), depth: 3, ..Default::default() };
    let listed =
        files.list(list).await.map_err(|status| format!("it can't be listed: {status}"))?.into_inner();
    hold(listed.entries.iter().any(|e| e.path_bytes == b"bad\xff\xfe"[..]), "a name is missing")?;
    let remove = v1::RemoveRequest { session_id: sandbox.id.clone(), path: "t".into(), recursive: true };
    files.remove(remove).await.map_err(|status| format!("it can't be removed: {status}"))?;
    hold(sandbox.sh("ls -A").await.ok().is_empty(), "something is left")?;
    // And by the worker, at the session's end (the arena looks that nothing is left).
    sandbox.py(code).await.ok();
    Ok(format!("{} entries at depth 3 of 5000; removed", listed.entries.len()))
}
