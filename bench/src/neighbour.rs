//! What a session notices of a neighbour that attacks the machine: the time of `true` in it while nothing else runs, and
//! beside each attack. The attacker has limits as anybody has (one core of the machine's, 256 MiB, 128 processes), and begins
//! anew whenever its task is ended for what it does. The target is a 99th percentile of at most twice the quiet one.

use berth_proto::{
    spawn::spawn,
    v1::{self, task_spec::Program},
};
use berth_tests::{Cluster, Setup};

use crate::{
    fleet::{tasks, usable},
    stats::Table,
};

const QUIET: &str = "nobody else";
const ATTACKS: [(&str, &str); 5] = [
    ("a loop on each core", "for core in $(seq $(nproc)); do while :; do :; done & done; wait"),
    ("a fork bomb", "b() { b | b & }; b 2>/dev/null; sleep 1000"),
    ("a memory bomb", "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'"),
    ("a disk that is filled", "while :; do dd if=/dev/zero of=f bs=1M 2>/dev/null; rm -f f; done"),
    ("an output flood", "yes"),
];

/// Measures both backends, and prints a table of its own.
pub async fn neighbour(rounds: usize) {
    let rows = std::iter::once(QUIET).chain(ATTACKS.map(|(name, _)| name));
    let mut table = Table::new("exec of true beside ..., ", rows);
    for backend in ["native", "docker"] {
        if usable(&mut table, backend).await {
            beside(&mut table, backend, rounds).await;
        }
    }
    table.print();
}

async fn beside(table: &mut Table, backend: &str, rounds: usize) {
    let cluster = Cluster::start(Setup { max_sessions: 8, ..Setup::new(backend) }).await;
    let column = format!("berth {backend}");
    let victim = cluster.session().await.id;
    let limits = v1::Limits {
        cpu_millis: Some(1000),
        memory_bytes: Some(256 << 20),
        disk_bytes: Some(256 << 20),
        pids: Some(128),
    };
    table.add(QUIET, &column, tasks(&cluster, &victim, &["true"], rounds).await);
    for (name, line) in ATTACKS {
        // One of its own for each: nothing of an attack is left for the next.
        let request = v1::CreateSessionRequest { limits: Some(limits), ..Default::default() };
        let attacker = cluster.sessions().create_session(request).await.expect("a session").into_inner().id;
        let attack = spawn("attack", attack(cluster.tasks(), attacker.clone(), line));
        table.add(name, &column, tasks(&cluster, &victim, &["true"], rounds).await);
        attack.abort();
        let request = v1::DeleteSessionRequest { session_id: attacker, ..Default::default() };
        cluster.sessions().delete_session(request).await.expect("it can be deleted");
    }
    let request = v1::DeleteSessionRequest { session_id: victim, ..Default::default() };
    cluster.sessions().delete_session(request).await.expect("it can be deleted");
    cluster.stop().await;
}

type Tasks = berth_proto::v1::task_service_client::TaskServiceClient<berth_tests::Authorized>;

async fn attack(mut client: Tasks, session_id: String, line: &str) {
    let program = Some(Program::Shell(line.to_owned()));
    let task = v1::TaskSpec { program, detached: true, ..Default::default() };
    loop {
        let request = v1::StartTaskRequest {
            session_id: session_id.clone(),
            task: Some(task.clone()),
            ..Default::default()
        };
        let Ok(started) = client.start_task(request).await else { return };
        let task_id = started.into_inner().id;
        let request = v1::WaitTaskRequest { session_id: session_id.clone(), task_id, timeout: None };
        if client.wait_task(request).await.is_err() {
            return;
        }
    }
}
