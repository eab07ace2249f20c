//! Bad input, which every hop refuses in the same words.

use berth_proto::{
    SessionId, TaskId,
    error::{Reason, detail_of, reason_of},
    v1,
};
use tonic::Code;

use crate::hop::{At, Hop, argv};

pub async fn unknown_ids_are_not_found(hop: &Hop) {
    let ask =
        |session: &str, task: &str| v1::GetTaskRequest { session_id: session.into(), task_id: task.into() };
    let task = TaskId::new().to_string();
    for id in [task.as_str(), "", "nonsense", "00"] {
        let error = hop.tasks.clone().get_task(ask(&hop.session, id)).await.expect_err("no such task");
        assert_eq!((error.code(), reason_of(&error)), (Code::NotFound, Some(Reason::TaskNotFound)), "{id:?}");
    }
    let session = SessionId::new().to_string();
    for id in [session.as_str(), "", "../x", "default"] {
        let error = hop.tasks.clone().get_task(ask(id, &task)).await.expect_err("no such session");
        assert_eq!(
            (error.code(), reason_of(&error)),
            (Code::NotFound, Some(Reason::SessionNotFound)),
            "{id:?}"
        );
        let request = v1::StatRequest { session_id: id.into(), path: ".".into(), follow: false };
        let error = hop.files.clone().stat(request).await.expect_err("no such session");
        assert_eq!(error.code(), Code::NotFound, "{id:?}");
    }
}

pub async fn bad_tasks_are_refused(hop: &Hop) {
    let mut bad = vec![
        ("task.program", v1::TaskSpec::default()),
        ("task.argv", argv(&[])),
        ("task.argv", argv(&["a\0b"])),
        ("task.cwd", v1::TaskSpec { cwd: "a\0b".into(), ..argv(&["true"]) }),
        ("task.env", v1::TaskSpec { env: [("A=B".to_owned(), String::new())].into(), ..argv(&["true"]) }),
        (
            "task.timeout",
            v1::TaskSpec {
                timeout: Some(prost_types::Duration { seconds: -5, nanos: 0 }),
                ..argv(&["true"])
            },
        ),
    ];
    for (field, task) in bad.drain(..) {
        let error = hop.try_run(task).await.expect_err(field);
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error:?}");
        assert_eq!(detail_of(&error, "field").as_deref(), Some(field), "{error:?}");
    }
    if hop.backend != "fake" {
        let error = hop
            .try_run(v1::TaskSpec { cwd: "/no/such/place".into(), ..argv(&["true"]) })
            .await
            .expect_err("no such directory");
        assert_eq!((error.code(), reason_of(&error)), (Code::FailedPrecondition, Some(Reason::CwdNotFound)));
        assert!(error.message().contains("/no/such/place"), "{error:?}");
    }
    // Nothing was started.
    let request =
        v1::ListTasksRequest { session_id: hop.session.clone(), running_only: true, ..Default::default() };
    assert_eq!(hop.tasks.clone().list_tasks(request).await.unwrap().into_inner().tasks, []);
}

pub async fn a_ten_mebibyte_message_is_refused_and_the_connection_lives(hop: &Hop) {
    let task = hop.start_task(v1::TaskSpec { stdin: true, ..argv(&["cat"]) }).await;
    let request = v1::WriteStdinRequest {
        session_id: hop.session.clone(),
        task_id: task.id,
        offset: None,
        data: vec![b'x'; 10 << 20].into(),
    };
    let error = hop.tasks.clone().write_stdin(request).await.expect_err("it is too large");
    assert!(matches!(error.code(), Code::OutOfRange | Code::ResourceExhausted), "{error:?}");
    // Beyond the first hop there is room for what that adds.
    let limit = if hop.at == At::Coordinator { "2097152" } else { "4194304" };
    assert!(error.message().contains(limit), "it says the limit: {error:?}");
    assert_eq!(hop.run(argv(&["echo", "alive"])).await.ok(), "alive");
}
