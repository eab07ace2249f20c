//! A client that started us as its child: JSON-RPC, a message a line, on our standard input and output. Nothing else may
//! be written to standard output; logs go to standard error.
//!
//! The end of standard input is the end of the client. Calls that are under way then have five seconds to be answered
//! (the SDK's), so that `… | berth mcp` in a script gets its answers; after that they are cancelled, and so are the tasks
//! that they wait for. Then the client's sessions are ended.

use std::sync::Arc;

use rmcp::{
    service::{ServerInitializeError, serve_server_with_ct},
    transport::async_rw::AsyncRwTransport,
};
use tokio_util::sync::CancellationToken;

use super::{Server, Sessions};

/// Bytes of one message. Larger than what any tool takes (a file of 16 MiB in base64), so that who sends too much is
/// answered by the tool; beyond this a message is dropped, and the log says so.
const LONGEST_MESSAGE: usize = 64 << 20;

/// Serves one client until its input ends or `stop` is cancelled, and ends its sessions.
///
/// # Errors
/// When the client does not speak the protocol.
pub async fn serve(sessions: Arc<Sessions>, stop: CancellationToken) -> Result<(), String> {
    let served = converse(Server::new(Arc::clone(&sessions)), stop).await;
    sessions.end().await;
    served
}

async fn converse(server: Server, stop: CancellationToken) -> Result<(), String> {
    let transport = AsyncRwTransport::new_server(tokio::io::stdin(), tokio::io::stdout())
        .with_max_line_length(LONGEST_MESSAGE);
    match serve_server_with_ct::<_, _, std::io::Error, _>(server, transport, stop).await {
        Ok(running) => running.waiting().await.map(drop).map_err(|error| error.to_string()),
        // Gone before it said anything, or told to stop: nothing to tell.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
