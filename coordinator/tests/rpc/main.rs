//! The coordinator over real loopback sockets, with workers that follow a script.

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod sessions;
mod workers;

use std::{sync::Arc, time::Duration};

use berth_coordinator::{Config, Coordinator, StartError, store::memory::MemoryStore};
use berth_proto::{
    Code, Reason, SessionId, TaskId,
    convert::duration_out,
    error::{detail_of, reason_of},
    v1::{self, coordinator_message::Message, worker_message},
};
use common::*;
use futures::StreamExt;

fn wanted() -> v1::CreateSessionRequest {
    v1::CreateSessionRequest::default()
}

fn waiting(seconds: u64) -> v1::CreateSessionRequest {
    v1::CreateSessionRequest { wait_for_place: Some(duration_out(Duration::from_secs(seconds))), ..wanted() }
}

async fn in_state(host: &Host, id: &str, state: v1::SessionState) -> v1::Session {
    let client = host.sessions().await;
    until(|| async {
        let session =
            client.clone().get_session(v1::GetSessionRequest { session_id: id.into() }).await.unwrap();
        let session = session.into_inner();
        (session.state == i32::from(state)).then_some(session)
    })
    .await
}
