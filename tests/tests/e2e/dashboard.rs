//! The dashboard, in a real browser.
//!
//! `DASHBOARD_PICTURES=$PWD/docs/images` makes the pictures of the documentation anew
//! (`cargo nextest run --workspace -E "test(on_a_phone)"`, from the repository).

use berth_proto::v1;
use berth_tests::{
    Cluster, READY, Setup,
    browser::{self, Browser},
    http::{Http, gateway},
    skip, until,
};
use serde_json::{Value, json};

use crate::util::{delete, run, started};

/// A link that signs an operator in, as `berth dashboard` prints it.
async fn link(cluster: &Cluster, args: &[&str]) -> String {
    let url = format!("http://{}", gateway(cluster).await);
    let link = cluster.berth(&[&["dashboard", "--url", &url], args].concat()).await.ok();
    assert!(link.starts_with(&format!("{url}/#token=")), "{link}");
    link.trim().to_owned()
}

/// What the page may do, it did: nothing failed, and nothing was asked for elsewhere.
async fn clean(cluster: &Cluster, browser: &Browser) {
    assert_eq!(browser.problems(), Vec::<String>::new());
    asked_us_alone(cluster, browser).await;
}

async fn asked_us_alone(cluster: &Cluster, browser: &Browser) {
    let own = format!("http://{}/", gateway(cluster).await);
    let foreign: Vec<_> = browser.asked().into_iter().filter(|url| !url.starts_with(&own)).collect();
    assert_eq!(foreign, Vec::<String>::new());
    let kept = "[location.href, document.cookie, JSON.stringify(localStorage)].some((one) => one.includes('berth_'))";
    assert_eq!(browser.eval(kept).await, json!(false), "the token is in the tab's own storage alone");
}

async fn native(test: &str) -> Option<Browser> {
    let test = format!("e2e dashboard {test}");
    if skip::without("native", &test) { None } else { Browser::start(&test).await }
}

/// Red when a header is left out, or a page of another origin may call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_the_same_for_all_and_strict() {
    let cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let address = gateway(&cluster).await;
    let http = Http::new(&address, "").with("Authorization", "");
    let page = http.send("GET", "/", "").await;
    assert_eq!((page.status, &page.headers["content-type"][..]), (200, "text/html; charset=utf-8"));
    assert!(page.body.contains("/dashboard/app.js"), "{page:?}");
    for path in ["/", "/dashboard/app.js", "/dashboard/style.css", "/dashboard/icon.svg"] {
        let got = http.send("GET", path, "").await;
        assert_eq!((got.status, got.body.is_empty()), (200, false), "{path}");
        let policy = &got.headers["content-security-policy"];
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ] {
            assert!(policy.split(';').any(|one| one.trim() == rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(got.headers[name], value, "{path}");
        }
        // Only what has changed is sent again.
        let again = http.clone().with("If-None-Match", &got.headers["etag"]).send("GET", path, "").await;
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{path}");
        let other = http.clone().with("If-None-Match", "\"other\"").send("GET", path, "").await;
        assert_eq!(other.status, 200);
        let head = http.send("HEAD", path, "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert_eq!(head.headers["content-length"], got.body.len().to_string());
        assert_eq!(http.send("POST", path, "").await.status, 405);
    }
    assert_eq!(http.send("GET", "/dashboard/nothing.js", "").await.status, 404);
    // From where: ours, and no other, whatever token it has.
    let admin = Http::new(&address, &cluster.admin_token);
    for (origin, allowed) in [
        (format!("http://{address}"), true),
        (format!("http://{}", address.replace("127.0.0.1", "localhost")), false),
        ("http://evil.example.org".to_owned(), false),
        ("null".to_owned(), false),
    ] {
        for path in ["/", "/v1/info"] {
            let got = admin.clone().with("Origin", &origin).send("GET", path, "").await;
            assert_eq!(got.status, if allowed { 200 } else { 403 }, "{origin} {path}: {got:?}");
            assert!(!got.headers.contains_key("access-control-allow-origin"), "{got:?}");
        }
    }
    cluster.stop().await;
}

/// Red when a button does nothing or what it does is not shown, when output waits for its task's end, or when the page
/// asks for anything that is not the gateway's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_watches_and_acts() {
    let Some(browser) = native("an_operator_watches_and_acts").await else { return };
    let mut cluster = Cluster::start(Setup { workers: 2, ..Setup::new("native") }).await;
    cluster.workers_ready().await;
    let url = format!("http://{}", gateway(&cluster).await);
    cluster.berth(&["create", "--name", "box", "--label", "team=search"]).await.ok();
    // A token that is none, then one that is.
    browser.open(&url).await;
    browser.fill("#token", "berth_nonsense").await;
    browser.click("button.primary").await;
    browser.sees(".wrong", "no good").await;
    let refused = browser.problems();
    assert!(refused.iter().all(|one| one.contains("401")), "{refused:?}");
    browser.fill("#token", &cluster.admin_token).await;
    browser.click("button.primary").await;
    for worker in ["worker-1", "worker-2"] {
        browser.sees("tbody tr", worker).await;
    }
    browser.sees("tbody tr", "box").await;
    browser.sees(".scope", "admin").await;
    browser.sees(".live", "Live").await;
    // A session that comes is shown without a word from here.
    let other = cluster.berth(&["create", "--name", "second"]).await.ok();
    browser.sees("tbody tr .name", "second").await;
    // Output, while the task runs.
    let line = "printf '\\033[1;32mfirst\\033[0m line\\n'; echo wrong >&2; while [ ! -e go ]; do sleep 0.05; done; echo last";
    let task = started(&cluster, "box", &["sh", "-c", line]).await;
    browser.click("nav a[href='#/sessions']").await;
    browser.fill("#search", "team=search").await;
    browser.sees("[data-test=found]", "1 of 2").await;
    browser.click("tbody tr .name").await;
    browser.sees("h1", "box").await;
    browser.click(&format!("a[href$='{}']", task)).await;
    browser.sees(".lines", "first line\nwrong").await;
    browser.sees(".badge", "running").await;
    run(&cluster, &session(&cluster, "box").await, "touch go").await;
    browser.sees(".lines", "last").await;
    browser.sees(".badge", "exit 0").await;
    assert_eq!(browser.eval("document.querySelector('.lines .stderr').textContent").await, "wrong");
    // A task is cancelled.
    let long = started(&cluster, "box", &["sleep", "1000"]).await;
    browser.eval(&format!("void (location.hash = '#/sessions/box/tasks/{}')", long)).await;
    browser.click("[data-test=cancel]").await;
    browser.click("[data-test=confirm]").await;
    browser.sees(".badge", "cancelled").await;
    // A worker is cordoned, and taken up again; nothing is done that was not confirmed.
    browser.click("nav a[href='#/workers']").await;
    browser.click("tr[data-row=worker-1] [data-test=cordon]").await;
    browser.click("dialog button").await;
    browser.click("tr[data-row=worker-1] [data-test=cordon]").await;
    assert_eq!(scheduling(&cluster).await, "active");
    browser.click("[data-test=confirm]").await;
    browser.sees("tr[data-row=worker-1] .badge", "cordoned").await;
    assert_eq!(scheduling(&cluster).await, "cordoned");
    browser.click("tr[data-row=worker-1] [data-test=uncordon]").await;
    browser.sees("tr[data-row=worker-1] .badge", "ready").await;
    assert_eq!(scheduling(&cluster).await, "active");
    browser.click("tr[data-row=worker-1] a").await;
    browser.sees("h1", "worker-1").await;
    browser.click("[data-test=drain]").await;
    browser.click("[data-test=confirm]").await;
    browser.sees(".badge", "draining").await;
    browser.click("[data-test=uncordon]").await;
    until(READY, "the drain to be over", async || (scheduling(&cluster).await == "active").then_some(()))
        .await;
    // A session is ended.
    browser.eval(&format!("void (location.hash = '#/sessions/{}')", other.trim())).await;
    browser.sees("h1", "second").await;
    browser.click("[data-test=end]").await;
    browser.click("[data-test=confirm]").await;
    browser.sees(".badge", "ended").await;
    let left = cluster.berth(&["ps"]).await.ok();
    assert!(left.contains("box") && !left.contains("second"), "{left}");
    // What was asked of it while it ended is refused.
    let refused = browser.problems();
    assert!(
        refused.iter().all(|one| one.contains(other.trim()) && one.contains("status of 4")),
        "{refused:?}"
    );
    // Whatever view: the keyboard reaches it, and the colours turn.
    for view in ["queue", "events", "sessions", ""] {
        browser.click(&format!("nav a[href='#/{view}']")).await;
        browser
            .wait(
                "the view",
                &format!(
                    "document.querySelector('nav a[aria-current]')?.getAttribute('href') === '#/{view}'"
                ),
            )
            .await;
    }
    let back = "getComputedStyle(document.body).backgroundColor";
    let light = browser.eval(back).await;
    browser.click("[data-test=theme]").await;
    browser.wait("other colours", &format!("{back} !== {light}")).await;
    let unnamed = "[...document.querySelectorAll('button, input, select')].filter((one) => !(one.innerText.trim() || one.getAttribute('aria-label') || one.labels?.length)).length";
    assert_eq!(browser.eval(unnamed).await, json!(0));
    clean(&cluster, &browser).await;
    browser.close().await;
    cluster.stop().await;
}

async fn session(cluster: &Cluster, name: &str) -> String {
    let labels = [("name".to_owned(), name.to_owned())].into();
    let request = v1::ListSessionsRequest { labels, ..Default::default() };
    let listed = cluster.sessions().list_sessions(request).await.expect("sessions").into_inner();
    listed.sessions[0].id.clone()
}

/// Of the first worker, as `berth workers` tells it.
async fn scheduling(cluster: &Cluster) -> String {
    let told = cluster.berth(&["workers", "worker-1", "--format", "json"]).await.ok();
    let worker: Value = serde_json::from_str(&told).expect("JSON");
    worker["scheduling"].as_str().expect("a word").to_owned()
}

/// What sessions and tasks say of themselves is text. Seen red with text put in as markup (a picture stands in the page), and ran
/// only with the policy taken away too: either holds alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_words_run_nothing_and_hide_nothing() {
    let Some(browser) = native("hostile_words_run_nothing").await else { return };
    let cluster = Cluster::start(Setup::new("native")).await;
    let bad = "<img src=x onerror=window.ran=1>";
    let turned = "safe\u{202e}gnp.exe\u{1b}[2J";
    cluster
        .berth(&[
            "create",
            "--name",
            bad,
            "--label",
            &format!("a={turned}"),
            "--label",
            "b=javascript:alert(1)",
        ])
        .await
        .ok();
    let id = session(&cluster, bad).await;
    let script = "printf '<script>window.ran=2</script>\\n<img src=x onerror=window.ran=3>\\n'; \
        printf '\\033]0;title\\007\\033[31mred\\033[0m \\033[2J\\342\\200\\256turned\\n'; printf '50%%\\r100%%\\n'; \
        mkdir -p artifacts; echo x > 'artifacts/<img src=x onerror=window.ran=4>.html'; echo done";
    let task = started(&cluster, &id, &["sh", "-c", script]).await;
    browser.open(&link(&cluster, &[]).await).await;
    browser.sees("tbody tr", bad).await;
    browser.eval(&format!("void (location.hash = '#/sessions/{id}')")).await;
    browser.sees("h1", bad).await;
    browser.sees(".label", "safe\\u{202e}gnp.exe\\x1b[2J").await;
    browser.sees("tbody tr", "window.ran=4>.html").await;
    browser.sees("tbody tr code", "window.ran=2").await;
    browser.eval(&format!("void (location.hash = '#/sessions/{id}/tasks/{}')", task)).await;
    browser.sees(".lines", "<script>window.ran=2</script>\n<img src=x onerror=window.ran=3>\nred \\u{202e}turned\n100%\ndone").await;
    for view in ["events", "sessions", ""] {
        browser.eval(&format!("void (location.hash = '#/{view}')")).await;
        browser
            .wait(
                "the view",
                &format!(
                    "document.querySelector('nav a[aria-current]')?.getAttribute('href') === '#/{view}'"
                ),
            )
            .await;
        assert_eq!(
            browser.eval("window.ran ?? document.querySelectorAll('main img, main script').length").await,
            json!(0)
        );
    }
    assert_eq!(browser.eval("document.title").await, "Fleet – Berth");
    clean(&cluster, &browser).await;
    browser.close().await;
    cluster.stop().await;
}

/// Red when a client is shown a button that is not for it, or anything of another tenant's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_sees_its_own_and_no_workers() {
    let Some(browser) = Browser::start("e2e dashboard a_tenant_sees_its_own").await else { return };
    let cluster = Cluster::start(Setup::new("fake")).await;
    let others = cluster.session().await.id;
    let link = link(&cluster, &["--tenant", "red"]).await;
    let http = Http::new(&gateway(&cluster).await, link.split_once("#token=").unwrap().1);
    let own = create(&cluster, &http, "reds").await;
    browser.open(&link).await;
    browser.sees("tbody tr", "reds").await;
    browser.sees(".scope", "red").await;
    assert_eq!(browser.eval("location.hash").await, "#/");
    // What happens to others is not heard of, what happens to its own is.
    cluster.berth(&["run", "-s", &others, "--", "echo", "theirs"]).await.ok();
    let done = http.clone().with("Accept", "application/json");
    done.send("POST", "/v1/run", &json!({"command": "echo x", "session": own}).to_string()).await;
    browser.sees("tbody tr", "echo x").await;
    for view in ["", "sessions", "events", "queue", "workers", "workers/worker-1"] {
        browser.eval(&format!("void (location.hash = '#/{view}')")).await;
        browser.wait("the view", "document.querySelector('h1')").await;
        let shown = browser.eval("document.body.innerText").await;
        let shown = shown.as_str().unwrap();
        assert!(!shown.contains(&others[24..]) && !shown.contains("theirs"), "{view}: {shown}");
        let buttons = "document.querySelectorAll('[data-test=cordon], [data-test=drain], nav a[href=\"#/workers\"]').length";
        assert_eq!(browser.eval(buttons).await, json!(0), "{view}");
    }
    browser.eval(&format!("void (location.hash = '#/sessions/{others}')")).await;
    browser.sees("h1", "No such session").await;
    let not_found = browser.problems();
    assert!(not_found.iter().all(|one| one.contains("404")), "{not_found:?}");
    // Its token is revoked: the page says so, and shows nothing any more.
    let tokens: Value =
        serde_json::from_str(&cluster.berth(&["token", "list", "--format", "json"]).await.ok()).unwrap();
    cluster.berth(&["token", "revoke", tokens[0]["id"].as_str().unwrap()]).await.ok();
    browser.sees(".wrong", "no good any more").await;
    assert!(!browser.eval("document.body.innerText").await.as_str().unwrap().contains("reds"));
    asked_us_alone(&cluster, &browser).await;
    browser.close().await;
    cluster.stop().await;
}

/// A session of a token's tenant, by its name.
async fn create(cluster: &Cluster, http: &Http, name: &str) -> String {
    let token = http.headers.iter().find(|(name, _)| name == "Authorization").expect("a token").1.clone();
    let env = vec![
        ("BERTH_ADDRESS".to_owned(), cluster.address.clone()),
        ("BERTH_TOKEN".to_owned(), token.trim_start_matches("Bearer ").to_owned()),
    ];
    berth_tests::process::run("berth", &["create", "--name", name], &env, b"").await.ok().trim().to_owned()
}

/// Red when the page needs to be loaded anew after the coordinator was away, or does not say that it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_outlives_the_coordinators_restart() {
    let Some(browser) = native("it_outlives_the_coordinators_restart").await else { return };
    // An address of its own: its port is given back to the kernel for a moment, and nobody else's draws it there.
    let here = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let setup =
        Setup { coordinator_env: vec![here("BERTH_HTTP_LISTEN", "127.0.0.7")], ..Setup::new("native") };
    let mut cluster = Cluster::start(setup).await;
    let port = gateway(&cluster).await.rsplit_once(':').unwrap().1.to_owned();
    cluster.setup.coordinator_env.push(here("HTTP_PORT", &port));
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let line = "echo before; while [ ! -e go ]; do sleep 0.05; done; echo after";
    let task = started(&cluster, "box", &["sh", "-c", line]).await;
    browser.open(&link(&cluster, &[]).await).await;
    browser.sees("tbody tr", "box").await;
    browser.eval(&format!("void (location.hash = '#/sessions/box/tasks/{}')", task)).await;
    browser.sees(".lines", "before").await;
    browser.eval("void (window.same = true)").await;
    cluster.coordinator.kill().await;
    browser.sees("[data-test=away]", "can't be reached").await;
    browser.sees(".lines", "before").await;
    cluster.restart_coordinator().await;
    cluster.workers_ready().await;
    browser.wait("the page to recover", "!document.querySelector('[data-test=away]') && document.querySelector('.live').innerText === 'Live'").await;
    run(&cluster, &session(&cluster, "box").await, "touch go").await;
    browser.sees(".lines", "after").await;
    assert_eq!(
        browser.eval("document.querySelector('.lines').innerText").await,
        "before\nafter",
        "once, and in whole"
    );
    browser.sees(".badge", "exit 0").await;
    cluster.berth(&["create", "--name", "later"]).await.ok();
    browser.click("nav a[href='#/sessions']").await;
    browser.sees("tbody tr", "later").await;
    assert_eq!(browser.eval("window.same").await, json!(true), "it was not loaded anew");
    let problems = browser.problems();
    assert!(problems.iter().all(|one| one.starts_with("\"network\"")), "{problems:?}");
    clean(&cluster, &browser).await;
    browser.close().await;
    cluster.stop().await;
}

/// Red when a row is made for each of them, or when what is looked for is looked for among those on the page alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sessions_are_pages() {
    const ALL: usize = 1010;
    let Some(browser) = Browser::start("e2e dashboard a_thousand_sessions_are_pages").await else { return };
    let plenty = [("BERTH_CPU_MILLIS", "1000000"), ("BERTH_MEMORY", "1T"), ("BERTH_DISK", "1T")];
    let worker_env = plenty.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let cluster = Cluster::start(Setup { max_sessions: 2000, worker_env, ..Setup::new("fake") }).await;
    let create = async |number: usize| {
        let limits = v1::Limits {
            cpu_millis: Some(10),
            memory_bytes: Some(16 << 20),
            disk_bytes: Some(1 << 20),
            ..Default::default()
        };
        let labels = [("name".to_owned(), format!("n{number:04}"))].into();
        let request = v1::CreateSessionRequest { limits: Some(limits), labels, ..Default::default() };
        cluster.sessions().create_session(request).await.expect("a session");
    };
    for begin in (0..ALL).step_by(10) {
        futures::future::join_all((begin..ALL.min(begin + 10)).map(&create)).await;
    }
    browser.open(&link(&cluster, &[]).await).await;
    browser.click("nav a[href='#/sessions']").await;
    browser.sees("[data-test=found]", "the newest 1000 only").await;
    let rows = "document.querySelectorAll('tbody tr').length";
    assert_eq!(browser.eval(rows).await, json!(50));
    browser.sees(".pager", "page 1 of 20").await;
    browser.click(".pager button:last-child").await;
    browser.sees(".pager", "page 2 of 20").await;
    // Among all of them, whatever page they are on.
    browser.fill("#search", "n0042").await;
    browser.sees("[data-test=found]", "1 of 1000").await;
    browser.sees("tbody tr .name", "n0042").await;
    let nodes = browser.eval("document.querySelectorAll('*').length").await;
    assert!(nodes.as_u64().unwrap() < 2000, "{nodes}");
    clean(&cluster, &browser).await;
    browser.close().await;
    // All at once: one after the other they take their time.
    let all = v1::ListSessionsRequest { page_size: 1000, ..Default::default() };
    loop {
        let listed = cluster.sessions().list_sessions(all.clone()).await.expect("sessions").into_inner();
        if listed.sessions.is_empty() {
            break;
        }
        for some in listed.sessions.chunks(100) {
            futures::future::join_all(some.iter().map(|one| delete(&cluster, &one.id))).await;
        }
    }
    cluster.stop().await;
}

/// Red when a view is wider than the screen, or when a colour is the same in light and dark. Makes the pictures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_read_in_the_dark_and_on_a_phone() {
    let Some(browser) = native("it_is_read_in_the_dark_and_on_a_phone").await else { return };
    let cluster = Cluster::start(Setup { workers: 3, ..Setup::new("native") }).await;
    for (name, team) in [("crawler", "search"), ("eval-7", "research"), ("build-bot", "ci")] {
        cluster.berth(&["create", "--name", name, "--label", &format!("team={team}")]).await.ok();
    }
    browser.open(&link(&cluster, &[]).await).await;
    browser.sees(".live", "Live").await;
    cluster.berth(&["run", "-s", "crawler", "--", "python3", "-c", "print('42 pages')"]).await.ok();
    cluster.berth(&["run", "-s", "eval-7", "--", "sh", "-c", "sleep 0.1; exit 3"]).await;
    let build = "for m in core net proto agent worker coordinator gateway client cli; do printf 'building \\033[1m%s\\033[0m ... ' $m; sleep 0.05; \
        echo ok; done; echo 'warning: unused import in gateway/src/lib.rs' >&2; echo 'running 214 tests'; \
        for t in $(seq 1 24); do echo \"test sessions::case_$t ... ok\"; done; sleep 1000";
    let task = started(&cluster, "build-bot", &["sh", "-c", build]).await;
    browser.sees("tbody tr code", "for m in core").await;
    let box_ = session(&cluster, "build-bot").await;
    let views = [
        ("overview", String::new()),
        ("task", format!("sessions/{box_}/tasks/{task}")),
        ("session", format!("sessions/{box_}")),
        ("workers", "workers".to_owned()),
        ("worker", "workers/worker-1".to_owned()),
        ("sessions", "sessions".to_owned()),
        ("queue", "queue".to_owned()),
        ("events", "events".to_owned()),
    ];
    let mut colours = Vec::new();
    let pictures = [("overview", "light"), ("task", "dark"), ("session", "phone")];
    for (dark, size, name) in
        [(false, (1280, 860), "light"), (true, (1280, 860), "dark"), (true, (390, 844), "phone")]
    {
        browser.looks(dark, size).await;
        for (view, path) in &views {
            browser.eval(&format!("void (location.hash = '#/{path}')")).await;
            browser.wait("the view", "document.querySelector('main h1')").await;
            match *view {
                "task" => {
                    browser.sees(".lines", "case_24").await;
                    browser.sees(".badge", "running").await;
                }
                "session" => browser.sees("tbody tr code", "for m in core").await,
                "overview" => {
                    browser.sees("tbody tr", "worker-3").await;
                    browser.sees(".card", "Tasks running\n1").await;
                }
                _ => {}
            }
            let wide = browser.eval("document.scrollingElement.scrollWidth").await;
            assert!(wide.as_u64().unwrap() <= u64::from(size.0), "{view} on {name}: {wide}");
            if let Some(dir) = browser::pictures()
                && pictures.contains(&(*view, name))
            {
                let picture = browser.picture().await;
                assert!(picture.len() < 150_000, "{view} {name}: {}", picture.len());
                std::fs::write(dir.join(format!("dashboard-{view}-{name}.png")), picture).expect("a picture");
            }
        }
        let drawn = "['body', 'header', 'h1', '.badge', 'a'].map((one) => { const s = getComputedStyle(document.querySelector(one)); \
             return s.backgroundColor + s.color; })";
        colours.push(browser.eval(drawn).await);
    }
    for (light, dark) in colours[0].as_array().unwrap().iter().zip(colours[1].as_array().unwrap()) {
        assert_ne!(light, dark);
    }
    clean(&cluster, &browser).await;
    browser.close().await;
    cluster.stop().await;
}
