//! `InterpreterService` of a fake machine: it has no interpreter, and says so. (A pretended one would be tested, and nothing
//! that is shipped.)

use std::pin::Pin;

use berth_proto::{
    Code, Error, Reason,
    v1::{self, interpreter_service_server::InterpreterService},
};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::agent::Served;

type Events = Pin<Box<dyn Stream<Item = Result<v1::ExecuteEvent, Status>> + Send>>;

macro_rules! not_here {
    ($($method:ident: $request:ident => $response:ty,)*) => {
        #[tonic::async_trait]
        impl InterpreterService for Served {
            type ExecuteStream = Events;
            type WatchExecutionStream = Events;

            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<$response>, Status> {
                let _call = self.0.enter(&request.get_ref().session_id)?;
                Err(Error::new(Code::Unimplemented, Reason::Unsupported, "a fake sandbox has no interpreter")
                    .hint("use a template of the native or docker backend")
                    .into())
            })*
        }
    };
}

not_here! {
    create_context: CreateContextRequest => v1::InterpreterContext,
    list_contexts: ListContextsRequest => v1::ListContextsResponse,
    execute: ExecuteRequest => Events,
    watch_execution: WatchExecutionRequest => Events,
    interrupt_context: InterruptContextRequest => v1::InterruptContextResponse,
    restart_context: RestartContextRequest => v1::InterpreterContext,
    delete_context: DeleteContextRequest => v1::DeleteContextResponse,
}
