//! `berth audit` against the shipped programs: what a user did, to the end of the task.

use berth_tests::{Cluster, READY, Setup, until};

async fn rows(cluster: &Cluster, args: &[&str]) -> Vec<serde_json::Value> {
    let args = [&["audit", "--format", "json"][..], args].concat();
    serde_json::from_str(&cluster.berth(&args).await.ok()).expect("a list")
}

/// Red when ends of tasks are not recorded, when `argv` is not told, or the command line is where only its hash should be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_recorded_from_its_start_to_its_end() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let session = cluster.session().await;
    cluster.berth(&["run", "-s", &session.id, "--", "echo", "words of mine"]).await.ok();
    let seen = until(READY, "the end of the task to be recorded", async || {
        let seen = rows(&cluster, &["--session", &session.id]).await;
        seen.iter().any(|row| row["what"] == "task ended").then_some(seen)
    })
    .await;
    let of = |what: &str| {
        seen.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("no {what}: {seen:?}"))
    };
    let (run, end) = (of("TaskService/Run"), of("task ended"));
    assert_eq!((&run["who"], &run["outcome"]), (&"admin.token".into(), &"OK".into()));
    assert_eq!((&end["who"], &end["outcome"]), (&"-".into(), &"exited 0".into()));
    assert_eq!(run["details"]["argv"], end["details"]["argv"]);
    assert_eq!(seen.iter().filter(|row| row["what"] == "task ended").count(), 1, "{seen:?}");
    assert!(run["details"]["argv"].as_str().is_some_and(|argv| argv.starts_with("sha256:")), "{run}");
    assert!(!format!("{seen:?}").contains("words of mine"));
    let text = cluster.berth(&["audit"]).await.ok();
    assert!(
        text.contains("TaskService/Run") && text.lines().next().is_some_and(|head| head.contains("OUTCOME"))
    );
    let whole = cluster.berth(&["audit", "--verify"]).await.ok();
    assert!(whole.contains("as they were written") && whole.contains("\nsum "), "{whole}");
    cluster.stop().await;
}

/// The whole command line is recorded where the operator says so; and a file that was changed is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_have_the_command_lines() {
    let mut setup = Setup::new("fake");
    setup.coordinator_env.push(("BERTH_AUDIT_ARGV".to_owned(), "full".to_owned()));
    let cluster = Cluster::start(setup).await;
    let session = cluster.session().await;
    cluster.berth(&["run", "-s", &session.id, "--", "echo", "words of mine"]).await.ok();
    let seen = rows(&cluster, &["--what", "TaskService/Run"]).await;
    assert_eq!(seen[0]["details"]["argv"], "echo words of mine");
    assert_eq!(rows(&cluster, &["--since", "1h", "-n", "1"]).await.len(), 1);
    assert_eq!(rows(&cluster, &["--who", "nobody"]).await.len(), 0);
    cluster.stop().await;
}
