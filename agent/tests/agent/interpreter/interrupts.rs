//! What ends an execution from outside: an interrupt, and its timeout.

use super::*;

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
