//! The gateway beside a coordinator: HTTP, in the same process. It reaches the coordinator as any client does,
//! over its port, with its caller's token.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use berth_client::ConnectOptions;
use berth_coordinator::Running;
use berth_gateway::{
    e2b,
    http::{Door, Settings, Site, callers::Dial, serve},
    mcp::{self, http::Lasting},
    metrics::Metrics,
};
use berth_net::{Acceptor, Files, Pair};
use berth_proto::spawn::spawn;
use clap::{Args, builder::NonEmptyStringValueParser};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Where HTTP is served if nothing else is said.
pub const USUAL_PORT: u16 = 8080;

/// Where the gateway serves HTTP, and to whom.
#[derive(Args, Debug, Clone, Default)]
pub struct HttpArgs {
    /// HTTP port of the gateway: MCP at /mcp, and E2B's API; 0 takes a free one, off serves none [default: 8080, if it is free]
    #[arg(long, env = "HTTP_PORT", value_parser = port, value_name = "PORT|off")]
    pub http_port: Option<Port>,

    /// IP address that the gateway listens on; beyond loopback with a certificate [default: 127.0.0.1]
    #[arg(long, env = "BERTH_HTTP_LISTEN", value_name = "IP")]
    pub http_listen: Option<IpAddr>,

    /// Certificate of the HTTP port, with those that it needs to be believed: with it HTTP goes over TLS [default: beyond loopback the coordinator's own]
    #[arg(long, env = "BERTH_HTTP_CERT", value_name = "FILE")]
    pub http_cert: Option<PathBuf>,

    /// Private key of that certificate
    #[arg(long, env = "BERTH_HTTP_KEY", value_name = "FILE")]
    pub http_key: Option<PathBuf>,

    /// Names that the gateway is reached by beside loopback's and its certificate's
    #[arg(long, env = "BERTH_HTTP_HOSTS", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new(), value_name = "HOST,…")]
    pub http_hosts: Vec<String>,

    /// Origins of web pages that may call the gateway, as scheme://host:port
    #[arg(long, env = "BERTH_HTTP_ORIGINS", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new(), value_name = "ORIGIN,…")]
    pub http_origins: Vec<String>,
}

/// A port, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    Off,
    On(u16),
}

/// A port as it is written.
pub fn port(text: &str) -> Result<Port, String> {
    match text {
        "off" => Ok(Port::Off),
        _ => {
            text.parse().map(Port::On).map_err(|_| format!("{text:?} is no port: write 1 to 65535, 0 or off"))
        }
    }
}

impl HttpArgs {
    /// What is listened on. `None`: nothing.
    ///
    /// A port that was asked for and is taken is a failure; that nobody asked for 8080 is no reason not to start.
    async fn listener(&self) -> Result<Option<TcpListener>, Failure> {
        let ip = self.ip();
        let bind = |port| TcpListener::bind(SocketAddr::from((ip, port)));
        let no_port = |port, error| {
            Failure::io(format_args!("can't serve HTTP on {}", SocketAddr::from((ip, port))), error)
        };
        match self.http_port {
            Some(Port::Off) => Ok(None),
            Some(Port::On(port)) => bind(port).await.map(Some).map_err(|error| {
                no_port(port, error).hint(
                    "give another port with HTTP_PORT or --http-port; 0 takes a free one, off serves none",
                )
            }),
            None => match bind(USUAL_PORT).await {
                Ok(listener) => Ok(Some(listener)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    tracing::warn!(
                        port = USUAL_PORT,
                        "port {USUAL_PORT} is taken, so HTTP is not served: HTTP_PORT gives another, and off ends this warning"
                    );
                    Ok(None)
                }
                Err(error) => Err(no_port(USUAL_PORT, error)),
            },
        }
    }

    fn ip(&self) -> IpAddr {
        self.http_listen.unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    /// What it shows over TLS; `None`: there is none. `around`: what holds for the coordinator beside it.
    fn certificate(&self, around: &Around) -> Result<Option<Pair>, Failure> {
        let given = |file: &Option<PathBuf>| file.clone().filter(|file| !file.as_os_str().is_empty());
        match (given(&self.http_cert), given(&self.http_key)) {
            (Some(certificate), Some(key)) => Ok(Some(Pair { certificate, key })),
            (Some(_), None) | (None, Some(_)) => Err(Failure::new(
                "of BERTH_HTTP_CERT and BERTH_HTTP_KEY only one is given",
            )
            .hint("both are PEM files: the certificate with its chain, and its private key (mode 0600)")),
            (None, None) if self.ip().is_loopback() => Ok(None),
            (None, None) => match &around.tls {
                Some(dir) => Ok(Some(Files::new(dir).coordinator())),
                None if around.insecure => Ok(None),
                None => Err(Failure::new(format!(
                    "HTTP on {} can be reached from other machines, and there is no TLS",
                    self.ip()
                ))
                .hint(around.remedy)),
            },
        }
    }
}

/// What holds for the coordinator that the gateway stands beside.
pub struct Around {
    /// The directory of its certificates.
    pub tls: Option<PathBuf>,
    /// It may listen beyond loopback without TLS.
    pub insecure: bool,
    /// What to do where neither is so.
    pub remedy: &'static str,
    /// What becomes of MCP's conversations when this process ends.
    pub lasting: Lasting,
}

/// A gateway that runs, or none where none was wanted.
pub struct Gateway(Option<Serving>);

struct Serving {
    address: SocketAddr,
    secure: bool,
    stop: CancellationToken,
    task: JoinHandle<()>,
    metrics: (Arc<Metrics>, Arc<dyn Fn() + Send + Sync>),
}

impl Gateway {
    /// Serves from now on, for a coordinator that runs.
    pub async fn start(args: &HttpArgs, coordinator: &Running, around: Around) -> Result<Self, Failure> {
        if args.http_port == Some(Port::Off) {
            return Ok(Self(None));
        }
        let certificate = args.certificate(&around)?;
        let bad = |error: berth_net::Error| Failure::new(error.to_string()).hint(error.hint());
        let acceptor = certificate.clone().map(Acceptor::http).transpose().map_err(bad)?;
        let Some(listener) = args.listener().await? else { return Ok(Self(None)) };
        let address = listener.local_addr().map_err(|error| Failure::io("the HTTP port", error))?;
        let options = beside(coordinator, around.tls);
        // The one secret that stays the same for as long as this Berth does, and that no client has.
        let operator = coordinator.credentials().admin_token.clone();
        let secret = operator.clone().into_bytes();
        let e2b = e2b::Settings { coordinator: options.clone(), secret, operator };
        let dial: Dial = Arc::new(move |token| mcp::connect(options.clone().token(token)));
        let stop = CancellationToken::new();
        let secure = acceptor.is_some();
        let url = url(address, secure);
        tracing::info!(url = format!("{url}/mcp"), "MCP is served on {url}/mcp");
        let (mut hosts, origins) = (args.http_hosts.clone(), args.http_origins.clone());
        if let Some(pair) = certificate {
            // Who has a certificate for a name is reached by it. (Names below one are for sandboxes' ports.)
            let names = berth_net::facts_of(&pair.certificate).map_err(bad)?.names;
            hosts.extend(names.into_iter().filter(|name| !name.starts_with("*.")));
        }
        let metrics = Arc::<Metrics>::default();
        let lasting = around.lasting;
        let site =
            Site::new(Settings { dial, hosts, origins, lasting, e2b, metrics: metrics.clone() }, &stop);
        let look: Arc<dyn Fn() + Send + Sync> = Arc::new(site.observer());
        let task = spawn("gateway", serve(listener, Door::new(acceptor), site, stop.clone()));
        Ok(Self(Some(Serving { address, secure, stop, task, metrics: (metrics, look) })))
    }

    /// Where it serves, as a client on this machine reaches it, if it does.
    pub fn url(&self) -> Option<String> {
        self.0.as_ref().map(|serving| url(serving.address, serving.secure))
    }

    /// Its metrics, if it serves, and what makes them say how it stands.
    pub fn metrics(&self) -> Option<(Arc<Metrics>, impl Fn() + Send + Sync + 'static)> {
        let (metrics, look) = self.0.as_ref()?.metrics.clone();
        Some((metrics, move || look()))
    }

    /// Ends what it serves; conversations too, and the sessions of their clients, where they are not to outlive a stop.
    pub async fn shutdown(self) {
        if let Some(serving) = self.0 {
            serving.stop.cancel();
            let _ = serving.task.await;
        }
    }
}

/// How a coordinator of this process is reached. `tls`: the directory of its certificates.
pub fn beside(coordinator: &Running, tls: Option<PathBuf>) -> ConnectOptions {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let options = ConnectOptions::new(format!("{scheme}://{}", reachable(coordinator.addr())));
    match tls {
        Some(dir) => options.ca(Files::new(dir).ca().certificate),
        None => options,
    }
}

fn url(address: SocketAddr, secure: bool) -> String {
    format!("{}://{}", if secure { "https" } else { "http" }, reachable(address))
}

/// One that listens everywhere listens here too.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
