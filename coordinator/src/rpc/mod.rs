//! The gRPC services. Each is thin: it checks what came (by the one conversion), asks the
//! driver or looks into the view, waits with a deadline, and words the answer.

mod admin;
mod artifact;
mod attach;
mod audit;
mod blob;
mod checkpoint;
mod cut;
mod data;
mod guard;
mod identity;
mod interpreter;
mod load;
mod recovered;
mod secret;
mod session;
mod settled;

use std::{sync::Arc, time::Duration};

use berth_proto::{
    DESCRIPTORS,
    transport::{CLIENT_STREAMS, MESSAGE_LIMIT},
    v1::{
        admin_service_server::AdminServiceServer, artifact_service_server::ArtifactServiceServer,
        audit_service_server::AuditServiceServer, blob_service_server::BlobServiceServer,
        checkpoint_service_server::CheckpointServiceServer, file_service_server::FileServiceServer,
        identity_service_server::IdentityServiceServer, interpreter_service_server::InterpreterServiceServer,
        port_service_server::PortServiceServer, secret_service_server::SecretServiceServer,
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
    artifacts::Artifacts,
    audit::Audit,
    checkpoints::Checkpoints,
    driver::{Handle, Shared},
    identity::Identity,
    secrets::Secrets,
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
    pub artifacts: Arc<Artifacts>,
    pub identity: Arc<Identity>,
    pub audit: Arc<Audit>,
    pub secrets: Arc<Secrets>,
    pub streams: Arc<Streams>,
    pub start_timeout: Duration,
    pub restore_timeout: Duration,
    pub started_at: std::time::SystemTime,
    /// Cancelled when the coordinator stops: streams end then.
    pub stopping: CancellationToken,
}

/// Names of our services, for health.
const SERVICES: [&str; 13] = [
    SessionServiceServer::<session::Sessions>::NAME,
    TaskServiceServer::<data::Tasks>::NAME,
    FileServiceServer::<data::Files>::NAME,
    PortServiceServer::<data::Ports>::NAME,
    InterpreterServiceServer::<interpreter::Interpreters>::NAME,
    WorkerServiceServer::<attach::Workers>::NAME,
    AdminServiceServer::<admin::Admin>::NAME,
    CheckpointServiceServer::<checkpoint::Checkpointing>::NAME,
    BlobServiceServer::<blob::Blobs>::NAME,
    IdentityServiceServer::<identity::Identities>::NAME,
    AuditServiceServer::<audit::Auditing>::NAME,
    SecretServiceServer::<secret::SecretApi>::NAME,
    ArtifactServiceServer::<artifact::ArtifactApi>::NAME,
];

/// Of the operators' calls those that tell a client of what is its tenant's, or of what concerns everybody.
const FOR_CLIENTS: Access = Access::Admins { clients: &["ListTemplates", "GetInfo", "WatchEvents"] };
/// An operator's alone.
const FOR_ADMINS: Access = Access::Admins { clients: &[] };

/// Bytes of a message for services that are asked by a few names and numbers. (What carries data, and a worker's reports,
/// has [`MESSAGE_LIMIT`]; answers have it everywhere.)
const QUESTION_LIMIT: usize = 64 << 10;
/// The same for those that are told what a session shall be: its environment is the most of it.
const REQUEST_LIMIT: usize = 1 << 20;
/// The same for those that start tasks: a command line of 1 MiB and its environment. (What lists much in little takes a
/// multiple of it in memory.)
const TASK_LIMIT: usize = 2 << 20;

/// All services behind the gate.
pub fn routes(
    context: &Context,
    gate: &Gate,
    health: &HealthReporter,
) -> Result<Routes, tonic_reflection::server::Error> {
    // Of a service: who may call it, and what it takes in one message.
    macro_rules! service {
        ($access:expr, $limit:expr, $server:ident, $service:expr) => {
            gate.guard(
                $access,
                $limit,
                $server::new($service)
                    .max_decoding_message_size($limit)
                    .max_encoding_message_size(MESSAGE_LIMIT),
            )
        };
    }
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let health = tonic_health::pb::health_server::HealthServer::new(HealthService::from_health_reporter(
        health.clone(),
    ))
    .max_decoding_message_size(QUESTION_LIMIT);
    let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let (v1, v1alpha) =
        (v1.max_decoding_message_size(QUESTION_LIMIT), v1alpha.max_decoding_message_size(QUESTION_LIMIT));
    let context = || context.clone();
    let (files, ports) = (data::relay(context()), data::relay(context()));
    let checkpoints = checkpoint::Checkpointing::new(context());
    let (clients, open) = (Access::Clients, Access::OpenOnLoopback);
    let mut routes = Routes::builder();
    routes
        .add_service(service!(
            clients,
            REQUEST_LIMIT,
            SessionServiceServer,
            session::Sessions::new(context())
        ))
        .add_service(service!(clients, REQUEST_LIMIT, CheckpointServiceServer, checkpoints))
        .add_service(service!(
            clients,
            QUESTION_LIMIT,
            ArtifactServiceServer,
            artifact::ArtifactApi::new(context())
        ))
        .add_service(service!(clients, TASK_LIMIT, TaskServiceServer, data::Tasks::new(context())))
        .add_service(service!(clients, MESSAGE_LIMIT, FileServiceServer, files))
        .add_service(service!(clients, REQUEST_LIMIT, PortServiceServer, ports))
        .add_service(service!(
            clients,
            REQUEST_LIMIT,
            InterpreterServiceServer,
            interpreter::Interpreters::new(context())
        ))
        .add_service(service!(FOR_CLIENTS, QUESTION_LIMIT, AdminServiceServer, admin::Admin::new(context())))
        .add_service(service!(
            FOR_ADMINS,
            QUESTION_LIMIT,
            IdentityServiceServer,
            identity::Identities::new(context())
        ))
        .add_service(service!(
            FOR_ADMINS,
            QUESTION_LIMIT,
            AuditServiceServer,
            audit::Auditing::new(context())
        ))
        .add_service(service!(
            FOR_ADMINS,
            REQUEST_LIMIT,
            SecretServiceServer,
            secret::SecretApi::new(context())
        ))
        .add_service(service!(Access::Workers, MESSAGE_LIMIT, BlobServiceServer, blob::Blobs::new(context())))
        .add_service(service!(
            Access::Joining,
            MESSAGE_LIMIT,
            WorkerServiceServer,
            attach::Workers::new(context())
        ))
        .add_service(gate.guard(open, QUESTION_LIMIT, health))
        .add_service(gate.guard(open, QUESTION_LIMIT, v1))
        .add_service(gate.guard(open, QUESTION_LIMIT, v1alpha));
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
