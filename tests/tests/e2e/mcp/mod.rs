//! `berth mcp` over its real standard input and output, with a client written by hand.

mod behaviours;
mod clients;
mod embedded;
mod files;
mod hostile;
mod http;
mod images;
mod packages;
mod programs;
mod resources;
mod restarts;
mod sdk;
mod settings;
mod wire;

use berth_proto::v1;
use berth_tests::{Cluster, Setup, mcp::Mcp, skip};

/// The version that most of these speak: with a handshake, as most clients do today.
const USUAL: &str = "2025-11-25";

async fn cluster(backend: &str, test: &str) -> Option<Cluster> {
    if skip::without(backend, &format!("e2e mcp {test}")) {
        return None;
    }
    Some(Cluster::start(Setup::new(backend)).await)
}

async fn native(test: &str) -> Option<(Cluster, Mcp)> {
    let cluster = cluster("native", test).await?;
    let mcp = Mcp::start(&cluster, &[], USUAL).await;
    Some((cluster, mcp))
}

/// Ids of the sessions that are there.
async fn live(cluster: &Cluster) -> Vec<String> {
    let request = v1::ListSessionsRequest { page_size: 1000, ..Default::default() };
    let listed = cluster.sessions().list_sessions(request).await.expect("a list").into_inner().sessions;
    let ended =
        |session: &v1::Session| matches!(session.state(), v1::SessionState::Ended | v1::SessionState::Ending);
    listed.into_iter().filter(|session| !ended(session)).map(|session| session.id).collect()
}

/// Ends the client, and sees that it left nothing.
async fn finish(cluster: Cluster, mcp: Mcp) {
    assert_eq!(mcp.end().await, Some(0));
    assert_eq!(live(&cluster).await, Vec::<String>::new(), "the client's session ends with it");
    cluster.stop().await;
}
