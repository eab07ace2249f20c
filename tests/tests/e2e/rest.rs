//! Plain HTTP, as it is on the wire.

use std::time::Duration;

use berth_tests::{
    Cluster, READY, Setup,
    http::{Http, Reply, gateway},
    skip, until,
};
use serde_json::{Value, json};

/// A client of JSON alone.
async fn client(cluster: &Cluster) -> Http {
    Http::new(&gateway(cluster).await, &cluster.admin_token).with("Accept", "application/json")
}

async fn native(test: &str) -> Option<(Cluster, Http)> {
    if skip::without("native", &format!("e2e rest {test}")) {
        return None;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let http = client(&cluster).await;
    Some((cluster, http))
}

async fn run(http: &Http, request: Value) -> Reply {
    http.send("POST", "/v1/run", &request.to_string()).await
}

async fn ran(http: &Http, request: Value) -> Value {
    let reply = run(http, request).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.message()
}

async fn got(http: &Http, path: &str) -> Value {
    let reply = http.send("GET", path, "").await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    reply.message()
}

async fn live(http: &Http) -> usize {
    got(http, "/v1/sessions").await["sessions"].as_array().unwrap().len()
}

/// Red when a session of its own is left, or when how it ended is not told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_runs_in_one_request() {
    let Some((cluster, http)) = native("a_program_runs_in_one_request").await else { return };
    let code = "import sys, os; print(6 * 7, os.environ['A'], sys.stdin.read()); sys.exit(3)";
    let done = ran(&http, json!({"code": code, "env": {"A": "b c"}, "stdin": "typed"})).await;
    assert_eq!(
        (&done["stdout"], &done["outcome"], &done["exit_code"]),
        (&json!("42 b c typed\n"), &json!("exited"), &json!(3))
    );
    let done = ran(&http, json!({"argv": ["/bin/echo", "a  b"], "cwd": "/tmp"})).await;
    assert_eq!(
        (&done["stdout"], &done["stdout_bytes"], &done["truncated"]),
        (&json!("a  b\n"), &json!(5), &json!(false))
    );
    let done = ran(&http, json!({"command": "sleep 1000", "timeout_seconds": 0.3})).await;
    assert_eq!(done["outcome"], "timed_out", "{done}");
    // Each had a session of its own, which ends with it: the answer does not wait for that.
    until(READY, "their sessions to end", async || (live(&http).await == 0).then_some(())).await;
    // Output of any kind and length.
    let flood = "printf '\\377\\303'; head -c 3000000 /dev/zero | tr '\\0' x; echo err >&2";
    let done = ran(&http, json!({"command": flood, "max_output_bytes": 10})).await;
    assert_eq!((&done["stdout"], &done["stderr"]), (&json!("\u{fffd}\u{fffd}xxxxxxxx"), &json!("err\n")));
    assert_eq!((&done["stdout_bytes"], &done["truncated"]), (&json!(3_000_002), &json!(true)));
    let done = ran(&http, json!({"command": "printf '\\377\\000a'", "encoding": "base64"})).await;
    assert_eq!(done["stdout"], "/wBh");
    // In a session that is there, by its name; it stays.
    cluster.berth(&["create", "--name", "box"]).await.ok();
    ran(&http, json!({"command": "echo kept > file", "session": "box"})).await;
    let done = ran(&http, json!({"command": "cat file", "session": "box"})).await;
    assert_eq!(done["stdout"], "kept\n");
    let tasks = got(&http, "/v1/sessions/box/tasks").await;
    assert_eq!(
        (tasks["tasks"].as_array().unwrap().len(), &tasks["tasks"][0]["id"]),
        (2, &done["task"]),
        "{tasks}"
    );
    let task = got(&http, &format!("/v1/sessions/box/tasks/{}", done["task"].as_str().unwrap())).await;
    assert_eq!((&task["state"], &task["end"]["exit_code"]), (&json!("done"), &json!(0)), "{task}");
    let usage = got(&http, "/v1/sessions/box/usage").await;
    assert!(usage["cpu_seconds"].as_f64().is_some_and(|s| s > 0.0) && usage["tasks"] == 0, "{usage}");
    let ended = http.send("DELETE", "/v1/sessions/box", "").await;
    assert_eq!((ended.status, live(&http).await), (200, 0), "{ended:?}");
    cluster.stop().await;
}

/// Red when output waits for the end, or a character that two pieces share is broken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_output_comes_as_events() {
    use tokio::io::AsyncReadExt;
    let Some((cluster, http)) = native("its_output_comes_as_events").await else { return };
    let http = http.with("Accept", "text/event-stream");
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let line = "printf 'a\\303'; while [ ! -e go ]; do sleep 0.02; done; printf '\\244b'; echo e >&2; exit 4";
    let request = json!({"command": line, "session": "box"}).to_string();
    let mut stream = http.begin_send("POST", "/v1/run", &request).await;
    let mut seen = String::new();
    let read = async {
        while !seen.contains("event: stdout") {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.expect("it goes on");
            assert!(count > 0, "it ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.expect("output while it runs");
    assert!(
        seen.contains("event: started") && seen.contains(r#"{"data":"a"}"#) && !seen.contains("event: end"),
        "{seen}"
    );
    cluster.berth(&["run", "-s", "box", "--", "touch", "go"]).await.ok();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest))
        .await
        .expect("its end")
        .unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains(r#"{"data":"äb"}"#) && rest.contains("event: stderr"), "{rest}");
    assert!(rest.contains("event: end") && rest.contains(r#""exit_code":4"#), "{rest}");
    // What can't be run is an event, too.
    let refused = run(&http, json!({"argv": ["/no/such/program"], "session": "box"})).await;
    let last = refused.messages().pop().unwrap();
    assert_eq!(refused.status, 200);
    assert!(last["error"]["hint"].is_string() || last["exit_code"].is_number(), "{refused:?}");
    cluster.stop().await;
}

/// Red when a program, or the session that was made for it, outlives whoever asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_leaves_nothing() {
    let Some((cluster, http)) = native("who_goes_away_leaves_nothing").await else { return };
    for accept in ["application/json", "text/event-stream"] {
        let http = client(&cluster).await.with("Accept", accept);
        let stream = http.begin_send("POST", "/v1/run", &json!({"command": "sleep 1000"}).to_string()).await;
        until(READY, "it to run", async || (got(&http, "/v1/info").await["active_tasks"] == 1).then_some(()))
            .await;
        drop(stream);
        until(READY, "its session to end", async || (live(&http).await == 0).then_some(())).await;
    }
    // Of a session that is somebody's, only the program ends.
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let request = json!({"command": "sleep 1000", "session": "box"}).to_string();
    let stream = http.begin_send("POST", "/v1/run", &request).await;
    let state = async || got(&http, "/v1/sessions/box/tasks").await["tasks"][0]["state"].clone();
    until(READY, "it to run", async || (state().await == "running").then_some(())).await;
    drop(stream);
    until(READY, "it to end", async || (state().await == "done").then_some(())).await;
    assert_eq!(live(&http).await, 1);
    cluster.stop().await;
}

/// Red when large answers of one token are held without a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_of_one_token_are_counted() {
    let cluster = Cluster::start(Setup { max_sessions: 40, ..Setup::new("fake") }).await;
    let http = client(&cluster).await;
    let session = cluster.session().await.id;
    let large = json!({"command": "sleep 1000", "session": session, "max_output_bytes": 1 << 20}).to_string();
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(http.begin_send("POST", "/v1/run", &large).await);
    }
    let running = async || got(&http, "/v1/info").await["active_tasks"].clone();
    until(READY, "all of them to run", async || (running().await == 16).then_some(())).await;
    let one_more = http.send("POST", "/v1/run", &large).await;
    assert_eq!(
        (one_more.status, one_more.message()["error"]["code"].clone()),
        (429, json!("RESOURCE_EXHAUSTED"))
    );
    let small = ran(&http, json!({"command": "echo x", "session": session})).await;
    assert_eq!(small["stdout"], "x\n", "a small one needs no room");
    held.pop();
    until(READY, "room again", async || {
        let reply =
            run(&http, json!({"command": "echo x", "session": session, "max_output_bytes": 1 << 20})).await;
        (reply.status == 200).then_some(())
    })
    .await;
    drop(held);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_in_json() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let http = client(&cluster).await;
    let red = of_red(&cluster).await;
    let own = cluster.session().await.id;
    let path = format!("/v1/sessions/{own}");
    let text = |value: Value| value.to_string();
    for (http, method, path, body, status, says) in [
        (&http, "POST", "/v1/run", text(json!({"comand": "x"})), 400, "comand"),
        (&http, "POST", "/v1/run", "{".to_owned(), 400, "EOF"),
        (&http, "POST", "/v1/run", text(json!({})), 400, "command"),
        (
            &http,
            "POST",
            "/v1/run",
            text(json!({"command": "x", "session": "nobody"})),
            404,
            "SESSION_NOT_FOUND",
        ),
        (
            &http,
            "POST",
            "/v1/run",
            text(json!({"command": "x", "template": "nope"})),
            404,
            "TEMPLATE_NOT_FOUND",
        ),
        (
            &http,
            "POST",
            "/v1/run",
            text(json!({"command": "x", "selector": {"gpu": "yes"}, "wait_seconds": 0})),
            429,
            "NO_PLACE",
        ),
        (&http, "POST", "/v1/run", text(json!({"command": "x", "priority": 101})), 400, "101"),
        (&http, "POST", "/v1/run", "x".repeat(5 << 20), 413, "4194304"),
        (&http, "GET", "/v1/run", String::new(), 405, "POST"),
        (&http, "GET", "/v1/nothing", String::new(), 404, "openapi"),
        (&http, "GET", "/v1/sessions?limit=0", String::new(), 400, "1 to 1000"),
        (&http, "GET", "/v1/sessions?lable=a", String::new(), 400, "lable"),
        (&http, "GET", "/v1/sessions?state=red", String::new(), 400, "parked"),
        (&http, "GET", "/v1/workers/nobody", String::new(), 404, "nobody"),
        (&red, "GET", path.as_str(), String::new(), 404, "SESSION_NOT_FOUND"),
        (&red, "DELETE", path.as_str(), String::new(), 404, "SESSION_NOT_FOUND"),
        (&red, "GET", "/v1/workers", String::new(), 403, "PERMISSION_DENIED"),
    ] {
        let reply = http.send(method, path, &body).await;
        let error = &reply.message()["error"];
        assert_eq!(reply.status, status, "{method} {path}: {reply:?}");
        assert!(
            error["code"].is_string() && error["hint"].as_str().is_some_and(|hint| !hint.is_empty()),
            "{reply:?}"
        );
        assert!(reply.body.contains(says), "{method} {path} {says}: {reply:?}");
    }
    for token in ["", "Bearer nobody"] {
        let reply = client(&cluster).await.with("Authorization", token).send("GET", "/v1/info", "").await;
        assert_eq!((reply.status, &reply.headers["www-authenticate"][..]), (401, "Bearer"), "{reply:?}");
    }
    assert_eq!(live(&red).await, 0, "another tenant's session is not listed");
    assert_eq!(live(&http).await, 1);
    cluster.stop().await;
}

/// A client of another tenant.
async fn of_red(cluster: &Cluster) -> Http {
    let token = cluster.berth(&["token", "create", "--tenant", "red"]).await.ok();
    let token = token.split_whitespace().last().expect("a token").to_owned();
    client(cluster).await.with("Authorization", &format!("Bearer {token}"))
}

async fn refused(http: &Http, method: &str, path: &str, status: u16, says: &str) {
    let reply = http.send(method, path, "").await;
    assert_eq!(reply.status, status, "{method} {path}: {reply:?}");
    assert!(reply.message()["error"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{reply:?}");
    assert!(reply.body.contains(says), "{method} {path} {says}: {reply:?}");
}

/// Red when a page is handed out as one, when another tenant's is found, or when a removed one is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tasks_leave_is_told_handed_out_and_removed() {
    let Some((cluster, http)) = native("what_tasks_leave_is_told_handed_out_and_removed").await else {
        return;
    };
    let document = got(&http, "/v1/openapi.json").await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let page = "<script>alert(1)</script>";
    let line = format!(
        "mkdir -p artifacts/d; cd artifacts; printf '{page}' > 'd/a page.html'; seq 300000 > n.csv; : > e; ln -s / l"
    );
    let session = ran(&http, json!({"command": line, "session": "box"})).await["session"].clone();
    let session = session.as_str().unwrap();
    let listed = until(READY, "all of them to be kept", async || {
        let listed = got(&http, "/v1/artifacts?session=box").await;
        (listed["pending"] == false).then_some(listed)
    })
    .await;
    checked(&document, "/v1/artifacts", "get", &listed);
    assert_eq!(
        (listed["artifacts"].as_array().unwrap().len(), &listed["not_kept"][0]["name"]),
        (3, &json!("l"))
    );
    // Page by page, and past the session's end.
    http.send("DELETE", "/v1/sessions/box", "").await;
    let (mut paged, mut after) = (Vec::new(), String::new());
    loop {
        let page = got(&http, &format!("/v1/artifacts?session={session}&limit=1&after={after}")).await;
        paged.extend(page["artifacts"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next"].as_str() else { break };
        after = next.to_owned();
    }
    assert_eq!(Value::from(paged), listed["artifacts"]);
    assert_eq!(got(&http, "/v1/artifacts").await["artifacts"], listed["artifacts"]);
    let numbers: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    let red = of_red(&cluster).await;
    for (name, size, content_type, body, file) in [
        ("d/a page.html", 25, "application/octet-stream", page, "a%20page.html"),
        ("n.csv", 1_988_895, "text/csv; charset=utf-8", numbers.as_str(), "n.csv"),
        ("e", 0, "application/octet-stream", "", "e"),
    ] {
        let all = listed["artifacts"].as_array().unwrap();
        let artifact = all.iter().find(|artifact| artifact["name"] == name).expect(name);
        assert_eq!((&artifact["size"], &artifact["session"]), (&json!(size), &json!(session)));
        let path = format!("/v1/artifacts/{}", artifact["id"].as_str().unwrap());
        let one = got(&http, &path).await;
        checked(&document, "/v1/artifacts/{artifact}", "get", &one);
        assert_eq!(&one, artifact);
        let content = http.send("GET", &format!("{path}/content"), "").await;
        assert_eq!((content.status, content.body == body), (200, true), "{name}");
        for (header, value) in [
            ("content-type", content_type),
            ("content-length", &size.to_string()),
            ("x-content-type-options", "nosniff"),
            ("content-disposition", &format!("attachment; filename*=UTF-8''{file}")),
            ("content-security-policy", "default-src 'none'; sandbox"),
        ] {
            assert_eq!(content.headers.get(header).map(String::as_str), Some(value), "{name}");
        }
        for (method, path) in
            [("GET", path.clone()), ("GET", format!("{path}/content")), ("DELETE", path.clone())]
        {
            refused(&red, method, &path, 404, "ARTIFACT_NOT_FOUND").await;
        }
        let removed = http.send("DELETE", &path, "").await;
        assert_eq!((removed.status, &removed.message()), (200, artifact), "another tenant's removal is none");
        for (method, path) in [("GET", path.clone()), ("GET", format!("{path}/content")), ("DELETE", path)] {
            refused(&http, method, &path, 404, "ARTIFACT_NOT_FOUND").await;
        }
    }
    assert_eq!(got(&http, "/v1/artifacts").await["artifacts"], json!([]));
    refused(&red, "GET", &format!("/v1/artifacts?session={session}"), 404, "SESSION_NOT_FOUND").await;
    for (method, path, status, says) in [
        ("GET", "/v1/artifacts?session=nobody", 404, "SESSION_NOT_FOUND"),
        ("GET", "/v1/artifacts?limit=1001", 400, "1 to 1000"),
        ("GET", "/v1/artifacts?after=x", 400, "page_token"),
        ("GET", "/v1/artifacts?sesion=box", 400, "sesion"),
        ("GET", "/v1/artifacts/x/content?range=1", 400, "range"),
        ("GET", "/v1/artifacts/x", 400, "32"),
        ("PUT", "/v1/artifacts/x", 405, "GET, DELETE"),
        ("POST", "/v1/artifacts", 405, "GET"),
    ] {
        refused(&http, method, path, status, says).await;
    }
    refused(&client(&cluster).await.with("Authorization", ""), "GET", "/v1/artifacts", 401, "token").await;
    cluster.stop().await;
}

/// What is answered is what the document says, field by field. Red when one has a field that the other has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_says_what_is_answered() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let http = client(&cluster).await;
    let document = got(&client(&cluster).await.with("Authorization", ""), "/v1/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let session = cluster.session().await;
    let done = ran(&http, json!({"command": "echo x", "session": session.id})).await;
    checked(&document, "/v1/run", "post", &done);
    let (session, task) = (session.id, done["task"].as_str().unwrap().to_owned());
    for (path, real) in [
        ("/v1/info", "/v1/info".to_owned()),
        ("/v1/sessions", "/v1/sessions?all=true&limit=5&state=ready".to_owned()),
        ("/v1/sessions/{session}", format!("/v1/sessions/{session}")),
        ("/v1/sessions/{session}/tasks", format!("/v1/sessions/{session}/tasks?running=false")),
        ("/v1/sessions/{session}/tasks/{task}", format!("/v1/sessions/{session}/tasks/{task}")),
        ("/v1/sessions/{session}/usage", format!("/v1/sessions/{session}/usage")),
        ("/v1/workers", "/v1/workers".to_owned()),
        ("/v1/workers/{worker}", "/v1/workers/worker-1".to_owned()),
    ] {
        checked(&document, path, "get", &got(&http, &real).await);
    }
    let info = got(&http, "/v1/info").await;
    assert_eq!((&info["status"], &info["workers_alive"]), (&json!("ok"), &json!(1)), "{info}");
    assert!(
        info["uptime_seconds"].as_f64().is_some_and(|s| s > 0.0) && info["system"]["cpus"].is_number(),
        "{info}"
    );
    cluster.stop().await;
}

fn checked(document: &Value, path: &str, method: &str, answer: &Value) {
    let content = &document["paths"][path][method]["responses"]["200"]["content"];
    fits(document, &content["application/json"]["schema"], answer, path);
}

/// The part of JSON Schema that the document uses.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return fits(document, &document["components"]["schemas"][name], value, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let real = any.iter().find(|schema| schema["type"] != "null").expect("one that is something");
        return fits(document, real, value, at);
    }
    let of_type = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("{at}: {other}"),
    };
    match &schema["type"] {
        Value::String(name) => assert!(of_type(name), "{at}: {value} is no {name}"),
        Value::Array(names) => {
            assert!(names.iter().any(|name| of_type(name.as_str().unwrap())), "{at}: {value}")
        }
        other => panic!("{at}: no type, but {other}"),
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema["items"], item, &format!("{at}[{index}]"));
    }
    let (Some(fields), Some(known)) = (value.as_object(), schema["properties"].as_object()) else { return };
    for (name, value) in fields {
        let schema = known.get(name).unwrap_or_else(|| panic!("{at}: {name} is not in the document"));
        fits(document, schema, value, &format!("{at}.{name}"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(fields.contains_key(name.as_str().unwrap()), "{at}: {name} is missing");
    }
}
