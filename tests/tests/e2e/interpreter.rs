//! Python that remembers: over every restart but its sandbox's own, and with a Jupyter kernel where the root has one.

use std::{path::Path, time::Duration};

use berth_client::{
    Client, ConnectOptions, Context, ContextOptions, Reason, SessionId, Snippet,
    model::{ContextState, ExecutionOutcome as Outcome, Kernel},
};
use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, skip, until};

use crate::{recovery::workspace, util::state};

pub async fn client(cluster: &Cluster) -> Client {
    let options = ConnectOptions::new(&cluster.address).token(&cluster.admin_token);
    Client::connect(options.resume_for(READY)).await.expect("a connection")
}

async fn builtin(cluster: &Cluster, session: &v1::Session) -> Context {
    let session = client(cluster).await.session(session.id.parse::<SessionId>().unwrap());
    session.interpreter().create(ContextOptions::new().kernel(Kernel::Builtin)).await.expect("a context")
}

/// Red when the agent does not keep what came of an execution, or the client does not go on where its stream broke.
async fn lives_on(sandbox: &str) {
    let mut cluster = Cluster::start(Setup::new(sandbox)).await;
    let session = cluster.session().await;
    let context = builtin(&cluster, &session).await;
    context.execute("x = 7").await.unwrap();
    let code = "import os, time\nfor n in range(5): print(n)\nopen('begun', 'w').close()\n\
                while not os.path.exists('go'): time.sleep(0.01)\nprint('gone'); x * 6";
    let mut stream = context.stream(code).await.unwrap();
    let first = stream.next().await.unwrap();
    let root = workspace(&cluster, 0, &session.id);
    until(READY, "the code to run", async || root.join("begun").exists().then_some(())).await;
    cluster.restart_coordinator().await;
    cluster.workers[0].process.kill().await;
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    std::fs::write(root.join("go"), "").expect("the workspace is there");
    let rest = stream.collect().await.expect("it is found again");
    let berth_client::ExecutionEvent::Stdout(first) = first.expect("an event") else { panic!("no output") };
    let all = [&first[..], &rest.stdout].concat();
    assert_eq!(
        String::from_utf8(all).unwrap(),
        "0\n1\n2\n3\n4\ngone\n",
        "no byte is lost, and none comes twice"
    );
    assert_eq!((rest.end.outcome, rest.text()), (Outcome::Ok, Some("42")));
    // Another client finds it too.
    let session = client(&cluster).await.session(session.id.parse().unwrap());
    let listed = session.interpreter().list().await.unwrap();
    assert_eq!(
        listed.iter().map(|c| (c.id, c.state)).collect::<Vec<_>>(),
        [(context.id(), ContextState::Idle)]
    );
    let again = session.interpreter().context(context.id());
    assert_eq!(again.execute("x").await.unwrap().text(), Some("7"));
    assert_eq!(again.interrupt().await.unwrap(), None);
    again.delete().await.unwrap();
    let error = again.execute("x").await.expect_err("it is gone");
    assert!(error.is(Reason::ContextNotFound) && error.hint().is_some(), "{error:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_context_lives_on_over_its_client_its_coordinator_and_its_worker() {
    if skip::without_root("e2e native_a_context_lives_on") {
        return;
    }
    lives_on("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_context_lives_on_over_its_client_its_coordinator_and_its_worker() {
    if skip::without_docker("e2e docker_a_context_lives_on") {
        return;
    }
    lives_on("docker").await;
}

/// Red when a session that comes back from a checkpoint does not say what became of its contexts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_session_comes_back_without_its_contexts() {
    if skip::without_root("e2e a_parked_session_comes_back_without_its_contexts") {
        return;
    }
    let ttl = ("BERTH_PAUSED_TTL".to_owned(), "1s".to_owned());
    let cluster = Cluster::start(Setup { coordinator_env: vec![ttl], ..Setup::new("native") }).await;
    let session = cluster.session().await;
    let context = builtin(&cluster, &session).await;
    context.execute("x = 7").await.unwrap();
    let pause = v1::PauseSessionRequest { session_id: session.id.clone() };
    cluster.sessions().pause_session(pause).await.expect("it is paused");
    let error = context.execute("x").await.expect_err("it stands still");
    assert!(error.is(Reason::SessionPaused) || error.is(Reason::SessionParked), "{error:?}");
    until(READY, "the session to be parked", async || {
        let now = state(&cluster, &session.id).await;
        (now.state() == v1::SessionState::Parked && now.worker_id.is_empty()).then_some(())
    })
    .await;
    let error = context.execute("x").await.expect_err("it is parked");
    assert!(error.is(Reason::SessionParked), "{error:?}");
    let resume = v1::ResumeSessionRequest { session_id: session.id.clone() };
    cluster.sessions().resume_session(resume).await.expect("it comes back");
    let error = context.execute("x").await.expect_err("it is gone");
    assert!(error.is(Reason::ContextNotFound), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("ends with its session's sandbox")), "{error:?}");
    let anew = builtin(&cluster, &session).await;
    assert_eq!(anew.execute("1 + 1").await.unwrap().text(), Some("2"));
    cluster.stop().await;
}

/// The root that has a Jupyter kernel: one that is named, or this machine's own, which is the empty name.
pub fn full_root(test: &str) -> Option<String> {
    if skip::without_root(test) {
        return None;
    }
    let root = std::env::var("BERTH_TEST_FULL_ROOT").unwrap_or_default();
    let packages = Path::new("/").join(root.trim_start_matches('/')).join("usr/lib/python3/dist-packages");
    if ["ipykernel", "matplotlib", "pandas"].iter().any(|name| !packages.join(name).exists()) {
        skip::note(
            test,
            "no root with ipykernel, matplotlib and pandas: install them here (python3-…), or make one \
             (FORM=full scripts/sandbox-image.sh --rootfs DIR) and name it in BERTH_TEST_FULL_ROOT",
        );
        return None;
    }
    Some(root)
}

/// A cluster whose sessions have a Jupyter kernel.
async fn with_jupyter(test: &str) -> Option<Cluster> {
    let root = full_root(test)?;
    let mut setup = Setup::new("native");
    if !root.is_empty() {
        setup.templates = Some(format!("[[template]]\nname = \"base\"\nroot = \"{root}\"\n"));
    }
    Some(Cluster::start(setup).await)
}

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plot_comes_back_as_png_from_a_jupyter_kernel() {
    let Some(cluster) = with_jupyter("e2e a_plot_comes_back_as_png").await else { return };
    let session = client(&cluster).await.session(cluster.session().await.id.parse().unwrap());
    let context = session.interpreter().create(ContextOptions::new()).await.expect("a context");
    let ran = context.execute("import os, subprocess, sys\nx = 20\nx + 1").await.unwrap();
    assert_eq!((ran.kernel, ran.text()), (Kernel::Ipykernel, Some("21")), "{ran:?}");
    // Output in the order in which it was written, also that of others than Python.
    let code = "print('a'); sys.stdout.flush(); subprocess.run(['echo', 'b']); print('e', file=sys.stderr)";
    let ran = context.execute(code).await.unwrap();
    let mut lines: Vec<_> = String::from_utf8_lossy(&ran.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!((lines, &ran.stderr[..]), (vec!["a".to_owned(), "b".into()], &b"e\n"[..]));
    let code =
        "import matplotlib.pyplot as plt\nprint('before')\nplt.plot([1, 3, 2]); plt.title('t'); plt.show()";
    let ran = context.execute(Snippet::new(code).timeout(Duration::from_secs(120))).await.unwrap();
    assert_eq!(ran.end.outcome, Outcome::Ok, "{ran:?}");
    let png = ran.displays.iter().find_map(|bundle| bundle.png()).expect("a plot");
    assert!(png.starts_with(PNG) && png.len() > 1000, "{} bytes", png.len());
    assert!(ran.displays[0].text().is_some_and(|text| text.contains("Figure")), "{:?}", ran.displays);
    let ran = context.execute("import pandas\npandas.DataFrame({'n': [1, 2]})").await.unwrap();
    let table = ran.result.expect("a table");
    assert!(table.get("text/html").is_some_and(|html| html.starts_with(b"<div>")), "{table:?}");
    let ran = context.execute("def f():\n    1 / 0\nf()").await.unwrap();
    let error = ran.error.expect("an error");
    assert_eq!((ran.end.outcome, error.name.as_str()), (Outcome::Error, "ZeroDivisionError"));
    assert!(error.traceback.contains("1 / 0") && !error.traceback.contains('\x1b'), "{}", error.traceback);
    // What only a real one has.
    let ran = context.execute("import asyncio\nawait asyncio.sleep(0, 'awaited')").await.unwrap();
    assert_eq!(ran.text(), Some("'awaited'"));
    // It is no more than a task: the same user, and no others' rights.
    let ran = context
        .execute("open('/proc/self/status').read().count('CapEff:\\t0000000000000000')")
        .await
        .unwrap();
    assert_eq!(ran.text(), Some("1"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jupyter_kernel_is_interrupted_timed_out_and_restarted() {
    let Some(cluster) = with_jupyter("e2e a_jupyter_kernel_is_interrupted").await else { return };
    let session = client(&cluster).await.session(cluster.session().await.id.parse().unwrap());
    // A file of the session's own does not get into the kernel's way.
    session.files().write("random.py", &b"raise SystemExit('mine')"[..]).await.expect("it is written");
    let context = session.interpreter().create(ContextOptions::new()).await.expect("a context");
    let endless = "import time\nkept = 5\nprint('ready', flush=True)\nwhile True: time.sleep(1000)";
    let mut stream = context.stream(endless).await.unwrap();
    let next = context.stream("'next'").await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    assert_eq!(context.interrupt().await.unwrap(), Some(1));
    let ran = stream.collect().await.unwrap();
    assert_eq!(
        (ran.end.outcome, ran.error.expect("an error").name),
        (Outcome::Interrupted, "KeyboardInterrupt".into())
    );
    assert_eq!(next.collect().await.unwrap().text(), Some("'next'"), "what waits is not hit");
    // None is lost because it comes before the kernel is ready for it.
    for _ in 0..30 {
        let stream = context.stream("while True: pass").await.unwrap();
        let number = stream.number();
        assert!(context.interrupt_execution(number).await.unwrap(), "{number} runs, or waits");
        assert_eq!(stream.collect().await.unwrap().end.outcome, Outcome::Interrupted, "{number}");
    }
    let short = Snippet::new("time.sleep(1000)").timeout(Duration::from_millis(300));
    assert_eq!(context.execute(short).await.unwrap().end.outcome, Outcome::TimedOut);
    assert_eq!(context.execute("kept").await.unwrap().text(), Some("5"));
    let ran = context.execute("import os; os._exit(3)").await.unwrap();
    assert_eq!(ran.end.outcome, Outcome::Died);
    assert!(ran.end.message.as_deref().is_some_and(|text| text.contains("exited with 3")), "{:?}", ran.end);
    let error = context.execute("1").await.expect_err("it is dead");
    assert!(error.is(Reason::ContextDead), "{error:?}");
    assert_eq!(context.restart().await.unwrap().state, ContextState::Idle);
    let ran = context.execute("kept").await.unwrap();
    assert_eq!(ran.error.expect("an error").name, "NameError");
    cluster.stop().await;
}
