//! Python that is there already: what `1+1` takes in a warm context, through all three hops.

use std::time::{Duration, Instant};

use berth_proto::v1::{self, ExecutionOutcome, execute_event::Event};
use berth_tests::{Cluster, Setup, skip};

use crate::stats::Table;

const ROWS: [(&str, v1::Kernel); 2] =
    [("1+1 in a built-in context", v1::Kernel::Builtin), ("1+1 in a Jupyter context", v1::Kernel::Ipykernel)];

/// Measures both kernels, as far as the session's root has them.
pub async fn contexts(table: &mut Table, column: &str, cluster: &Cluster, session: &str, rounds: usize) {
    for (row, kernel) in ROWS {
        match warm(cluster, session, kernel, rounds).await {
            Ok(samples) => table.add(row, column, samples),
            Err(why) => table.note(format!("{row}, {column}: not measured: {why}")),
        }
    }
}

/// That alone, natively; with BERTH_TEST_FULL_ROOT in a root that has a Jupyter kernel.
pub async fn alone(rounds: usize) {
    let mut table = Table::new("", ROWS.map(|(row, _)| row));
    if !skip::without_root("bench") {
        let mut setup = Setup::new("native");
        if let Ok(root) = std::env::var("BERTH_TEST_FULL_ROOT") {
            setup.templates = Some(format!("[[template]]\nname = \"base\"\nroot = \"{root}\"\n"));
        }
        let cluster = Cluster::start(setup).await;
        let session = cluster.session().await.id;
        contexts(&mut table, "berth native", &cluster, &session, rounds).await;
        cluster.stop().await;
    }
    table.print();
}

async fn warm(
    cluster: &Cluster,
    session: &str,
    kernel: v1::Kernel,
    rounds: usize,
) -> Result<Vec<Duration>, String> {
    let request =
        v1::CreateContextRequest { session_id: session.into(), kernel: kernel.into(), ..Default::default() };
    let made = cluster.interpreter().create_context(request).await;
    let context = made.map_err(|status| status.message().to_owned())?.into_inner().id;
    let mut samples = Vec::new();
    for round in 0..rounds + 10 {
        let start = Instant::now();
        one_and_one(cluster, session, &context).await;
        if round >= 10 {
            samples.push(start.elapsed());
        }
    }
    let request = v1::DeleteContextRequest { session_id: session.into(), context_id: context };
    cluster.interpreter().delete_context(request).await.expect("it can be deleted");
    Ok(samples)
}

async fn one_and_one(cluster: &Cluster, session: &str, context: &str) {
    let request = v1::ExecuteRequest {
        session_id: session.into(),
        context_id: context.into(),
        code: "1+1".into(),
        ..Default::default()
    };
    let mut stream = cluster.interpreter().execute(request).await.expect("it runs").into_inner();
    let mut value = Vec::new();
    while let Some(event) = stream.message().await.expect("the stream goes on") {
        match event.event {
            Some(Event::Result(bundle)) => value = bundle.data[0].data.to_vec(),
            Some(Event::Ended(ended)) => {
                assert_eq!((ended.outcome(), &value[..]), (ExecutionOutcome::Ok, &b"2"[..]));
                return;
            }
            _ => {}
        }
    }
    panic!("the stream ended before the execution");
}
