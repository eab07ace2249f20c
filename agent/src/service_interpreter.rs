//! InterpreterService, as the agent serves it: conversion; the rest is [`crate::interpreter`].

use std::{pin::Pin, sync::Arc};

use berth_proto::v1::{self, interpreter_service_server::InterpreterService};
use futures::Stream;
use tonic::{Request, Response, Status};

use crate::interpreter::Contexts;

/// The service.
pub struct InterpreterApi {
    pub contexts: Arc<Contexts>,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::ExecuteEvent, Status>> + Send>>;

#[tonic::async_trait]
impl InterpreterService for InterpreterApi {
    type ExecuteStream = Events;
    type WatchExecutionStream = Events;

    async fn create_context(
        &self,
        request: Request<v1::CreateContextRequest>,
    ) -> Result<Response<v1::InterpreterContext>, Status> {
        let _busy = self.contexts.busy();
        Ok(Response::new(self.contexts.create(request.into_inner()).await?))
    }

    async fn list_contexts(
        &self,
        request: Request<v1::ListContextsRequest>,
    ) -> Result<Response<v1::ListContextsResponse>, Status> {
        let _busy = self.contexts.busy();
        let contexts = self.contexts.list(&request.into_inner().session_id)?;
        Ok(Response::new(v1::ListContextsResponse { contexts }))
    }

    async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Result<Response<Events>, Status> {
        let busy = self.contexts.busy();
        let (record, started) = self.contexts.execute(request.into_inner()).await?;
        Ok(Response::new(Box::pin(record.watch(started, busy))))
    }

    async fn watch_execution(
        &self,
        request: Request<v1::WatchExecutionRequest>,
    ) -> Result<Response<Events>, Status> {
        let busy = self.contexts.busy();
        let (record, started) = self.contexts.execution(request.get_ref())?;
        Ok(Response::new(Box::pin(record.watch(started, busy))))
    }

    async fn interrupt_context(
        &self,
        request: Request<v1::InterruptContextRequest>,
    ) -> Result<Response<v1::InterruptContextResponse>, Status> {
        let _busy = self.contexts.busy();
        let request = request.into_inner();
        let v1::InterruptContextRequest { session_id, context_id, execution } = request;
        let execution = self.contexts.interrupt(&session_id, &context_id, execution)?;
        Ok(Response::new(v1::InterruptContextResponse { execution }))
    }

    async fn restart_context(
        &self,
        request: Request<v1::RestartContextRequest>,
    ) -> Result<Response<v1::InterpreterContext>, Status> {
        let _busy = self.contexts.busy();
        let request = request.into_inner();
        Ok(Response::new(self.contexts.restart(&request.session_id, &request.context_id).await?))
    }

    async fn delete_context(
        &self,
        request: Request<v1::DeleteContextRequest>,
    ) -> Result<Response<v1::DeleteContextResponse>, Status> {
        let _busy = self.contexts.busy();
        let request = request.into_inner();
        self.contexts.delete(&request.session_id, &request.context_id).await?;
        Ok(Response::new(v1::DeleteContextResponse {}))
    }
}
