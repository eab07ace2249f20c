//! Tokens, tenants and a worker's credential from the command line, against the shipped programs.

use berth_tests::{
    Cluster, Setup,
    process::{self, Finished},
};

struct Desk(Cluster);

impl Desk {
    /// `berth` with this token.
    async fn berth(&self, token: &str, args: &[&str]) -> Finished {
        let env = [("BERTH_ADDRESS", self.0.address.as_str()), ("BERTH_TOKEN", token)];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        process::run("berth", args, &env, b"").await
    }

    async fn told(&self, token: &str, args: &[&str]) -> String {
        self.berth(token, args).await.ok().trim().to_owned()
    }

    async fn refused(&self, token: &str, args: &[&str]) -> String {
        let finished = self.berth(token, args).await;
        assert_ne!(finished.code, Some(0), "{args:?}");
        assert!(finished.stderr.contains("hint: "), "{}", finished.stderr);
        finished.stderr
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_works_with_its_token_until_that_is_revoked() {
    let desk = Desk(Cluster::start(Setup::new("fake")).await);
    let admin = desk.0.admin_token.clone();
    let token = desk.told(&admin, &["token", "create", "--tenant", "team-a", "--name", "ci"]).await;
    assert!(token.starts_with("berth_client_"), "the token alone");
    let other = desk.told(&admin, &["token", "create", "--tenant", "team-b"]).await;
    let session = desk.told(&token, &["create", "--name", "box"]).await;
    assert_eq!(desk.told(&token, &["run", "-s", "box", "--", "echo", "hello"]).await, "hello");
    assert_eq!(desk.told(&other, &["ps", "-q"]).await, "");
    for args in [&["run", "-s", &session, "--", "true"][..], &["rm", &session], &["tasks", &session]] {
        assert!(desk.refused(&other, args).await.contains("no session"), "{args:?}");
    }
    assert!(desk.told(&admin, &["ps", "-q"]).await.contains(&session), "an operator sees it");
    // Whose each is is told where there are several.
    assert!(!desk.told(&admin, &["ps"]).await.contains("TENANT"));
    let others = desk.told(&other, &["create"]).await;
    for (token, of) in [(&token, &session), (&other, &others)] {
        desk.told(token, &["checkpoint", of]).await;
    }
    for listing in [&["ps"][..], &["checkpoint", "list"]] {
        let listed = desk.told(&admin, listing).await;
        let of = |tenant: &str| listed.lines().filter(|line| line.contains(tenant)).count();
        assert!(listed.contains("TENANT") && of("team-a") == 1 && of("team-b") == 1, "{listed}");
    }
    assert!(!desk.told(&token, &["checkpoint", "list"]).await.contains("TENANT"));
    // What is an operator's is not a tenant's.
    for args in [&["workers"][..], &["token", "list"], &["tenant", "list"], &["drain", "worker-1"]] {
        assert!(desk.refused(&token, args).await.contains("its scope is client"), "{args:?}");
    }
    desk.told(&admin, &["tenant", "set", "team-a", "--max-sessions", "1"]).await;
    let full = desk.refused(&token, &["create"]).await;
    assert!(full.contains("tenant team-a has 1 of 1 sessions"), "{full}");
    assert!(full.contains("berth tenant set team-a --max-sessions"), "{full}");
    let listed = desk.told(&admin, &["token", "list"]).await;
    let line = listed.lines().find(|line| line.contains("ci")).expect("it is listed");
    assert!(!listed.contains(&token["berth_client_".len()..]), "not the token itself");
    desk.told(&admin, &["token", "revoke", line.split_whitespace().next().unwrap()]).await;
    assert!(desk.refused(&token, &["ps"]).await.contains("the token was revoked"));
    desk.0.stop().await;
}

/// The worker's process is started again without its token: it has a credential.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_joins_with_a_token_for_one_and_comes_back_without_it() {
    let mut desk = Desk(Cluster::start(Setup::new("fake")).await);
    let admin = desk.0.admin_token.clone();
    let join = desk.told(&admin, &["token", "create", "--scope", "worker", "--uses", "1"]).await;
    let file = desk.0.dir.path().join("one.token");
    std::fs::write(&file, format!("{join}\n")).unwrap();
    let shown = file.to_str().unwrap().to_owned();
    desk.0.join("own", &[("BERTH_JOIN_TOKEN_FILE", &shown)]).await;
    desk.0.workers_ready().await;
    let state = desk.0.workers.last().unwrap().state.clone();
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(state.join("credential")).expect("it has one").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let listed = desk.told(&admin, &["token", "list"]).await;
    assert!(listed.contains("worker own"), "{listed}");
    // The token is used up: the next start lives by the credential.
    std::fs::write(&file, "berth_join_spent\n").unwrap();
    let last = desk.0.workers.len() - 1;
    desk.0.workers[last].process.terminate().await;
    desk.0.restart_worker(last);
    desk.0.workers_ready().await;
    desk.0.stop().await;
}
