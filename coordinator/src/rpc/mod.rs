//! The gRPC services. Each is thin: it checks what came (by the one conversion), asks the
//! driver or looks into the view, waits with a deadline, and words the answer.

mod admin;
mod attach;
mod audit;
mod blob;
mod checkpoint;
mod cut;
mod data;
mod guard;
mod identity;
mod load;
mod recovered;
mod session;
mod settled;

use std::{sync::Arc, time::Duration};

use berth_proto::{
    DESCRIPTORS,
    transport::{CLIENT_STREAMS, MESSAGE_LIMIT},
    v1::{
        admin_service_server::AdminServiceServer, audit_service_server::AuditServiceServer,
        blob_service_server::BlobServiceServer, checkpoint_service_server::CheckpointServiceServer,
        file_service_server::FileServiceServer, identity_service_server::IdentityServiceServer,
        session_service_server::SessionServiceServer, task_service_server::TaskServiceServer,
        worker_service_server::WorkerServiceServer,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes, transport::Server};
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, HealthService},
};

use guard::Access;
pub use guard::Gate;
pub use load::Room;

use crate::{
    audit::Audit,
    checkpoints::Checkpoints,
    driver::{Handle, Shared},
    identity::Identity,
    streams::Streams,
    templates::Templates,
};

/// What all services work with.
#[derive(Clone)]
pub struct Context {
    pub shared: Shared,
    pub driver: Handle,
    pub templates: Arc<Templates>,
    pub checkpoints: Arc<Checkpoints>,
    pub identity: Arc<Identity>,
    pub audit: Arc<Audit>,
    pub streams: Arc<Streams>,
    pub start_timeout: Duration,
    pub restore_timeout: Duration,
    pub started_at: std::time::SystemTime,
    /// Cancelled when the coordinator stops: streams end then.
    pub stopping: CancellationToken,
}

/// Names of our services, for health.
const SERVICES: [&str; 9] = [
    SessionServiceServer::<session::Sessions>::NAME,
    TaskServiceServer::<data::Tasks>::NAME,
    FileServiceServer::<data::Files>::NAME,
    WorkerServiceServer::<attach::Workers>::NAME,
    AdminServiceServer::<admin::Admin>::NAME,
    CheckpointServiceServer::<checkpoint::Checkpointing>::NAME,
    BlobServiceServer::<blob::Blobs>::NAME,
    IdentityServiceServer::<identity::Identities>::NAME,
    AuditServiceServer::<audit::Auditing>::NAME,
];

/// Of the operators' calls those that tell a client of what is its tenant's, or of what concerns everybody.
const FOR_CLIENTS: Access = Access::Admins { clients: &["ListTemplates", "GetInfo", "WatchEvents"] };
/// An operator's alone.
const FOR_ADMINS: Access = Access::Admins { clients: &[] };

/// All services behind the gate.
pub fn routes(
    context: &Context,
    gate: &Gate,
    health: &HealthReporter,
) -> Result<Routes, tonic_reflection::server::Error> {
    macro_rules! limited {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT)
        };
    }
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let health = tonic_health::pb::health_server::HealthServer::new(HealthService::from_health_reporter(
        health.clone(),
    ));
    let mut routes = Routes::builder();
    routes
        .add_service(
            gate.guard(
                Access::Clients,
                limited!(SessionServiceServer, session::Sessions::new(context.clone())),
            ),
        )
        .add_service(
            gate.guard(Access::Clients, limited!(TaskServiceServer, data::Tasks::new(context.clone()))),
        )
        .add_service(gate.guard(Access::Clients, limited!(FileServiceServer, data::files(context.clone()))))
        .add_service(gate.guard(
            Access::Clients,
            limited!(CheckpointServiceServer, checkpoint::Checkpointing::new(context.clone())),
        ))
        .add_service(
            gate.guard(FOR_CLIENTS, limited!(AdminServiceServer, admin::Admin::new(context.clone()))),
        )
        .add_service(
            gate.guard(
                FOR_ADMINS,
                limited!(IdentityServiceServer, identity::Identities::new(context.clone())),
            ),
        )
        .add_service(
            gate.guard(FOR_ADMINS, limited!(AuditServiceServer, audit::Auditing::new(context.clone()))),
        )
        .add_service(
            gate.guard(Access::Workers, limited!(BlobServiceServer, blob::Blobs::new(context.clone()))),
        )
        .add_service(
            gate.guard(Access::Joining, limited!(WorkerServiceServer, attach::Workers::new(context.clone()))),
        )
        .add_service(gate.guard(Access::OpenOnLoopback, health))
        .add_service(gate.guard(Access::OpenOnLoopback, reflection().build_v1()?))
        .add_service(gate.guard(Access::OpenOnLoopback, reflection().build_v1alpha()?));
    Ok(routes.routes())
}

/// Tells health checks how it stands: each service by name, and all of them as "".
pub async fn set_health(health: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in SERVICES.into_iter().chain([""]) {
        health.set_service_status(name, status).await;
    }
}

/// The server that the routes are mounted on.
pub fn server() -> Server {
    berth_proto::transport::server(CLIENT_STREAMS)
}
