//! Changes of files, through the client library.

use berth_client::{
    ChangeEvent, ChangeOptions, ChangeStream, Client, ConnectOptions, Files, SessionId, model::ChangeKind,
};
use berth_tests::{Cluster, READY, Setup, skip, until};

async fn created(stream: &mut ChangeStream, path: &str) {
    loop {
        match stream.next().await.expect("it goes on") {
            Some(ChangeEvent::Change(change)) if change.path == path => {
                break assert_eq!(change.kind, ChangeKind::Created);
            }
            Some(ChangeEvent::Change(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn watch(files: &Files) -> Result<ChangeStream, berth_client::Error> {
    files.watch(".", ChangeOptions::new().recursive()).await
}

/// Red when a stream that broke looks like one that ended, or when nothing is told to a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_breaks_with_its_coordinator_and_a_new_one_goes_on() {
    if skip::without_root("e2e a_watch_breaks_with_its_coordinator_and_a_new_one_goes_on") {
        return;
    }
    let mut cluster = Cluster::start(Setup::new("native")).await;
    let session = cluster.session().await;
    let options = ConnectOptions::new(&cluster.address).token(&cluster.admin_token);
    let client = Client::connect(options.resume_for(READY)).await.expect("a connection");
    let files = client.session(session.id.parse::<SessionId>().unwrap()).files();
    let mut stream = watch(&files).await.expect("it can be watched");
    files.mkdir("one").await.expect("it can be made");
    created(&mut stream, "one").await;
    cluster.restart_coordinator().await;
    let error = loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the directory is still there"),
            Err(error) => break error,
        }
    };
    assert!(error.hint().is_some(), "{error:?}");
    let mut stream = until(READY, "a new watch", async || watch(&files).await.ok()).await;
    let listed = files.list(".").await.expect("it can be listed");
    assert!(listed.iter().any(|entry| entry.path == "one"), "{listed:?}");
    files.mkdir("two").await.expect("it can be made");
    created(&mut stream, "two").await;
    drop(stream);
    cluster.stop().await;
}
