//! The commands of the documentation work: each block of shell of README and of the pages of `docs/` is typed as it stands, from the
//! top of its page to its end, by a reader on a machine of its own ([`berth_tests::reader`]), and so is Python where a page has
//! that. What a block needs is on its page; what can't be there (the file that a sentence speaks of, the other machine's) is in the
//! table below. What can't be typed in a test has its reason, and its test, beside it on the page.
//!
//! Commands within sentences are only parsed: `cli/src/commands/doc_tests.rs`.

use berth_tests::{
    pages::{self, Page},
    python,
    reader::Reader,
    skip,
};

/// A fleet on this machine.
const UP: Reader = Reader { first: "berth up -d", before: &[], last: "berth stop" };
const NOTHING: Reader = Reader { first: "", before: &[], last: "" };

/// Of the package of the checkout, without an index: what it needs is there. It goes to where Python finds it.
const PIP: &str = "export PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_NO_BUILD_ISOLATION=0 PIP_TARGET=$HOME/packages PYTHONPATH=$HOME/packages";

/// What each page's reader has in place. Who reads one that is not here has a `berth up`.
fn reader(page: &str) -> Reader {
    match page {
        "README.md" => Reader {
            before: &[
                ("import berth", "berth up -d && pip install -q ./client/python"),
                ("./bin/berth tls init", "berth stop"),
                (
                    "COORDINATOR_ADDR=10.0.0.1:50051",
                    "mkdir ~/w-2 && cp bin/worker join.token ~/w-2 && cp -r /var/lib/berth/tls/workers/w-2 ~/w-2/tls && cd ~/w-2",
                ),
                ("./bin/berth token create --tenant", "cd - && berth workers w-2"),
                ("./bin/berth secret set", "echo secret >token"),
            ],
            first: PIP,
            ..NOTHING
        },
        "client/python/README.md" => Reader { before: &[("pip install", PIP)], ..UP },
        "docs/http.md" => Reader {
            before: &[(
                "curl -H \"X-Berth-Token:",
                "until curl -s -H \"X-Berth-Token: $(berth token create)\" http://3000-$ID.localhost:8080/; do sleep 0.1; done",
            )],
            // At a stop its server would be given time to end by itself.
            last: "berth rm $ID && berth stop",
            ..UP
        },
        "docs/kubernetes.md" | "docs/metrics.md" => NOTHING,
        "docs/operations.md" => Reader {
            first: "coordinator && worker",
            before: &[
                // `make docker-up` has made one.
                ("berth tls --dir", "berth tls --dir tmp/compose/tls init --host berth.example.org"),
                (
                    "WORKER_ID=worker-9",
                    "close_terminals
                    BERTH_LISTEN=10.0.0.1 BERTH_TLS_DIR=tmp/compose/tls coordinator &&
                    cp -r tmp/compose/tls/workers/worker-9 /var/lib/berth/credentials/join.token .",
                ),
                (
                    "grep ",
                    "export BERTH_ADDRESS=https://berth.example.org:50051 BERTH_TLS_CA=tmp/compose/tls/ca.pem
                    export BERTH_TOKEN=$(berth token show --value admin)
                    TRACEPARENT=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 berth run -- true &&
                    cp worker.log worker-9.log",
                ),
                ("OTEL_EXPORTER_OTLP_ENDPOINT=", "close_terminals"),
            ],
            last: "",
        },
        "docs/security.md" => Reader {
            before: &[
                (
                    "BERTH_TLS_DIR=/etc/berth/tls",
                    "cp -r /var/lib/berth/tls/workers/w-2 /etc/berth/tls &&
                    cp /var/lib/berth/credentials/join.token /etc/berth",
                ),
                // The same machine again, as if nothing had been typed there.
                (
                    "berth tls init --host example.org",
                    "close_terminals; rm -r /var/lib/berth/tls; unset BERTH_ADDRESS BERTH_TLS_CA",
                ),
                (
                    "E2B_DOMAIN=example.org",
                    "berth tls worker w-3 &&
                    BERTH_TLS_DIR=/var/lib/berth/tls/workers/w-3 WORKER_ID=w-3 worker &&
                    echo 'from e2b import Sandbox; Sandbox.create().kill()' >agent.py",
                ),
            ],
            ..NOTHING
        },
        _ => UP,
    }
}

/// The Python packages that a page speaks of.
fn requirements(page: &str) -> Option<&'static str> {
    match page {
        "README.md" | "client/python/README.md" => Some(include_str!("../../python/client.txt")),
        "docs/e2b.md" | "docs/security.md" => {
            Some(include_str!("e2b/python/e2b-code-interpreter-2.11.5.txt"))
        }
        _ => None,
    }
}

async fn types(name: &str) {
    let test = format!("e2e documentation {name}");
    if skip::without_root(&test) {
        return;
    }
    let python = match requirements(name) {
        Some(list) => match python::venv(&test, list) {
            // README has most of its commands without: its block of Python is left out.
            None if name != "README.md" => return,
            venv => venv.map(|venv| venv.join("bin")),
        },
        None => None,
    };
    let page = Page::read(name);
    if let Err(why) = reader(name).types(&page, python.as_deref()).await {
        panic!("{why}");
    }
}

macro_rules! typed {
    ($($test:ident: $page:literal),* $(,)?) => {
        const PAGES: &[&str] = &[$($page),*];
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            types($page).await;
        })*
    };
}

typed! {
    readme: "README.md",
    python_client: "client/python/README.md",
    dashboard: "docs/dashboard.md",
    e2b: "docs/e2b.md",
    http: "docs/http.md",
    kubernetes: "docs/kubernetes.md",
    mcp: "docs/mcp.md",
    metrics: "docs/metrics.md",
    operations: "docs/operations.md",
    security: "docs/security.md",
}

/// Red when a page with commands is forgotten here, or says that it is not run without naming a test that there is.
#[test]
fn every_page_is_typed_and_what_is_not_run_has_its_reason() {
    let (mut wrong, mut run, mut not_run) = (Vec::new(), 0, Vec::new());
    for name in pages::names() {
        let page = Page::read(&name);
        let here = PAGES.contains(&name.as_str());
        for block in &page.blocks {
            let at = format!("{name}:{}", block.line);
            match &block.not_run {
                Some(why) => {
                    not_run.push(format!("{at}: {}", why.reason));
                    let none = why.tested_by.iter().filter(|test| !pages::is_a_test(test));
                    wrong
                        .extend(none.map(|test| format!("{at}: there is no test {test} in tests/tests/e2e")));
                }
                None if here => run += 1,
                None => wrong.push(format!("{at}: no test in documentation.rs types {name}")),
            }
        }
    }
    println!("{run} blocks are run, {} are not:\n{}", not_run.len(), not_run.join("\n"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        run >= 25 && not_run.len() <= 11,
        "{run} blocks are run, {} are not:\n{}",
        not_run.len(),
        not_run.join("\n")
    );
}

/// Red when a command that fails goes unseen: one that prints, the first of a list, one in a pipe, a variable that is not set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_command_is_named_with_its_page_and_line() {
    if skip::without_root("e2e documentation a_wrong_command") {
        return;
    }
    for (command, said) in [
        ("berth tls nonsense", "ended with 2, and printed:\nerror: unrecognized subcommand 'nonsense'"),
        ("echo told; false && true", "ended with 1, and printed:\ntold"),
        ("false | cat", "ended with 1, and printed:\n"),
        ("berth ps $nobody", "and printed:\n"),
        ("echo $(berth tls nonsense)", "ended with 0, but not berth tls nonsense: 2, and printed:\n"),
        ("exit 0", "ended the page, and printed:\n"),
    ] {
        let text = format!("Text.\n\n```sh\necho first\n# then\n{command}\necho last\n```\n");
        let page = Page::of("docs/page.md", &text).unwrap();
        let why = NOTHING.types(&page, None).await.unwrap_err();
        assert!(why.starts_with(&format!("docs/page.md:6: {command}\n")) && why.contains(said), "{why}");
    }
    let page = Page::of("docs/page.md", "```sh\necho first\n```\n").unwrap();
    let stale = Reader { before: &[("berth", "true")], ..NOTHING };
    let why = stale.types(&page, None).await.unwrap_err();
    assert!(why.contains("0 commands begin with \"berth\""), "{why}");
}
