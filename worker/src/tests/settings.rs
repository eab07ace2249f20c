//! What a worker's own settings change: templates that it can serve, and defaults of tasks.

use std::time::Duration;

use berth_proto::{
    SessionId,
    domain::{Placement, PtySize, TaskDefaults},
    v1::{self, coordinator_message::Message as Command},
};

use super::script::Rig;
use crate::{StartError, Worker, sessions::record};

fn template(name: &str, backend: &str) -> v1::TemplateSpec {
    v1::TemplateSpec { name: name.into(), backend: backend.into(), user: "user".into(), ..Default::default() }
}

#[tokio::test]
async fn templates_that_can_not_be_served_are_told_with_the_reason() {
    let rig = Rig::new().await;
    rig.script.manners(|manners| {
        manners.templates = vec![
            template("base", "auto"),
            template("elsewhere", "docker"),
            template("odd", "no-such-backend"),
        ];
    });
    let worker = rig.start().await;
    rig.script.ready().await;
    let beat = rig.script.look(|seen| seen.beats.last().cloned().unwrap());
    assert_eq!(beat.templates, ["base"]);
    let reason = |name: &str| {
        let problem = beat.template_problems.iter().find(|problem| problem.name == name);
        problem
            .unwrap_or_else(|| panic!("{name} is not told of: {:?}", beat.template_problems))
            .reason
            .clone()
    };
    assert!(reason("elsewhere").contains("docker"), "{}", reason("elsewhere"));
    assert!(reason("odd").contains("no-such-backend"), "{}", reason("odd"));
    assert_eq!(beat.template_problems.len(), 2);
    // A link that is made anew begins with what is known.
    rig.script.hang_up();
    let hello = rig.script.until("a second hello", |seen| seen.hellos.get(1).cloned()).await;
    assert_eq!((hello.templates.len(), hello.template_problems.len()), (1, 2));
    worker.shutdown().await;
}

#[tokio::test]
async fn the_first_report_of_a_ready_worker_names_its_templates() {
    let rig = Rig::new().await;
    rig.backend.faults(|faults| faults.serve_delay = Duration::from_millis(300));
    let worker = rig.start().await;
    rig.script
        .until("a beat that waits for the templates", |seen| {
            seen.health().filter(|health| health.reason.contains("templates")).map(|_| ())
        })
        .await;
    assert!(!worker.status().ready, "nor does the ready file come before");
    rig.script.ready().await;
    rig.script.look(|seen| {
        let first = seen.beats.iter().find(|beat| beat.health.as_ref().is_some_and(|health| health.ready));
        assert_eq!(first.unwrap().templates, ["base"]);
    });
    worker.shutdown().await;
}

/// The task defaults that a session starts with, when its placement says `wanted`.
async fn defaults_of(rig: &Rig, wanted: Option<v1::TaskDefaults>) -> TaskDefaults {
    let session = SessionId::new();
    let mut wire = v1::PlaceSession::from(record::sample(session));
    wire.task_defaults = wanted;
    rig.script.send(Command::Place(wire)).await;
    rig.script.state(session, v1::SessionState::Ready).await;
    let dirs =
        crate::sandbox::SessionDirs { root: rig.temp.path().join("sessions").join(session.to_string()) };
    match record::read(session, &dirs) {
        record::Found::Session { placement, .. } => {
            let Placement { task_defaults, .. } = *placement;
            task_defaults.over(TaskDefaults::default())
        }
        other => panic!("{other:?}"),
    }
}

/// Task, session and template go before it (the first in the agent, the others come with the placement); what
/// is built in comes after it.
#[tokio::test]
async fn the_workers_task_defaults_fill_what_a_placement_leaves_out() {
    let rig = Rig::new().await;
    let own = TaskDefaults {
        timeout: Some(Duration::from_secs(7)),
        pty_size: PtySize { cols: 99, rows: 33 },
        max_concurrent: 3,
    };
    let worker = rig.start_with(|config| config.task_defaults = own).await;
    rig.script.ready().await;
    assert_eq!(defaults_of(&rig, None).await, own);
    let placed = v1::TaskDefaults { max_concurrent: Some(5), ..Default::default() };
    assert_eq!(defaults_of(&rig, Some(placed)).await, TaskDefaults { max_concurrent: 5, ..own });
    let none = v1::TaskDefaults { timeout: Some(Default::default()), ..Default::default() };
    assert_eq!(defaults_of(&rig, Some(none)).await, TaskDefaults { timeout: None, ..own });
    worker.shutdown().await;

    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    assert_eq!(defaults_of(&rig, None).await, TaskDefaults::default());
    worker.shutdown().await;
}

#[tokio::test]
async fn a_listener_beyond_loopback_is_refused_before_anything_is_touched() {
    let rig = Rig::new().await;
    let state = rig.temp.path().join("not-made");
    let mut config = rig.config();
    config.state_dir.clone_from(&state);
    config.data_listen = Some("0.0.0.0:0".parse().unwrap());
    let error = Worker::start(config).await.err().expect("it can be reached from elsewhere");
    assert!(matches!(error, StartError::Exposed { .. }), "{error}");
    assert!(!state.exists());
}
