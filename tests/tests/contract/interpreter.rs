//! Contexts: what one execution defines is there for the next, at every hop.

use berth_proto::{
    Reason,
    error::reason_of,
    v1::{self, ExecutionOutcome as Outcome, execute_event::Event},
};
use tonic::{Code, Status, Streaming};

use crate::hop::{DEADLINE, Hop, seconds};

/// Everything that came of an execution.
#[derive(Debug, Default)]
struct Ran {
    number: u64,
    stdout: Vec<u8>,
    result: Option<v1::MimeBundle>,
    error: Option<v1::ExecutionError>,
    ended: v1::ExecutionEnded,
}

impl Ran {
    fn value(&self) -> String {
        assert_eq!(self.ended.outcome(), Outcome::Ok, "{self:?}");
        let forms = &self.result.as_ref().expect("a result").data;
        let text = forms.iter().find(|form| form.r#type == "text/plain").expect("text");
        String::from_utf8(text.data.to_vec()).expect("UTF-8")
    }
}

async fn gather(mut stream: Streaming<v1::ExecuteEvent>) -> Result<Ran, Status> {
    let (mut ran, mut over) = (Ran::default(), false);
    loop {
        let message = tokio::time::timeout(DEADLINE, stream.message()).await.expect("an event in time")?;
        let Some(event) = message else { break };
        let event = event.event.expect("an event has a kind");
        assert!(!over, "an event after the end: {event:?}");
        match event {
            Event::Started(started) => ran.number = started.execution,
            Event::Stdout(chunk) => {
                assert_eq!(chunk.offset, ran.stdout.len() as u64, "a gap or a repetition");
                ran.stdout.extend_from_slice(&chunk.data);
            }
            Event::Result(bundle) => ran.result = Some(bundle),
            Event::Error(error) => ran.error = Some(error),
            Event::Ended(ended) => (ran.ended, over) = (ended, true),
            Event::Stderr(_) | Event::Display(_) | Event::Keepalive(_) => {}
        }
        assert!(ran.number > 0, "`started` comes first");
    }
    assert!(over, "the stream ended before the execution");
    Ok(ran)
}

fn create(hop: &Hop) -> v1::CreateContextRequest {
    // The one that there is wherever Python is.
    v1::CreateContextRequest {
        session_id: hop.session.clone(),
        kernel: v1::Kernel::Builtin.into(),
        ..Default::default()
    }
}

fn code(hop: &Hop, context: &str, code: &str) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        session_id: hop.session.clone(),
        context_id: context.to_owned(),
        code: code.to_owned(),
        ..Default::default()
    }
}

async fn execute(hop: &Hop, request: v1::ExecuteRequest) -> Result<Ran, Status> {
    gather(hop.interpreter.clone().execute(request).await?.into_inner()).await
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: Reason) {
    let status = answer.expect_err("it is refused");
    assert_eq!((status.code(), reason_of(&status)), (code, Some(reason)), "{status:?}");
}

pub async fn a_context_remembers(hop: &Hop) {
    let mut interpreter = hop.interpreter.clone();
    let context = interpreter.create_context(create(hop)).await.expect("a context").into_inner();
    assert_eq!((context.kernel(), context.state()), (v1::Kernel::Builtin, v1::ContextState::Idle));
    let ran = execute(hop, code(hop, &context.id, "x = 20; print('out')")).await.unwrap();
    assert_eq!((ran.number, &ran.stdout[..], ran.result), (1, &b"out\n"[..], None));
    assert_eq!(execute(hop, code(hop, &context.id, "x * 2 + 2")).await.unwrap().value(), "42");
    let ran = execute(hop, code(hop, &context.id, "1 / 0")).await.unwrap();
    assert_eq!(ran.ended.outcome(), Outcome::Error);
    let error = ran.error.expect("an error");
    assert!(error.name == "ZeroDivisionError" && error.traceback.contains("1 / 0"), "{error:?}");
    let long =
        v1::ExecuteRequest { timeout: seconds(1), ..code(hop, &context.id, "import time; time.sleep(1000)") };
    assert_eq!(execute(hop, long).await.unwrap().ended.outcome(), Outcome::TimedOut);
    // The newest execution can be watched from its beginning.
    let watch = v1::WatchExecutionRequest {
        session_id: hop.session.clone(),
        context_id: context.id.clone(),
        execution: 0,
    };
    let again = gather(interpreter.watch_execution(watch).await.unwrap().into_inner()).await.unwrap();
    assert_eq!((again.number, again.ended.outcome()), (4, Outcome::TimedOut));
    let list = v1::ListContextsRequest { session_id: hop.session.clone() };
    let listed = interpreter.list_contexts(list.clone()).await.unwrap().into_inner().contexts;
    assert_eq!(listed.iter().map(|c| (&c.id, c.executions)).collect::<Vec<_>>(), [(&context.id, 4)]);
    let restart =
        v1::RestartContextRequest { session_id: hop.session.clone(), context_id: context.id.clone() };
    let anew = interpreter.restart_context(restart).await.expect("it comes up").into_inner();
    assert_eq!((&anew.id, anew.state()), (&context.id, v1::ContextState::Idle));
    let ran = execute(hop, code(hop, &context.id, "x")).await.unwrap();
    assert_eq!(ran.error.expect("an error").name, "NameError", "what it had defined is gone");
    let delete = v1::DeleteContextRequest { session_id: hop.session.clone(), context_id: context.id.clone() };
    interpreter.delete_context(delete).await.expect("it is deleted");
    assert!(interpreter.list_contexts(list).await.unwrap().into_inner().contexts.is_empty());
    refused(execute(hop, code(hop, &context.id, "1")).await, Code::NotFound, Reason::ContextNotFound);
}

pub async fn an_interrupt_ends_an_execution_and_its_loss_a_context(hop: &Hop) {
    let mut interpreter = hop.interpreter.clone();
    let context = interpreter.create_context(create(hop)).await.expect("a context").into_inner().id;
    let endless =
        code(hop, &context, "import time\nprint('ready', flush=True)\nwhile True: time.sleep(1000)");
    let mut stream = interpreter.execute(endless).await.expect("it runs").into_inner();
    loop {
        let event = stream.message().await.unwrap().expect("it goes on").event;
        if matches!(event, Some(Event::Stdout(_))) {
            break;
        }
    }
    let interrupt = v1::InterruptContextRequest {
        session_id: hop.session.clone(),
        context_id: context.clone(),
        execution: 0,
    };
    let told = interpreter.interrupt_context(interrupt.clone()).await.unwrap().into_inner();
    assert_eq!(told.execution, 1);
    let mut last = None;
    while let Some(event) = stream.message().await.unwrap() {
        last = event.event;
    }
    let Some(Event::Ended(ended)) = last else { panic!("{last:?}") };
    assert_eq!(ended.outcome(), Outcome::Interrupted);
    assert_eq!(interpreter.interrupt_context(interrupt).await.unwrap().into_inner().execution, 0);
    let ran = execute(hop, code(hop, &context, "import os; os._exit(3)")).await.unwrap();
    assert_eq!(ran.ended.outcome(), Outcome::Died);
    assert!(ran.ended.message.contains("exited with 3"), "{:?}", ran.ended);
    refused(execute(hop, code(hop, &context, "1")).await, Code::FailedPrecondition, Reason::ContextDead);
    // What can't be had is told.
    let odd = v1::CreateContextRequest { executable: "no-such-python".into(), ..create(hop) };
    refused(interpreter.create_context(odd).await, Code::FailedPrecondition, Reason::InterpreterMissing);
    let odd = v1::CreateContextRequest { language: "cobol".into(), ..create(hop) };
    refused(interpreter.create_context(odd).await, Code::Unimplemented, Reason::Unsupported);
    let odd = v1::CreateContextRequest { cwd: "nowhere".into(), ..create(hop) };
    refused(interpreter.create_context(odd).await, Code::FailedPrecondition, Reason::CwdNotFound);
}

pub async fn a_fake_sandbox_has_no_interpreter(hop: &Hop) {
    let mut interpreter = hop.interpreter.clone();
    refused(interpreter.create_context(create(hop)).await, Code::Unimplemented, Reason::Unsupported);
    let list = v1::ListContextsRequest { session_id: hop.session.clone() };
    refused(interpreter.list_contexts(list).await, Code::Unimplemented, Reason::Unsupported);
    let context = "0".repeat(32);
    refused(execute(hop, code(hop, &context, "1")).await, Code::Unimplemented, Reason::Unsupported);
}
