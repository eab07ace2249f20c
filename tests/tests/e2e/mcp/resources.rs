//! Files and outputs as resources.

use std::collections::BTreeSet;

use berth_tests::{
    Cluster, READY, Setup,
    http::{Http, gateway},
    mcp::{Mcp, VERSIONS},
    until,
};
use serde_json::{Value, json};

use super::{USUAL, finish, live, native};

const UPDATED: &str = "notifications/resources/updated";
const LIST_CHANGED: &str = "notifications/resources/list_changed";

/// All resources, page by page.
async fn listed(mcp: &mut Mcp) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let params = if cursor.is_null() { json!({}) } else { json!({"cursor": cursor}) };
        let answer = mcp.request("resources/list", params).await;
        let page = answer["result"]["resources"].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
        assert!(page.len() < 1000, "a page is bounded: {}", page.len());
        all.extend(page);
        cursor = answer["result"]["nextCursor"].clone();
        if cursor.is_null() {
            return all;
        }
    }
}

fn uris(resources: &[Value]) -> BTreeSet<String> {
    resources.iter().map(|resource| resource["uri"].as_str().expect("a URI").to_owned()).collect()
}

/// Red where a version loses a request of resources, or lists what is not the client's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_resources_in_each_version_of_the_protocol() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let mut other = Mcp::start(&cluster, &[], USUAL).await;
    let another = other.ok("session_create", json!({"name": "box"})).await["session"].clone();
    other.ok("fs_write", json!({"path": "secret", "contents": "s", "session": another})).await;
    for version in VERSIONS {
        let mut mcp = Mcp::start(&cluster, &[], version).await;
        assert_eq!(listed(&mut mcp).await, Vec::<Value>::new(), "{version}");
        assert_eq!(live(&cluster).await.len(), 1, "{version}: to list makes no session");
        let session =
            mcp.ok("fs_write", json!({"path": "a b/ü%.py", "contents": "x = 1\n"})).await["session"].clone();
        let session = session.as_str().unwrap();
        mcp.ok("fs_write", json!({"path": "bin", "contents": "AP/+gA==", "encoding": "base64"})).await;
        let resources = listed(&mut mcp).await;
        let text = format!("berth://{session}/a%20b/%C3%BC%25.py");
        assert_eq!(
            uris(&resources),
            BTreeSet::from([text.clone(), format!("berth://{session}/bin")]),
            "{version}"
        );
        let told = resources.iter().find(|resource| resource["uri"] == json!(text)).unwrap();
        assert_eq!((&told["name"], &told["size"]), (&json!("a b/ü%.py"), &json!(6)), "{told}");
        assert_eq!(told["mimeType"], "text/x-python", "{told}");
        assert!(
            told["annotations"]["lastModified"].as_str().is_some_and(|time| time.contains('T')),
            "{told}"
        );
        let read = mcp.read(&text).await;
        assert_eq!(
            (&read["text"], &read["mimeType"]),
            (&json!("x = 1\n"), &json!("text/x-python")),
            "{read}"
        );
        let read = mcp.read(&format!("berth://{session}/bin")).await;
        assert_eq!((&read["blob"], &read["text"]), (&json!("AP/+gA=="), &Value::Null), "{read}");
        let read = mcp.read(&format!("berth://{session}/")).await;
        let below = format!("berth://{session}/a%20b\nberth://{session}/bin\n");
        assert_eq!((&read["text"], &read["mimeType"]), (&json!(below), &json!("text/uri-list")), "{read}");
        // Not listed, and there for who names it: as with tools.
        assert_eq!(mcp.read("berth://box/secret").await["text"], "s", "{version}");
        let templates = mcp.request("resources/templates/list", json!({})).await;
        let templates = templates["result"]["resourceTemplates"].as_array().unwrap().clone();
        assert_eq!(templates[0]["uriTemplate"], "berth://{session}/{+path}", "{templates:?}");
        assert_eq!(templates.len(), 2, "{templates:?}");
        assert_eq!(mcp.end().await, Some(0));
    }
    other.ok("session_end", json!({"session": "box"})).await;
    finish(cluster, other).await;
}

/// Red when a page is as long as the workspace is, a file is told twice or not at all, or a made-up cursor leads anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_comes_in_pages() {
    let Some((cluster, mut mcp)) = native("a_long_list_comes_in_pages").await else { return };
    let make = "mkdir -p deep/er none; for i in $(seq 1300); do : > deep/er/$i; done; mkfifo pipe; ln -s pipe link; \
        : > \"$(printf '\\377')\"";
    let first = mcp.ok("run_shell", json!({"command": make})).await["session"].clone();
    let second = mcp.ok("session_create", json!({})).await["session"].clone();
    mcp.ok("fs_write", json!({"path": "one", "contents": "1", "session": second})).await;
    let all = listed(&mut mcp).await;
    let first = first.as_str().unwrap();
    let mut wanted: BTreeSet<String> = (1..=1300).map(|i| format!("berth://{first}/deep/er/{i}")).collect();
    wanted.insert(format!("berth://{}/one", second.as_str().unwrap()));
    assert_eq!((all.len(), uris(&all)), (wanted.len(), wanted), "files, and nothing else");
    for cursor in
        ["x", "01900000000070008000000000000000.61", &format!("{first}.zz"), &format!("{first}.2e2e2f61")]
    {
        let said = mcp.denied("resources/list", json!({"cursor": cursor})).await;
        assert!(said.contains("cursor"), "{said}");
    }
    finish(cluster, mcp).await;
}

/// Red when an answer is as large as the file, or when what can't be read ends anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_is_bounded_and_says_how_to_go_on() {
    let Some((cluster, mut mcp)) = native("what_is_read_is_bounded_and_says_how_to_go_on").await else {
        return;
    };
    let make = "yes 'a€' | head -c 3000001 > big; head -c 716800 /dev/zero | tr '\\0' y > fits; mkfifo pipe; \
        ln -s /dev/zero zero";
    let session = mcp.ok("run_shell", json!({"command": make})).await["session"].clone();
    let base = format!("berth://{}", session.as_str().unwrap());
    assert_eq!(mcp.read(&format!("{base}/fits")).await["text"].as_str().unwrap().len(), 716_800);
    let said = mcp.denied("resources/read", json!({"uri": format!("{base}/big")})).await;
    assert!(said.contains("3000001") && said.contains("fs_read") && said.contains("offset"), "{said}");
    // In parts it is all there, and no character is cut.
    let (mut whole, mut uri) = (String::new(), format!("{base}/big?offset=0"));
    while !uri.is_empty() {
        let part = mcp.read(&uri).await;
        assert_eq!(part["_meta"]["berth/size"], 3_000_001, "{}", part["_meta"]);
        whole.push_str(part["text"].as_str().unwrap_or_else(|| panic!("{}", part["_meta"])));
        uri = part["_meta"]["berth/next"].as_str().unwrap_or_default().to_owned();
    }
    assert!(whole.len() == 3_000_001 && whole.starts_with("a€\na€\n"), "{}", whole.len());
    for (uri, says) in [
        ("file:///etc/passwd".to_owned(), "berth://<session>/<path>"),
        ("berth://".to_owned(), "berth://<session>/<path>"),
        (format!("{base}/none"), "fs_list"),
        (format!("{base}/a%00b"), "berth://<session>/<path>"),
        (format!("{base}/pipe"), ""),
        (format!("{base}/zero"), ""),
        (format!("{base}/tasks/01900000000070008000000000000000/stdout"), "task_id"),
        ("berth://nobody/a".to_owned(), "session_create"),
        ("berth://01900000000070008000000000000000/a".to_owned(), "session_create"),
        (format!("{base}/../../proc/1/environ"), ""),
    ] {
        let said = mcp.denied("resources/read", json!({"uri": uri})).await;
        assert!(said.contains(says) && said.len() < 5000, "{uri}: {said}");
    }
    assert_eq!(mcp.ok("echo", json!({"message": "on"})).await["message"], "on");
    finish(cluster, mcp).await;
}

/// Red when another tenant's token reads, subscribes or lists, by a name, an id or a cursor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_of_another_token_are_not_there() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let token = async |tenant: &str| {
        let said = cluster.berth(&["token", "create", "--tenant", tenant]).await.ok();
        said.split_whitespace().last().unwrap().to_owned()
    };
    let mut red = Mcp::start_as(&cluster, &token("red").await, &[], USUAL).await;
    let made = red.ok("session_create", json!({"name": "work"})).await["session"].clone();
    let made = made.as_str().unwrap();
    red.ok("fs_write", json!({"path": "key", "contents": "k", "session": "work"})).await;
    let task = red.ok("run_shell", json!({"command": "echo k", "session": "work"})).await["task_id"].clone();
    let output = format!("berth://{made}/tasks/{}/stdout", task.as_str().unwrap());
    assert_eq!(red.read(&output).await["text"], "k\n");
    for version in [USUAL, "2026-07-28"] {
        let mut blue = Mcp::start_as(&cluster, &token("blue").await, &[], version).await;
        for uri in [
            format!("berth://{made}/key"),
            "berth://work/key".to_owned(),
            output.clone(),
            format!("berth://{made}/"),
        ] {
            let mut requests = vec![("resources/read", json!({"uri": uri}))];
            match version {
                USUAL => requests.push(("resources/subscribe", json!({"uri": uri}))),
                _ => requests.push((
                    "subscriptions/listen",
                    json!({"notifications": {"resourceSubscriptions": [uri]}}),
                )),
            }
            for (method, params) in requests {
                let said = blue.denied(method, params).await;
                let hidden = said.contains("not found") || said.contains("no session");
                assert!(hidden && said.contains("session_create"), "{method} {uri}: {said}");
            }
        }
        assert!(
            blue.denied("resources/list", json!({"cursor": format!("{made}.")})).await.contains("cursor")
        );
        assert_eq!(listed(&mut blue).await, Vec::<Value>::new());
        assert_eq!(blue.end().await, Some(0));
    }
    red.ok("session_end", json!({"session": "work"})).await;
    finish(cluster, red).await;
}

/// A task goes on in the background, and changes a file that nobody's tool touches meanwhile. Red without the poll.
async fn told_of_changes(mcp: &mut Mcp, version: &str) {
    let session = mcp.ok("session_info", json!({})).await["session"].clone();
    let uri = |path: &str| format!("berth://{}/{path}", session.as_str().unwrap());
    let watched = [uri("made"), uri("later"), uri("gone")];
    mcp.ok("fs_write", json!({"path": "gone", "contents": "x"})).await;
    let mut stream = None;
    if version == USUAL {
        listed(mcp).await;
        for uri in &watched {
            assert!(mcp.request("resources/subscribe", json!({"uri": uri})).await["result"].is_object());
        }
    } else {
        let wanted =
            json!({"resourceSubscriptions": watched, "resourcesListChanged": true, "toolsListChanged": true});
        stream = Some(mcp.ask("subscriptions/listen", json!({"notifications": wanted})).await);
        let told = mcp.notified("notifications/subscriptions/acknowledged", |_| true).await;
        assert_eq!(told["notifications"]["resourceSubscriptions"], json!(watched), "{told}");
        assert_eq!(told["notifications"]["resourcesListChanged"], true, "{told}");
        assert!(told["notifications"]["toolsListChanged"].is_null(), "tools stay the same: {told}");
    }
    mcp.ok("fs_write", json!({"path": "made", "contents": "1"})).await;
    mcp.notified(UPDATED, |params| params["uri"] == json!(watched[0])).await;
    mcp.notified(LIST_CHANGED, |_| true).await;
    mcp.ok("run_shell", json!({"command": "echo more >> made"})).await;
    mcp.notified(UPDATED, |params| params["uri"] == json!(watched[0])).await;
    mcp.ok("fs_remove", json!({"path": "gone"})).await;
    mcp.notified(UPDATED, |params| params["uri"] == json!(watched[2])).await;
    // By a task that none waits for, while it runs and when it ends.
    let line = "until [ -e go ]; do sleep 0.05; done; echo 1 > later; until [ -e stop ]; do sleep 0.05; done; echo 22 > later";
    let task = mcp.ok("run_background", json!({"command": line})).await["task_id"].clone();
    mcp.ok("fs_write", json!({"path": "go", "contents": ""})).await;
    mcp.notified(UPDATED, |params| params["uri"] == json!(watched[1])).await;
    mcp.ok("fs_write", json!({"path": "stop", "contents": ""})).await;
    mcp.ok("task_get_result", json!({"task_id": task, "wait_seconds": 60})).await;
    mcp.notified(UPDATED, |params| params["uri"] == json!(watched[1])).await;
    // Who no longer wants to know is told nothing: what another subscription says next comes after it.
    match stream {
        None => assert!(
            mcp.request("resources/unsubscribe", json!({"uri": watched[0]})).await["result"].is_object()
        ),
        Some(id) => {
            mcp.send(
                &json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}),
            )
            .await;
            // Nothing answers that. What a later subscription is told comes when the earlier one is over.
            let wanted = json!({"resourceSubscriptions": [watched[2]]});
            mcp.ask("subscriptions/listen", json!({"notifications": wanted})).await;
            mcp.notified("notifications/subscriptions/acknowledged", |_| true).await;
            mcp.ok("fs_write", json!({"path": "gone", "contents": "there"})).await;
            mcp.notified(UPDATED, |params| params["uri"] == json!(watched[2])).await;
        }
    }
    mcp.notifications.clear();
    mcp.ok("fs_write", json!({"path": "made", "contents": "no more"})).await;
    mcp.ok("fs_write", json!({"path": "gone", "contents": "back"})).await;
    mcp.notified(UPDATED, |params| params["uri"] == json!(watched[2])).await;
    let told = mcp.notifications.iter().any(|message| message["params"]["uri"] == json!(watched[0]));
    assert!(!told, "{:?}", mcp.notifications);
}

/// Red when a change is not told, by whichever kind of subscription.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_subscribed_is_told_of_changes() {
    let Some((cluster, mut first)) = native("who_subscribed_is_told_of_changes").await else { return };
    told_of_changes(&mut first, USUAL).await;
    let mut second = Mcp::start(&cluster, &[], "2026-07-28").await;
    told_of_changes(&mut second, "2026-07-28").await;
    assert_eq!(second.end().await, Some(0));
    // A session that ends is the last change of what was in it.
    let made = first.ok("session_create", json!({})).await["session"].clone();
    let uri = format!("berth://{}/x", made.as_str().unwrap());
    first.request("resources/subscribe", json!({"uri": uri})).await;
    first.ok("session_end", json!({"session": made})).await;
    first.notified(UPDATED, |params| params["uri"] == json!(uri)).await;
    // What one client may subscribe to is bounded.
    for i in 0.. {
        let answer = first
            .request(
                "resources/subscribe",
                json!({"uri": format!("berth://{}/{i}", live(&cluster).await[0])}),
            )
            .await;
        if let Some(said) = answer["error"]["message"].as_str() {
            assert!(said.contains("64") && said.contains("unsubscribe"), "{said}");
            break;
        }
        assert!(i < 100, "{answer}");
    }
    finish(cluster, first).await;
}

/// By whom a file is changed does not matter. Red without the watch: each change is then told at the next look, 5 s after the
/// one before; and where nothing can be watched, red without that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_by_others_are_told_at_once() {
    const CHANGES: u32 = 16;
    let Some((cluster, mut mcp)) = native("changes_by_others_are_told_at_once").await else { return };
    let session = mcp.ok("session_info", json!({})).await["session"].as_str().unwrap().to_owned();
    let uri = |path: &str| json!(format!("berth://{session}/{path}"));
    let shell = async |line: &str| {
        cluster.berth(&["run", "--session", &session, "--shell", "--", line]).await.ok();
    };
    shell("mkdir -p d/e; echo > d/e/f; ln -s e d/link").await;
    mcp.request("resources/subscribe", json!({"uri": uri("d/e/f")})).await;
    let subscribed = std::time::Instant::now();
    let mut began = subscribed;
    for i in 0..CHANGES {
        let line = match i % 4 {
            0 => "echo more >> d/e/f",
            1 => "echo new > d/e/g; mv d/e/g d/e/f",
            2 => "mv d/e d/x",
            _ => "mv d/x d/e",
        };
        shell(line).await;
        mcp.notified(UPDATED, |params| params["uri"] == uri("d/e/f")).await;
        if i == 0 {
            // The watch stands, or never does.
            began = std::time::Instant::now();
        }
    }
    let by_looks = std::time::Duration::from_secs(5) * (CHANGES - 1);
    assert!(began.elapsed() < by_looks * 3 / 4, "{CHANGES} changes were told after {:?}", began.elapsed());
    // What no watch tells of: a session with too many directories.
    let made =
        mcp.ok("session_create", json!({"name": "wide"})).await["session"].as_str().unwrap().to_owned();
    let line = "seq 4200 | xargs mkdir; echo > f";
    cluster.berth(&["run", "--session", &made, "--shell", "--", line]).await.ok();
    let wide = json!(format!("berth://{made}/f"));
    mcp.request("resources/subscribe", json!({"uri": wide})).await;
    for line in ["echo one > f", "echo three > f"] {
        cluster.berth(&["run", "--session", &made, "--shell", "--", line]).await.ok();
        mcp.notified(UPDATED, |params| params["uri"] == wide).await;
    }
    mcp.ok("session_end", json!({"session": made})).await;
    mcp.notified(UPDATED, |params| params["uri"] == wide).await;
    finish(cluster, mcp).await;
}

/// Without a conversation, where a stream of events is a request of its own. Red when it is not told there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_over_http_tells_of_changes() {
    use tokio::io::AsyncReadExt;
    let cluster = Cluster::start(Setup::new("fake")).await;
    let address = gateway(&cluster).await;
    let mut http = Http::begin(&address, &cluster.admin_token).await;
    let session = http.call("session_create", json!({})).await["structuredContent"]["session"].clone();
    let uri = format!("berth://{}/x", session.as_str().unwrap());
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "h", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let params = json!({"notifications": {"resourceSubscriptions": [uri]}, "_meta": meta});
    let listen = json!({"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": params});
    let alone = Http::new(&address, &cluster.admin_token)
        .with("MCP-Protocol-Version", "2026-07-28")
        .with("Mcp-Method", "subscriptions/listen");
    let mut stream = alone.begin_send("POST", "/mcp", &listen.to_string()).await;
    let (mut text, mut length) = (String::new(), 0);
    let mut piece = [0; 4096];
    while !text.contains(UPDATED) {
        // What changes before the stream has looked is not told: so it changes until it is.
        length += 1;
        http.call("fs_write", json!({"path": "x", "contents": "y".repeat(length), "session": session})).await;
        let read = tokio::time::timeout(std::time::Duration::from_secs(2), stream.read(&mut piece)).await;
        if let Ok(read) = read {
            let read = read.expect("it is open");
            assert!(read > 0, "it ended: {text}");
            text.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        assert!(length < 100, "{text}");
    }
    assert!(text.contains("subscriptions/acknowledged") && text.contains(&uri), "{text}");
    drop(stream);
    // In a conversation: it ends with a DELETE, which says so.
    assert_eq!(http.send("DELETE", "/mcp", "").await.status, 204);
    until(READY, "its session to end", async || live(&cluster).await.is_empty().then_some(())).await;
    cluster.stop().await;
}

/// Red when what was cut can't be found by who has only the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_output_has_a_link_to_all_of_it() {
    let Some((cluster, mut mcp)) = native("cut_output_has_a_link_to_all_of_it").await else { return };
    let line = "seq 200000; seq 3 >&2";
    let result = mcp.call("run_shell", json!({"command": line, "max_output_bytes": 100})).await;
    let ran = &result["structuredContent"];
    let (session, task) = (ran["session"].as_str().unwrap(), ran["task_id"].as_str().unwrap());
    let uri = format!("berth://{session}/tasks/{task}/stdout");
    let links: Vec<&Value> = result["content"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|block| block["type"] == "resource_link")
        .collect();
    assert_eq!(links.len(), 1, "stderr is whole: {result}");
    assert_eq!((&links[0]["uri"], &links[0]["size"]), (&json!(uri), &ran["stdout_bytes"]), "{}", links[0]);
    let text = result["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("bytes are left out here; task_get_result with task_id"), "{text}");
    assert!(text.contains(&format!("{uri}?offset=50 ")), "{text}");
    let all: String = (1..=200_000).map(|i| format!("{i}\n")).collect();
    let (mut whole, mut next) = (String::new(), uri.clone());
    while !next.is_empty() {
        let part = mcp.read(&next).await;
        assert_eq!(
            (&part["_meta"]["berth/size"], &part["mimeType"]),
            (&json!(all.len()), &json!("text/plain"))
        );
        let text = part["text"].as_str().unwrap();
        assert!(!text.is_empty() && text.len() <= 256 << 10, "{}", text.len());
        whole.push_str(text);
        next = part["_meta"]["berth/next"].as_str().unwrap_or_default().to_owned();
    }
    assert!(whole == all, "{} of {} bytes", whole.len(), all.len());
    assert_eq!(mcp.read(&uri.replace("stdout", "stderr")).await["text"], "1\n2\n3\n");
    // A part of it by the tool has the link, too, and the last part none.
    let arguments = json!({"task_id": task, "max_bytes": 10});
    let read = mcp.call("task_get_result", arguments).await;
    assert_eq!(read["content"][1]["uri"], json!(uri), "{read}");
    let read = mcp.call("task_get_result", json!({"task_id": task, "stdout_offset": all.len() - 5})).await;
    assert_eq!(read["content"].as_array().unwrap().len(), 1, "{read}");
    let said = mcp.denied("resources/read", json!({"uri": format!("{uri}?offset=99999999")})).await;
    assert!(said.contains("task_get_status"), "{said}");
    // One that runs is read on as it grows.
    let line =
        "echo one; until [ -e go ]; do sleep 0.05; done; printf 'tw\\303'; sleep 0.1; printf '\\266\\n'";
    let task = mcp.ok("run_background", json!({"command": line})).await["task_id"].clone();
    let uri = format!("berth://{session}/tasks/{}/stdout", task.as_str().unwrap());
    let part = until(READY, "its output", async || {
        let part = mcp.read(&uri).await;
        (part["text"] == "one\n").then_some(part)
    })
    .await;
    mcp.ok("fs_write", json!({"path": "go", "contents": ""})).await;
    mcp.ok("task_get_result", json!({"task_id": task, "wait_seconds": 60})).await;
    let rest = mcp.read(part["_meta"]["berth/next"].as_str().expect("it goes on")).await;
    assert_eq!((&rest["text"], &rest["_meta"]["berth/next"]), (&json!("twö\n"), &Value::Null), "{rest}");
    finish(cluster, mcp).await;
}

/// Red where a limit below a character's size gives nothing, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_read_on_however_little_is_asked_for() {
    let Some((cluster, mut mcp)) = native("output_is_read_on_however_little_is_asked_for").await else {
        return;
    };
    let task = mcp.ok("run_shell", json!({"command": "printf 'a€😀b\\377\\342'"})).await["task_id"].clone();
    for limit in [1, 2, 3, 4] {
        let (mut whole, mut offset, mut calls) = (String::new(), 0, 0);
        loop {
            let arguments = json!({"task_id": task, "max_bytes": limit, "stdout_offset": offset});
            let read = mcp.ok("task_get_result", arguments).await;
            whole.push_str(read["stdout"].as_str().unwrap());
            if read["more"] == false {
                break;
            }
            assert!(read["stdout_next"].as_u64().unwrap() > offset, "it stands still at {offset}: {read}");
            offset = read["stdout_next"].as_u64().unwrap();
            calls += 1;
            assert!(calls < 20, "{read}");
        }
        assert_eq!(whole, "a€😀b\u{fffd}\u{fffd}", "{limit}");
    }
    finish(cluster, mcp).await;
}
