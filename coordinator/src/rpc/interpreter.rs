//! `InterpreterService`: all of it goes to the session's worker, by the relay that every hop uses. This hop adds what the audit
//! record says of it: which context, and what code (as it says what a task runs: by its hash, unless the operator wants more).

use berth_proto::{
    relay::{Relay, RelayStream},
    v1::{self, interpreter_service_server::InterpreterService},
};
use tonic::{Request, Response, Status};

use super::{Context, data::ToWorker};
use crate::audit::{about, about_program};

/// The service.
pub struct Interpreters {
    relay: Relay<ToWorker>,
}

impl Interpreters {
    pub fn new(context: Context) -> Self {
        Self { relay: Relay::new(ToWorker::new(context)) }
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
            type ExecuteStream = RelayStream<v1::ExecuteEvent>;
            type WatchExecutionStream = RelayStream<v1::ExecuteEvent>;

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
    execute: ExecuteRequest => Self::ExecuteStream,
    watch_execution: WatchExecutionRequest => Self::WatchExecutionStream,
    interrupt_context: InterruptContextRequest => v1::InterruptContextResponse,
    restart_context: RestartContextRequest => v1::InterpreterContext,
    delete_context: DeleteContextRequest => v1::DeleteContextResponse,
}
