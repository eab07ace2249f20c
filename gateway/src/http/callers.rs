//! Who calls: tokens, what is known of them, and how much is under way for each.
//!
//! A token is good if the coordinator says so. It is asked by a call that changes nothing, and a good answer holds for a
//! moment, so that a client with many requests does not cost two calls for each. Nothing rests on that moment: each call
//! that is made for a client goes to the coordinator with its token, and is refused there once that is revoked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_client::{Client, Code, ListOptions, NAME_LABEL};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Body, plain, unauthorized};
use crate::mcp::Connect;

/// Makes the way to the coordinator for a token.
pub type Dial = Arc<dyn Fn(String) -> Connect + Send + Sync>;

/// Requests at once of one token, streams of events among them.
pub const REQUESTS: usize = 512;
/// And requests at once to servers in its sessions: a crowd that comes to one takes nothing of what its owner needs.
pub const PORTS: usize = 256;
/// Large messages at once of one token, where a protocol holds messages whole: others of them wait.
pub const LARGE: usize = 16;
/// For how long a token that was good counts as good.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// Tokens that are known at once; those nobody used for longest go first. A connection has one token at a time.
const KNOWN: usize = super::CONNECTIONS;
/// All of them.
pub struct Callers {
    pub dial: Dial,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone)]
struct Known {
    client: Client,
    good_until: Instant,
    room: Arc<Semaphore>,
    ports: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Known {
    fn is_idle(&self) -> bool {
        self.room.available_permits() == REQUESTS && self.ports.available_permits() == PORTS
    }
}

/// One request of a caller whose token is good.
pub struct Caller {
    pub token: String,
    pub client: Client,
    /// Room for its large messages: see [`LARGE`].
    pub large: Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
}

/// Why a request is not let in.
#[derive(Debug)]
pub enum Refused {
    /// The token is no good.
    Token(String),
    /// Too much of it is under way.
    Crowded(String),
    /// The coordinator can't be asked.
    Unavailable(String),
}

impl From<Refused> for Response<Body> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Token(why) => unauthorized(&why),
            Refused::Crowded(why) => plain(StatusCode::TOO_MANY_REQUESTS, &why),
            Refused::Unavailable(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &why),
        }
    }
}

impl Caller {
    /// Its place among those that are under way, for what has no answer to be held by.
    pub fn into_place(self) -> OwnedSemaphorePermit {
        self.permit
    }

    /// Its answer. The request is under way for as long as its answer is.
    pub fn answered(self, response: Response<Body>) -> Response<Body> {
        let permit = self.permit;
        response.map(|body| {
            let held = body.map_frame(move |frame| {
                let _held = &permit;
                frame
            });
            held.boxed_unsync()
        })
    }
}

impl Callers {
    pub fn new(dial: Dial) -> Self {
        Self { dial, known: Mutex::default() }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// The token is no good, it has too much under way, or the coordinator can't be asked.
    pub async fn enter(&self, token: String) -> Result<Caller, Refused> {
        let Known { client, room, large, .. } = self.known_good(&token).await?;
        let permit = room.try_acquire_owned().map_err(|_| {
            let text =
                format!("{REQUESTS} requests of this token are under way: try again when some have ended");
            Refused::Crowded(text)
        })?;
        Ok(Caller { token, client, large, permit })
    }

    /// Lets a request to a server in a session in, which counts among its like: see [`PORTS`].
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub async fn enter_port(&self, token: String) -> Result<Caller, Refused> {
        let Known { client, ports, large, .. } = self.known_good(&token).await?;
        let permit = ports.try_acquire_owned().map_err(|_| {
            let text = format!(
                "{PORTS} requests to servers in sessions of this token are under way: try again when some have ended"
            );
            Refused::Crowded(text)
        })?;
        Ok(Caller { token, client, large, permit })
    }

    async fn known_good(&self, token: &str) -> Result<Known, Refused> {
        match self.good(token) {
            Some(known) => Ok(known),
            None => self.ask(token).await,
        }
    }

    fn good(&self, token: &str) -> Option<Known> {
        self.known().get(token).filter(|known| known.good_until > Instant::now()).cloned()
    }

    async fn ask(&self, token: &str) -> Result<Known, Refused> {
        let unavailable = |text: &str| Refused::Unavailable(text.to_owned());
        let client =
            (self.dial)(token.to_owned())().await.map_err(|problem| unavailable(&problem.to_string()))?;
        // Nothing has this name: the call is made for its error.
        if let Err(error) = client.sessions(ListOptions::new().label(NAME_LABEL, "")).await {
            self.known().remove(token);
            return Err(match error.code() {
                Code::Unauthenticated | Code::PermissionDenied => Refused::Token(error.message().to_owned()),
                _ => unavailable(error.message()),
            });
        }
        let now = Instant::now();
        let mut known = self.known();
        if known.len() >= KNOWN && !known.contains_key(token) {
            let idle = known.iter().filter(|(_, known)| known.is_idle());
            let oldest = idle.min_by_key(|(_, known)| known.good_until).map(|(token, _)| token.clone());
            oldest.and_then(|token| known.remove(&token));
        }
        // What is under way counts on: only its moment is new.
        let entry = known.entry(token.to_owned()).or_insert_with(|| Known {
            client,
            good_until: now,
            room: Arc::new(Semaphore::new(REQUESTS)),
            ports: Arc::new(Semaphore::new(PORTS)),
            large: Arc::new(Semaphore::new(LARGE)),
        });
        entry.good_until = now + GOOD_FOR;
        Ok(entry.clone())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
