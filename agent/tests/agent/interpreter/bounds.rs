//! What contexts may take, bridges that keep to nothing, and how both end with the session.

use super::*;

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
