//! What a task is given by name: where it finds it, and what comes of a name that leads nowhere.

use berth_proto::{
    error::{Reason, detail_of, reason_of},
    v1::{self, secret_value::Is},
};
use tonic::Code;

use crate::hop::{At, Hop, argv, gather};

fn wants(task: v1::TaskSpec, name: &str, env: &str) -> v1::TaskSpec {
    let mut task = task;
    task.secrets.push(v1::SecretUse { name: name.into(), env: env.into() });
    task
}

fn start(hop: &Hop, task: v1::TaskSpec, id: &str, secrets: Vec<v1::SecretValue>) -> v1::StartTaskRequest {
    v1::StartTaskRequest {
        session_id: hop.session.clone(),
        task: Some(task),
        request_id: id.into(),
        secrets,
        ..Default::default()
    }
}

pub async fn a_task_is_given_its_secrets(hop: &Hop) {
    let mut secrets = hop.secret("api-key", b"k3y").await;
    secrets.extend(hop.secret("raw", &[0, 255, b'\n']).await);
    let run = async |task: v1::TaskSpec| {
        let request = v1::RunRequest {
            session_id: hop.session.clone(),
            task: Some(task),
            secrets: secrets.clone(),
            ..Default::default()
        };
        gather(hop.tasks.clone().run(request).await.expect("it runs").into_inner()).await.expect("it ends")
    };
    let both = wants(wants(argv(&["env"]), "api-key", "KEY"), "api-key", "");
    let ran = run(both).await;
    assert!(ran.ok().lines().any(|line| line == "KEY=k3y"), "{:?}", ran.text());
    // What is shown of a task has the name and not the value.
    for task in [ran.started.expect("it began"), ran.ended.expect("it ended")] {
        let spec = task.spec.expect("it is told");
        assert_eq!(spec.secrets.len(), 2);
        assert!(spec.env.is_empty());
    }
    let ran = run(wants(argv(&["cat", "/run/secrets/raw"]), "raw", "")).await;
    assert_eq!(ran.stdout, [0, 255, b'\n'], "all bytes as they are");
    // Who asks for none is given none.
    let without = run(argv(&["env"])).await;
    assert!(!without.text().contains("k3y"), "{}", without.text());
    let gone = run(argv(&["cat", "/run/secrets/raw"])).await;
    assert_ne!(gone.outcome(), v1::outcome::Kind::Exited(0));
}

pub async fn a_secret_that_can_not_be_had_starts_nothing(hop: &Hop) {
    let task = || wants(argv(&["true"]), "no-such", "");
    let tasks = || hop.tasks.clone();
    let refused = async |request: v1::StartTaskRequest, why: &str| {
        let error = tasks().start_task(request).await.expect_err("it can't be given that");
        assert_eq!(
            (error.code(), reason_of(&error)),
            (Code::FailedPrecondition, Some(Reason::SecretUnusable))
        );
        assert_eq!(detail_of(&error, "secret").as_deref(), Some("no-such"), "{error:?}");
        assert!(error.message().contains("no-such") && error.message().contains(why), "{error:?}");
    };
    let why = if hop.at == At::Coordinator { "there is none" } else { "only the coordinator" };
    refused(start(hop, task(), "", Vec::new()), why).await;
    refused(start(hop, task(), "one", Vec::new()), why).await;
    if hop.at != At::Coordinator {
        let expired = Some(Is::Unusable("it has expired".to_owned()));
        let expired = vec![v1::SecretValue { name: "no-such".into(), is: expired }];
        refused(start(hop, task(), "one", expired), "it has expired").await;
    }
    let binary = hop.secret("no-such", &[0xff]).await;
    refused(start(hop, wants(argv(&["true"]), "no-such", "V"), "one", binary), "no text").await;
    let listed = v1::ListTasksRequest { session_id: hop.session.clone(), ..Default::default() };
    assert_eq!(tasks().list_tasks(listed).await.expect("a list").into_inner().tasks, [], "nothing ran");

    // The request id is as free as before; once it has started something, that is the answer, whatever the secret is now.
    let now_there = hop.secret("no-such", b"x").await;
    let started = tasks().start_task(start(hop, task(), "one", now_there)).await.expect("it is there");
    let id = started.into_inner().id;
    hop.done(&id).await;
    if hop.at == At::Coordinator {
        let removed = v1::DeleteSecretRequest { name: "no-such".into(), ..Default::default() };
        hop.secrets().delete_secret(removed).await.expect("it is removed");
    }
    let again = tasks().start_task(start(hop, task(), "one", Vec::new())).await.expect("the same task");
    assert_eq!(again.into_inner().id, id);
}

pub async fn what_is_asked_for_is_checked(hop: &Hop) {
    for (field, task) in [
        ("task.secrets.name", wants(argv(&["true"]), "../x", "")),
        ("task.secrets.name", wants(argv(&["true"]), "", "V")),
        ("task.secrets.env", wants(argv(&["true"]), "x", "A=B")),
        ("task.secrets", wants(wants(argv(&["true"]), "x", ""), "x", "")),
        ("task.secrets", (0..33).fold(argv(&["true"]), |task, n| wants(task, &format!("s{n}"), ""))),
    ] {
        let error = hop.try_run(task).await.expect_err(field);
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert_eq!(detail_of(&error, "field").as_deref(), Some(field), "{error:?}");
    }
    if hop.at == At::Coordinator {
        let value = v1::SecretValue { name: "x".into(), is: Some(Is::Value("forged".into())) };
        let forged = start(hop, wants(argv(&["true"]), "x", ""), "", vec![value]);
        let error = hop.tasks.clone().start_task(forged).await.expect_err("not a client's to say");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert_eq!(detail_of(&error, "field").as_deref(), Some("secrets"), "{error:?}");
    }
}
