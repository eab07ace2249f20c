//! What a component counts, as Prometheus reads it: at `/metrics`, on its health socket, and on a port of its own where
//! `BERTH_METRICS_ADDR` names one.
//!
//! That port speaks plain HTTP and asks for no token, on whatever address it was given: nothing that it tells is a secret or
//! somebody's (docs/security.md). It serves what the socket serves, and nothing else, with bounds of its own.

use std::{net::SocketAddr, str::FromStr, sync::Arc};

use berth_metrics::{Process, Registry, text};
use berth_proto::{VERSION, spawn::spawn};
use clap::Args;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::probes::{ASKING, Asked, answer};
use crate::failure::Failure;

/// The text, as things stand now.
pub type Scrape = Arc<dyn Fn() -> String + Send + Sync>;

/// Where metrics are served beside the health socket. `berth up` takes this too.
#[derive(Args, Debug, Clone, Default)]
pub struct MetricsArgs {
    /// IP address and port for /metrics, /livez, /readyz and /startupz, in plain HTTP and without a token [default: off]
    #[arg(long, env = "BERTH_METRICS_ADDR", value_name = "IP:PORT|off")]
    pub metrics_addr: Option<Address>,
}

/// An address to listen on, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    Off,
    On(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::On).map_err(|_| {
                format!("{text:?} is no address: write 127.0.0.1:9464, [::1]:9464, 0.0.0.0:9464 or off")
            }),
        }
    }
}

impl MetricsArgs {
    /// The port, taken before anything is started: one that is in use is told then.
    pub async fn listen(&self) -> Result<Option<TcpListener>, Failure> {
        let Some(Address::On(address)) = self.metrics_addr else { return Ok(None) };
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::io(format_args!("can't serve metrics on {address}"), error)
                .hint("give another address with BERTH_METRICS_ADDR or --metrics-addr; port 0 takes a free one, off serves none")
        })?;
        Ok(Some(listener))
    }
}

/// Answers on the port for as long as it is there.
pub struct Port {
    _stop: DropGuard,
}

impl Port {
    /// `None` where there is none.
    pub fn open(listener: Option<TcpListener>, asked: &Arc<Asked>) -> Option<Self> {
        let listener = listener?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "metrics are served on http://{address}/metrics");
        }
        let stop = CancellationToken::new();
        spawn("metrics", serve(listener, asked.clone(), stop.clone()));
        Some(Self { _stop: stop.drop_guard() })
    }
}

async fn serve(listener: TcpListener, asked: Arc<Asked>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(ASKING));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match (accepted, room.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let (asked, stop) = (asked.clone(), stop.clone());
                spawn("metrics connection", async move {
                    let _place = place;
                    answer(stream, asked, stop).await;
                });
            }
            // One too many: it sees its connection closed.
            (Ok(_), Err(_)) => {}
            (Err(error), _) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// What one process tells: of itself, and of the components in it.
pub struct Told {
    process: Process,
    parts: Vec<Part>,
}

/// One component's metrics, and what makes them say how it stands.
struct Part {
    metrics: Arc<dyn AsRef<Registry> + Send + Sync>,
    look: Box<dyn Fn() + Send + Sync>,
}

impl Told {
    /// `component`: what the process is.
    pub fn of(component: &'static str) -> Self {
        Self { process: Process::new(component, VERSION), parts: Vec::new() }
    }

    /// The same with a component's.
    #[must_use]
    pub fn with<M, L>(mut self, (metrics, look): (Arc<M>, L)) -> Self
    where
        M: AsRef<Registry> + Send + Sync + 'static,
        L: Fn() + Send + Sync + 'static,
    {
        self.parts.push(Part { metrics, look: Box::new(look) });
        self
    }

    pub fn scrape(self) -> Scrape {
        Arc::new(move || {
            self.process.look();
            self.parts.iter().for_each(|part| (part.look)());
            let parts = self.parts.iter().map(|part| (*part.metrics).as_ref());
            text(std::iter::once(&self.process.registry).chain(parts))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_or_none() {
        let on = |text: &str| Ok(Address::On(text.parse().expect("an address")));
        assert_eq!("off".parse(), Ok(Address::Off));
        assert_eq!("127.0.0.1:0".parse::<Address>(), on("127.0.0.1:0"));
        assert_eq!("[::1]:9464".parse::<Address>(), on("[::1]:9464"));
        for wrong in ["", "9464", ":9464", "localhost:9464", "127.0.0.1", "127.0.0.1:65536"] {
            assert!(wrong.parse::<Address>().is_err_and(|error| error.contains("9464 or off")), "{wrong}");
        }
    }

    /// The table of docs/metrics.md, which is about what is declared. Red when either has a line that the other lacks; the
    /// failure prints the table as it should be.
    #[test]
    fn the_documents_name_every_metric() {
        let mut table = String::new();
        let process = Process::new("test", VERSION);
        let coordinator = berth_coordinator::metrics::Metrics::default();
        let gateway = berth_gateway::metrics::Metrics::default();
        let worker = berth_worker::metrics::Metrics::default();
        let each: [(&str, &Registry); 4] = [
            ("Every process", &process.registry),
            ("Coordinator", coordinator.as_ref()),
            ("Gateway", gateway.as_ref()),
            ("Worker", worker.as_ref()),
        ];
        for (of, registry) in each {
            table.push_str(&format!("### {of}\n\n| metric | type | labels | what |\n|---|---|---|---|\n"));
            for metric in registry.declared() {
                let labels =
                    metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
                let (name, kind, help) = (metric.name, metric.kind.as_str(), metric.help);
                table.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
            }
            table.push('\n');
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let text = std::fs::read_to_string(path).expect("docs/metrics.md");
        let (_, rest) = text.split_once("<!-- declared -->\n\n").expect("where the table begins");
        let (found, _) = rest.split_once("<!-- /declared -->").expect("where it ends");
        assert!(found == table, "docs/metrics.md should say:\n{table}");
    }
}
