//! What a task does, as any hop must tell it.

use berth_proto::{
    error::{Reason, detail_of, reason_of},
    v1::{self, outcome::Kind},
};
use tonic::Code;

use crate::hop::{DEADLINE, Hop, argv, kind, seconds, shell};

const EMPTY: v1::outcome::Empty = v1::outcome::Empty {};

pub async fn a_run_streams_started_output_ended(hop: &Hop) {
    let ran = hop.run(argv(&["echo", "hello"])).await;
    assert_eq!(ran.stdout, b"hello\n");
    assert_eq!(ran.stderr, b"");
    assert_eq!(ran.outcome(), Kind::Exited(0));
    let (started, ended) = (ran.started.unwrap(), ran.ended.unwrap());
    assert_eq!(started.id, ended.id);
    assert_eq!(ended.session_id, hop.session);
    assert_eq!(ended.stdout.unwrap().length, 6);
    assert!(ended.end.unwrap().duration.is_some());
    assert_eq!(hop.run(argv(&["sh", "-c", "exit 7"])).await.outcome(), Kind::Exited(7));
}

pub async fn streams_are_separate_and_binary_safe(hop: &Hop) {
    let ran = hop.run(shell(r"printf 'a\000b\377'; printf 'err\200' >&2")).await;
    assert_eq!(ran.stdout, b"a\0b\xff");
    assert_eq!(ran.stderr, b"err\x80");
    let ran = hop.run(argv(&["python3", "-c", "import os; os.write(1, bytes(range(256)) * 4096)"])).await;
    let expected: Vec<u8> = (0..=255u8).cycle().take(256 * 4096).collect();
    assert!(ran.stdout == expected, "a mebibyte of every byte came back changed");
}

pub async fn output_resumes_at_any_offset(hop: &Hop) {
    let ran = hop.run(argv(&["echo", "0123456789"])).await;
    let task = ran.started.unwrap().id;
    for offset in 0..=11 {
        let seen = hop.watch(&task, offset, 0).await.expect("it can be watched again");
        assert_eq!(seen.stdout, b"0123456789\n"[offset as usize..], "from {offset}");
        assert_eq!(seen.outcome(), Kind::Exited(0));
    }
    let error = hop.watch(&task, 12, 0).await.expect_err("there is no byte 12");
    assert_eq!(error.code(), Code::OutOfRange);
    assert_eq!(reason_of(&error), Some(Reason::OffsetBeyondEnd));
}

pub async fn a_shell_line_runs_in_a_shell(hop: &Hop) {
    let ran = hop.run(shell("seq 1 100 | grep 7 | wc -l; pwd; echo $HOME $USER")).await;
    assert_eq!(ran.ok(), "19\n/workspace\n/home/user user");
    let task = v1::TaskSpec {
        cwd: "sub".into(),
        env: [("GREETING".to_owned(), "hi".to_owned())].into(),
        ..shell("echo $GREETING $(basename $PWD)")
    };
    hop.run(argv(&["mkdir", "sub"])).await.ok();
    assert_eq!(hop.run(task).await.ok(), "hi sub");
}

pub async fn a_missing_program_is_127_and_an_unfit_one_126(hop: &Hop) {
    let ran = hop.run(argv(&["no-such-program"])).await;
    assert_eq!(ran.outcome(), Kind::Exited(127));
    assert!(
        ran.errors().contains("no-such-program") && ran.errors().contains("not found"),
        "{}",
        ran.errors()
    );
    let ran = hop.run(argv(&["/etc/passwd"])).await;
    assert_eq!(ran.outcome(), Kind::Exited(126));
    assert!(ran.errors().contains("/etc/passwd"), "{}", ran.errors());
}

pub async fn a_timeout_is_no_exit(hop: &Hop) {
    let ran = hop.run(v1::TaskSpec { timeout: seconds(1), ..argv(&["sleep", "1000"]) }).await;
    assert_eq!(ran.outcome(), Kind::TimedOut(EMPTY));
    if hop.backend != "fake" {
        let ran = hop.run(argv(&["sh", "-c", "ps ax -o args | grep -c '^sleep 1000' || true"])).await;
        assert_eq!(ran.ok(), "0", "the process is still there");
    }
}

pub async fn too_much_memory_is_told_and_the_session_lives_on(hop: &Hop) {
    let hog = "a = []\nwhile True: a.append(bytearray(1 << 24))";
    let ran = hop.run(argv(&["python3", "-c", hog])).await;
    assert_eq!(ran.outcome(), Kind::OutOfMemory(EMPTY));
    let usage = ran.ended.unwrap().end.unwrap().usage.unwrap();
    assert!(usage.oom_kills >= 1, "{usage:?}");
    assert!(usage.peak_memory_bytes > 64 << 20, "{usage:?}");
    assert_eq!(hop.run(argv(&["echo", "alive"])).await.ok(), "alive");
}

pub async fn the_output_limit_ends_a_task(hop: &Hop) {
    let ran = hop.run(v1::TaskSpec { output_limit: 100_000, ..argv(&["yes"]) }).await;
    assert_eq!(ran.outcome(), Kind::OutputLimit(EMPTY));
    assert!(ran.stdout.len() >= 100_000, "{}", ran.stdout.len());
    // Retention is another thing: the oldest bytes go, and the task is none the wiser.
    let line = "import sys\nfor i in range(40000): sys.stdout.write('%09d\\n' % i)";
    let task = hop.start_task(v1::TaskSpec { spool_bytes: 64 << 10, ..argv(&["python3", "-c", line]) }).await;
    let task = hop.done(&task.id).await;
    assert_eq!(kind(&task), Kind::Exited(0));
    let stdout = task.stdout.unwrap();
    assert_eq!(stdout.length, 400_000);
    assert!(stdout.first_kept > 0, "nothing was dropped");
    let error = hop.watch(&task.id, 0, 0).await.expect_err("byte 0 is gone");
    assert_eq!((error.code(), reason_of(&error)), (Code::OutOfRange, Some(Reason::OutputLost)));
    let first: u64 = detail_of(&error, "first_kept").expect("it is told").parse().unwrap();
    let seen = hop.watch(&task.id, first, 0).await.expect("the rest is there");
    assert_eq!(seen.stdout.len() as u64, 400_000 - first);
    assert!(seen.stdout.ends_with(b"000039999\n"));
}

pub async fn cancel_is_final(hop: &Hop) {
    let line = if hop.backend == "fake" {
        argv(&["sleep", "1000"])
    } else {
        shell("trap '' TERM; echo ready; while :; do sleep 1; done")
    };
    let task = hop.start_task(line).await;
    if hop.backend != "fake" {
        hop.prints(&task.id, "ready").await;
    }
    let request = v1::CancelTaskRequest {
        session_id: hop.session.clone(),
        task_id: task.id.clone(),
        grace: seconds(1),
    };
    let ended =
        hop.tasks.clone().cancel_task(request.clone()).await.expect("it can be cancelled").into_inner();
    assert_eq!(kind(&ended), Kind::Cancelled(EMPTY));
    // Twice changes nothing.
    let again = hop.tasks.clone().cancel_task(request).await.expect("twice is no error").into_inner();
    assert_eq!(again.end, ended.end);
    let error = hop
        .tasks
        .clone()
        .signal_task(v1::SignalTaskRequest { session_id: hop.session.clone(), task_id: task.id, signal: 15 })
        .await
        .expect_err("it is done");
    assert_eq!(reason_of(&error), Some(Reason::TaskDone));
}

pub async fn what_a_task_started_ends_with_it(hop: &Hop) {
    // A double fork with setsid, all descriptors closed.
    let escape = "setsid sh -c 'exec >/dev/null 2>&1 </dev/null; while :; do date >> beat; sleep 0.05; done' & \
                  while [ ! -s beat ]; do sleep 0.02; done; echo away";
    assert_eq!(hop.run(shell(escape)).await.ok(), "away");
    let count = hop.run(shell("wc -c < beat; ps ax -o args | grep -c '[d]one' || true")).await;
    let later = hop.run(shell("sleep 0.3; wc -c < beat; ps ax -o args | grep -c '[d]one' || true")).await;
    assert_eq!(count.ok().lines().next(), later.ok().lines().next(), "its heart still beats");
}

pub async fn an_inherited_pipe_holds_nobody_up(hop: &Hop) {
    let ran = tokio::time::timeout(DEADLINE / 2, hop.run(shell("sleep 1000 & echo done"))).await;
    assert_eq!(ran.expect("it returns with its main process").ok(), "done");
}

pub async fn a_detached_task_leaves_its_children(hop: &Hop) {
    let task =
        v1::TaskSpec { detached: true, ..shell("(while :; do date > tick; sleep 0.05; done) & exit 0") };
    let task = hop.start_task(task).await;
    assert_eq!(kind(&hop.done(&task.id).await), Kind::Exited(0));
    let alive = "rm -f tick; for i in $(seq 100); do [ -s tick ] && echo alive && exit; sleep 0.05; done";
    assert_eq!(hop.run(shell(alive)).await.ok(), "alive");
}

pub async fn stdin_is_written_once(hop: &Hop) {
    let task = hop.start_task(v1::TaskSpec { stdin: true, ..argv(&["cat"]) }).await;
    let write = |offset, data: &'static [u8]| v1::WriteStdinRequest {
        session_id: hop.session.clone(),
        task_id: task.id.clone(),
        offset,
        data: data.into(),
    };
    let mut tasks = hop.tasks.clone();
    assert_eq!(tasks.write_stdin(write(Some(0), b"abc")).await.unwrap().into_inner().offset, 3);
    // A retry of the same, and one that overlaps.
    assert_eq!(tasks.write_stdin(write(Some(0), b"abc")).await.unwrap().into_inner().offset, 3);
    assert_eq!(tasks.write_stdin(write(Some(1), b"bcde")).await.unwrap().into_inner().offset, 5);
    let error = tasks.write_stdin(write(Some(9), b"x")).await.expect_err("bytes 5 to 8 are missing");
    assert_eq!(error.code(), Code::OutOfRange);
    assert_eq!(tasks.write_stdin(write(None, b"f\n")).await.unwrap().into_inner().offset, 7);
    let close = v1::CloseStdinRequest { session_id: hop.session.clone(), task_id: task.id.clone() };
    tasks.close_stdin(close).await.expect("it can be closed");
    hop.done(&task.id).await;
    assert_eq!(hop.watch(&task.id, 0, 0).await.unwrap().stdout, b"abcdef\n");
    // Without stdin a task reads end-of-file at once, and takes no input.
    assert_eq!(hop.run(argv(&["cat"])).await.ok(), "");
}

pub async fn a_terminal_has_its_size(hop: &Hop) {
    let line = "stty size; read line; stty size; echo \"got $line\"; test -t 1 && echo tty";
    let size = Some(v1::PtySize { cols: 100, rows: 30 });
    let task = hop.start_task(v1::TaskSpec { pty: true, pty_size: size, ..shell(line) }).await;
    hop.prints(&task.id, "30 100").await;
    let mut tasks = hop.tasks.clone();
    let (session_id, task_id) = (hop.session.clone(), task.id.clone());
    let size = Some(v1::PtySize { cols: 132, rows: 43 });
    tasks
        .resize_pty(v1::ResizePtyRequest { session_id: session_id.clone(), task_id: task_id.clone(), size })
        .await
        .expect("it can be resized");
    tasks
        .write_stdin(v1::WriteStdinRequest { session_id, task_id, offset: None, data: b"x\n"[..].into() })
        .await
        .expect("a terminal takes input");
    hop.done(&task.id).await;
    let seen = hop.watch(&task.id, 0, 0).await.unwrap();
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(text.contains("43 132") && text.contains("got x") && text.contains("tty"), "{text:?}");
    let plain = hop.start_task(argv(&["sleep", "1000"])).await;
    let error = tasks
        .resize_pty(v1::ResizePtyRequest { session_id: hop.session.clone(), task_id: plain.id, size })
        .await
        .expect_err("it has no terminal");
    assert_eq!(reason_of(&error), Some(Reason::NoPty));
}

pub async fn signals_reach_the_task(hop: &Hop) {
    let signal = |task: &v1::Task, signal| v1::SignalTaskRequest {
        session_id: hop.session.clone(),
        task_id: task.id.clone(),
        signal,
    };
    let task =
        hop.start_task(shell("trap 'echo usr1; exit 5' USR1; echo up; while :; do sleep 0.05; done")).await;
    hop.prints(&task.id, "up").await;
    hop.tasks.clone().signal_task(signal(&task, 10)).await.expect("USR1 is sent");
    assert_eq!(kind(&hop.done(&task.id).await), Kind::Exited(5));
    let task = hop.start_task(argv(&["sleep", "1000"])).await;
    hop.tasks.clone().signal_task(signal(&task, 9)).await.expect("KILL is sent");
    assert_eq!(kind(&hop.done(&task.id).await), Kind::Signaled(9));
    let task = hop.start_task(argv(&["sleep", "1000"])).await;
    let error = hop.tasks.clone().signal_task(signal(&task, 65)).await.expect_err("no such signal");
    assert_eq!(error.code(), Code::InvalidArgument);
}

pub async fn a_request_id_starts_one_task(hop: &Hop) {
    let start = |word: &str| v1::StartTaskRequest {
        session_id: hop.session.clone(),
        task: Some(argv(&["echo", word])),
        request_id: "once".into(),
        ..Default::default()
    };
    let first = hop.tasks.clone().start_task(start("a")).await.unwrap().into_inner();
    let again = hop.tasks.clone().start_task(start("a")).await.unwrap().into_inner();
    assert_eq!(first.id, again.id);
    let error = hop.tasks.clone().start_task(start("b")).await.expect_err("another body");
    assert_eq!((error.code(), reason_of(&error)), (Code::AlreadyExists, Some(Reason::RequestIdReused)));
    let request = v1::ListTasksRequest { session_id: hop.session.clone(), ..Default::default() };
    assert_eq!(hop.tasks.clone().list_tasks(request).await.unwrap().into_inner().tasks.len(), 1);
}

/// Red without the look at `if_epoch` where a task is admitted (the agent's `admit`, the fake's `start_task`).
pub async fn a_start_that_was_sent_to_another_placement_is_refused(hop: &Hop) {
    let start = |request_id: &str, if_epoch| v1::StartTaskRequest {
        session_id: hop.session.clone(),
        task: Some(argv(&["true"])),
        request_id: request_id.into(),
        if_epoch,
        ..Default::default()
    };
    // The session is in its first placement, so its epoch is 1.
    let first = hop
        .tasks
        .clone()
        .start_task(start("here", Some(1)))
        .await
        .expect("it is this placement")
        .into_inner();
    for (id, if_epoch, reason) in
        [("a", 0, Reason::SessionRecovered), ("", 0, Reason::SessionRecovered), ("b", 2, Reason::StaleEpoch)]
    {
        let error =
            hop.tasks.clone().start_task(start(id, Some(if_epoch))).await.expect_err("another placement");
        assert_eq!((error.code(), reason_of(&error)), (Code::FailedPrecondition, Some(reason)), "{error:?}");
        assert_eq!(detail_of(&error, "epoch").as_deref(), Some("1"), "{error:?}");
        let run = v1::RunRequest {
            session_id: hop.session.clone(),
            task: Some(argv(&["true"])),
            request_id: id.into(),
            if_epoch: Some(if_epoch),
            ..Default::default()
        };
        let error = hop.tasks.clone().run(run).await.expect_err("another placement");
        assert_eq!(reason_of(&error), Some(reason), "{error:?}");
    }
    // What is known needs no guess.
    let again = hop
        .tasks
        .clone()
        .start_task(start("here", Some(0)))
        .await
        .expect("its request id is known")
        .into_inner();
    assert_eq!(again.id, first.id);
    let request = v1::ListTasksRequest { session_id: hop.session.clone(), ..Default::default() };
    assert_eq!(hop.tasks.clone().list_tasks(request).await.unwrap().into_inner().tasks.len(), 1);
}

pub async fn tasks_are_listed_in_pages(hop: &Hop) {
    let mut started = Vec::new();
    for _ in 0..5 {
        started.push(hop.run(argv(&["true"])).await.started.unwrap().id);
    }
    started.reverse();
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListTasksRequest {
            session_id: hop.session.clone(),
            page_size: 2,
            page_token,
            ..Default::default()
        };
        let page = hop.tasks.clone().list_tasks(request).await.unwrap().into_inner();
        assert!(page.tasks.len() <= 2);
        listed.extend(page.tasks.into_iter().map(|task| task.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, started, "newest first, each once");
}

pub async fn an_unwatched_task_is_cancelled_after_its_grace(hop: &Hop) {
    let task = v1::TaskSpec { reattach_grace: seconds(1), ..argv(&["sleep", "1000"]) };
    let request = v1::RunRequest { session_id: hop.session.clone(), task: Some(task), ..Default::default() };
    let mut stream = hop.tasks.clone().run(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let Some(v1::task_event::Event::Started(task)) = first.event else { panic!("{first:?}") };
    drop(stream);
    // Asking is not watching.
    berth_tests::until(DEADLINE, "the end of the unwatched task", async || {
        hop.get(&task.id).await.end.map(|_| ())
    })
    .await;
    assert_eq!(kind(&hop.get(&task.id).await), Kind::Cancelled(EMPTY));
    // A detached one lives on.
    let task = v1::TaskSpec { reattach_grace: seconds(1), detached: true, ..argv(&["sleep", "3"]) };
    let task = hop.start_task(task).await;
    assert_eq!(kind(&hop.done(&task.id).await), Kind::Exited(0));
}
