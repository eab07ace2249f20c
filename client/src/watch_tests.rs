//! Streams that break: nothing lost, nothing twice, and an honest word when neither can be.

use std::{sync::atomic::Ordering, time::Duration};

use berth_proto::v1;
use tokio_util::sync::CancellationToken;

use crate::{
    Client, Command, ConnectOptions, Error, Outcome, Reason, Session, SessionId, TaskEvent, WatchOptions,
    stub::{Proxy, Stub, TASK},
};

fn data(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 31 + salt) % 251) as u8).collect()
}

async fn session(address: impl ToString) -> Session {
    let options = ConnectOptions::new(address.to_string()).token("t0ken");
    placed(options).await
}

/// A session that is known to be in its first placement.
async fn placed(options: ConnectOptions) -> Session {
    let session = Client::connect(options).await.unwrap().session(SessionId::new());
    session.placed_at(1);
    session
}

/// Red when what comes twice is handed out twice, or a break is an error.
#[tokio::test]
async fn a_stream_that_breaks_is_resumed_without_loss_or_repetition() {
    for overlap in [0, 5, 1000] {
        let stub = Stub {
            stdout: data(1000, 1),
            stderr: data(311, 2),
            breaks: vec![0, 7, 100, 3, 333, 0, 50],
            overlap,
            ..Stub::default()
        };
        let (stub, address) = stub.serve().await;
        let output = session(address).await.run(Command::new("x")).await.unwrap();
        assert_eq!(output.stdout, stub.stdout);
        assert_eq!(output.stderr, stub.stderr);
        assert_eq!(output.outcome, Outcome::Exited(3));
        assert!(!output.truncated);
        assert_eq!(stub.seen.streams.load(Ordering::SeqCst), 8);
        assert_eq!(stub.seen.request_ids.lock().unwrap().len(), 1, "started once, then watched");
        assert_eq!(stub.seen.token.lock().unwrap().as_deref(), Some("Bearer t0ken"));
    }
}

/// Red when a break is an error.
#[tokio::test]
async fn a_cut_connection_is_resumed_too() {
    let hold = CancellationToken::new();
    let stub = Stub { stdout: data(5000, 3), hold: Some(hold.clone()), ..Stub::default() };
    let (stub, address) = stub.serve().await;
    let proxy = Proxy::to(address).await;
    let session = session(proxy.address).await;
    let mut stream = session.stream(Command::new("x")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2500 {
        let Some(TaskEvent::Stdout(data)) = stream.next().await.unwrap() else { panic!("only output yet") };
        seen.extend_from_slice(&data);
    }
    proxy.cut();
    while seen.len() < 5000 {
        let Some(TaskEvent::Stdout(data)) = stream.next().await.unwrap() else { panic!("only output yet") };
        seen.extend_from_slice(&data);
    }
    // All of it may have been under way before the cut: now the stream surely is a new one, or gets to be.
    proxy.cut();
    let (end, ()) = tokio::join!(stream.next(), async {
        while stub.seen.streams.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        hold.cancel();
    });
    assert!(matches!(end.unwrap(), Some(TaskEvent::Ended(_))));
    assert_eq!(seen, stub.stdout);
}

/// Red when each try has a request id of its own.
#[tokio::test]
async fn a_run_whose_answer_is_lost_is_sent_again_under_the_same_id() {
    let (stub, address) = Stub { stdout: data(10, 1), lost_answers: 2, ..Stub::default() }.serve().await;
    let output = session(address).await.run(Command::new("x")).await.unwrap();
    assert_eq!(output.stdout, stub.stdout);
    let ids = stub.seen.request_ids.lock().unwrap();
    assert_eq!(ids.len(), 3);
    assert!(!ids[0].is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

/// Red when the client sends no `if_epoch`, or takes the newer epoch although an answer was lost.
#[tokio::test]
async fn a_start_whose_answer_is_lost_is_not_repeated_in_a_recovered_session() {
    for run in [true, false] {
        let stub = || Stub { lost_answers: 1, epochs: vec![1, 2], ..Stub::default() };
        let begin = async |session: &Session, command: Command| match run {
            true => session.run(command).await.map(drop),
            false => session.start(command).await.map(drop),
        };
        let (seen, address) = stub().serve().await;
        let session_seen = session(address).await;
        let error = begin(&session_seen, Command::new("x")).await.expect_err("nobody knows whether it ran");
        assert_eq!(error.reason(), Some(Reason::SessionRecovered), "{error:?}");
        assert!(error.in_doubt() && error.hint().is_some(), "{error:?}");
        assert_eq!(*seen.seen.if_epochs.lock().unwrap(), [Some(1), Some(1)]);
        // What is started after that is started in the session as it is now, and is told of no doubt.
        begin(&session_seen, Command::new("y")).await.unwrap();
        assert_eq!(seen.seen.if_epochs.lock().unwrap()[2..], [Some(2)]);

        let (seen, address) = stub().serve().await;
        begin(&session(address).await, Command::new("x").retry_after_recovery(true)).await.unwrap();
        assert_eq!(*seen.seen.if_epochs.lock().unwrap(), [Some(1), Some(1), Some(2)]);
        let ids = seen.seen.request_ids.lock().unwrap();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
}

#[tokio::test]
async fn a_first_try_in_a_recovered_session_is_made_again_without_a_word() {
    let (stub, address) = Stub { epochs: vec![3], ..Stub::default() }.serve().await;
    let session = session(address).await;
    session.start(Command::new("x")).await.unwrap();
    session.run(Command::new("x")).await.unwrap();
    assert_eq!(*stub.seen.if_epochs.lock().unwrap(), [Some(1), Some(3), Some(3)]);
}

/// Its machine was lost, and it is not known where the session goes on: its record tells how it ended.
#[tokio::test]
async fn a_task_that_is_lost_with_its_machine_ends_as_its_record_says() {
    let end = v1::TaskEnd {
        outcome: Some(Outcome::WorkerLost.into()),
        message: "gone".to_owned(),
        ..Default::default()
    };
    let stub = Stub { stdout: data(100, 1), breaks: vec![50], record: Some(end), ..Stub::default() };
    let (stub, address) = stub.serve().await;
    let output = session(address).await.run(Command::new("x")).await.unwrap();
    assert_eq!((output.outcome, output.message.as_str()), (Outcome::WorkerLost, "gone"));
    assert!(output.truncated && stub.stdout.starts_with(&output.stdout), "{output:?}");
    assert_eq!(stub.seen.request_ids.lock().unwrap().len(), 1, "it is not started again");
}

/// Red when a gap is passed over in silence.
#[tokio::test]
async fn lost_output_is_told_or_is_an_error() {
    let (stub, address) = Stub { stdout: data(100, 1), first_kept: 40, ..Stub::default() }.serve().await;
    let task = session(address).await.task(TASK);

    let mut stream = task.watch().await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert!(matches!(first, TaskEvent::Lost { from: 0, to: 40, .. }), "{first:?}");
    let mut seen = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        if let TaskEvent::Stdout(data) = event {
            seen.extend_from_slice(&data);
        }
    }
    assert_eq!(seen, stub.stdout[40..]);

    let strict = WatchOptions { skip_lost: false, ..WatchOptions::default() };
    let error: Error = task.watch_from(strict).await.expect_err("bytes are missing");
    assert_eq!(error.reason(), Some(Reason::OutputLost));
    assert_eq!(error.detail("first_kept"), Some("40"));
}

/// Red when what is missing at the end is passed over in silence.
#[tokio::test]
async fn output_of_which_nothing_is_kept_is_told_before_the_end() {
    let (stub, address) = Stub { stdout: data(100, 1), first_kept: 100, ..Stub::default() }.serve().await;
    let task = session(address).await.task(TASK);
    let mut stream = task.watch().await.unwrap();
    let lost = stream.next().await.unwrap().unwrap();
    assert!(matches!(lost, TaskEvent::Lost { from: 0, to: 100, .. }), "{lost:?}");
    assert!(matches!(stream.next().await.unwrap(), Some(TaskEvent::Ended(_))));
    assert_eq!(stub.seen.streams.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_server_that_stays_away_is_given_up() {
    // Each stream breaks at once.
    let (_, address) =
        Stub { stdout: data(100, 1), breaks: vec![0; 10_000], ..Stub::default() }.serve().await;
    let options = ConnectOptions::new(address.to_string()).resume_for(Duration::from_secs(1));
    let session = placed(options).await;
    // `started` comes with each new stream: that is a sign of life, so only a dead address ends it.
    let mut stream = session.stream(Command::new("x")).await.unwrap();
    let outcome = tokio::time::timeout(Duration::from_millis(2500), stream.next()).await;
    assert!(outcome.is_err(), "it goes on for as long as the server answers");

    let hold = CancellationToken::new();
    let (_, address) = Stub { hold: Some(hold), ..Stub::default() }.serve().await;
    let proxy = Proxy::to(address).await;
    let options = ConnectOptions::new(proxy.address.to_string()).resume_for(Duration::from_millis(100));
    let session = placed(options).await;
    let mut stream = session.stream(Command::new("x")).await.unwrap();
    let error = {
        let cutting = async {
            loop {
                proxy.cut();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            next = stream.next() => next.expect_err("the way is cut for good"),
            () = cutting => unreachable!(),
        }
    };
    assert!(error.is_temporary(), "{error:?}");
    assert!(stream.next().await.unwrap().is_none(), "after its error it is over");
}

#[tokio::test]
async fn input_is_written_once_although_answers_are_lost() {
    let (stub, address) = Stub { stdin_step: 1000, ..Stub::default() }.serve().await;
    let session = session(address).await;
    let task = session.start(Command::new("cat").stdin(true)).await.unwrap();
    let input = data(4321, 9);
    task.write_stdin(&input[..10]).await.unwrap();
    task.write_stdin(&input[10..]).await.unwrap();
    task.close_stdin().await.unwrap();
    assert_eq!(*stub.seen.stdin.lock().unwrap(), input);
}

#[tokio::test]
async fn an_answered_error_comes_with_reason_and_hint() {
    let (_, address) = Stub::default().serve().await;
    let error = session(address).await.task(TASK).info().await.expect_err("it is not there");
    assert_eq!(error.reason(), Some(Reason::TaskNotFound));
    assert_eq!(error.message(), "no such task");
    assert_eq!(error.hint(), Some("see `berth tasks`"));
}
