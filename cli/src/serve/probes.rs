//! How a component is, for who supervises it: a container engine, Kubernetes, systemd, a person.
//!
//! It is asked on a Unix socket in its state directory, `health.sock`, over HTTP: `/livez` (its process answers), `/startupz`
//! (it has been ready once) and `/readyz` (it takes calls now), each 200 with `ok`, or 503 with the reason; and
//! `/metrics` ([`super::metrics`], where they have a port too). `coordinator
//! health` and `worker health` ask there, with the settings that the component itself was started with.
//!
//! A socket, because it is there whatever ports are, and because its directory says who may ask.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_proto::spawn::spawn;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::metrics::Scrape;
use crate::{
    failure::{CommandResult, Failure, code},
    output,
};

/// In the state directory.
const SOCKET: &str = "health.sock";
/// Where Prometheus looks.
const METRICS: &str = "/metrics";
/// Who asks is answered within this time, or told that there was no answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Questions at once: each is one of few, and short.
pub const ASKING: usize = 32;
/// Bytes of a question.
const ASKED: usize = 16 << 10;
/// Bytes of an answer that are read.
const LONGEST: usize = 64 << 10;

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Probe {
    // No doc comments: see `output::Format`.
    Live,
    Started,
    Ready,
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Started => "/startupz",
            Self::Ready => "/readyz",
        }
    }

    fn of(path: &str) -> Option<Self> {
        [Self::Live, Self::Started, Self::Ready].into_iter().find(|probe| probe.path() == path)
    }
}

/// What a command that serves does instead, if asked to.
#[derive(clap::Subcommand, Debug, Clone)]
pub enum Instead {
    /// Ask the one that runs with these settings how it is: `ok` and 0, or the reason why not and 1
    Health {
        /// live: its process answers. started: it has been ready once. ready: it takes calls now
        #[arg(value_enum, default_value_t = Probe::Ready)]
        probe: Probe,
    },
}

/// Says why the component is not ready, if so.
pub type Look = Arc<dyn Fn() -> BoxFuture<'static, Option<String>> + Send + Sync>;

/// Answers on the socket for as long as it is there.
pub struct Probes {
    path: PathBuf,
    _stop: DropGuard,
}

/// What is told, on the socket and elsewhere.
pub struct Asked {
    look: Look,
    scrape: Scrape,
    started: AtomicBool,
}

impl Asked {
    pub fn new(look: Look, scrape: Scrape) -> Arc<Self> {
        Arc::new(Self { look, scrape, started: AtomicBool::new(false) })
    }

    /// It has been ready.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }
}

impl Probes {
    /// Listens in a state directory that is this process' alone. Where that is not possible (a path too long for a
    /// socket) the log says so, and nothing answers.
    pub fn open(state_dir: &Path, asked: &Arc<Asked>) -> Option<Self> {
        let path = state_dir.join(SOCKET);
        let listener = match listen(&path) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "nothing answers questions for health");
                return None;
            }
        };
        let stop = CancellationToken::new();
        spawn("probes", serve(listener, asked.clone(), stop.clone()));
        Some(Self { path, _stop: stop.drop_guard() })
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    // A killed one left it.
    super::remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, asked: Arc<Asked>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(ASKING));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // Of descriptors there may be none for a while: what waits is not asked for again at once.
            Err(error) => {
                tracing::warn!(%error, "a question for health could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let (asked, stop) = (asked.clone(), stop.clone());
        spawn("probe", async move {
            let _place = place;
            answer(stream, asked, stop).await;
        });
    }
}

/// Answers one question, in bounded time.
pub async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    asked: Arc<Asked>,
    stop: CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let asked = asked.clone();
        async move { Ok::<_, Infallible>(asked.answer(request.method(), request.uri().path()).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ANSWER)
        .max_buf_size(ASKED)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // What is not read goes with the connection.
        _ = timeout(ANSWER * 2, connection) => {}
        () = stop.cancelled() => {}
    }
}

impl Asked {
    async fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, text) = match Probe::of(path) {
            _ if method != Method::GET && method != Method::HEAD => {
                (StatusCode::METHOD_NOT_ALLOWED, "ask with GET".to_owned())
            }
            None if path == METRICS => {
                let mut response = Response::new(Full::new(Bytes::from((self.scrape)())));
                let kind = HeaderValue::from_static(berth_metrics::CONTENT_TYPE);
                response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
                return response;
            }
            None => (StatusCode::NOT_FOUND, "there are /livez, /startupz, /readyz and /metrics".to_owned()),
            Some(Probe::Live) => (StatusCode::OK, "ok".to_owned()),
            Some(Probe::Started) if self.started.load(Ordering::Relaxed) => (StatusCode::OK, "ok".to_owned()),
            Some(Probe::Started | Probe::Ready) => match (self.look)().await {
                None => (StatusCode::OK, "ok".to_owned()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
            },
        };
        let mut response = Response::new(Full::new(Bytes::from(text + "\n")));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        response
    }
}

/// The command: asks who serves with this state directory.
pub async fn ask(state_dir: &Path, probe: Probe, who: &str) -> CommandResult {
    let path = state_dir.join(SOCKET);
    let (status, text) = match timeout(ANSWER, question(&path, probe)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error))
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            return Err(Failure::new(format!("no {who} answers at {}", path.display()))
                .hint("it does not run, or has not begun to serve: its log says why")
                .hint(format!(
                    "it must be asked with the settings that it has: `{who} --print-config` shows them"
                )));
        }
        Ok(Err(error)) => return Err(Failure::io(path.display(), error)),
        Err(_) => {
            return Err(Failure::new(format!(
                "the {who} at {} did not answer within {ANSWER:?}",
                path.display()
            ))
            .hint("its process is there, and stands still or has too much to do"));
        }
    };
    output::data(text)?;
    Ok(if status.is_success() { 0 } else { code::FAILED })
}

async fn question(path: &Path, probe: Probe) -> io::Result<(StatusCode, String)> {
    let stream = UnixStream::connect(path).await?;
    let (mut sender, connection) =
        client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with the one question; what broke it, the answer tells.
    spawn("probe connection", async move { drop(connection.await) });
    let request =
        Request::get(probe.path()).header(http::header::HOST, "localhost").body(Full::<Bytes>::default());
    let response = sender.send_request(request.map_err(io::Error::other)?).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(io::Error::other)?;
    Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(path: &Path, probe: Probe) -> (u16, String) {
        let (status, text) = question(&path.join(SOCKET), probe).await.expect("an answer");
        (status.as_u16(), text)
    }

    /// Red when `started` is not kept.
    #[tokio::test]
    async fn a_component_that_was_ready_once_has_started_for_good() {
        let dir = tempfile::tempdir().expect("a directory");
        let why = Arc::new(std::sync::Mutex::new(Some("no link".to_owned())));
        let said = why.clone();
        let look: Look = Arc::new(move || {
            let said = said.lock().expect("not poisoned").clone();
            Box::pin(async move { said })
        });
        // What a killed one left is no hindrance.
        std::fs::write(dir.path().join(SOCKET), "").expect("written");
        let asked_of = Asked::new(look, Arc::new(|| "# EOF\n".to_owned()));
        let probes = Probes::open(dir.path(), &asked_of).expect("it listens");
        assert_eq!(asked(dir.path(), Probe::Live).await, (200, "ok\n".to_owned()));
        for probe in [Probe::Started, Probe::Ready] {
            assert_eq!(asked(dir.path(), probe).await, (503, "no link\n".to_owned()));
        }
        *why.lock().expect("not poisoned") = None;
        assert_eq!(asked(dir.path(), Probe::Ready).await, (200, "ok\n".to_owned()));
        asked_of.started();
        *why.lock().expect("not poisoned") = Some("the link broke".to_owned());
        assert_eq!(asked(dir.path(), Probe::Started).await, (200, "ok\n".to_owned()));
        assert_eq!(asked(dir.path(), Probe::Ready).await, (503, "the link broke\n".to_owned()));
        drop(probes);
        assert!(!dir.path().join(SOCKET).exists());
    }
}
