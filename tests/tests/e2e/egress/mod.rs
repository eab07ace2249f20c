//! What sessions reach, and what they don't. The servers are on the test's own loopback: private, so that nothing gets
//! there but by an operator's exemption for exactly that host and port.

mod changes;
mod misuse;
pub mod origin;
pub mod packages;

use berth_proto::v1::{self, outcome::Kind};
use berth_tests::{Cluster, READY, Setup, skip, until};

use self::origin::Origin;
use crate::util::{run, state};

/// A fleet whose operator lets sessions that are allowed to reach `good.test`.
async fn fleet(sandbox: &str, origin: &Origin) -> Cluster {
    let mut setup = Setup::new(sandbox);
    let port = origin.port;
    setup.worker_env = vec![
        ("BERTH_EGRESS_EXEMPT".into(), format!("good.test:{port},also.test:{port}")),
        (
            "BERTH_EGRESS_HOSTS".into(),
            "good.test=127.0.0.1,also.test=127.0.0.1,private.test=10.1.2.3,mapped.test=::ffff:127.0.0.1,\
             nat64.test=64:ff9b::7f00:1,tunnel.test=2002:7f00:1::,metadata.test=169.254.169.254,\
             own.test=127.0.0.1"
                .into(),
        ),
    ];
    setup.coordinator_env = vec![("BERTH_PAUSED_TTL".into(), "1s".into())];
    Cluster::start(setup).await
}

/// A session that `berth create` makes with these options.
async fn create(cluster: &Cluster, options: &[&str]) -> String {
    let args: Vec<&str> = ["create"].into_iter().chain(options.iter().copied()).collect();
    cluster.berth(&args).await.ok().trim().to_owned()
}

/// What curl makes of a URL: the status, and what it says on its error stream.
async fn status(cluster: &Cluster, session: &str, url: &str) -> String {
    let line = format!(
        "curl -sS -g --noproxy '' -m 60 -o /dev/null -w '%{{http_code}} %{{http_connect}}' '{url}' 2>&1"
    );
    run(cluster, session, &line).await.0
}

/// Lines of a log that tell of a decision.
fn decisions(log: &str) -> Vec<serde_json::Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["target"] == "audit" && line["msg"] == "egress").collect()
}

async fn what_is_allowed_is_reached_and_nothing_else(sandbox: &str) {
    let origin = Origin::start().await;
    let cluster = fleet(sandbox, &origin).await;
    let port = origin.port;
    // The session's own rules for private addresses are none: those are the operator's to exempt.
    let rules = [
        "good.test",
        "private.test",
        "mapped.test",
        "nat64.test",
        "tunnel.test",
        "metadata.test",
        "own.test",
    ];
    let mut options: Vec<String> = rules.iter().map(|host| format!("--allow={host}:{port}")).collect();
    let ranges = ["127.0.0.0/8", "[::1]", "10.0.0.0/8", "169.254.169.254", "[64:ff9b::/96]", "localhost"];
    options.extend(ranges.iter().map(|range| format!("--allow={range}:{port}")));
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let session = create(&cluster, &options).await;

    let (hello, kind) = run(&cluster, &session, &format!("curl -sS http://good.test:{port}/x?y")).await;
    assert_eq!((hello.as_str(), kind), ("hello", Kind::Exited(0)));
    let heard = origin.take();
    assert!(
        heard.len() == 1 && heard[0].starts_with(&format!("GET /x?y HTTP/1.1\r\nHost: good.test:{port}\r\n"))
    );

    let private = [
        "private.test",
        "mapped.test",
        "nat64.test",
        "tunnel.test",
        "metadata.test",
        "own.test",
        "localhost",
        "127.0.0.1",
        "127.9.9.9",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.1.2.3",
        "169.254.169.254",
        "[64:ff9b::7f00:1]",
    ];
    for host in private {
        assert_eq!(status(&cluster, &session, &format!("http://{host}:{port}/")).await, "403 000", "{host}");
        let tunnel = status(&cluster, &session, &format!("https://{host}:{port}/")).await;
        assert!(tunnel.ends_with("000 403"), "{host}: {tunnel}");
    }
    for other in [format!("good.test:{}", port ^ 1), "other.test:80".into(), format!("also.test:{port}")] {
        assert_eq!(status(&cluster, &session, &format!("http://{other}/")).await, "403 000", "{other}");
    }
    assert!(origin.take().is_empty(), "nothing got there");
    // Past the proxy there is no network, as ever.
    let direct = format!(
        "python3 -c \"import socket; socket.create_connection(('{}', {port}), 5)\" 2>&1 | tail -1",
        "1.1.1.1"
    );
    assert!(run(&cluster, &session, &direct).await.0.contains("unreachable"));
    let names = "python3 -c \"import socket; socket.getaddrinfo('good.test', 80)\" 2>&1 | tail -1";
    assert!(run(&cluster, &session, names).await.0.contains("gaierror"), "no names are looked up inside");

    // Every decision is told by the worker, and in the coordinator's record.
    let own = decisions(&cluster.workers[0].process.log());
    let told = |host: &str, allowed: bool, why: &str| {
        let is = |line: &&serde_json::Value| {
            line["sessionId"] == session.as_str()
                && line["host"] == host
                && line["allowed"] == allowed
                && line["why"].as_str().is_some_and(|text| text.contains(why))
        };
        own.iter().filter(is).count()
    };
    assert_eq!(told("good.test", true, "allowed by good.test"), 1, "{own:?}");
    assert_eq!(told("private.test", false, "10.1.2.3 is a private network"), 2);
    assert_eq!(told("nat64.test", false, "NAT64"), 2);
    assert_eq!(told("tunnel.test", false, "6to4"), 2);
    assert_eq!(told("also.test", false, "no rule"), 1);
    let audit = ["audit", "--what", "egress", "--session", &session, "--limit", "1000", "--format", "json"];
    let (recorded, ended) = until(READY, "the coordinator to have recorded them", async || {
        let seen: Vec<serde_json::Value> = serde_json::from_str(&cluster.berth(&audit).await.ok()).ok()?;
        let (ended, seen): (Vec<_>, Vec<_>) = seen.into_iter().partition(|row| row["what"] == "egress ended");
        (seen.len() == own.len() && !ended.is_empty()).then_some((seen, ended))
    })
    .await;
    let outcomes = |outcome: &str| recorded.iter().filter(|record| record["outcome"] == outcome).count();
    let allowed = own.iter().filter(|line| line["allowed"] == true).count();
    assert_eq!((outcomes("allowed"), outcomes("denied")), (allowed, own.len() - allowed));
    // And how much went through of what was allowed, and of nothing else.
    let went = &ended[0]["details"];
    let bytes =
        |name: &str| went[name].as_str().and_then(|text| text.parse::<usize>().ok()).expect("a number");
    assert_eq!((ended.len(), &went["host"], &ended[0]["outcome"]), (1, &"good.test".into(), &"ended".into()));
    assert_eq!(bytes("sent"), heard[0].len(), "what the server heard: {:?}", heard[0]);
    assert!(bytes("received") > "hello".len() && went["seconds"].is_string(), "{went}");
    cluster.stop().await;
}

/// Red when `policy::refuses` finds nothing wrong with any address: 14 private places answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_what_is_allowed_is_reached_and_nothing_else() {
    if !skip::without_root("e2e native_what_is_allowed_is_reached_and_nothing_else") {
        what_is_allowed_is_reached_and_nothing_else("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_what_is_allowed_is_reached_and_nothing_else() {
    if !skip::without_docker("e2e docker_what_is_allowed_is_reached_and_nothing_else") {
        what_is_allowed_is_reached_and_nothing_else("docker").await;
    }
}

/// Whether anything listens on the proxy's usual port.
const LISTENS: &str = "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 3128), 5); print('open')\" \
    2>&1 | tail -1; env | grep -ci proxy";

async fn without_a_policy_nothing_listens(sandbox: &str) {
    let origin = Origin::start().await;
    let cluster = fleet(sandbox, &origin).await;
    let with = create(&cluster, &[&format!("--allow=good.test:{}", origin.port)]).await;
    let (none, other) = (create(&cluster, &[]).await, create(&cluster, &["--egress", "none"]).await);
    assert_eq!(run(&cluster, &with, LISTENS).await.0, "open\n6");
    for session in [&none, &other] {
        let (seen, _) = run(&cluster, session, LISTENS).await;
        assert!(seen.contains("refused") && seen.ends_with("\n0"), "{seen}");
    }
    // What it listens through is out of tasks' reach.
    let (seen, _) =
        run(&cluster, &with, "ls /.berth /.berth/run/net.sock 2>&1; ls -l /proc/1/fd 2>&1 | head -1").await;
    assert!(!seen.contains("agent.sock") && seen.contains("ermission denied"), "{seen}");
    // A neighbour's rules are its own.
    let also = create(&cluster, &["--allow=nowhere.test"]).await;
    let url = format!("http://good.test:{}/", origin.port);
    assert_eq!(status(&cluster, &also, &url).await, "403 000");
    assert_eq!(status(&cluster, &with, &url).await, "200 000");
    assert_eq!(origin.take().len(), 1);
    cluster.stop().await;
}

/// Red when the agent opens its door whatever it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_without_a_policy_nothing_listens() {
    if !skip::without_root("e2e native_without_a_policy_nothing_listens") {
        without_a_policy_nothing_listens("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_without_a_policy_nothing_listens() {
    if !skip::without_docker("e2e docker_without_a_policy_nothing_listens") {
        without_a_policy_nothing_listens("docker").await;
    }
}

/// `full` is the operator's to give, and it is any *public* address: not this machine's, and no private one.
/// Red when `refuses` in `egress` is `None` always, and when `policy::refuses` is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_is_the_operators_to_enable_and_never_private() {
    if skip::without_root("e2e full_is_the_operators_to_enable_and_never_private") {
        return;
    }
    let origin = Origin::start().await;
    let mut cluster = fleet("native", &origin).await;
    let session = create(&cluster, &["--egress", "none"]).await;
    for args in [&["create", "--egress", "full"][..], &["update", &session, "--egress", "full"]] {
        let refused = cluster.berth(args).await;
        assert_ne!(refused.code, Some(0));
        assert!(refused.stderr.contains("BERTH_EGRESS_FULL"), "{}", refused.stderr);
    }
    assert_eq!(state(&cluster, &session).await.egress.expect("it has one").preset, "none");
    let why = |cluster: &Cluster, index: usize| {
        let told = decisions(&cluster.workers[index].process.log());
        told.last().and_then(|line| line["why"].as_str().map(str::to_owned)).unwrap_or_default()
    };

    cluster.join("open", &[("BERTH_EGRESS_FULL", "true")]).await;
    cluster.workers_ready().await;
    // The one that gives it is found.
    let session = create(&cluster, &["--egress", "full"]).await;
    assert_eq!(state(&cluster, &session).await.worker_id, "open");
    let port = origin.port;
    let places = [
        ("private.test", "a private network"),
        ("own.test", "loopback"),
        // It is exempt for those whose rules name it, and this session's don't.
        ("good.test", "loopback"),
        ("203.0.113.9", "for documentation"),
    ];
    for (host, reason) in places {
        assert_eq!(status(&cluster, &session, &format!("http://{host}:{port}/")).await, "403 000", "{host}");
        assert!(why(&cluster, 1).contains(reason), "{host}: {}", why(&cluster, 1));
    }
    assert!(origin.take().is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_makes_no_sense_is_refused_by_name() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    for (args, words) in [
        (["create", "--egress", "all"], "none, packages, full"),
        (["create", "--allow", "https://a.example"], "port"),
        (["create", "--allow", "a.example:0"], "port"),
        (["create", "--allow", "0x7f.1"], "IPv4"),
        (["create", "--allow", "*"], "`*`"),
    ] {
        let refused = cluster.berth(&args).await;
        assert_eq!(refused.code, Some(2), "{args:?}");
        assert!(refused.stderr.contains(words), "{args:?}: {}", refused.stderr);
    }
    let egress = Some(v1::Egress { preset: "none".into(), allow: vec!["a b".into()] });
    let request = v1::CreateSessionRequest { egress: egress.clone(), ..Default::default() };
    let refused = cluster.sessions().create_session(request).await.expect_err("it is no host");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("egress.allow"), "{}", refused.message());
    let session_id = cluster.session().await.id;
    let request = v1::UpdateSessionRequest { session_id, egress, ..Default::default() };
    let refused = cluster.sessions().update_session(request).await.expect_err("it is no host");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    cluster.stop().await;
}
