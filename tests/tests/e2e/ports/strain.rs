//! What holds when nobody reads, and when what lies between dies.

use std::time::Duration;

use berth_client::Reason;
use berth_proto::transport::PORT_CONNECTIONS;
use berth_tests::{Cluster, READY, Setup, until};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::{ECHO, Forward, echoes, serve, session};
use crate::util::{on_both, run};

/// Whatever a client sends to servers that read nothing of it, on all connections that it may have: it costs the session none of
/// its own, and its agent not its life. Red when a hop keeps what it can't pass on.
async fn what_no_server_reads_is_not_taken(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let id = cluster.session().await.id;
    let session = session(&cluster, &id).await;
    let deaf = "import socket\nserver, all = socket.create_server(('127.0.0.1', 0), backlog=128), []\n\
                print('port', server.getsockname()[1], flush=True)\nwhile True: all.append(server.accept()[0])";
    let port = serve(&cluster, &id, &["python3", "-c", deaf]).await;
    let stalled = (0..PORT_CONNECTIONS).map(|_| async {
        let mut stream = session.connect_port(port).await.expect("it is accepted");
        let (piece, mut taken) = (vec![0; 1 << 16], 0_u64);
        // Nothing is waited for but a standstill.
        while let Ok(written) = tokio::time::timeout(Duration::from_secs(3), stream.write(&piece)).await {
            taken += written.expect("it stays open") as u64;
        }
        (stream, taken)
    });
    let stalled = futures::future::join_all(stalled).await;
    let most = stalled.iter().map(|(_, taken)| *taken).max();
    assert!(most.is_some_and(|most| most < 24 << 20), "{most:?}");
    assert_eq!(run(&cluster, &id, "echo alive").await.0, "alive");
    let full = session.connect_port(port).await.expect_err("there is no place");
    assert_eq!(full.reason(), Some(Reason::TooManyConnections));
    drop(stalled);
    let echo = serve(&cluster, &id, &["python3", "-c", ECHO]).await;
    let mut open = until(READY, "a place", async || session.connect_port(echo).await.ok()).await;
    echoes(&mut open, b"hello").await;
    cluster.stop().await;
}
on_both!(what_no_server_reads_is_not_taken:
    native_what_no_server_reads_is_not_taken,
    docker_what_no_server_reads_is_not_taken);

/// Says goodbye, and reads on; then tells how much that was.
const EARLY: &str = "
import socket
server = socket.create_server(('127.0.0.1', 0))
print('port', server.getsockname()[1], flush=True)
while True:
    conn, heard = server.accept()[0], 0
    conn.sendall(b'bye')
    conn.shutdown(socket.SHUT_WR)
    try:
        while data := conn.recv(65536): heard += len(data)
        print('heard', heard, flush=True)
    except OSError as error: print(type(error).__name__, heard, flush=True)
";

/// Red when the last bytes go down with whoever sent them: to drop a stream ends its call.
async fn what_is_written_last_arrives(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let id = cluster.session().await.id;
    let session = session(&cluster, &id).await;
    let port = serve(&cluster, &id, &["python3", "-c", EARLY]).await;
    let forward = Forward::start(&cluster, &[&id, &format!("0:{port}")]).await;
    let told = async |times: usize| {
        until(READY, "the server's word", async || {
            let logs = cluster.berth(&["logs", &id]).await.ok();
            let told: Vec<String> = logs.lines().skip(1).map(str::to_owned).collect();
            (told.len() >= times).then_some(told)
        })
        .await
    };
    for round in 0..3 {
        let mut stream = TcpStream::connect(&forward.addresses[0]).await.expect("it listens");
        send_last(&mut stream).await;
        drop(stream);
        told(2 * round + 1).await;
        let mut stream = session.connect_port(port).await.expect("it listens");
        send_last(&mut stream).await;
        drop(stream);
        told(2 * round + 2).await;
    }
    assert_eq!(told(6).await, vec![format!("heard {}", 3 << 20); 6]);
    assert_eq!(forward.interrupt().await.0, Some(130));
    cluster.stop().await;
}
on_both!(what_is_written_last_arrives:
    native_what_is_written_last_arrives,
    docker_what_is_written_last_arrives);

async fn send_last(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.expect("in order");
    assert_eq!(said, b"bye");
    stream.write_all(&vec![1; 3 << 20]).await.expect("it is open");
    stream.shutdown().await.expect("in order");
}

/// A coordinator and a worker may die under it: what was open then is broken, and told so, and what comes after is carried by
/// the same command to the same server. Red when a connection that has lost its way hangs, or looks ended.
async fn what_is_killed_breaks_what_is_open_and_no_more(sandbox: &str) {
    let mut cluster = Cluster::start(Setup::new(sandbox)).await;
    let id = cluster.session().await.id;
    let port = serve(&cluster, &id, &["python3", "-c", ECHO]).await;
    let forward = Forward::start(&cluster, &[&id, &format!("0:{port}")]).await;
    for kills_worker in [false, true] {
        let mut forwarded = TcpStream::connect(&forward.addresses[0]).await.expect("it listens");
        echoes(&mut forwarded, b"before").await;
        let mut open = session(&cluster, &id).await.connect_port(port).await.expect("it listens");
        echoes(&mut open, b"before").await;
        if kills_worker {
            cluster.workers[0].process.kill().await;
            cluster.restart_worker(0);
        } else {
            cluster.restart_coordinator().await;
        }
        cluster.workers_ready().await;
        let broken = async {
            open.read(&mut [0; 1]).await.expect_err("not an end");
            forwarded.read(&mut [0; 1]).await.expect_err("not an end");
        };
        tokio::time::timeout(READY, broken).await.expect("it hangs");
        until(READY, "the same command to carry on", async || {
            let mut again = TcpStream::connect(&forward.addresses[0]).await.ok()?;
            again.write_all(b"after").await.ok()?;
            let mut heard = [0; 5];
            again.read_exact(&mut heard).await.ok()?;
            assert_eq!(&heard, b"after");
            Some(())
        })
        .await;
    }
    assert_eq!(forward.interrupt().await.0, Some(130));
    cluster.stop().await;
}
on_both!(what_is_killed_breaks_what_is_open_and_no_more:
    native_what_is_killed_breaks_what_is_open_and_no_more,
    docker_what_is_killed_breaks_what_is_open_and_no_more);
