//! Starting tasks, and what they find.

use berth_proto::{Reason, v1, v1::outcome::Kind};
use tonic::Code;

use crate::rig::*;

#[tokio::test]
async fn exit_codes_and_separate_streams() {
    let Some(rig) = Rig::start("exit_codes_and_separate_streams").await else { return };
    let done = rig.run(sh("printf 'out\\0\\377'; printf err >&2; exit 3")).await;
    assert_eq!(done.outcome(), Kind::Exited(3));
    assert_eq!(done.stdout, b"out\0\xff");
    assert_eq!(done.stderr, b"err");
    let ended = done.ended.as_ref().unwrap();
    assert_eq!(ended.stdout, Some(v1::StreamInfo { length: 5, first_kept: 0 }));
    let usage = done.end().usage.as_ref().unwrap();
    assert!(usage.cpu_user.is_some() && usage.oom_kills == 0);
    assert!(usage.peak_memory_bytes > 0);
    assert_eq!(rig.run(argv(&["true"])).await.outcome(), Kind::Exited(0));
    assert_eq!(rig.run(sh("kill -TERM $$")).await.outcome(), Kind::Signaled(15));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_127_and_one_that_cannot_run_is_126() {
    let Some(rig) = Rig::start("a_program_that_is_not_there_is_127").await else { return };
    let done = rig.run(argv(&["no-such-program"])).await;
    assert_eq!(
        (done.outcome(), done.err().as_str()),
        (Kind::Exited(127), "berth: no-such-program: command not found\n")
    );
    let done = rig.run(argv(&["./nothing"])).await;
    assert_eq!(
        (done.outcome(), done.err().as_str()),
        (Kind::Exited(127), "berth: ./nothing: no such file or directory\n")
    );
    rig.run(sh("echo 'echo hi' > plain; echo junk > junk; chmod +x junk; printf '#!/no/such\\n' > script; chmod +x script")).await;
    let done = rig.run(argv(&["./plain"])).await;
    assert_eq!(
        (done.outcome(), done.err().as_str()),
        (Kind::Exited(126), "berth: ./plain: permission denied\n")
    );
    let done = rig.run(argv(&["./junk"])).await;
    assert_eq!(done.outcome(), Kind::Exited(126), "{}", done.err());
    let done = rig.run(argv(&["./script"])).await;
    assert_eq!(done.outcome(), Kind::Exited(126), "{}", done.err());
    assert!(done.err().contains("interpreter"), "{}", done.err());
}

#[tokio::test]
async fn a_cwd_that_cannot_be_entered_fails_the_start() {
    let Some(rig) = Rig::start("a_cwd_that_cannot_be_entered_fails_the_start").await else { return };
    let at = |cwd: &str| v1::TaskSpec { cwd: cwd.to_owned(), ..argv(&["pwd"]) };
    let status = refused(rig.try_run(at("missing")).await, Code::FailedPrecondition, Reason::CwdNotFound);
    assert!(status.message().contains("missing"), "{status:?}");
    refused(rig.try_run(at("/root")).await, Code::FailedPrecondition, Reason::CwdNotFound);
    refused(rig.try_run(at("/proc/self/fd/0")).await, Code::FailedPrecondition, Reason::CwdNotFound);
    refused(rig.try_run(at("/proc/self/cwd")).await, Code::FailedPrecondition, Reason::CwdNotFound);
    rig.run(sh("mkdir -p a/b")).await;
    assert_eq!(rig.run(at("a/b")).await.out().trim(), rig.workspace("a/b").to_str().unwrap());
    assert_eq!(rig.run(at("/tmp")).await.out(), "/tmp\n");
    assert_eq!(rig.run(at("")).await.out().trim(), rig.config.workspace.to_str().unwrap());
    // The refused ones left nothing.
    let list = v1::ListTasksRequest { session_id: rig.session.clone(), ..Default::default() };
    assert_eq!(rig.tasks.clone().list_tasks(list).await.unwrap().into_inner().tasks.len(), 4);
}

#[tokio::test]
async fn a_task_has_no_privileges() {
    let Some(rig) = Rig::start("a_task_has_no_privileges").await else { return };
    let done = rig.run(sh("id -u; id -g; id -G; cat /proc/self/status; ulimit -c; ls /proc/self/fd")).await;
    let out = done.out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..3], [UID.to_string(), GID.to_string(), GID.to_string()]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(out.contains(&format!("{set}:\t0000000000000000\n")), "{set} is not empty: {out}");
    }
    assert!(out.contains("NoNewPrivs:\t1\n") && out.contains("Seccomp:\t2\n"), "{out}");
    // ls itself has 3 open on the directory.
    assert!(out.ends_with("0\n0\n1\n2\n3\n"), "{out}");
}

#[tokio::test]
async fn the_agent_is_out_of_reach() {
    let Some(rig) = Rig::start("the_agent_is_out_of_reach").await else { return };
    let done = rig
        .run(sh("kill -9 1 2>&1; kill -9 -1; cat /proc/1/environ; ls /proc/1/fd; ls $SPOOL; unshare -U true; echo end"))
        .await;
    // `kill -9 -1` may take the shell too: what counts is who is still there.
    assert!(!done.out().contains("canary"));
    let spool = rig.config.spool_dir.to_str().unwrap();
    let spec =
        v1::TaskSpec { env: env(&[("SPOOL", spool)]), ..sh("ls $SPOOL && exit 9; unshare -U true; echo $?") };
    let done = rig.run(spec).await;
    assert_eq!(done.out(), "1\n", "{}", done.err());
    assert!(done.err().to_lowercase().contains("not permitted"), "{}", done.err());
}

#[tokio::test]
async fn the_environment_is_an_allow_list() {
    let options = Options {
        request: v1::ConfigureRequest { env: env(&[("SESSION", "s"), ("BOTH", "s")]), ..Default::default() },
        ..Default::default()
    };
    let Some(rig) = Rig::with("the_environment_is_an_allow_list", options).await else { return };
    let done = rig.run(v1::TaskSpec { env: env(&[("BOTH", "t")]), ..argv(&["env"]) }).await;
    let mut lines: Vec<String> = done.out().lines().map(str::to_owned).collect();
    lines.sort();
    let home = rig.config.user.home.to_str().unwrap();
    let shell = if std::path::Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    let path = berth_proto::agent_config::TASK_PATH;
    let mut expected = vec![
        "BOTH=t".to_owned(),
        "SESSION=s".to_owned(),
        format!("HOME={home}"),
        "LANG=C.UTF-8".to_owned(),
        "LOGNAME=user".to_owned(),
        format!("PATH={home}/.local/bin:{path}"),
        format!("SHELL={shell}"),
        "USER=user".to_owned(),
    ];
    expected.sort();
    assert_eq!(lines, expected);
    // What is shown of a task has no values.
    assert!(done.started.spec.as_ref().unwrap().env.is_empty());
}

#[tokio::test]
async fn real_programs_run_under_the_filter() {
    let Some(rig) = Rig::start("real_programs_run_under_the_filter").await else { return };
    let programs = [
        (
            "python3",
            "python3 -c 'import threading,subprocess,socket,tempfile,os\nt=threading.Thread(target=print,args=(1,));t.start();t.join()\nprint(subprocess.check_output([\"echo\",\"2\"]).decode().strip())\na,b=socket.socketpair();a.send(b\"3\");print(b.recv(1).decode())\ns=socket.socket();s.bind((\"127.0.0.1\",0));os.fork() or os._exit(0);print(4)'",
            "1\n2\n3\n4\n",
        ),
        (
            "git",
            "git init -q r && cd r && git -c user.name=a -c user.email=b commit -q --allow-empty -m x && git log --format=%s",
            "x\n",
        ),
        (
            "gcc",
            "printf '#include <pthread.h>\\n#include <stdio.h>\\nvoid*f(void*p){puts(\"t\");return 0;}int main(){pthread_t t;pthread_create(&t,0,f,0);pthread_join(t,0);}' > t.c && gcc -pthread -o t t.c && ./t",
            "t\n",
        ),
        ("bash", "x=$(seq 1 1000 | sort -R | sort -n | tail -1); echo $x", "1000\n"),
    ];
    for (program, line, expected) in programs {
        if rig.run(sh(&format!("command -v {program}"))).await.outcome() != Kind::Exited(0) {
            skip("real_programs_run_under_the_filter", &format!("{program} is not installed"));
            continue;
        }
        let done = rig.run(sh(line)).await;
        assert_eq!(
            (done.out().as_str(), done.outcome()),
            (expected, Kind::Exited(0)),
            "{program}: {}",
            done.err()
        );
    }
}

#[tokio::test]
async fn stdin_is_written_by_offset() {
    let Some(rig) = Rig::start("stdin_is_written_by_offset").await else { return };
    let task = rig.begin(v1::TaskSpec { stdin: true, ..argv(&["cat"]) }).await;
    assert_eq!(rig.stdin(&task, Some(0), b"hello ").await.unwrap(), 6);
    assert_eq!(rig.stdin(&task, Some(0), b"hello ").await.unwrap(), 6);
    assert_eq!(rig.stdin(&task, Some(3), b"lo world").await.unwrap(), 11);
    refused(rig.stdin(&task, Some(99), b"x").await, Code::OutOfRange, Reason::OffsetBeyondEnd);
    rig.close_stdin(&task).await.unwrap();
    let done = rig.watch(rig.watch_request(&task)).await.unwrap();
    assert_eq!((done.out().as_str(), done.outcome()), ("hello world", Kind::Exited(0)));
    refused(rig.stdin(&task, None, b"x").await, Code::FailedPrecondition, Reason::TaskDone);
    rig.close_stdin(&task).await.unwrap();
    // Without stdin: end of file at once, and a refusal.
    assert_eq!(rig.run(argv(&["cat"])).await.outcome(), Kind::Exited(0));
    let task = rig.begin(argv(&["sleep", "60"])).await;
    refused(rig.stdin(&task, None, b"x").await, Code::FailedPrecondition, Reason::NoStdin);
    refused(rig.close_stdin(&task).await, Code::FailedPrecondition, Reason::NoStdin);
}

#[tokio::test]
async fn a_terminal_has_a_size_an_owner_and_an_end() {
    let Some(rig) = Rig::start("a_terminal_has_a_size_an_owner_and_an_end").await else { return };
    let size = Some(v1::PtySize { cols: 101, rows: 33 });
    let spec = v1::TaskSpec {
        pty: true,
        pty_size: size,
        ..sh(
            "stty size; echo TERM=$TERM; stat -c %u $(tty); : < $(tty) && echo mine; echo to-err >&2; read line; echo got $line; read -r _; stty size; cat; echo over",
        )
    };
    let task = rig.begin(spec).await;
    rig.stdin(&task, Some(0), b"abc\n").await.unwrap();
    let seen = |text: &'static str| {
        let (rig, task) = (&rig, &task);
        async move {
            let until = std::time::Instant::now() + SOON;
            loop {
                let request = v1::WatchTaskRequest { no_follow: true, ..rig.watch_request(task) };
                let out = rig.watch(request).await.unwrap().out();
                if out.contains(text) {
                    return out;
                }
                assert!(std::time::Instant::now() < until, "{out}");
            }
        }
    };
    let out = seen("got abc").await;
    assert!(out.contains("33 101") && out.contains("TERM=xterm-256color") && out.contains("to-err"), "{out}");
    assert!(out.contains(&format!("{UID}\r\n")) && out.contains("mine"), "{out}");
    let resize = v1::ResizePtyRequest {
        session_id: rig.session.clone(),
        task_id: task.id.clone(),
        size: Some(v1::PtySize { cols: 70, rows: 20 }),
    };
    rig.tasks.clone().resize_pty(resize.clone()).await.unwrap();
    rig.stdin(&task, None, b"\n").await.unwrap();
    seen("20 70").await;
    // An unfinished line, and the end of input behind it.
    rig.stdin(&task, None, b"tail").await.unwrap();
    rig.close_stdin(&task).await.unwrap();
    let done = rig.watch(rig.watch_request(&task)).await.unwrap();
    assert_eq!(done.outcome(), Kind::Exited(0));
    assert!(done.out().ends_with("over\r\n"), "{}", done.out());
    let pipe = rig.begin(argv(&["sleep", "60"])).await;
    let resize = v1::ResizePtyRequest { task_id: pipe.id.clone(), ..resize };
    refused(rig.tasks.clone().resize_pty(resize).await, Code::FailedPrecondition, Reason::NoPty);
}

/// Red when the ledger is not asked, the body not compared, or a start that failed keeps its key.
#[tokio::test]
async fn a_key_starts_one_task() {
    let Some(rig) = Rig::start("a_key_starts_one_task").await else { return };
    let spec = || sh("echo x >> ran; cat ran");
    let (a, b) = tokio::join!(rig.begin_with(spec(), "k"), rig.begin_with(spec(), "k"));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.id, b.id);
    rig.wait(&a).await;
    let request = v1::RunRequest {
        session_id: rig.session.clone(),
        task: Some(spec()),
        request_id: "k".to_owned(),
        ..Default::default()
    };
    let again = collect(rig.tasks.clone().run(request).await.unwrap().into_inner()).await.unwrap();
    assert_eq!((again.started.id.as_str(), again.out().as_str()), (a.id.as_str(), "x\n"));
    refused(rig.begin_with(sh("other"), "k").await, Code::AlreadyExists, Reason::RequestIdReused);
    // A start that failed has not used up its key.
    let lost = v1::TaskSpec { cwd: "later".to_owned(), ..sh("true") };
    refused(rig.begin_with(lost.clone(), "later").await, Code::FailedPrecondition, Reason::CwdNotFound);
    rig.run(sh("mkdir later")).await;
    rig.wait(&rig.begin_with(lost, "later").await.unwrap()).await;
    let ledger = std::fs::read_to_string(rig.config.spool_dir.join("ledger")).unwrap();
    assert_eq!(ledger.lines().filter(|line| line.contains(&a.id)).count(), 1);
}

/// Red when the ledger is not read at the start, or not asked.
#[tokio::test]
async fn a_key_of_an_earlier_agent_starts_nothing_again() {
    let options = Options { earlier: Some(("k", sh("echo again > ran"))), ..Default::default() };
    let Some(rig) = Rig::with("a_key_of_an_earlier_agent_starts_nothing_again", options).await else {
        return;
    };
    let task = rig.begin_with(sh("echo again > ran"), "k").await.unwrap();
    assert_eq!(outcome(&task), Kind::WorkerLost(EMPTY), "what it did is not known");
    assert_eq!(rig.begin_with(sh("echo again > ran"), "k").await.unwrap().id, task.id);
    refused(rig.begin_with(sh("other"), "k").await, Code::AlreadyExists, Reason::RequestIdReused);
    assert!(!rig.workspace("ran").exists());
}

#[tokio::test]
async fn as_many_tasks_as_allowed_and_no_more() {
    let defaults = v1::TaskDefaults { max_concurrent: Some(2), ..Default::default() };
    let options = Options {
        request: v1::ConfigureRequest { task_defaults: Some(defaults), ..Default::default() },
        ..Default::default()
    };
    let Some(rig) = Rig::with("as_many_tasks_as_allowed_and_no_more", options).await else { return };
    let first = rig.begin(argv(&["sleep", "60"])).await;
    rig.begin(argv(&["sleep", "60"])).await;
    let status = refused(rig.try_run(argv(&["true"])).await, Code::ResourceExhausted, Reason::TooManyTasks);
    assert!(status.message().contains('2'), "{status:?}");
    rig.cancel(&first, std::time::Duration::ZERO).await;
    assert_eq!(rig.run(argv(&["true"])).await.outcome(), Kind::Exited(0));
}

#[tokio::test]
async fn tasks_are_listed_newest_first_in_pages() {
    let Some(rig) = Rig::start("tasks_are_listed_newest_first_in_pages").await else { return };
    let mut ids = Vec::new();
    for i in 0..5 {
        ids.push(rig.run(argv(&["echo", &i.to_string()])).await.started.id);
    }
    let running = rig.begin(argv(&["sleep", "60"])).await;
    ids.push(running.id.clone());
    ids.reverse();
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListTasksRequest {
            session_id: rig.session.clone(),
            page_size: 2,
            page_token: token,
            running_only: false,
        };
        let page = rig.tasks.clone().list_tasks(request).await.unwrap().into_inner();
        found.extend(page.tasks.into_iter().map(|task| task.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ids);
    let request =
        v1::ListTasksRequest { session_id: rig.session.clone(), running_only: true, ..Default::default() };
    let page = rig.tasks.clone().list_tasks(request).await.unwrap().into_inner();
    assert_eq!(page.tasks.iter().map(|task| &task.id).collect::<Vec<_>>(), [&running.id]);
}

#[tokio::test]
async fn arguments_larger_than_a_packet() {
    let Some(rig) = Rig::start("arguments_larger_than_a_packet").await else { return };
    let big = "x".repeat(120_000);
    let args: Vec<&str> = ["sh", "-c", "echo $#", "-"].into_iter().chain([big.as_str(); 8]).collect();
    assert_eq!(rig.run(argv(&args)).await.out(), "8\n");
}

#[tokio::test]
async fn many_at_once() {
    let Some(rig) = Rig::start("many_at_once").await else { return };
    let runs = (0..30).map(|i| {
        let rig = &rig;
        async move {
            let done = rig.run(sh(&format!("echo {i}; exit {i}"))).await;
            assert_eq!((done.outcome(), done.out()), (Kind::Exited(i), format!("{i}\n")));
        }
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn signals_reach_the_process_group() {
    let Some(rig) = Rig::start("signals_reach_the_process_group").await else { return };
    let task = rig
        .begin(sh("trap 'echo usr1; exit 5' USR1; touch ready; echo > ready; while :; do sleep 0.05; done"))
        .await;
    rig.file("ready").await;
    let signal =
        |signal| v1::SignalTaskRequest { session_id: rig.session.clone(), task_id: task.id.clone(), signal };
    refused(rig.tasks.clone().signal_task(signal(65)).await, Code::InvalidArgument, Reason::InvalidField);
    rig.tasks.clone().signal_task(signal(libc::SIGUSR1)).await.unwrap();
    assert_eq!(outcome(&rig.wait(&task).await), Kind::Exited(5));
    refused(rig.tasks.clone().signal_task(signal(15)).await, Code::FailedPrecondition, Reason::TaskDone);
}

/// Not a test: `cargo nextest run --release -p berth-agent --run-ignored only exec_of_true --no-capture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn exec_of_true() {
    let Some(rig) = Rig::start("exec_of_true").await else { return };
    for gap in [0, 5, 50] {
        let (mut times, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..400 {
            let began = std::time::Instant::now();
            assert_eq!(rig.run(argv(&["/bin/true"])).await.outcome(), Kind::Exited(0));
            times.push(began.elapsed());
            let began = std::time::Instant::now();
            std::process::Command::new("/bin/true").status().unwrap();
            bare.push(began.elapsed());
            tokio::time::sleep(std::time::Duration::from_millis(gap)).await;
        }
        for (what, mut times) in [("one hop", times), ("bare", bare)] {
            times.sort();
            let [p50, p90, p99] = [200, 360, 396].map(|i| times[i]);
            eprintln!("exec of true every {gap} ms, {what}: p50 {p50:?} p90 {p90:?} p99 {p99:?}");
        }
    }
}
