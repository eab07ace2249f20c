//! What a worker finds that an earlier process of it left.

use std::{path::Path, time::Duration};

use berth_proto::{
    SessionId,
    v1::{self, coordinator_message::Message as Command, file_service_client::FileServiceClient},
};

use super::script::{Rig, eventually};

const READY: v1::SessionState = v1::SessionState::Ready;

/// Red when nothing is taken up, or a start that was cut short stays.
#[tokio::test]
async fn a_restarted_worker_takes_up_what_lives_and_removes_the_rest() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let (lives, died, paused) = (SessionId::new(), SessionId::new(), SessionId::new());
    for session in [lives, died, paused] {
        rig.placed(session).await;
    }
    let channel = rig.script.data().await;
    let dir = v1::MakeDirRequest { session_id: lives.to_string(), path: "kept".into(), ..Default::default() };
    FileServiceClient::new(channel).make_dir(dir).await.unwrap();
    rig.script
        .send(Command::Pause(v1::PauseCommand { session_id: paused.to_string(), epoch: 1, paused: true }))
        .await;
    rig.script.state(paused, v1::SessionState::Paused).await;
    let meta = rig.temp.path().join("sessions").join(paused.to_string()).join("meta.json");
    eventually("the pause on disk", || {
        std::fs::read_to_string(&meta).is_ok_and(|text| text.contains("\"paused\": true"))
    })
    .await;

    // As killed: nothing is cleaned up.
    drop(worker);
    assert_eq!(rig.on_disk().len(), 3);
    rig.backend.kill(&died.to_string());
    // A start that was cut short, a broken record, and something that is no session.
    let sessions = rig.temp.path().join("sessions");
    let cut = SessionId::new();
    std::fs::create_dir_all(sessions.join(cut.to_string()).join("files")).unwrap();
    let broken = SessionId::new();
    std::fs::create_dir(sessions.join(broken.to_string())).unwrap();
    std::fs::write(sessions.join(broken.to_string()).join("meta.json"), "{ torn").unwrap();
    std::fs::write(sessions.join("README"), "?").unwrap();

    let worker = rig.start().await;
    let hello = rig.script.until("a second hello", |seen| seen.hellos.get(1).cloned()).await;
    let mut running: Vec<&str> = hello.running.iter().map(|r| r.session_id.as_str()).collect();
    running.sort_unstable();
    let mut expected = [lives.to_string(), paused.to_string()];
    expected.sort_unstable();
    assert_eq!(running, expected);
    assert_eq!(hello.incarnation, 0);
    // The canary's directory comes and goes beside them.
    rig.script.ready().await;
    eventually("only the living are left", || {
        let mut left = rig.on_disk();
        left.sort_unstable();
        left == expected
    })
    .await;
    let quarantine = std::fs::read_dir(rig.temp.path().join("quarantine")).unwrap().count();
    assert_eq!(quarantine, 2, "what can't be understood is kept aside");

    rig.script.state(paused, v1::SessionState::Paused).await;
    rig.script.state(lives, READY).await;
    let channel = rig.script.until("a new data connection", |seen| seen.data.get(2).cloned()).await;
    let stat = v1::StatRequest { session_id: lives.to_string(), path: "kept".into(), follow: false };
    FileServiceClient::new(channel).stat(stat).await.expect("the session's files are there");
    worker.shutdown_within(Duration::ZERO).await;
    assert!(rig.on_disk().is_empty() && rig.backend.sandboxes().is_empty());
}

/// Entries of a `quarantine` directory that begin with this.
fn quarantined(dir: &Path, name: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir.join("quarantine")).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(name)).collect()
}

/// A record that can't be read is kept, with the session's files, although its sandbox is a leftover that goes. Red
/// when nobody sweeps, or the sweep takes the files along.
#[tokio::test]
async fn a_broken_record_keeps_its_files_while_its_sandbox_goes() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    drop(worker);
    let root = rig.temp.path().join("sessions").join(session.to_string());
    std::fs::write(root.join("files/workspace/work"), "a day of it").unwrap();
    std::fs::write(root.join("meta.json"), "{ torn").unwrap();

    let worker = rig.start().await;
    assert!(rig.backend.sandboxes().iter().all(|id| *id != session.to_string()), "its sandbox goes");
    let kept = quarantined(rig.temp.path(), &session.to_string());
    assert_eq!(kept.len(), 1);
    assert_eq!(std::fs::read_to_string(kept[0].join("files/workspace/work")).unwrap(), "a day of it");
    worker.shutdown().await;
}

/// Nothing is lost: where there is no place to keep it aside, it stays.
#[tokio::test]
async fn what_can_not_be_kept_aside_is_not_removed() {
    let rig = Rig::new().await;
    let sessions = rig.temp.path().join("sessions");
    let broken = sessions.join(SessionId::new().to_string());
    std::fs::create_dir_all(&broken).unwrap();
    std::fs::write(broken.join("meta.json"), "{ torn").unwrap();
    std::fs::write(sessions.join("README"), "?").unwrap();
    // A file where the quarantine should be.
    std::fs::write(rig.temp.path().join("quarantine"), "").unwrap();
    let worker = rig.start().await;
    assert_eq!(std::fs::read_to_string(broken.join("meta.json")).unwrap(), "{ torn");
    assert_eq!(std::fs::read_to_string(sessions.join("README")).unwrap(), "?");
    worker.shutdown().await;
    // Once there is one, it is.
    std::fs::remove_file(rig.temp.path().join("quarantine")).unwrap();
    let worker = rig.start().await;
    assert!(!broken.exists() && !sessions.join("README").exists());
    assert_eq!(quarantined(rig.temp.path(), "").len(), 2);
    worker.shutdown().await;
}

/// BASE_WORKSPACE on another file system than the state.
#[tokio::test]
async fn another_file_system_has_a_quarantine_of_its_own() {
    let rig = Rig::new().await;
    let Ok(shm) = tempfile::tempdir_in("/dev/shm") else { return };
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path).unwrap());
    if device(shm.path()) == device(rig.temp.path()) {
        return eprintln!("skipped: /dev/shm is no file system of its own here");
    }
    std::fs::create_dir(shm.path().join("sessions")).unwrap();
    std::fs::write(shm.path().join("sessions/README"), "?").unwrap();
    let base = shm.path().to_owned();
    let worker = rig.start_with(|config| config.base_workspace = Some(base)).await;
    let kept = quarantined(shm.path(), "README");
    assert_eq!(kept.len(), 1);
    assert_eq!(std::fs::read_to_string(&kept[0]).unwrap(), "?");
    worker.shutdown().await;
}
