//! Contexts, with the host's Python and the built-in kernel; and with bridges that lie, hang, flood and die, which any path in
//! `executable` can name.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use berth_proto::{Reason, v1, v1::ExecutionOutcome as Outcome, v1::execute_event::Event};
use tonic::{Code, Status, Streaming};

use crate::rig::*;

/// Everything that came of an execution.
#[derive(Debug, Default)]
pub struct Ran {
    started: v1::ExecutionStarted,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    displays: Vec<v1::MimeBundle>,
    result: Option<v1::MimeBundle>,
    error: Option<v1::ExecutionError>,
    ended: v1::ExecutionEnded,
}

impl Ran {
    fn outcome(&self) -> Outcome {
        self.ended.outcome()
    }

    /// The last expression's value, of code that went well.
    fn value(&self) -> &str {
        assert_eq!(self.outcome(), Outcome::Ok, "{self:?}");
        let data = &self.result.as_ref().expect("a result").data;
        let text = data.iter().find(|form| form.r#type == "text/plain").expect("text");
        std::str::from_utf8(&text.data).unwrap()
    }

    fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

async fn gather(stream: Streaming<v1::ExecuteEvent>) -> Result<Ran, Status> {
    gather_from(stream, v1::ExecutionStarted::default()).await
}

async fn gather_from(
    mut stream: Streaming<v1::ExecuteEvent>,
    started: v1::ExecutionStarted,
) -> Result<Ran, Status> {
    let mut ran = Ran { started, ..Ran::default() };
    let mut over = false;
    while let Some(event) = stream.message().await? {
        assert!(!over, "`ended` comes last");
        match event.event.unwrap() {
            Event::Started(started) => ran.started = started,
            Event::Stdout(chunk) => add(&mut ran.stdout, chunk),
            Event::Stderr(chunk) => add(&mut ran.stderr, chunk),
            Event::Display(bundle) => ran.displays.push(bundle),
            Event::Result(bundle) => ran.result = Some(bundle),
            Event::Error(error) => ran.error = Some(error),
            Event::Ended(ended) => (ran.ended, over) = (ended, true),
            Event::Keepalive(_) => {}
        }
        assert!(ran.started.execution > 0, "`started` comes first");
    }
    assert!(over, "it has an end");
    Ok(ran)
}

/// The rest of one whose `started` has come.
async fn gather_begun(stream: Streaming<v1::ExecuteEvent>) -> Ran {
    gather_from(stream, v1::ExecutionStarted { execution: 1, ..Default::default() }).await.expect("it ends")
}

fn add(to: &mut Vec<u8>, chunk: v1::OutputChunk) {
    assert_eq!(chunk.offset, to.len() as u64, "no gap and no overlap");
    to.extend_from_slice(&chunk.data);
}

/// The kernel that there is wherever Python is.
fn builtin() -> v1::CreateContextRequest {
    v1::CreateContextRequest { kernel: v1::Kernel::Builtin.into(), ..Default::default() }
}

impl Rig {
    async fn create(&self, request: v1::CreateContextRequest) -> Result<v1::InterpreterContext, Status> {
        let request = v1::CreateContextRequest { session_id: self.session.clone(), ..request };
        Ok(self.interpreter.clone().create_context(request).await?.into_inner())
    }

    /// A context of the built-in kernel.
    async fn context(&self) -> String {
        let made = self.create(builtin()).await.expect("a context");
        assert_eq!((made.kernel(), made.state()), (v1::Kernel::Builtin, v1::ContextState::Idle));
        made.id
    }

    /// A context whose interpreter is this program.
    async fn odd(&self, name: &str, program: &str) -> Result<v1::InterpreterContext, Status> {
        let path = self.workspace(name);
        fs::write(&path, program).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let executable = path.to_string_lossy().into_owned();
        self.create(v1::CreateContextRequest { executable, ..builtin() }).await
    }

    fn code(&self, context: &str, code: &str) -> v1::ExecuteRequest {
        v1::ExecuteRequest {
            session_id: self.session.clone(),
            context_id: context.to_owned(),
            code: code.to_owned(),
            ..Default::default()
        }
    }

    async fn begin_code(&self, request: v1::ExecuteRequest) -> Streaming<v1::ExecuteEvent> {
        let mut stream = self.interpreter.clone().execute(request).await.expect("it is taken").into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert!(matches!(first.event, Some(Event::Started(_))));
        stream
    }

    async fn try_execute(&self, request: v1::ExecuteRequest) -> Result<Ran, Status> {
        gather(self.interpreter.clone().execute(request).await?.into_inner()).await
    }

    async fn execute(&self, context: &str, code: &str) -> Ran {
        self.try_execute(self.code(context, code)).await.expect("it runs")
    }

    async fn watch_execution(&self, context: &str, execution: u64) -> Result<Ran, Status> {
        let request = v1::WatchExecutionRequest {
            session_id: self.session.clone(),
            context_id: context.to_owned(),
            execution,
        };
        gather(self.interpreter.clone().watch_execution(request).await?.into_inner()).await
    }

    async fn contexts(&self) -> Vec<v1::InterpreterContext> {
        let request = v1::ListContextsRequest { session_id: self.session.clone() };
        self.interpreter.clone().list_contexts(request).await.unwrap().into_inner().contexts
    }

    async fn interrupt(&self, context: &str) -> u64 {
        self.interrupt_execution(context, 0).await
    }

    async fn interrupt_execution(&self, context: &str, execution: u64) -> u64 {
        let request = v1::InterruptContextRequest {
            session_id: self.session.clone(),
            context_id: context.to_owned(),
            execution,
        };
        self.interpreter.clone().interrupt_context(request).await.unwrap().into_inner().execution
    }

    async fn restart(&self, context: &str) -> Result<v1::InterpreterContext, Status> {
        let request =
            v1::RestartContextRequest { session_id: self.session.clone(), context_id: context.to_owned() };
        Ok(self.interpreter.clone().restart_context(request).await?.into_inner())
    }

    async fn delete(&self, context: &str) {
        let request =
            v1::DeleteContextRequest { session_id: self.session.clone(), context_id: context.to_owned() };
        self.interpreter.clone().delete_context(request).await.unwrap();
    }

    /// Waits until a context is dead. Why it is.
    async fn dead(&self, context: &str) -> String {
        loop {
            let of = self.contexts().await.into_iter().find(|c| c.id == context).expect("it is listed");
            if of.state() == v1::ContextState::Dead {
                return of.message;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn what_is_defined_is_there_for_the_next() {
    let Some(rig) = Rig::start("what_is_defined_is_there_for_the_next").await else { return };
    let context = rig.context().await;
    let ran = rig.execute(&context, "import os\nx = 20\nprint('hello')").await;
    assert_eq!((ran.outcome(), ran.out(), ran.result.is_none()), (Outcome::Ok, "hello\n", true));
    assert_eq!(ran.started.kernel(), v1::Kernel::Builtin, "each execution says what it runs in");
    assert_eq!(rig.execute(&context, "x += 1; x * 2").await.value(), "42");
    assert_eq!(rig.execute(&context, "_ + 1").await.value(), "43");
    assert!(rig.execute(&context, "x;").await.result.is_none());
    // Beside it there is another, which knows nothing of it.
    let other = rig.context().await;
    let ran = rig.execute(&other, "x").await;
    assert_eq!(ran.error.expect("an error").name, "NameError");
    let (uid, mine) = (UID.to_string(), rig.execute(&context, "os.getuid()").await);
    assert_eq!(mine.value(), uid, "a context is the task's user, never the agent");
    let listed = rig.contexts().await;
    assert_eq!(
        listed.iter().map(|c| (&c.id, c.executions)).collect::<Vec<_>>(),
        [(&context, 5), (&other, 1)]
    );
    assert!(listed[0].version.starts_with('3'), "{listed:?}");
}

#[tokio::test]
async fn output_comes_from_wherever_it_is_written() {
    let Some(rig) = Rig::start("output_comes_from_wherever_it_is_written").await else { return };
    let context = rig.context().await;
    let code = "import os, subprocess, sys\nprint('a')\nsubprocess.run(['echo', 'b'])\nos.write(1, b'c\\xff\\n')\n\
                print('no newline', end='')\nprint('e', file=sys.stderr)";
    let ran = rig.execute(&context, code).await;
    assert_eq!(ran.stdout, b"a\nb\nc\xff\nno newline");
    assert_eq!(ran.stderr, b"e\n");
    // It has no input, and does not wait for any.
    let ran = rig.execute(&context, "input()").await;
    assert_eq!(ran.error.expect("an error").name, "EOFError");
    // A directory of the session's own has no say in what the bridge imports.
    fs::write(rig.workspace("struct.py"), "raise SystemExit('mine')").unwrap();
    fs::write(rig.workspace("mine.py"), "value = 7").unwrap();
    let again = rig.context().await;
    assert_eq!(rig.execute(&again, "import mine; mine.value").await.value(), "7");
}

#[tokio::test]
async fn an_exception_is_told_with_its_traceback() {
    let Some(rig) = Rig::start("an_exception_is_told_with_its_traceback").await else { return };
    let context = rig.context().await;
    let ran = rig.execute(&context, "print('before')\ndef f():\n    return 1 / 0\nf()").await;
    assert_eq!((ran.outcome(), ran.out()), (Outcome::Error, "before\n"));
    let error = ran.error.expect("an error");
    assert_eq!((error.name.as_str(), error.value.as_str()), ("ZeroDivisionError", "division by zero"));
    assert!(
        error.traceback.contains("return 1 / 0") && error.traceback.contains("in f"),
        "{}",
        error.traceback
    );
    assert!(!error.traceback.contains("berth"), "our own frames are no part of it: {}", error.traceback);
    for (code, name) in [
        ("x = = 1", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("class Odd(Exception):\n    def __str__(self): raise Odd\nraise Odd", "Odd"),
        ("class Odd:\n    def __repr__(self): raise ValueError('no')\nOdd()", "ValueError"),
    ] {
        let ran = rig.execute(&context, code).await;
        assert_eq!((ran.outcome(), ran.error.expect("an error").name.as_str()), (Outcome::Error, name));
    }
    assert_eq!(rig.execute(&context, "1 + 1").await.value(), "2", "it lives on");
}

#[tokio::test]
async fn an_interrupt_ends_what_runs_and_nothing_else() {
    let Some(rig) = Rig::start("an_interrupt_ends_what_runs_and_nothing_else").await else { return };
    let context = rig.context().await;
    assert_eq!(rig.interrupt(&context).await, 0, "nothing runs");
    rig.execute(&context, "kept = 5").await;
    let code = "import time\nopen('ready', 'w').write('y\\n')\nwhile True: time.sleep(100)";
    let stream = rig.begin_code(rig.code(&context, code)).await;
    // Behind it others wait, and are not hit.
    let waiting: Vec<_> = futures::future::join_all(
        (0..4).map(|n| rig.begin_code(rig.code(&context, &format!("sum(range(200000)) * 0 + {n}")))),
    )
    .await;
    rig.file("ready").await;
    assert_eq!(rig.interrupt(&context).await, 2);
    let mut stream = stream;
    let mut last = None;
    while let Some(event) = stream.message().await.unwrap() {
        last = event.event;
    }
    let Some(Event::Ended(ended)) = last else { panic!("{last:?}") };
    assert_eq!(ended.outcome(), Outcome::Interrupted);
    drop(waiting);
    for (n, number) in (3..7).enumerate() {
        until_known(&rig, &context, number).await;
        if number == 6 {
            assert_eq!(rig.watch_execution(&context, number).await.unwrap().value(), n.to_string());
        }
    }
    assert_eq!(rig.execute(&context, "kept").await.value(), "5", "what was defined is there");
}

/// Waits until an execution has ended.
async fn until_known(rig: &Rig, context: &str, number: u64) {
    loop {
        let of = rig.contexts().await.into_iter().find(|c| c.id == context).expect("it is listed");
        if of.executions - u64::from(of.waiting) > number || of.state() == v1::ContextState::Idle {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Red when the next execution does not wait until an interrupt has arrived: one of these is hit then.
#[tokio::test]
async fn an_interrupt_never_hits_the_next_execution() {
    let Some(rig) = Rig::start("an_interrupt_never_hits_the_next_execution").await else { return };
    let context = rig.context().await;
    for round in 0..40u64 {
        // Over at about the moment at which it is interrupted.
        let first = rig.begin_code(rig.code(&context, "x = sum(range(20000))")).await;
        let next = rig.begin_code(rig.code(&context, "y = sum(range(50000)); 'whole'")).await;
        let hit = rig.interrupt(&context).await;
        drop(first);
        let mut next = next;
        let mut ended = None;
        while let Some(event) = next.message().await.unwrap() {
            if let Some(Event::Ended(end)) = event.event {
                ended = Some(end.outcome());
            }
        }
        let number = 2 * round + 2;
        if hit != number {
            assert_eq!(ended, Some(Outcome::Ok), "round {round}: {hit} was interrupted");
        }
    }
}

/// Red when the name of an execution is not looked at, or one that waits is not taken out of the queue.
#[tokio::test]
async fn an_interrupt_that_names_an_execution_hits_no_other() {
    let Some(rig) = Rig::start("an_interrupt_that_names_an_execution_hits_no_other").await else { return };
    let context = rig.context().await;
    let code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n'ran'";
    let first = rig.begin_code(rig.code(&context, code)).await;
    let second = rig.begin_code(rig.code(&context, "open('second', 'w').close()")).await;
    let third = rig.begin_code(rig.code(&context, "import time; time.sleep(1000)")).await;
    assert_eq!(rig.interrupt_execution(&context, 9).await, 0, "there is none");
    assert_eq!(rig.interrupt_execution(&context, 2).await, 2);
    let ran = gather_begun(second).await;
    assert_eq!(
        (ran.outcome(), ran.ended.message.as_str()),
        (Outcome::Interrupted, "it was interrupted before it ran")
    );
    assert_eq!(rig.interrupt_execution(&context, 2).await, 0, "it is over");
    fs::write(rig.workspace("go"), "").unwrap();
    assert_eq!(gather_begun(first).await.value(), "'ran'", "what runs is not hit");
    // Whether it runs by now or still waits.
    assert_eq!(rig.interrupt_execution(&context, 3).await, 3);
    assert_eq!(gather_begun(third).await.outcome(), Outcome::Interrupted);
    assert!(!rig.workspace("second").exists());
    assert_eq!(rig.execute(&context, "1 + 1").await.value(), "2");
}

/// Red when an interrupt is lost that comes before the code runs.
#[tokio::test]
async fn an_interrupt_is_not_lost_when_it_comes_at_once() {
    let Some(rig) = Rig::start("an_interrupt_is_not_lost_when_it_comes_at_once").await else { return };
    let context = rig.context().await;
    // What it sends itself is no later one's.
    let own = "import os, signal\nfor n in range(3):\n    try: signal.raise_signal(signal.SIGINT)\n    except KeyboardInterrupt: pass";
    assert_eq!(rig.execute(&context, own).await.outcome(), Outcome::Ok);
    for round in 0..100 {
        let stream = rig.begin_code(rig.code(&context, "while True: pass")).await;
        let hit = tokio::join!(rig.interrupt_execution(&context, round + 2), gather_begun(stream));
        assert_eq!((hit.0, hit.1.outcome()), (round + 2, Outcome::Interrupted), "round {round}");
    }
    assert_eq!(rig.execute(&context, "1 + 1").await.value(), "2");
}

/// Red when a variable of an execution outlives it, or what it starts does not have it.
#[tokio::test]
async fn variables_of_an_execution_end_with_it() {
    let Some(rig) = Rig::start("variables_of_an_execution_end_with_it").await else { return };
    let env = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
    let made = v1::CreateContextRequest { env: env(&[("KEPT", "as it was")]), ..builtin() };
    let context = rig.create(made).await.unwrap().id;
    let with = |pairs, code| v1::ExecuteRequest { env: env(pairs), ..rig.code(&context, code) };
    let both = "import os, subprocess\n\
                subprocess.run(['sh', '-c', 'echo $KEPT $NEW'])\n(os.environ['KEPT'], os.environ.get('NEW'))";
    let ran = rig.try_execute(with(&[("KEPT", "other"), ("NEW", "ключ")], both)).await.unwrap();
    assert_eq!((ran.out(), ran.value()), ("other ключ\n", "('other', 'ключ')"));
    assert_eq!(rig.execute(&context, both).await.value(), "('as it was', None)");
    // Also of one that fails, and takes away what it was given.
    let fails = "del os.environ['NEW'], os.environ['KEPT']; os.environ['OWN'] = '1'; 1 / 0";
    let ran = rig.try_execute(with(&[("KEPT", ""), ("NEW", "x")], fails)).await.unwrap();
    assert_eq!(ran.outcome(), Outcome::Error);
    assert_eq!(
        rig.execute(&context, "(os.environ['KEPT'], os.environ.get('NEW'), os.environ['OWN'])").await.value(),
        "('as it was', None, '1')"
    );
    let bad = rig.try_execute(with(&[("a=b", "c")], "1")).await;
    refused(bad, Code::InvalidArgument, Reason::InvalidField);
}

#[tokio::test]
async fn a_timeout_interrupts_and_then_kills() {
    let Some(rig) = Rig::start("a_timeout_interrupts_and_then_kills").await else { return };
    let context = rig.context().await;
    let short = |code| v1::ExecuteRequest { timeout: secs(0.2), ..rig.code(&context, code) };
    let ran = rig.try_execute(short("kept = 1\nimport time\ntime.sleep(100)")).await.unwrap();
    assert_eq!(ran.outcome(), Outcome::TimedOut);
    assert_eq!(rig.execute(&context, "kept").await.value(), "1");
    // One that takes no notice is killed, with what it started.
    let mark = marker();
    let code = format!(
        "import signal, subprocess, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n\
         subprocess.Popen(['sleep', '{mark}'], start_new_session=True)\nwhile True: time.sleep(100)"
    );
    let ran = rig.try_execute(short(&code)).await.unwrap();
    assert_eq!(ran.outcome(), Outcome::TimedOut);
    assert!(ran.ended.message.contains("killed"), "{}", ran.ended.message);
    assert!(!rig.alive(&mark), "nothing lives when it is told");
    let refusal = refused(
        rig.try_execute(rig.code(&context, "1")).await,
        Code::FailedPrecondition,
        Reason::ContextDead,
    );
    assert!(refusal.message().contains("killed"), "{refusal:?}");
    let anew = rig.restart(&context).await.expect("it comes up");
    assert_eq!((anew.id.as_str(), anew.state()), (context.as_str(), v1::ContextState::Idle));
    let ran = rig.execute(&context, "kept").await;
    assert_eq!(ran.error.expect("an error").name, "NameError", "what it had defined is gone");
    assert!(ran.started.execution > 3, "they are counted on");
}

#[tokio::test]
async fn a_context_that_dies_says_why() {
    let Some(rig) = Rig::start("a_context_that_dies_says_why").await else { return };
    for (code, why) in [
        ("import os; os._exit(7)", "exited with 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        // It cuts itself off.
        ("import os, time; os.closerange(3, 100); time.sleep(100)", "cut off"),
    ] {
        let context = rig.context().await;
        // Not before the next one waits behind it.
        let line = format!(
            "import os, time\nprint('last', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n{code}"
        );
        let waiting = rig.begin_code(rig.code(&context, &line)).await;
        let next = rig.begin_code(rig.code(&context, "1")).await;
        drop(waiting);
        fs::write(rig.workspace("go"), "").unwrap();
        let message = rig.dead(&context).await;
        assert!(message.contains(why), "{code}: {message}");
        drop(next);
        // The newest that ended: it has not run.
        let ran = rig.watch_execution(&context, 0).await.unwrap();
        assert_eq!((ran.outcome(), ran.out()), (Outcome::Died, ""));
        rig.delete(&context).await;
        rig.delete(&context).await;
        refused(rig.restart(&context).await, Code::NotFound, Reason::ContextNotFound);
        fs::remove_file(rig.workspace("go")).unwrap();
    }
    assert!(rig.contexts().await.is_empty());
}

/// Red when output is not bounded, when a bundle is not, or when what was left out is not told.
#[tokio::test]
async fn a_flood_is_cut_and_told() {
    let Some(rig) = Rig::start("a_flood_is_cut_and_told").await else { return };
    let context = rig.context().await;
    let code = "import os\nfor _ in range(1024): os.write(1, b'x' * 65536)";
    let ran = rig.execute(&context, code).await;
    assert_eq!(ran.outcome(), Outcome::Ok);
    assert_eq!(ran.stdout.len() as u64 + ran.ended.output_lost, 64 << 20);
    assert!((3 << 20..=4 << 20).contains(&ran.stdout.len()), "{}", ran.stdout.len());
    let small = v1::ExecuteRequest { output_limit: 10_000, ..rig.code(&context, "print('y' * 20000)") };
    let ran = rig.try_execute(small).await.unwrap();
    assert!(ran.stdout.len() <= 10_000 && ran.ended.output_lost > 10_000, "{:?}", ran.ended);
    // A value that fits into no message.
    let ran = rig.execute(&context, "'z' * (5 << 20)").await;
    assert_eq!(ran.outcome(), Outcome::Ok);
    let bundle = ran.result.expect("a result");
    assert_eq!((bundle.data.len(), bundle.left_out.as_slice()), (0, &["text/plain".to_owned()][..]));
    let ran = rig.execute(&context, "raise ValueError('v' * (5 << 20))").await;
    assert!(ran.error.expect("an error").value.len() < 100_000);
    assert_eq!(rig.execute(&context, "1 + 1").await.value(), "2");
}

#[tokio::test]
async fn an_execution_goes_on_without_its_caller_and_is_found_again() {
    let Some(rig) = Rig::start("an_execution_goes_on_without_its_caller_and_is_found_again").await else {
        return;
    };
    let context = rig.context().await;
    let code = "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n'done'";
    let request = v1::ExecuteRequest { request_id: "once".into(), ..rig.code(&context, code) };
    drop(rig.begin_code(request.clone()).await);
    let again = rig.begin_code(request.clone()).await;
    fs::write(rig.workspace("go"), "").unwrap();
    drop(again);
    let ran = rig.watch_execution(&context, 1).await.unwrap();
    assert_eq!((ran.out(), ran.value()), ("begun\n", "'done'"));
    // The same request is the same execution, before its end and after.
    let ran = rig.try_execute(request.clone()).await.unwrap();
    assert_eq!((ran.started.execution, ran.value()), (1, "'done'"));
    rig.execute(&context, "2").await;
    refused(rig.watch_execution(&context, 1).await, Code::NotFound, Reason::ExecutionNotFound);
    refused(rig.try_execute(request).await, Code::NotFound, Reason::ExecutionNotFound);
    refused(rig.watch_execution(&context, 9).await, Code::NotFound, Reason::ExecutionNotFound);
    // What comes while nothing runs is told with the next.
    let late = "import threading, time\ndef f():\n    open('late', 'w').close(); print('late', flush=True); open('told', 'w').write('y\\n')\n\
                threading.Timer(0.2, f).start()";
    rig.execute(&context, late).await;
    rig.file("told").await;
    assert_eq!(rig.execute(&context, "print('mine')").await.out(), "late\nmine\n");
}

#[tokio::test]
async fn there_are_bounds_on_contexts_and_on_what_waits() {
    let Some(rig) = Rig::start("there_are_bounds_on_contexts_and_on_what_waits").await else { return };
    let made = v1::CreateContextRequest { request_id: "one".into(), ..builtin() };
    let context = rig.create(made.clone()).await.unwrap().id;
    assert_eq!(rig.create(made.clone()).await.unwrap().id, context, "the same request makes one context");
    let other = v1::CreateContextRequest { cwd: "/".into(), ..made };
    refused(rig.create(other).await, Code::AlreadyExists, Reason::RequestIdReused);
    for _ in 1..8 {
        rig.context().await;
    }
    refused(rig.create(builtin()).await, Code::ResourceExhausted, Reason::TooManyContexts);
    let mut held = vec![rig.begin_code(rig.code(&context, "import time; time.sleep(1000)")).await];
    // It may take a moment to leave the queue.
    while rig.contexts().await[0].waiting > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..16 {
        held.push(rig.begin_code(rig.code(&context, "1")).await);
    }
    refused(rig.try_execute(rig.code(&context, "1")).await, Code::ResourceExhausted, Reason::ContextBusy);
    assert_eq!(rig.contexts().await[0].waiting, 16);
    // All of them end with it.
    rig.delete(&context).await;
    for stream in held {
        let mut stream = stream;
        let mut last = None;
        while let Some(event) = stream.message().await.unwrap() {
            last = event.event;
        }
        let Some(Event::Ended(ended)) = last else { panic!("{last:?}") };
        assert_eq!(ended.outcome(), Outcome::Cancelled);
    }
    assert_eq!(rig.contexts().await.len(), 7);
}

/// What its frames are made with.
const LIAR: &str = "#!/usr/bin/python3 -S\nimport os, struct, sys, time\n\
    def frame(kind, *parts):\n    body = kind + b''.join(struct.pack('>I', len(p)) + p for p in parts)\n    \
    os.write(0, struct.pack('>I', len(body)) + body)\n";

#[tokio::test]
async fn a_bridge_that_lies_is_killed_and_costs_nobody_else() {
    let Some(rig) = Rig::start("a_bridge_that_lies_is_killed_and_costs_nobody_else").await else { return };
    let good = rig.context().await;
    // Before it takes code.
    for (name, program, words) in [
        ("junk", "os.write(0, b'\\xff' * 100); time.sleep(100)", "broke the protocol"),
        ("kernel", "frame(b'R', b'mine', b'1'); time.sleep(100)", "broke the protocol"),
        ("quits", "print('I give up', file=sys.stderr); sys.exit(3)", "it said: I give up"),
        ("cut", "os.close(0); time.sleep(100)", "cut off"),
    ] {
        let status = refused(
            rig.odd(name, &format!("{LIAR}{program}")).await,
            Code::FailedPrecondition,
            Reason::InterpreterFailed,
        );
        assert!(status.message().contains(words), "{name}: {status:?}");
    }
    let gone = v1::CreateContextRequest { executable: "no-such-python".into(), ..Default::default() };
    refused(rig.create(gone).await, Code::FailedPrecondition, Reason::InterpreterMissing);
    let there = v1::CreateContextRequest { kernel: v1::Kernel::Ipykernel.into(), ..Default::default() };
    if !std::path::Path::new("/usr/lib/python3/dist-packages/ipykernel").exists() {
        refused(rig.create(there).await, Code::FailedPrecondition, Reason::InterpreterMissing);
    }
    let nowhere = v1::CreateContextRequest { cwd: "nowhere".into(), ..Default::default() };
    refused(rig.create(nowhere).await, Code::FailedPrecondition, Reason::CwdNotFound);
    // While it runs code.
    let ready =
        "left = int(sys.argv[3])\nwhile left: left -= len(os.read(0, left))\nframe(b'R', b'builtin', b'1')\n";
    for (name, program, words) in [
        ("long", "os.write(0, struct.pack('>I', 1 << 31)); time.sleep(100)", "broke the protocol"),
        (
            "huge",
            "os.write(0, struct.pack('>I', 3 << 20)); [os.write(0, b'D' * 65536) for _ in range(48)]; time.sleep(100)",
            "broke the protocol",
        ),
        ("forms", "frame(b'D', b'', b'', b'', *[b'a'] * 200); time.sleep(100)", "broke the protocol"),
        ("parts", "frame(b'F', b'x', b'ok', b'0'); time.sleep(100)", "broke the protocol"),
        ("exits", "frame(b'V', b'', b'', b'', b'text/plain', b'false'); sys.exit(9)", "exited with 9"),
    ] {
        let context = rig
            .odd(name, &format!("{LIAR}{ready}code = os.read(0, 1 << 20)\n{program}"))
            .await
            .expect(name)
            .id;
        let ran = rig.execute(&context, "1").await;
        assert_eq!(ran.outcome(), Outcome::Died, "{name}: {ran:?}");
        assert!(ran.ended.message.contains(words), "{name}: {ran:?}");
        rig.delete(&context).await;
    }
    // One that floods with frames, answers to what was not asked, and says that it has had interrupts: it has its own
    // execution's bound, and nobody else waits.
    let floods = "code = os.read(0, 1 << 20)\nwhile True:\n    frame(b'T', b'1', b'x' * 65536); frame(b'F', b'99', b'ok', b'7'); frame(b'V', b'', b'', b'', b'text/plain', b'y' * 65536)";
    let context = rig.odd("floods", &format!("{LIAR}{ready}{floods}")).await.expect("it is up").id;
    let flood = rig.begin_code(rig.code(&context, "1")).await;
    for n in 0..20 {
        assert_eq!(rig.execute(&good, &format!("{n} + 1")).await.value(), (n + 1).to_string());
    }
    rig.delete(&context).await;
    drop(flood);
    assert_eq!(rig.contexts().await.len(), 1, "those that never came up are in no list");
}

/// Red when a context's processes do not end with the session, stand still with it, or are not limited as a task's are.
#[tokio::test]
async fn a_context_is_held_and_ended_with_the_session() {
    for (groups, name) in [(Groups::All, "all"), (Groups::None, "none")] {
        let name = format!("a_context_is_held_and_ended_with_the_session {name}");
        let Some(mut rig) = Rig::with(&name, Options { groups, ..Default::default() }).await else { return };
        let context = rig.context().await;
        let mark = marker();
        let code =
            format!("import subprocess; p = subprocess.Popen(['sleep', '{mark}'], start_new_session=True)");
        assert_eq!(rig.execute(&context, &code).await.outcome(), Outcome::Ok);
        let beats = "import time\nwhile True:\n    open('heart', 'a').write('x\\n'); time.sleep(0.01)";
        let stream = rig.begin_code(rig.code(&context, beats)).await;
        rig.file("heart").await;
        rig.agent.freeze(v1::FreezeRequest { frozen: true }).await.unwrap();
        refused(
            rig.try_execute(rig.code(&context, "1")).await,
            Code::FailedPrecondition,
            Reason::SessionPaused,
        );
        let size = fs::metadata(rig.workspace("heart")).unwrap().len();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(fs::metadata(rig.workspace("heart")).unwrap().len(), size, "its heart stands still");
        rig.agent.freeze(v1::FreezeRequest { frozen: false }).await.unwrap();
        rig.agent.shutdown(v1::ShutdownRequest { grace: None }).await.unwrap();
        let mut stream = stream;
        let mut last = None;
        while let Ok(Some(event)) = stream.message().await {
            last = event.event;
        }
        let Some(Event::Ended(ended)) = last else { panic!("{last:?}") };
        assert_eq!(ended.outcome(), Outcome::SessionEnded);
        rig.ended().await;
        assert!(!rig.alive(&mark), "nothing outlives the session");
    }
}

#[tokio::test]
async fn want_of_memory_is_told() {
    let options = Options { memory: Some(128 << 20), ..Default::default() };
    let Some(rig) = Rig::with("want_of_memory_is_told", options).await else { return };
    let context = rig.context().await;
    let ran = rig.execute(&context, "x = b'x' * (1 << 30)").await;
    assert_eq!(ran.outcome(), Outcome::Died);
    assert!(ran.ended.message.contains("want of memory"), "{:?}", ran.ended);
    assert_eq!(rig.run(sh("echo lives")).await.out(), "lives\n");
}

/// An execution keeps the session from being idle, and the worker is told of it; a context that waits does not.
#[tokio::test]
async fn an_execution_is_activity_and_a_context_is_none() {
    let request = v1::ConfigureRequest { idle_timeout: secs(1.0), ..Default::default() };
    let options = Options { request, ..Default::default() };
    let Some(mut rig) = Rig::with("an_execution_is_activity_and_a_context_is_none", options).await else {
        return;
    };
    let mut events = rig.agent.watch(v1::WatchAgentRequest {}).await.unwrap().into_inner();
    let context = rig.context().await;
    let code = "import time; time.sleep(2.5); open('slept', 'w').write('y\\n')";
    drop(rig.begin_code(rig.code(&context, code)).await);
    let mut told = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            v1::agent_event::Event::Executing(executing) => told.push(executing.busy),
            v1::agent_event::Event::Expired(expired) => {
                assert!(expired.idle);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [false, true, false]);
    assert!(rig.workspace("slept").exists(), "it ran to its end, although nobody watched");
}
