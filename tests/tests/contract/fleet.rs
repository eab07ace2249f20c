//! The same contract on the fleet of docker-compose.yml, as it is shipped: components in containers, TLS, tokens, sandboxes
//! beside them on the engine. `make docker-test` runs this against the fleet that it has started; else one is started here.

use std::panic::AssertUnwindSafe;

use berth_tests::{
    containers::{Fleet, docker, said},
    skip,
};
use futures::{FutureExt, StreamExt, future::LocalBoxFuture};
use serde_json::Value;

use crate::hop::Hop;

type Case = for<'a> fn(&'a Hop) -> LocalBoxFuture<'a, ()>;

macro_rules! listed {
    ($($module:ident::$case:ident),* $(,)?) => {
        &[$((stringify!($case), |hop| Box::pin(crate::$module::$case(hop)))),*]
    };
}

const CASES: &[(&str, Case)] = of_real_backends!(listed!());
/// At a time: the two workers have places for ten.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_on_a_fleet_of_compose() {
    let test = "contract the_contract_holds_on_a_fleet_of_compose";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let fleet = Fleet::running().unwrap_or_else(|| {
        let mut fleet = Fleet::new();
        fleet.free();
        fleet.ok(&["up-multi"]);
        fleet
    });
    let (channel, token) = (fleet.channel().await, fleet.token());
    let failed = futures::stream::iter(CASES)
        .map(async |(name, case)| {
            let hop = Hop::on(channel.clone(), &token, "docker").await;
            // What is wrong of one is told of that one, and the others go on.
            let held = AssertUnwindSafe(case(&hop)).catch_unwind().await.is_ok();
            hop.stop().await;
            (!held).then_some(*name)
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |failed| failed)
        .collect::<Vec<_>>()
        .await;
    assert_eq!(failed, [] as [&str; 0], "of {} cases", CASES.len());

    let mut ends = 0;
    for service in ["coordinator", "worker-1", "worker-2"] {
        let log = said(&docker(&["logs", &fleet.container(service)]));
        assert!(!log.is_empty(), "{service} has said nothing");
        ends += log.lines().filter(|line| is_end_of_a_task(service, line)).count();
    }
    assert!(ends > CASES.len() / 2, "ends of tasks are told: {ends}");
}

/// Each line is an object that says when, how bad and what.
fn is_end_of_a_task(service: &str, line: &str) -> bool {
    let told: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{service}: {error}: {line}"));
    for field in ["timestamp", "level", "msg"] {
        assert!(told[field].is_string(), "{service}: {field}: {line}");
    }
    told["msg"] == "a task ended"
        && told["taskId"].is_string()
        && told["duration"].is_f64()
        && told["status"].is_string()
}
