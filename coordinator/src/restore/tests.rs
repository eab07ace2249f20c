use std::sync::Arc;

use super::*;
use crate::{
    fleet::{Scheduling, Worker},
    store::Batch,
};
use berth_proto::Incarnation;

/// The files of a coordinator that was killed: one worker is in its log, and who its catalog is.
async fn state(dir: &Path, worker: &str) -> String {
    let made = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&made.path().join(STORE_FILE)).await.unwrap();
    let worker = Worker::from_record(worker.parse().unwrap(), Incarnation(1), Scheduling::Active);
    store.commit(&Batch { workers: vec![Arc::new(worker)], ..Batch::default() }).await.unwrap();
    let catalog = Catalog::open(Some(&made.path().join(CATALOG_FILE))).await.unwrap();
    for entry in fs::read_dir(made.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    catalog.owner().await.unwrap()
}

/// What a coordinator would start with: the worker in the store, and who the catalog is.
async fn opened(dir: &Path) -> Result<(String, String), StoreError> {
    let store = SqliteStore::open(&dir.join(STORE_FILE)).await?;
    let loaded = store.load().await?;
    store.close().await;
    let catalog = Catalog::open(Some(&dir.join(CATALOG_FILE))).await?;
    let owner = catalog.owner().await?;
    catalog.close().await?;
    Ok((loaded.workers.iter().map(|worker| worker.id.to_string()).collect(), owner))
}

async fn backup(dir: &Path) -> String {
    let owner = state(dir, "new").await;
    assert_eq!(opened(dir).await.unwrap(), ("new".to_owned(), owner.clone()));
    owner
}

/// Red when the files are moved in another order: then some cut leaves a store that is neither, or half of each.
#[tokio::test]
async fn a_restore_that_is_cut_off_anywhere_is_noticed_and_can_be_done_again() {
    let from = tempfile::tempdir().unwrap();
    let new = backup(from.path()).await;
    let (mut before, mut refused) = (0, 0);
    for cut in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let old = state(dir.path(), "old").await;
        let staging = dir.path().join(STAGING);
        clear(&staging).unwrap();
        copy(from.path(), &staging, &FILES).unwrap();
        let mut steps = 0;
        let done = put_in_place(&staging, dir.path(), || {
            steps += 1;
            if steps > cut { Err(io::Error::other("the power is cut")) } else { Ok(()) }
        });
        match opened(dir.path()).await {
            Ok(found) if found == ("old".to_owned(), old.clone()) => before += 1,
            Ok(found) => {
                assert_eq!(found, ("new".to_owned(), new.clone()), "after {cut} steps it is half of each");
                assert!(done.is_ok());
            }
            Err(StoreError::Damaged(_)) => refused += 1,
            Err(error) => panic!("after {cut} steps: {error}"),
        }
        restore(from.path(), dir.path()).await.unwrap();
        assert_eq!(opened(dir.path()).await.unwrap(), ("new".to_owned(), new.clone()));
        assert!(!staging.exists());
        if done.is_ok() {
            break;
        }
    }
    assert!(before == 2 && refused >= 4, "{before}, {refused}");
}

/// Red when it stays: an older coordinator then refuses to start with a newer one's record.
#[tokio::test]
async fn an_audit_record_that_a_newer_version_wrote_is_set_aside() {
    let (from, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    backup(from.path()).await;
    let made = async |dir: &Path| AuditFile::open(Some(&dir.join(AUDIT_FILE))).await;
    made(from.path()).await.unwrap().close().await.unwrap();
    made(dir.path()).await.unwrap().close().await.unwrap();
    let restored = restore(from.path(), dir.path()).await.unwrap();
    assert!(!restored.audit, "this version's own stays: {restored:?}");

    let url = format!("sqlite:{}", dir.path().join(AUDIT_FILE).display());
    let mut newer = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let step = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'newer', true, x'00', 0)";
    sqlx::query(step).execute(&mut newer).await.unwrap();
    sqlx::Connection::close(newer).await.unwrap();
    assert!(made(dir.path()).await.is_err());
    let restored = restore(from.path(), dir.path()).await.unwrap();
    assert!(restored.audit && restored.aside.unwrap().join(AUDIT_FILE).is_file());
    made(dir.path()).await.unwrap().close().await.unwrap();
}

/// It is evidence. Its coordinator says how to set it aside, and a person does.
#[tokio::test]
async fn a_damaged_audit_record_stays_where_it_is() {
    let (from, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    backup(from.path()).await;
    AuditFile::open(Some(&from.path().join(AUDIT_FILE))).await.unwrap().close().await.unwrap();
    let own = dir.path().join(AUDIT_FILE);
    for damaged in [&b""[..], b"this was a database once"] {
        fs::write(&own, damaged).unwrap();
        let restored = restore(from.path(), dir.path()).await.unwrap();
        assert!(!restored.audit, "{restored:?}");
        assert_eq!(fs::read(&own).unwrap(), damaged);
    }
}

#[tokio::test]
async fn a_directory_that_a_coordinator_uses_is_left_alone_and_the_other_way_round() {
    let (from, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    backup(from.path()).await;
    let [one, two] = [(), ()].map(|()| StateDir::share(dir.path()).unwrap());
    let problem = restore(from.path(), dir.path()).await.unwrap_err();
    assert!(problem.what.contains("uses"), "{problem:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    drop((one, two));
    let alone = StateDir::alone(dir.path()).unwrap();
    let problem = StateDir::share(dir.path()).err().expect("a restore is under way");
    assert!(problem.what.contains("being put back"), "{problem:?}");
    drop(alone);
    restore(from.path(), dir.path()).await.unwrap();
}
