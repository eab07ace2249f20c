//! A cluster over TLS, as a user sets it up: certificates by `berth tls`, one directory for the coordinator and the
//! workers, and `ca.pem` for clients.

use std::time::Duration;

use berth_net::{
    Files,
    issue::{Authority, ISSUED_FOR, Validity},
};
use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, process, until};

use crate::util;

fn secure(sandbox: &str, workers: usize) -> Setup {
    Setup { tls: true, workers, ..Setup::new(sandbox) }
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Tasks, bulk output and files go over it, and go on after the coordinator was killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_works_over_tls_and_through_a_restart_of_its_coordinator() {
    let mut cluster = Cluster::start(secure("fake", 2)).await;
    let session = cluster.session().await.id;
    let (output, _) = util::run(&cluster, &session, "echo over tls").await;
    assert_eq!(output, "over tls");
    // More than one window, through the worker's own connections.
    let bytes = vec![7u8; 9 << 20];
    std::fs::write(cluster.dir.path().join("big"), &bytes).unwrap();
    let from = cluster.dir.path().join("big").display().to_string();
    let to = cluster.dir.path().join("back").display().to_string();
    cluster.berth(&["cp", &from, &format!("{session}:big")]).await.ok();
    cluster.berth(&["cp", &format!("{session}:big"), &to]).await.ok();
    assert!(std::fs::read(&to).unwrap() == bytes, "the file came back as it was");

    cluster.restart_coordinator().await;
    cluster.workers_ready().await;
    let (output, _) = until(READY, "a task to run again", async || {
        util::try_run(&cluster, &session, "echo and again").await.ok()
    })
    .await;
    assert_eq!(output, "and again");
    cluster.stop().await;
}

/// What a user sees who gets it wrong. Each says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_gets_it_wrong_is_told_what_to_do() {
    let cluster = Cluster::start_coordinator(secure("fake", 0)).await;
    let https = format!("https://{}", cluster.address);
    let ca = cluster.certificates().ca().certificate.display().to_string();
    let foreign = Files::new(cluster.dir.path().join("foreign"));
    Authority::make(&foreign).unwrap();
    let foreign = foreign.ca().certificate.display().to_string();
    let nowhere = cluster.dir.path().join("nowhere").display().to_string();
    let ask = async |address: &str, ca: &str| {
        let mut env = env(&[
            ("BERTH_ADDRESS", address),
            ("BERTH_TOKEN", &cluster.admin_token),
            ("BERTH_STATE_DIR", &nowhere),
        ]);
        if !ca.is_empty() {
            env.push(("BERTH_TLS_CA".into(), ca.into()));
        }
        process::run("berth", &["info"], &env, b"").await
    };
    ask(&https, &ca).await.ok();
    ask(&cluster.address, &ca).await.ok();
    for (address, ca, what, hint) in [
        (&cluster.address, "", "this port has TLS", "https://"),
        (&https, "", "no CA is known", "BERTH_TLS_CA"),
        (&https, foreign.as_str(), "another CA", "BERTH_TLS_CA"),
        (&format!("http://{}", cluster.address), ca.as_str(), "says http://", "https://"),
    ] {
        let refused = ask(address, ca).await;
        assert_ne!(refused.code, Some(0));
        let told = &refused.stderr;
        assert!(
            told.contains(what) && told.contains("hint:") && told.contains(hint),
            "{address} {ca}: {told}"
        );
    }
    let log = cluster.coordinator.log();
    assert_eq!(log.matches("without TLS came to the port").count(), 1, "{log}");
    cluster.stop().await;

    let cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let env = env(&[
        ("BERTH_ADDRESS", &format!("https://{}", cluster.address)),
        ("BERTH_TOKEN", &cluster.admin_token),
        ("BERTH_TLS_CA", &foreign_ca(&cluster)),
    ]);
    let refused = process::run("berth", &["info"], &env, b"").await;
    let told = &refused.stderr;
    assert!(told.contains("does not speak TLS") && told.contains("http://"), "{told}");
    cluster.stop().await;
}

fn foreign_ca(cluster: &Cluster) -> String {
    let files = Files::new(cluster.dir.path().join("foreign"));
    Authority::make(&files).unwrap();
    files.ca().certificate.display().to_string()
}

/// A renewal while everything runs: clients of before go on, those that come after see the new certificate, and a worker
/// whose certificate was about to expire comes back with its new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_without_a_restart() {
    let mut cluster = Cluster::start(secure("fake", 1)).await;
    let session = cluster.session().await.id;
    let files = cluster.certificates();
    // What is in force now has expired: nobody new comes in. (It is the same as waiting for it.)
    let authority = Authority::open(&files).unwrap();
    let now = std::time::SystemTime::now();
    let past = Validity { from: now - Duration::from_secs(7200), until: now - Duration::from_secs(3600) };
    authority.coordinator(&[], past).unwrap();
    let refused = cluster.berth(&["info"]).await;
    assert!(
        refused.stderr.contains("has expired") && refused.stderr.contains("berth tls renew"),
        "{refused:?}"
    );
    let (output, _) = util::run(&cluster, &session, "echo still here").await;
    assert_eq!(output, "still here", "what was up stays up");

    let dir = files.dir().display().to_string();
    let renewed = process::run("berth", &["tls", "renew", "--dir", &dir], &[], b"").await.ok();
    assert!(renewed.contains("coordinator.pem") && renewed.contains("worker worker-1"), "{renewed}");
    cluster.berth(&["info"]).await.ok();
    // A worker that starts anew shows its new one.
    cluster.workers[0].process.kill().await;
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    cluster.stop().await;
}

/// Red when a worker takes any certificate of its CA for its own, or says nothing of why it is not let in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_with_the_wrong_certificate_or_none_says_so() {
    let mut cluster = Cluster::start_coordinator(secure("fake", 0)).await;
    let files = cluster.certificates();
    let authority = Authority::open(&files).unwrap();
    let other = authority.worker(&"other".parse().unwrap(), &[], Validity::lasting(ISSUED_FOR)).unwrap();
    let other = other.dir().display().to_string();
    cluster.join("worker-1", &[("BERTH_TLS_DIR", &other)]).await;
    assert_eq!(cluster.workers[0].process.ended().await, Some(1));
    let log = cluster.workers[0].process.log();
    assert!(log.contains("is the certificate of worker other") && log.contains("berth tls worker"), "{log}");

    // Without TLS it gets no link, and goes on trying.
    cluster.join("worker-2", &[("BERTH_TLS_DIR", "")]).await;
    until(READY, "worker-2 to say why", async || {
        cluster.workers[1].process.log().contains("this port has TLS").then_some(())
    })
    .await;
    let listed = cluster.admin().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner();
    assert!(listed.workers.is_empty(), "{listed:?}");
    cluster.workers.remove(0);
    cluster.stop().await;
}

/// A worker's own listener: its certificate has a name, and is checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_s_own_listener_has_tls_too() {
    let cluster = Cluster::start(Setup { worker_listener: true, ..secure("fake", 1) }).await;
    let address = cluster.workers[0].data_plane.clone().expect("a listener");
    let trust = berth_net::Trust::client(cluster.certificates().ca().certificate);
    let dialer = berth_net::Dialer::new(&address, Some(trust)).unwrap();
    let mut health =
        tonic_health::pb::health_client::HealthClient::new(dialer.connect().await.expect("over TLS"));
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("it answers");
    let plain = berth_net::Dialer::new(&address, None).unwrap().connect().await.expect("TCP");
    let mut health = tonic_health::pb::health_client::HealthClient::new(plain);
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect_err("not without");
    cluster.stop().await;
}

/// The commands themselves.
#[tokio::test]
async fn berth_tls_makes_shows_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls").display().to_string();
    let run = async |args: &[&str]| {
        let mut all = vec!["tls", "--dir", &tls];
        all.extend_from_slice(args);
        process::run("berth", &all, &[], b"").await
    };
    let wrong = run(&["init", "--host", "not a name"]).await;
    assert!(wrong.stderr.contains("neither a host's name") && wrong.stderr.contains("hint:"), "{wrong:?}");
    run(&["init", "--host", "berth.example.org", "--host", "10.9.8.7"]).await.ok();
    run(&["worker", "w-1"]).await.ok();
    let again = run(&["init"]).await;
    assert!(again.code == Some(1) && again.stderr.contains("there is a CA"), "{again:?}");
    let shown = run(&["show"]).await.ok();
    for seen in ["ca.pem", "berth.example.org", "10.9.8.7", "worker w-1", "good"] {
        assert!(shown.contains(seen), "{seen} is missing:\n{shown}");
    }
    let json = run(&["--format", "json", "show"]).await.ok();
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(rows.as_array().map(Vec::len), Some(3), "{json}");
    let nothing = process::run("berth", &["tls", "show", "--dir", "/nowhere"], &[], b"").await;
    assert!(nothing.code == Some(1) && nothing.stderr.contains("berth tls init"), "{nothing:?}");
}
