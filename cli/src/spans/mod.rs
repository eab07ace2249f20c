//! Where the spans of a process go: by OTLP over HTTP (protobuf) to a collector, Jaeger, Tempo, or whatever else takes it.
//! Four of OpenTelemetry's own settings say where and how much; its others are not read.
//!
//! Nothing waits for it. Spans go into a queue; from there in pieces to the collector. What finds no room, or can't be
//! delivered, is dropped, and the log says how many were, at most once a minute.

mod otlp;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use berth_proto::{
    spawn::spawn,
    trace::{self, Span},
};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::warn;

use self::otlp::ExportRequest;
use crate::failure::Failure;

/// Spans that wait for their turn.
const QUEUE: usize = 4096;
/// Spans of one request to the collector.
const TOGETHER: usize = 512;
/// A span is sent at the latest after this.
const EVERY: Duration = Duration::from_secs(1);
/// The collector's time to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// At the process's end what is left has this long.
const LAST: Duration = Duration::from_secs(3);
/// Between two complaints.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Where spans go, the same for every command that serves.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TraceArgs {
    /// Send spans by OTLP over HTTP to this collector, e.g. http://localhost:4318 [default: none are sent]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = endpoint)]
    pub otlp_endpoint: Option<Endpoint>,

    /// Headers for the collector: name=value,name=value
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", value_name = "HEADERS", hide_env_values = true, value_parser = headers)]
    pub otlp_headers: Option<http::HeaderMap>,

    /// The name under which they are sent [default: that of the command]
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
    pub otlp_service: Option<String>,

    /// Of the traces that begin here, send this part: 0 to 1 [default: 1]
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "RATIO", value_parser = ratio)]
    pub trace_ratio: Option<f64>,
}

/// Where to; `None`: nowhere, which is what OpenTelemetry makes of an empty setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint(Option<String>);

fn endpoint(text: &str) -> Result<Endpoint, String> {
    if text.is_empty() {
        return Ok(Endpoint(None));
    }
    let url = match text.parse::<http::Uri>() {
        Ok(url) if matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some() => url,
        _ => {
            return Err(
                "must be http://host:port or https://host:port (OTLP over HTTP: 4318, not 4317)".to_owned()
            );
        }
    };
    if url.query().is_some() {
        return Err("must be without a query".to_owned());
    }
    // It is logged, and shown by --print-config.
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("must be without a password: that belongs into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    Ok(Endpoint(Some(format!("{}/v1/traces", text.trim_end_matches('/')))))
}

/// As OpenTelemetry has it: percent-encoded values, spaces around both left out.
fn headers(text: &str) -> Result<http::HeaderMap, String> {
    let mut headers = http::HeaderMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let wrong = || "must be name=value,name=value".to_owned();
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = percent_encoding::percent_decode_str(value.trim()).collect::<Vec<u8>>();
        let name = name.trim().parse::<http::HeaderName>().map_err(|_| wrong())?;
        let mut value = http::HeaderValue::from_bytes(&value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

fn ratio(text: &str) -> Result<f64, String> {
    if text.is_empty() {
        return Ok(1.0);
    }
    let ratio: f64 = text.parse().map_err(|_| "must be a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&ratio) { Ok(ratio) } else { Err("must be from 0 to 1".to_owned()) }
}

/// The export of a process. Dropped, it ends without its last spans.
#[must_use]
pub struct Export(Option<mpsc::Sender<Queued>>);

enum Queued {
    Span(Box<Span>),
    /// All that came before is to be sent now.
    Flush(oneshot::Sender<()>),
}

/// Begins to export, if there is somewhere to export to. `service`: as it is called unless the settings say otherwise.
pub fn start(args: &TraceArgs, service: &str) -> Result<Export, Failure> {
    let Some(Endpoint(Some(endpoint))) = args.otlp_endpoint.clone() else { return Ok(Export(None)) };
    let named = args.otlp_service.clone().filter(|name| !name.is_empty());
    let sender = Sender {
        client: client(args.otlp_headers.clone().unwrap_or_default())?,
        endpoint,
        service: named.unwrap_or_else(|| service.to_owned()),
        dropped: Arc::default(),
        complained: None,
    };
    let (queue, spans) = mpsc::channel(QUEUE);
    let (into, dropped) = (queue.clone(), sender.dropped.clone());
    let ours = trace::record(args.trace_ratio.unwrap_or(1.0), move |span| {
        if into.try_send(Queued::Span(Box::new(span))).is_err() {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
    });
    if ours {
        spawn("spans", sender.run(spans));
    }
    Ok(Export(Some(queue)))
}

fn client(headers: http::HeaderMap) -> Result<reqwest::Client, Failure> {
    // Another part of this process may have said so already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().default_headers(headers).redirect(reqwest::redirect::Policy::none()).timeout(ANSWER_WITHIN).build().map_err(|error| {
        Failure::new(format!("spans can't be sent: {error}"))
            .hint("this machine's CA certificates are needed for it (ca-certificates); or leave OTEL_EXPORTER_OTLP_ENDPOINT out")
    })
}

impl Export {
    /// Sends what is left, as far as that goes quickly.
    pub async fn finish(self) {
        let Some(queue) = self.0 else { return };
        let (done, sent) = oneshot::channel();
        let last = async {
            if queue.send(Queued::Flush(done)).await.is_ok() {
                let _ = sent.await;
            }
        };
        let _ = tokio::time::timeout(LAST, last).await;
    }
}

struct Sender {
    client: reqwest::Client,
    endpoint: String,
    service: String,
    /// Spans that nobody will see, since that was last told.
    dropped: Arc<AtomicU64>,
    complained: Option<Instant>,
}

impl Sender {
    async fn run(mut self, mut spans: mpsc::Receiver<Queued>) {
        let mut batch = Vec::new();
        let mut due = Instant::now() + EVERY;
        loop {
            let next = tokio::time::timeout_at(due, spans.recv()).await;
            let flushed = match next {
                Ok(Some(Queued::Span(span))) => {
                    batch.push(*span);
                    None
                }
                Ok(Some(Queued::Flush(done))) => Some(done),
                Ok(None) => return,
                Err(_) => None,
            };
            if flushed.is_some() || batch.len() >= TOGETHER || due <= Instant::now() {
                self.send(std::mem::take(&mut batch)).await;
                due = Instant::now() + EVERY;
            }
            if let Some(done) = flushed {
                let _ = done.send(());
            }
        }
    }

    async fn send(&mut self, batch: Vec<Span>) {
        let count = batch.len() as u64;
        let failed = if batch.is_empty() { None } else { self.post(batch).await.err() };
        if failed.is_some() {
            self.dropped.fetch_add(count, Ordering::Relaxed);
        }
        let dropped = self.dropped.load(Ordering::Relaxed);
        let quiet = self.complained.is_some_and(|at| at.elapsed() < COMPLAIN_EVERY);
        if dropped > 0 && !quiet {
            self.complained = Some(Instant::now());
            self.dropped.fetch_sub(dropped, Ordering::Relaxed);
            let why = failed.unwrap_or_else(|| "the collector is too slow".to_owned());
            warn!(dropped, endpoint = self.endpoint, why, "spans were not delivered");
        }
    }

    async fn post(&self, batch: Vec<Span>) -> Result<(), String> {
        let body = ExportRequest::new(&self.service, batch).encode_to_vec();
        let request = self
            .client
            .post(&self.endpoint)
            .header(http::header::CONTENT_TYPE, "application/x-protobuf")
            .body(body);
        let answer = request.send().await.map_err(|error| innermost(&error))?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base_that_gets_its_path() {
        let url = |given: &str| endpoint(given).unwrap().0;
        for given in ["http://localhost:4318", "http://localhost:4318/"] {
            assert_eq!(url(given).as_deref(), Some("http://localhost:4318/v1/traces"));
        }
        assert_eq!(url(""), None);
        assert_eq!(
            url("https://otel.example.org/otlp").as_deref(),
            Some("https://otel.example.org/otlp/v1/traces")
        );
        for wrong in [
            "localhost:4318",
            "ftp://a",
            "http://",
            "/v1/traces",
            "http://a?b=c",
            "http://u:p@a:1",
            "unix:///x",
        ] {
            assert!(endpoint(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn headers_are_pairs_and_no_secret_is_shown() {
        let some = headers("authorization=Bearer%20abc, x-a = b ,").unwrap();
        assert_eq!(some["authorization"], "Bearer abc");
        assert_eq!(some["x-a"], "b");
        assert!(!format!("{some:?}").contains("abc"));
        assert!(headers("").unwrap().is_empty());
        for wrong in ["a", "a b=c", "a=%0a", "=x"] {
            assert!(headers(wrong).is_err(), "{wrong:?}");
        }
        for (text, good) in [
            ("0", true),
            ("0.5", true),
            ("1", true),
            ("1.1", false),
            ("-1", false),
            ("NaN", false),
            ("x", false),
        ] {
            assert_eq!(ratio(text).is_ok(), good, "{text}");
        }
    }
}
