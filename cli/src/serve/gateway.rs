//! The gateway beside a coordinator: HTTP on loopback, in the same process. It reaches the coordinator as any client does,
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
    http::{Settings, Site, callers::Dial, serve},
    mcp,
};
use berth_net::Files;
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
    /// HTTP port of the gateway on loopback: MCP at /mcp, and E2B's API; 0 takes a free one, off serves none [default: 8080, if it is free]
    #[arg(long, env = "HTTP_PORT", value_parser = port, value_name = "PORT|off")]
    pub http_port: Option<Port>,

    /// Names that the gateway is reached by beside loopback's, through a proxy
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

fn port(text: &str) -> Result<Port, String> {
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
        let bind = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        match self.http_port {
            Some(Port::Off) => Ok(None),
            Some(Port::On(port)) => bind(port).await.map(Some).map_err(|error| {
                Failure::io(format_args!("can't serve HTTP on 127.0.0.1:{port}"), error).hint(
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
                Err(error) => {
                    Err(Failure::io(format_args!("can't serve HTTP on 127.0.0.1:{USUAL_PORT}"), error))
                }
            },
        }
    }
}

/// A gateway that runs, or none where none was wanted.
pub struct Gateway(Option<Serving>);

struct Serving {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Gateway {
    /// Serves from now on, for a coordinator that runs; `tls`: the directory of its certificates.
    pub async fn start(
        args: &HttpArgs,
        coordinator: &Running,
        tls: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let Some(listener) = args.listener().await? else { return Ok(Self(None)) };
        let address = listener.local_addr().map_err(|error| Failure::io("the HTTP port", error))?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut options = ConnectOptions::new(format!("{scheme}://{}", reachable(coordinator.addr())));
        if let Some(dir) = tls {
            options = options.ca(Files::new(dir).ca().certificate);
        }
        // The one secret that stays the same for as long as this Berth does, and that no client has.
        let operator = coordinator.credentials().admin_token.clone();
        let secret = operator.clone().into_bytes();
        let e2b = e2b::Settings { coordinator: options.clone(), secret, operator };
        let dial: Dial = Arc::new(move |token| mcp::connect(options.clone().token(token)));
        let stop = CancellationToken::new();
        tracing::info!(url = format!("http://{address}/mcp"), "MCP is served on http://{address}/mcp");
        let (hosts, origins) = (args.http_hosts.clone(), args.http_origins.clone());
        let site = Site::new(Settings { dial, hosts, origins, e2b }, &stop);
        let task = spawn("gateway", serve(listener, site, stop.clone()));
        Ok(Self(Some(Serving { address, stop, task })))
    }

    /// Where it serves, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.as_ref().map(|serving| serving.address)
    }

    /// Ends conversations, and the sessions of their clients.
    pub async fn shutdown(self) {
        if let Some(serving) = self.0 {
            serving.stop.cancel();
            let _ = serving.task.await;
        }
    }
}

/// One that listens everywhere listens here too.
fn reachable(mut coordinator: SocketAddr) -> SocketAddr {
    if coordinator.ip().is_unspecified() {
        coordinator.set_ip(match coordinator.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    coordinator
}
