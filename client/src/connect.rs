//! Finding and reaching a coordinator, and the one way that unary calls are made: with
//! the token, a deadline, and a short retry where repeating is safe.

use std::{fmt, future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use berth_net::{Dialer, Files, Trust};
use berth_proto::trace::{self, TraceContext};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use crate::{Error, backoff::Backoff, local};

/// Where to connect, and as whom.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `host:port`, or a URI. `https://`: over TLS, with `ca`.
    pub address: String,
    /// The certificate of the CA that issued the coordinator's (`ca.pem` of `berth tls init`): no other is trusted, and
    /// with it nothing goes without TLS.
    pub ca: Option<PathBuf>,
    /// Sent with each call. `None`: none is sent.
    pub token: Option<String>,
    /// How long an interrupted stream tries to resume, counted from the last sign of
    /// life. 30 s by default: the time an attached task lives without a watcher.
    pub resume_for: Duration,
}

impl ConnectOptions {
    /// With no token.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), ca: None, token: None, resume_for: Duration::from_secs(30) }
    }

    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    #[must_use]
    pub fn ca(mut self, ca: impl Into<PathBuf>) -> Self {
        self.ca = Some(ca.into());
        self
    }

    #[must_use]
    pub fn resume_for(mut self, window: Duration) -> Self {
        self.resume_for = window;
        self
    }

    /// Address and token as the environment and the state directory have them: see
    /// [`ConnectOptions::find`].
    pub fn from_env() -> Result<Self, Error> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let options =
            Self::find(var("BERTH_ADDRESS").or_else(|| var("COORDINATOR_ADDR")), var("BERTH_TOKEN"), None)?;
        Ok(options.trust(
            var("BERTH_TLS_CA").map(PathBuf::from),
            var("BERTH_TLS_DIR").map(PathBuf::from),
            None,
        ))
    }

    /// Fills in the CA's certificate: the file that was named, else that of the directory that was named; for an `https`
    /// address else that in `<state>/tls`, where `berth tls init` puts it.
    #[must_use]
    pub fn trust(mut self, ca: Option<PathBuf>, dir: Option<PathBuf>, state_dir: Option<PathBuf>) -> Self {
        let in_state = || {
            let state = state_dir.or_else(|| local::default_state_dir().ok())?;
            let ca = Files::new(local::tls_dir(&state)).ca().certificate;
            (self.address.starts_with("https://") && ca.exists()).then_some(ca)
        };
        self.ca = ca.or_else(|| dir.map(|dir| Files::new(dir).ca().certificate)).or_else(in_state);
        self
    }

    /// Fills in what is not given: the address from `<state>/up.json` (else
    /// 127.0.0.1:50051), the token from `<state>/credentials/admin.token`, the latter
    /// only for an address on this machine. `state_dir`: the default one if not given.
    pub fn find(
        address: Option<String>,
        token: Option<String>,
        state_dir: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let state_dir = match state_dir {
            Some(dir) => Some(dir),
            None => local::default_state_dir().ok(),
        };
        let address = match (address, &state_dir) {
            (Some(address), _) => address,
            (None, Some(dir)) => local::read_up_record(dir)?
                .map_or_else(|| local::DEFAULT_ADDRESS.to_owned(), |record| record.address),
            (None, None) => local::DEFAULT_ADDRESS.to_owned(),
        };
        let token = match (token, &state_dir) {
            (Some(token), _) => Some(token),
            (None, Some(dir)) if local::is_loopback(&address) => {
                local::read_token(&local::admin_token_path(dir))?
            }
            _ => None,
        };
        Ok(Self { token, ..Self::new(address) })
    }
}

impl fmt::Debug for ConnectOptions {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("address", &self.address)
            .field("ca", &self.ca)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("resume_for", &self.resume_for)
            .finish()
    }
}

/// A connection to a coordinator. Cheap to clone; clones share the connection, which
/// comes up again by itself after a break.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    channel: Channel,
    address: String,
    token: Option<MetadataValue<Ascii>>,
    resume_for: Duration,
}

/// How a unary call is made.
#[derive(Clone, Copy)]
pub(crate) struct Policy {
    pub deadline: Duration,
    /// Attempts in all, where the call is safe to repeat.
    pub attempts: u32,
}

impl Policy {
    /// Reads, and changes that end the same however often they are asked for.
    pub(crate) const REPEATABLE: Policy = Policy { deadline: Duration::from_secs(30), attempts: 4 };
    /// Changes that must not be made twice.
    pub(crate) const ONCE: Policy = Policy { deadline: Duration::from_secs(30), attempts: 1 };

    pub(crate) fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }
}

/// Given to the server on top of our own deadline, so that ours, with its words, is first.
const MARGIN: Duration = Duration::from_secs(2);

impl Client {
    /// Connects, or says that nothing answers there.
    pub async fn connect(options: ConnectOptions) -> Result<Self, Error> {
        let ConnectOptions { address, ca, token, resume_for } = options;
        let token = token.as_deref().map(bearer).transpose()?;
        let dialer = Dialer::new(&address, ca.map(Trust::client)).map_err(|error| match error {
            berth_net::Error::Address(_) => Error::invalid(format!("{address:?} is no address"))
                .or_hint("give host:port, for example localhost:50051"),
            other => Error::invalid(other.to_string()).or_hint(other.hint()),
        })?;
        let channel = dialer.connect().await.map_err(|error| Error::not_connected(&address, &error))?;
        Ok(Self { inner: Arc::new(Inner { channel, address, token, resume_for }) })
    }

    /// Connects to what the environment names, else to what `berth up` runs here:
    /// `BERTH_ADDRESS` or `COORDINATOR_ADDR`, `BERTH_TOKEN`, and the state directory.
    pub async fn from_env() -> Result<Self, Error> {
        Self::connect(ConnectOptions::from_env()?).await
    }

    /// The same connection, for calls with another token.
    pub fn with_token(&self, token: &str) -> Result<Self, Error> {
        let Inner { channel, address, resume_for, .. } = &*self.inner;
        let inner = Inner {
            channel: channel.clone(),
            address: address.clone(),
            token: Some(bearer(token)?),
            resume_for: *resume_for,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The address that it was given.
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// The connection itself, for calls that this library does not wrap. They need
    /// [`Client::authorized`].
    pub fn channel(&self) -> Channel {
        self.inner.channel.clone()
    }

    /// A request with the token on it, as a part of what is done now ([`TraceContext::scope`]), or of a trace of its own.
    pub fn authorized<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let context = trace::current().unwrap_or_else(TraceContext::begin);
        if let Ok(value) = MetadataValue::try_from(context.to_string()) {
            request.metadata_mut().insert(trace::HEADER, value);
        }
        if let Some(token) = &self.inner.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    pub(crate) fn resume_for(&self) -> Duration {
        self.inner.resume_for
    }

    pub(crate) fn error(&self, status: Status) -> Error {
        Error::from_status(status, &self.inner.address)
    }

    /// Makes a unary call. However often it is tried, it is one request.
    pub(crate) async fn call<M, R, F, Fut>(&self, policy: Policy, message: M, send: F) -> Result<R, Error>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        traced(Box::pin(self.attempts(policy, message, send))).await
    }

    async fn attempts<M, R, F, Fut>(&self, policy: Policy, message: M, send: F) -> Result<R, Error>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let mut backoff = Backoff::default();
        let mut attempt = 1;
        loop {
            let error = match self.once(policy.deadline, message.clone(), &send).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // A refused connection means that nothing runs there: to wait would only hide it.
            if !error.is_temporary() || error.is_not_connected() || attempt >= policy.attempts {
                return Err(error);
            }
            attempt += 1;
            backoff.wait().await;
        }
    }

    /// Makes a unary call once.
    pub(crate) async fn once<M, R, F, Fut>(&self, deadline: Duration, message: M, send: F) -> Result<R, Error>
    where
        F: FnOnce(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        traced(Box::pin(async {
            let mut request = self.authorized(message);
            request.set_timeout(deadline + MARGIN);
            self.answer(deadline, send(self.channel(), request)).await
        }))
        .await
    }

    /// Opens a server stream: bounded until its head is there.
    pub(crate) async fn open<M, R, F, Fut>(&self, message: M, send: F) -> Result<R, Error>
    where
        F: FnOnce(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Policy::ONCE.deadline;
        let answer = async { self.answer(deadline, send(self.channel(), self.authorized(message))).await };
        traced(Box::pin(answer)).await
    }

    async fn answer<R>(
        &self,
        deadline: Duration,
        answer: impl Future<Output = Result<Response<R>, Status>>,
    ) -> Result<R, Error> {
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(status)),
            Err(_) => Err(Error::deadline(self.address(), deadline)),
        }
    }
}

/// A request of what is done now, or one by itself; an error names it. Boxed: a call is a small part of what waits for it.
async fn traced<T, F: Future<Output = Result<T, Error>>>(work: Pin<Box<F>>) -> Result<T, Error> {
    match trace::current() {
        Some(request) => work.await.map_err(|error| error.of_request(request)),
        None => {
            let request = TraceContext::begin();
            request.scope(work).await.map_err(|error| error.of_request(request))
        }
    }
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Error> {
    MetadataValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Error::invalid("the token has characters that no token has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_there_is_said_in_plain_words() {
        // Bound and dropped: a port that refuses.
        let address = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let error = Client::connect(ConnectOptions::new(&address)).await.err().expect("nothing listens");
        assert_eq!(error.message(), format!("no coordinator answers at {address}"));
        assert_eq!(error.hint(), Some("start one with `berth up`, or set COORDINATOR_ADDR"));
        assert!(error.is_not_connected());
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_refused() {
        let error = Client::connect(ConnectOptions::new("not an address")).await.err().expect("refused");
        assert!(error.message().contains("is no address"), "{error:?}");
    }

    #[test]
    fn the_local_token_stays_on_this_machine() {
        let dir = std::env::temp_dir().join(format!("berth-client-{}", berth_proto::TaskId::new()));
        std::fs::create_dir_all(dir.join("credentials")).unwrap();
        std::fs::write(dir.join("credentials/admin.token"), "secret\n").unwrap();
        let find = |address: &str| {
            ConnectOptions::find(Some(address.to_owned()), None, Some(dir.clone())).unwrap().token
        };
        assert_eq!(find("127.0.0.1:9").as_deref(), Some("secret"));
        assert_eq!(find("example.org:9"), None);
        let options = ConnectOptions::find(None, None, Some(dir.clone())).unwrap();
        assert_eq!(options.address, local::DEFAULT_ADDRESS);
        assert!(!format!("{options:?}").contains("secret"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
