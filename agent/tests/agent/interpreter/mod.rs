//! Contexts, with the host's Python and the built-in kernel; and with bridges that lie, hang, flood and die, which any path in
//! `executable` can name.

mod bounds;
mod interrupts;

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
