//! `InterpreterService`: all of it goes to the session's worker, by the relay that every hop uses. This hop adds what the audit
//! record says of it: which context, and what code (as it says what a task runs: by its hash, unless the operator wants more);
//! and it sees the end of code go by, so that what that left in `/workspace/artifacts` is kept.

use std::{pin::Pin, sync::Arc};

use berth_proto::{
    relay::{Relay, RelayStream},
    v1::{self, execute_event::Event, interpreter_service_server::InterpreterService},
};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::{Context, data::ToWorker};
use crate::{
    artifacts::Artifacts,
    audit::{about, about_program},
};

/// The service.
pub struct Interpreters {
    relay: Relay<ToWorker>,
    artifacts: Arc<Artifacts>,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::ExecuteEvent, Status>> + Send>>;

impl Interpreters {
    pub fn new(context: Context) -> Self {
        let artifacts = context.artifacts.clone();
        Self { relay: Relay::new(ToWorker::new(context)), artifacts }
    }

    /// The events of code, whose end is heard here too.
    fn heard(&self, session: &str, events: RelayStream<v1::ExecuteEvent>) -> Events {
        let Ok(session) = session.parse() else { return Box::pin(events) };
        let mut code = self.artifacts.code(session);
        Box::pin(events.inspect(move |event| {
            if matches!(event, Ok(v1::ExecuteEvent { event: Some(Event::Ended(_)) })) {
                code.ended();
            }
        }))
    }
}

/// What a request says for the audit record.
trait Noted {
    fn noted(&self) {}
}

impl Noted for v1::CreateContextRequest {}
impl Noted for v1::ListContextsRequest {}

macro_rules! of_context {
    ($($request:ident)*) => { $(impl Noted for v1::$request {
        fn noted(&self) {
            about("context", &self.context_id);
        }
    })* };
}
of_context!(WatchExecutionRequest InterruptContextRequest RestartContextRequest DeleteContextRequest);

impl Noted for v1::ExecuteRequest {
    fn noted(&self) {
        about("context", &self.context_id);
        let args = vec!["python".to_owned(), "-c".to_owned(), self.code.clone()];
        let program = Some(v1::task_spec::Program::Argv(v1::Argv { args }));
        about_program(Some(&v1::TaskSpec { program, ..Default::default() }));
    }
}

macro_rules! passed_on {
    ($($method:ident: $request:ident => $response:ty,)*) => {
        #[tonic::async_trait]
        impl InterpreterService for Interpreters {
            type ExecuteStream = Events;
            type WatchExecutionStream = Events;

            async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Result<Response<Events>, Status> {
                request.get_ref().noted();
                let session = request.get_ref().session_id.clone();
                let answer = self.relay.execute(request).await?;
                Ok(answer.map(|events| self.heard(&session, events)))
            }

            async fn watch_execution(
                &self,
                request: Request<v1::WatchExecutionRequest>,
            ) -> Result<Response<Events>, Status> {
                request.get_ref().noted();
                let session = request.get_ref().session_id.clone();
                let answer = self.relay.watch_execution(request).await?;
                Ok(answer.map(|events| self.heard(&session, events)))
            }

            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<$response>, Status> {
                request.get_ref().noted();
                self.relay.$method(request).await
            })*
        }
    };
}

passed_on! {
    create_context: CreateContextRequest => v1::InterpreterContext,
    list_contexts: ListContextsRequest => v1::ListContextsResponse,
    interrupt_context: InterruptContextRequest => v1::InterruptContextResponse,
    restart_context: RestartContextRequest => v1::InterpreterContext,
    delete_context: DeleteContextRequest => v1::DeleteContextResponse,
}
