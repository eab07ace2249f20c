//! What `berth up` looks at before it starts anything, as `berth doctor` does: all that would stop it later, told at once. What
//! only the parts themselves can know (a store that is damaged, a backend that does not work) they say when they start.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use berth_coordinator::Coordinator;
use berth_proto::domain::{Backend, BackendChoice};

use super::UpArgs;
use crate::{
    failure::Failure,
    serve::{gateway::Port, metrics::Address, worker::MachineArgs},
};

/// # Errors
/// All of it, as one failure.
pub fn look(args: &UpArgs, config: &berth_coordinator::Config) -> Result<(), Failure> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let grpc = taken(local(args.port), "--port or GRPC_PORT");
    let http = match args.http.http_port {
        Some(Port::On(port)) => {
            let ip = args.http.http_listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            taken(SocketAddr::new(ip, port), "--http-port or HTTP_PORT; off serves none")
        }
        // That nobody asked for 8080 is no reason not to start.
        Some(Port::Off) | None => None,
    };
    let metrics = match args.metrics.metrics_addr {
        Some(Address::On(address)) => taken(address, "--metrics-addr or BERTH_METRICS_ADDR; off serves none"),
        Some(Address::Off) | None => None,
    };
    let settings = Coordinator::look(config);
    let settings = settings.iter().map(|problem| Failure::new(&problem.what).hint(&problem.hint));
    let found = [grpc, http, metrics, agent(&args.machine)].into_iter().flatten();
    match Failure::all(found.chain(settings)) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Why nothing can listen there. Port 0 takes a free one.
fn taken(address: SocketAddr, how: &str) -> Option<Failure> {
    let error = (address.port() != 0).then(|| TcpListener::bind(address).err()).flatten()?;
    if error.kind() != std::io::ErrorKind::AddrInUse {
        return Some(
            Failure::io(format_args!("can't listen on {address}"), error)
                .hint(format!("give another with {how}")),
        );
    }
    let owner = berth_coordinator::port_owner(address.port());
    let owner = owner.map(|owner| format!(" by {owner}")).unwrap_or_default();
    let failure = Failure::new(format!("port {} is in use{owner}", address.port()));
    Some(failure.hint(format!("stop that, or choose another: {how}; 0 takes a free one")))
}

/// No sandbox starts without it, but those that isolate nothing.
fn agent(machine: &MachineArgs) -> Option<Failure> {
    let config = machine.config("localhost:50051", "", Path::new("/"));
    if config.sandbox == BackendChoice::Only(Backend::Fake) { None } else { agent_problem(&config.agent) }
}

/// Why this is no agent that can be started.
pub fn agent_problem(path: &Path) -> Option<Failure> {
    let hint = "`make build` makes it; set BERTH_AGENT if it lies elsewhere";
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => None,
        Ok(_) => Some(Failure::new(format!("the agent {} is no program", path.display())).hint(hint)),
        Err(error) => Some(Failure::io(format_args!("the agent {}", path.display()), error).hint(hint)),
    }
}
