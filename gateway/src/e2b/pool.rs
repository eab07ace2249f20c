//! Connections to the coordinator. Calls of all callers share them, each call with its caller's own token.
//!
//! A connection carries so many calls at once (`CLIENT_STREAMS`), and a stream of a task's output is a call for as long as
//! the task runs. So each call takes the connection with the fewest, and another one is opened before it is full.

use std::sync::{Arc, Mutex, PoisonError};

use berth_client::{Client, ConnectOptions, Error};

use super::problem::Problem;

/// Calls on one connection: half of what it can carry, since a call here may be two there.
const CALLS: usize = 64;
/// Connections at most. Beyond that calls share them, and wait for each other.
const CONNECTIONS: usize = 64;

/// See the module.
pub struct Pool {
    options: ConnectOptions,
    open: Mutex<Vec<Arc<Client>>>,
}

/// A client for a call, or for some.
pub struct Lease {
    client: Client,
    /// Counts.
    _place: Arc<Client>,
}

impl std::ops::Deref for Lease {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Pool {
    /// Connects to what `options` name, with whatever token a call brings.
    pub fn new(options: ConnectOptions) -> Self {
        Self { options: ConnectOptions { token: None, ..options }, open: Mutex::default() }
    }

    /// A client that calls with this token.
    pub async fn client(&self, token: &str) -> Result<Lease, Problem> {
        let place = match self.free() {
            Some(place) => place,
            None => {
                let fresh = Arc::new(Client::connect(self.options.clone()).await.map_err(unreachable)?);
                self.open.lock().unwrap_or_else(PoisonError::into_inner).push(fresh.clone());
                fresh
            }
        };
        let client = place.with_token(token).map_err(|error| Problem::unauthenticated(error.message()))?;
        Ok(Lease { client, _place: place })
    }

    /// The one with the fewest calls, if it has room or must have. Those that nobody uses are closed, but for one.
    fn free(&self) -> Option<Arc<Client>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = false;
        open.retain(|place| Arc::strong_count(place) > 1 || !std::mem::replace(&mut kept, true));
        let least = open.iter().min_by_key(|place| Arc::strong_count(place))?;
        (Arc::strong_count(least) <= CALLS || open.len() >= CONNECTIONS).then(|| least.clone())
    }
}

/// The client library's hints here are for the operator, who reads the log.
fn unreachable(error: Error) -> Problem {
    tracing::warn!(%error, "the gateway can't reach the coordinator");
    Problem::unavailable("Berth's coordinator can't be reached now: try again in a moment")
}
