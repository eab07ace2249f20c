//! Files, by the tools.

use serde_json::{Value, json};

use super::{finish, native};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_written_read_edited_moved_and_removed() {
    let Some((cluster, mut mcp)) = native("files_are_written_read_edited_moved_and_removed").await else {
        return;
    };
    let text = "one\ntwo ä€\nthree\n";
    let written = mcp.ok("fs_write", json!({"path": "a/b/c.txt", "contents": text, "mode": "755"})).await;
    assert_eq!((&written["size"], &written["mode"]), (&json!(text.len()), &json!("755")), "{written}");
    let read = mcp.ok("fs_read", json!({"path": "a/b/c.txt"})).await;
    assert_eq!((&read["contents"], &read["encoding"]), (&json!(text), &json!("text")), "{read}");
    assert!(read["next_offset"].is_null(), "{read}");
    // In parts, and no character is cut in two.
    let mut whole = String::new();
    let mut offset = json!(0);
    while !offset.is_null() {
        let part = mcp.ok("fs_read", json!({"path": "a/b/c.txt", "offset": offset, "length": 4})).await;
        assert_eq!(part["encoding"], "text", "{part}");
        whole.push_str(part["contents"].as_str().unwrap());
        offset = part["next_offset"].clone();
    }
    assert_eq!(whole, text);
    // Bytes that are no text.
    mcp.ok("fs_write", json!({"path": "bin", "contents": "AP/+gA==", "encoding": "base64"})).await;
    let read = mcp.ok("fs_read", json!({"path": "bin"})).await;
    assert_eq!((&read["contents"], &read["encoding"]), (&json!("AP/+gA=="), &json!("base64")), "{read}");
    let edited = mcp.ok("fs_edit", json!({"path": "a/b/c.txt", "old_text": "two ä€", "new_text": "2"})).await;
    assert_eq!(edited["replaced"], 1, "{edited}");
    let said = mcp.refused("fs_edit", json!({"path": "a/b/c.txt", "old_text": "e", "new_text": "E"})).await;
    assert!(said.contains("3 times"), "{said}");
    let edit = json!({"path": "a/b/c.txt", "old_text": "e", "new_text": "E", "expected_count": 3});
    assert_eq!(mcp.ok("fs_edit", edit).await["replaced"], 3);
    assert_eq!(mcp.ok("fs_read", json!({"path": "a/b/c.txt"})).await["contents"], "onE\n2\nthrEE\n");
    let stat = mcp.ok("fs_stat", json!({"path": "a/b/c.txt"})).await;
    assert_eq!(
        (&stat["type"], &stat["mode"]),
        (&json!("file"), &json!("755")),
        "an edit keeps the mode: {stat}"
    );
    mcp.ok("fs_move", json!({"source": "a/b/c.txt", "destination": "d.txt"})).await;
    let said = mcp.refused("fs_move", json!({"source": "bin", "destination": "d.txt"})).await;
    assert!(said.contains("FILE_EXISTS"), "{said}");
    mcp.ok("fs_move", json!({"source": "bin", "destination": "d.txt", "overwrite": true})).await;
    let said = mcp.refused("fs_remove", json!({"path": "a"})).await;
    assert!(said.contains("DIRECTORY_NOT_EMPTY") && said.contains("recursive"), "{said}");
    mcp.ok("fs_remove", json!({"path": "a", "recursive": true})).await;
    let listed = mcp.ok("fs_list", json!({"depth": 3})).await;
    let paths: Vec<&Value> =
        listed["entries"].as_array().unwrap().iter().map(|entry| &entry["path"]).collect();
    assert_eq!(paths, [&json!("d.txt")], "{listed}");
    // What the task's user may not, the tools may not.
    let said = mcp.refused("fs_write", json!({"path": "/usr/x", "contents": ""})).await;
    assert!(said.contains("FILE_DENIED") || said.contains("read-only"), "{said}");
    let said = mcp.refused("fs_read", json!({"path": "/workspace"})).await;
    assert!(said.contains("FILE_KIND"), "{said}");
    finish(cluster, mcp).await;
}

/// Red when the glob, the case or the context is not heeded, or when what is no text is searched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_searched() {
    let Some((cluster, mut mcp)) = native("files_are_searched").await else { return };
    let make =
        "mkdir -p src/deep .git; printf 'a\\nNeedle 1\\nb\\n' > src/x.rs; echo 'needle 2' > src/deep/y.py
        echo needle > .git/z; printf 'needle\\0' > bin; ln -s src/x.rs link; head -c 5000000 /dev/zero > large
        mkfifo pipe; echo 'needle\x1b[2J' > 'src/odd'";
    mcp.ok("run_shell", json!({"command": make})).await;
    let found = |answer: &Value| -> Vec<(String, u64)> {
        let matches = answer["matches"].as_array().unwrap().iter();
        matches.map(|m| (m["path"].as_str().unwrap().to_owned(), m["line"].as_u64().unwrap())).collect()
    };
    let answer = mcp.ok("fs_search", json!({"pattern": "needle \\d", "ignore_case": true})).await;
    assert_eq!(found(&answer), [("src/deep/y.py".to_owned(), 1), ("src/x.rs".to_owned(), 2)], "{answer}");
    assert_eq!(answer["files_skipped"], 2, "what is binary, or too large: {answer}");
    assert!(answer["incomplete"].is_null(), "{answer}");
    let answer = mcp.ok("fs_search", json!({"pattern": "Needle", "glob": "*.rs", "context": 1})).await;
    assert_eq!(answer["matches"][0]["before"], json!(["a"]), "{answer}");
    assert_eq!(answer["matches"][0]["after"], json!(["b"]), "{answer}");
    let answer = mcp.ok("fs_search", json!({"pattern": "needle", "path": "src/deep/y.py"})).await;
    assert_eq!(found(&answer).len(), 1, "{answer}");
    let answer = mcp.ok("fs_search", json!({"pattern": "needle", "max_matches": 1, "path": "src"})).await;
    assert_eq!(found(&answer).len(), 1, "{answer}");
    assert!(answer["incomplete"].as_str().unwrap().contains("max_matches"), "{answer}");
    let answer = mcp.call("fs_search", json!({"pattern": "needle", "path": "src/odd"})).await;
    assert!(!answer.to_string().contains("\\u001b"), "{answer}");
    // Many files: bounded, and it says so.
    mcp.ok("run_shell", json!({"command": "mkdir many; cd many; seq 1 1500 | xargs touch"})).await;
    let answer = mcp.ok("fs_list", json!({"path": "many"})).await;
    assert_eq!((answer["entries"].as_array().unwrap().len(), &answer["truncated"]), (1000, &json!(true)));
    let answer = mcp.ok("fs_search", json!({"pattern": "needle", "path": "many", "glob": "1?"})).await;
    assert_eq!((&answer["files_searched"], found(&answer).len()), (&json!(10), 0), "{answer}");
    finish(cluster, mcp).await;
}
