//! Output that fills the way to the coordinator, beside a short lease. INVARIANT 23.
//!
//! Control has a connection of its own, so a heartbeat never waits behind output: connections share a link by turns. That
//! the load is one that would cost the lease is shown by the same link as a single queue, which is what one connection
//! for both would be. And what shares a connection shares no window.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use berth_proto::{
    spawn::spawn,
    transport,
    v1::{self, task_service_client::TaskServiceClient},
};
use berth_tests::{Bearer, Cluster, READY, Setup, skip, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, mpsc},
    time::Instant,
};

use crate::util::{run, shell, state};

/// What goes through the link, from the worker to the coordinator. A heartbeat has some hundreds of bytes.
const BYTES_PER_SECOND: u64 = 512 << 10;
/// What a queue in the link holds, in pieces: eight seconds of them.
const QUEUE: usize = 1024;
const PIECE: usize = 4 << 10;
const LEASE: Duration = Duration::from_secs(2);

/// A link with less room than is asked of it.
struct Narrow {
    address: SocketAddr,
    lines: Arc<Lines>,
}

type Far = Arc<Mutex<OwnedWriteHalf>>;

struct Lines {
    /// Whose turn it is: those who wait for a lock get it in the order in which they came.
    turn: Mutex<Free>,
    queue: mpsc::Sender<(Far, Vec<u8>)>,
    one_queue: AtomicBool,
    wide: Arc<AtomicBool>,
    /// Bytes that came to it.
    asked: AtomicU64,
}

impl Narrow {
    async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (queue, mut queued) = mpsc::channel::<(Far, Vec<u8>)>(QUEUE);
        let wide = Arc::new(AtomicBool::new(false));
        let lines = Lines {
            turn: Mutex::new(Free(Instant::now())),
            queue,
            one_queue: AtomicBool::new(false),
            wide: wide.clone(),
            asked: AtomicU64::new(0),
        };
        let lines = Arc::new(lines);
        spawn("link", async move {
            let mut free = Free(Instant::now());
            while let Some((far, piece)) = queued.recv().await {
                free.send(piece.len(), &wide).await;
                let _ = far.lock().await.write_all(&piece).await;
            }
        });
        let (upstream, shared) = (upstream.to_owned(), lines.clone());
        spawn("link's door", async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&upstream).await else { continue };
                let _ = near.set_nodelay(true).and(far.set_nodelay(true));
                let (from, mut back) = near.into_split();
                let (mut answers, far) = far.into_split();
                let lines = shared.clone();
                spawn("connection", async move {
                    tokio::select! {
                        () = lines.pass(from, Arc::new(Mutex::new(far))) => {}
                        _ = tokio::io::copy(&mut answers, &mut back) => {}
                    }
                });
            }
        });
        Self { address, lines }
    }

    /// From now on there is one queue, and what came first goes first, of whichever connection.
    fn one_queue(&self) {
        self.lines.one_queue.store(true, Ordering::Relaxed);
    }

    fn carried(&self) -> u64 {
        self.lines.asked.load(Ordering::Relaxed)
    }

    /// From now on there is room for all.
    fn widen(&self) {
        self.lines.wide.store(true, Ordering::Relaxed);
    }
}

/// When the link is free again.
struct Free(Instant);

impl Free {
    /// Takes the time that it takes. What a sleep was too long is made good for.
    async fn send(&mut self, bytes: usize, wide: &AtomicBool) {
        let now = Instant::now();
        let takes = Duration::from_micros(bytes as u64 * 1_000_000 / BYTES_PER_SECOND);
        self.0 = self.0.max(now - Duration::from_millis(50)) + takes;
        if self.0 > now && !wide.load(Ordering::Relaxed) {
            tokio::time::sleep_until(self.0).await;
        }
    }
}

impl Lines {
    async fn pass(&self, mut from: OwnedReadHalf, to: Far) {
        let mut buffer = vec![0; PIECE];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let piece = buffer[..n].to_vec();
            self.asked.fetch_add(n as u64, Ordering::Relaxed);
            if self.one_queue.load(Ordering::Relaxed) {
                if self.queue.send((to.clone(), piece)).await.is_err() {
                    return;
                }
                continue;
            }
            self.turn.lock().await.send(n, &self.wide).await;
            if to.lock().await.write_all(&piece).await.is_err() {
                return;
            }
        }
    }
}

/// A task that writes more than the link takes in half a minute, and somebody who reads all of it, or nothing.
async fn flood(cluster: &Cluster, session: &str, reads: bool) {
    let task = Some(shell("head -c 16000000 /dev/zero"));
    let request = v1::RunRequest { session_id: session.into(), task, ..Default::default() };
    let mut stream = cluster.tasks().run(request).await.expect("it runs").into_inner();
    spawn("reader", async move {
        if !reads {
            return std::future::pending().await;
        }
        while let Ok(Some(_)) = stream.message().await {}
    });
}

async fn alive(cluster: &Cluster) -> bool {
    let list = cluster.admin().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers;
    list.iter().all(|worker| worker.liveness() == v1::Liveness::Alive)
}

/// Red when the link is one queue from the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_fills_the_link_delays_no_heartbeat() {
    if skip::without_root("e2e output_that_fills_the_link") {
        return;
    }
    let mut setup = Setup::new("native");
    setup.coordinator_env.push(("BERTH_LEASE".to_owned(), format!("{}s", LEASE.as_secs())));
    let mut cluster = Cluster::start_coordinator(setup).await;
    let link = Narrow::start(&cluster.address).await;
    cluster.join("worker-1", &[("COORDINATOR_ADDR", &link.address.to_string())]).await;
    cluster.workers_ready().await;
    // By its agent's fence it stands still for good measure, should a lease be missed.
    let request =
        v1::CreateSessionRequest { on_worker_loss: v1::OnWorkerLoss::Restore.into(), ..Default::default() };
    let session = cluster.sessions().create_session(request).await.expect("a session").into_inner();
    for reads in [true, true, true, false, false] {
        flood(&cluster, &session.id, reads).await;
    }
    let begun = (Instant::now(), link.carried());
    while begun.0.elapsed() < LEASE * 4 {
        assert!(alive(&cluster).await, "a lease was missed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let rate = (link.carried() - begun.1) as f64 / begun.0.elapsed().as_secs_f64();
    assert!(rate > BYTES_PER_SECOND as f64 / 2.0, "only {rate} bytes a second: the link was not full");
    let logs = cluster.coordinator.log() + &cluster.workers[0].process.log();
    for said in ["lease is over", "did not renew the lease", "the lease is confirmed: the session goes on"] {
        assert!(!logs.contains(said), "{said}");
    }
    assert_eq!(state(&cluster, &session.id).await.state(), v1::SessionState::Ready);

    link.one_queue();
    until(READY, "the lease to be missed", async || (!alive(&cluster).await).then_some(())).await;
    link.widen();
    until(READY, "the worker to be back", async || alive(&cluster).await.then_some(())).await;
    assert_eq!(state(&cluster, &session.id).await.state(), v1::SessionState::Ready);
    cluster.stop().await;
}

/// A client of its own, with a connection of its own.
async fn stuck(cluster: &Cluster, session: &str) -> tonic::Streaming<v1::TaskEvent> {
    let endpoint = transport::endpoint(transport::uri_of(&cluster.address)).expect("an address");
    let channel = endpoint.connect().await.expect("a connection");
    let mut tasks = TaskServiceClient::with_interceptor(channel, Bearer::new(&cluster.admin_token));
    let task = Some(shell("head -c 16000000 /dev/zero"));
    let request = v1::RunRequest { session_id: session.into(), task, ..Default::default() };
    tasks.run(request).await.expect("it runs").into_inner()
}

/// Who does not read holds up nobody else: not in the same session, nor in another on the same worker. Red when the
/// window of a connection is less than those of its streams together (`connection_window`, in `transport`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_do_not_read_hold_up_nobody_else() {
    if skip::without_root("e2e readers_that_do_not_read") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let (session, other) = (cluster.session().await, cluster.session().await);
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(stuck(&cluster, &session.id).await);
    }
    // All of them have ended, and nobody has read what they wrote.
    until(READY, "the tasks to end", async || {
        let request = v1::ListTasksRequest { session_id: session.id.clone(), ..Default::default() };
        let listed = tokio::time::timeout(LEASE, cluster.tasks().list_tasks(request)).await;
        let tasks = listed.expect("a listing waits for nobody").ok()?.into_inner().tasks;
        (tasks.len() == 20 && tasks.iter().all(|task| task.state() == v1::TaskState::Done)).then_some(())
    })
    .await;
    for session in [&session, &other] {
        let done = tokio::time::timeout(READY, run(&cluster, &session.id, "echo done")).await;
        assert_eq!(done.expect("a task waits for nobody").0, "done");
    }
    drop(held);
    cluster.stop().await;
}
