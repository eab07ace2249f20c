//! The fence: a session whose worker may have lost it stands still by itself.

use std::{fs, time::Duration};

use berth_proto::{
    Reason,
    v1::{self, outcome::Kind},
};
use tonic::Code;

use crate::rig::{Rig, argv, refused, secs, sh, skip, until};

fn fence(within: f64) -> Option<v1::Fence> {
    Some(v1::Fence { within: secs(within), as_of_boot_ns: 0 })
}

async fn fenced_in(rig: &Rig, within: f64) {
    let request = v1::RenewRequest { epoch: 1, fence: fence(within) };
    rig.agent.clone().renew(request).await.unwrap();
}

fn beat(rig: &Rig) -> String {
    fs::read_to_string(rig.workspace("beat")).unwrap_or_default()
}

/// The worker is not asked: it may be stopped, dead, or on the other side of a cut. Without the agent's own deadline
/// the task would beat on for ever. Red when the fence is never passed, any epoch confirms it, tasks start behind it,
/// or nothing thaws them.
#[tokio::test]
async fn tasks_freeze_at_the_fence_and_thaw_when_confirmed() {
    let name = "tasks_freeze_at_the_fence_and_thaw_when_confirmed";
    let Some(rig) = Rig::start(name).await else { return };
    if rig.config.cgroups.v2.is_none() {
        return skip(name, "no cgroup v2 mount");
    }
    let task = rig.begin(sh("while :; do date +%s%N > beat; sleep 0.005; done")).await;
    rig.file("beat").await;
    fenced_in(&rig, 0.1).await;
    until("it is refused", || {
        let frozen = fs::read_to_string(rig.config.cgroups.v2.as_ref()?.join("t/cgroup.events")).ok()?;
        frozen.contains("frozen 1").then_some(())
    })
    .await;
    let still = beat(&rig);
    refused(rig.begin_with(argv(&["true"]), "").await, Code::Unavailable, Reason::SessionFenced);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(beat(&rig), still, "it runs on");
    // Another placement is no confirmation.
    let other = v1::RenewRequest { epoch: 2, fence: fence(60.0) };
    refused(rig.agent.clone().renew(other).await, Code::FailedPrecondition, Reason::StaleEpoch);
    assert_eq!(beat(&rig), still);

    let request = v1::RenewRequest { epoch: 1, fence: fence(60.0) };
    assert!(rig.agent.clone().renew(request).await.unwrap().into_inner().was_fenced);
    until("it beats again", || (beat(&rig) != still).then_some(())).await;
    assert_eq!(rig.get(&task).await.state(), v1::TaskState::Running);
    assert_eq!(rig.run(sh("true")).await.outcome(), Kind::Exited(0));
}

/// Red when only the first fence counts.
#[tokio::test]
async fn renewals_put_the_fence_off() {
    let name = "renewals_put_the_fence_off";
    let Some(rig) = Rig::start(name).await else { return };
    rig.begin(sh("while :; do date +%s%N > beat; sleep 0.005; done")).await;
    rig.file("beat").await;
    let put_off = async || {
        let request = v1::RenewRequest { epoch: 1, fence: fence(60.0) };
        rig.agent.clone().renew(request).await.unwrap().into_inner().was_fenced
    };
    let soon = Duration::from_millis(500);
    fenced_in(&rig, soon.as_secs_f64()).await;
    // On a machine that stands still it may be passed before it could be put off.
    while put_off().await {
        fenced_in(&rig, soon.as_secs_f64()).await;
    }
    tokio::time::sleep(soon + Duration::from_millis(100)).await;
    assert!(!put_off().await);
}

/// By then a fence that was a moment off is passed, and was acted on: nothing tells of that while the session is paused.
const PASSED: Duration = Duration::from_secs(2);

/// Who holds the tasks is counted apart: the end of one hold is not the end of another. Red when the end of either hold
/// is the end of the other.
#[tokio::test]
async fn a_pause_outlasts_the_fence_and_the_fence_a_pause() {
    let name = "a_pause_outlasts_the_fence_and_the_fence_a_pause";
    let Some(mut rig) = Rig::start(name).await else { return };
    if rig.config.cgroups.v2.is_none() {
        return skip(name, "no cgroup v2 mount");
    }
    rig.begin(sh("while :; do date +%s%N > beat; sleep 0.005; done")).await;
    rig.file("beat").await;
    rig.agent.freeze(v1::FreezeRequest { frozen: true }).await.unwrap();
    fenced_in(&rig, 0.01).await;
    tokio::time::sleep(PASSED).await;
    fenced_in(&rig, 60.0).await;
    let still = beat(&rig);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(beat(&rig), still, "the pause stands");
    refused(rig.begin_with(argv(&["true"]), "").await, Code::FailedPrecondition, Reason::SessionPaused);

    fenced_in(&rig, 0.01).await;
    tokio::time::sleep(PASSED).await;
    rig.agent.freeze(v1::FreezeRequest { frozen: false }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(beat(&rig), still, "the fence stands");
    fenced_in(&rig, 60.0).await;
    until("it beats again", || (beat(&rig) != still).then_some(())).await;
}

/// A worker that was stopped between reckoning and sending must not move the fence: only the moment counts that it
/// meant. (Take `as_of_boot_ns` out of the agent's sum, and the tasks go on for another minute.)
#[tokio::test]
async fn a_renewal_that_was_held_up_is_no_longer_one() {
    let name = "a_renewal_that_was_held_up_is_no_longer_one";
    let Some(rig) = Rig::start(name).await else { return };
    if rig.config.cgroups.v2.is_none() {
        return skip(name, "no cgroup v2 mount");
    }
    rig.begin(sh("while :; do date +%s%N > beat; sleep 0.005; done")).await;
    rig.file("beat").await;
    let old = Some(v1::Fence { within: secs(60.0), as_of_boot_ns: 1 });
    rig.agent.clone().renew(v1::RenewRequest { epoch: 1, fence: old }).await.unwrap();
    until("it stands still", || {
        let events = fs::read_to_string(rig.config.cgroups.v2.as_ref()?.join("t/cgroup.events")).ok()?;
        events.contains("frozen 1").then_some(())
    })
    .await;
}
