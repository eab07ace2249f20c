//! Programs that say too much, or what is no text.

use serde_json::json;

use super::{finish, native};

/// The most memory that the process had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the peak");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Red when output is collected whole (the answer is then 100 MB, and so is the process), or when control characters get
/// through to the text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_bounded_and_safe_to_show() {
    let Some((cluster, mut mcp)) = native("output_is_bounded_and_safe_to_show").await else { return };
    mcp.ok("run_shell", json!({"command": "true"})).await;
    let before = peak_kib(mcp.pid());
    let line =
        "echo begin; head -c 100000000 /dev/zero | tr '\\0' x; echo end; head -c 30000000 /dev/urandom >&2";
    let result = mcp.call("run_shell", json!({"command": line, "timeout_seconds": 200})).await;
    assert!(result.to_string().len() < 3 << 20, "{} bytes", result.to_string().len());
    let ran = &result["structuredContent"];
    assert_eq!(
        (&ran["exit_code"], &ran["stdout_bytes"]),
        (&json!(0), &json!(100_000_010)),
        "{}",
        ran["outcome"]
    );
    assert_eq!((&ran["stderr_bytes"], &ran["truncated"]), (&json!(30_000_000), &json!(true)));
    let stdout = ran["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("begin\nxxx") && stdout.ends_with("xxxend\n") && stdout.len() < 70_000);
    assert!(
        stdout.contains("bytes are left out here; task_get_result with task_id"),
        "it says how to read on"
    );
    let grown = peak_kib(mcp.pid()) - before;
    assert!(grown < 64 << 10, "{grown} KiB for 130 MB of output");
    // What was left out is there to read, as far as it is kept.
    let arguments = json!({"task_id": ran["task_id"], "stdout_offset": 99_999_000, "max_bytes": 10, "encoding": "base64"});
    let read = mcp.ok("task_get_result", arguments).await;
    assert_eq!(
        (&read["stdout"], &read["stdout_next"]),
        (&json!("eHh4eHh4eHh4eA=="), &json!(99_999_010)),
        "{read}"
    );
    let odd = "printf 'a\\033[2J\\007\\200\\377\\tb\\342\\200\\256c\\n'";
    let result = mcp.call("run_shell", json!({"command": odd})).await;
    let safe = "a\\x1b[2J\\x07\u{fffd}\u{fffd}\tb\\u{202e}c\n";
    assert_eq!(result["structuredContent"]["stdout"], safe, "{result}");
    assert_eq!(result["content"][0]["text"], safe, "{result}");
    let task = result["structuredContent"]["task_id"].clone();
    let read = mcp.ok("task_get_result", json!({"task_id": task, "encoding": "base64"})).await;
    assert_eq!(read["stdout"], "YRtbMkoHgP8JYuKArmMK", "the exact bytes are there too: {read}");
    finish(cluster, mcp).await;
}

/// Red when a file is read whole however large it is, or when each of its lines costs memory of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_is_bounded_whatever_the_files_are() {
    let Some((cluster, mut mcp)) = native("a_search_is_bounded_whatever_the_files_are").await else { return };
    let make = "head -c 300000000 /dev/zero | tr '\\0' x > huge; mkdir lines long; \
        for i in 1 2 3 4 5 6 7 8; do yes '' | head -c 4194304 > lines/$i; done; \
        head -c 4000000 /dev/zero | tr '\\0' a > long/a; ln -s /dev/zero zero";
    mcp.ok("run_shell", json!({"command": make})).await;
    let before = peak_kib(mcp.pid());
    let found = mcp.ok("fs_search", json!({"pattern": "x", "path": "huge"})).await;
    assert_eq!((&found["files_searched"], &found["files_skipped"]), (&json!(0), &json!(1)), "{found}");
    let found = mcp.ok("fs_search", json!({"pattern": "x|^$", "path": "lines", "max_matches": 3})).await;
    assert_eq!(found["matches"].as_array().unwrap().len(), 3, "{found}");
    let found = mcp.ok("fs_search", json!({"pattern": "nowhere", "path": "lines"})).await;
    assert_eq!(found["files_searched"], 8, "{found}");
    // A pattern that takes long for a long line. Others are answered meanwhile.
    let hard = json!({"pattern": "(?:a?){400}b", "path": "long"});
    let search = mcp.ask_tool("fs_search", hard).await;
    assert_eq!(mcp.ok("echo", json!({"message": "m"})).await["message"], "m");
    let found = mcp.answer(search).await;
    assert!(found["result"]["structuredContent"]["matches"].is_array(), "{found}");
    mcp.refused("fs_search", json!({"pattern": "x", "path": "zero"})).await;
    mcp.refused("fs_edit", json!({"path": "huge", "old_text": "a", "new_text": "b"})).await;
    let grown = peak_kib(mcp.pid()) - before;
    assert!(grown < 96 << 10, "{grown} KiB");
    finish(cluster, mcp).await;
}

/// A file of 100 MB, a name with escapes, a file that is too much for a message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_any_kind_make_answers_that_are_bounded() {
    let Some((cluster, mut mcp)) = native("files_of_any_kind_make_answers_that_are_bounded").await else {
        return;
    };
    let make =
        "head -c 100000000 /dev/zero > zeros; touch \"$(printf 'a\\033[2J\\nb')\" \"$(printf '\\377')\"";
    mcp.ok("run_shell", json!({"command": make})).await;
    let result = mcp.call("fs_read", json!({"path": "zeros", "length": 1 << 20})).await;
    assert!(result.to_string().len() <= 1_000_000, "{}", result.to_string().len());
    let read = &result["structuredContent"];
    assert_eq!((&read["encoding"], &read["size"]), (&json!("base64"), &json!(100_000_000)));
    assert_eq!(read["next_offset"], read["length"]);
    assert!(read["length"].as_u64() > Some(300_000), "{}", read["length"]);
    let said = mcp.refused("fs_edit", json!({"path": "zeros", "old_text": "a", "new_text": "b"})).await;
    assert!(said.contains("16777216"), "{said}");
    let listed = mcp.call("fs_list", json!({})).await;
    let text = listed["content"][0]["text"].as_str().unwrap();
    assert!(!text.contains('\u{1b}') && text.contains("a\\x1b[2J\\nb"), "{text:?}");
    assert_eq!(listed["structuredContent"]["entries"].as_array().unwrap().len(), 3, "{listed}");
    // Too much for the tool, which says so; it is not too much for a message.
    let said = mcp.refused("fs_write", json!({"path": "big", "contents": "x".repeat((16 << 20) + 1)})).await;
    assert!(said.contains("16777217"), "{said}");
    let most = "y".repeat(16 << 20);
    assert_eq!(mcp.ok("fs_write", json!({"path": "big", "contents": most})).await["size"], 16 << 20);
    finish(cluster, mcp).await;
}
