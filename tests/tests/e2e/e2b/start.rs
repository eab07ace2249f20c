//! `berth up` serves E2B's SDKs too, and says how to point them at it.

use std::collections::HashMap;

use berth_tests::{left, process, skip};

use super::{drive, sdks};

/// Red when `berth up` has no gateway, or what it says to type does not work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_up_says_to_type_is_enough() {
    const NAME: &str = "e2e e2b what_up_says_to_type_is_enough";
    if skip::without_root(NAME) {
        return;
    }
    let Some(sdks) = sdks(NAME) else { return };
    let dir = tempfile::Builder::new().prefix("berth-t").tempdir().expect("a directory");
    let state = dir.path().join("s").to_str().expect("UTF-8").to_owned();
    let env = [
        ("BERTH_STATE_DIR".to_owned(), state.clone()),
        ("BERTH_SANDBOX".into(), "native".into()),
        ("BERTH_AGENT".into(), process::binary("berth-agent").to_str().expect("UTF-8").to_owned()),
        ("HTTP_PORT".into(), "0".into()),
    ];
    let up = process::run("berth", &["up", "-d", "--port", "0"], &env, b"").await;
    let said = up.stderr.clone();
    up.ok();
    let line = said.lines().find(|line| line.contains("E2B_API_URL=")).unwrap_or_else(|| panic!("{said}"));
    let set: HashMap<&str, &str> = line.split(' ').filter_map(|word| word.split_once('=')).collect();
    assert!(said.contains("E2B_API_KEY=$(berth token create --e2b)"), "{said}");
    let made = process::run("berth", &["token", "create", "--e2b"], &env, b"").await.ok();
    let env_of_sdk = [
        ("E2B_API_URL", set["E2B_API_URL"]),
        ("E2B_SANDBOX_URL", set["E2B_SANDBOX_URL"]),
        ("E2B_API_KEY", made.trim()),
    ];
    for sdk in &sdks {
        drive(sdk, "hello.py", &env_of_sdk).await;
    }
    process::run("berth", &["stop"], &env, b"").await.ok();
    left::assert_nothing(dir.path());
}
