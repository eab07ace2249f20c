//! The examples that the documents show, run word for word. They find their coordinator by
//! the environment, as a user's program does; so they run in a process of their own, which
//! is this test executable again.

use std::process::Stdio;

use berth_tests::{Cluster, Setup, skip};

#[allow(dead_code)] // Its `main` is for `cargo run --example`.
#[path = "../../../client/examples/quickstart.rs"]
mod quickstart;

/// The README's, word for word: [`the_readme_shows_what_is_run`] sees to that.
async fn readme() -> Result<(), berth_client::Error> {
    let client = berth_client::Client::from_env().await?;
    let session = client.create_session(berth_client::CreateOptions::new()).await?;
    let output = session.run(berth_client::Command::new("python3").args(["-c", "print(6 * 7)"])).await?;
    assert_eq!(output.stdout, b"42\n");
    session.delete().await?;
    Ok(())
}

const CHILD: &str = "client_example::examples_as_a_user_runs_them";

#[tokio::test]
#[ignore = "run by the_examples_of_the_documents_run, which has a fleet for them"]
async fn examples_as_a_user_runs_them() {
    if std::env::var_os("BERTH_ADDRESS").is_none() {
        return;
    }
    quickstart::example().await.expect("the example of the client's documentation");
    readme().await.expect("the example of the README");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_of_the_documents_run() {
    if skip::without_root("e2e the_examples_of_the_documents_run") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let child = tokio::process::Command::new(std::env::current_exe().expect("this executable"))
        .args(["--exact", CHILD, "--ignored", "--nocapture"])
        .env("BERTH_ADDRESS", &cluster.address)
        .env("BERTH_TOKEN", &cluster.admin_token)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(berth_tests::READY, child).await.expect("it ends").expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
    cluster.stop().await;
}

#[test]
fn the_readme_shows_what_is_run() {
    let dense = |text: &str| text.split_whitespace().collect::<String>();
    let readme = include_str!("../../../README.md");
    let shown = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    let shown = dense(shown.expect("the README has an example in Rust"));
    assert!(dense(include_str!("client_example.rs")).contains(&shown), "the README shows:\n{shown}");
}
