//! The settings in docs/mcp.md, started as a client starts them.

use std::path::Path;

use berth_tests::{Cluster, Setup, left, mcp::Mcp, process::binary, skip};
use serde_json::{Value, json};

use super::USUAL;

/// What one block of the page starts.
struct Block {
    command: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

/// Those of the page: the JSON blocks, and the `… -- COMMAND` of shell lines.
fn blocks() -> Vec<Block> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/mcp.md");
    let page = std::fs::read_to_string(page).expect("docs/mcp.md");
    let mut blocks = Vec::new();
    let fences: Vec<&str> = page.split("```").collect();
    for fence in fences.iter().skip(1).step_by(2) {
        if let Some(text) = fence.strip_prefix("json\n") {
            let json: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
            let servers =
                ["mcpServers", "servers"].into_iter().find_map(|key| json.get(key)).expect("servers");
            let server = &servers["berth"];
            let words = |value: &Value| value.as_str().expect("text").to_owned();
            blocks.push(Block {
                command: words(&server["command"]),
                args: server["args"].as_array().expect("args").iter().map(words).collect(),
                env: server["env"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, value)| (name.clone(), words(value)))
                    .collect(),
            });
        } else if let Some((_, line)) = fence.split_once(" -- ") {
            let mut words = line.lines().next().unwrap_or_default().split_whitespace().map(str::to_owned);
            blocks.push(Block {
                command: words.next().expect("a command"),
                args: words.collect(),
                env: Vec::new(),
            });
        }
    }
    blocks
}

/// Red when the page names an option that is not there, a variable that is not read, or is no JSON.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_settings_of_the_page_start() {
    if skip::without_root("e2e mcp the_settings_of_the_page_start") {
        return;
    }
    let blocks = blocks();
    assert!(blocks.len() >= 4, "{} blocks", blocks.len());
    let cluster = Cluster::start(Setup { tls: true, ..Setup::new("native") }).await;
    let home = tempfile::Builder::new().prefix("berth-t").tempdir().unwrap();
    let bin = binary("berth").parent().unwrap().to_owned();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let ca = cluster.certificates().ca().certificate;
    let state = home.path().join("s");
    let address = format!("https://{}", cluster.address);
    for block in blocks {
        let mut env = vec![("PATH", path.as_str()), ("BERTH_STATE_DIR", state.to_str().unwrap())];
        for (name, value) in &block.env {
            assert!(!value.is_empty(), "{name}");
            // The page's own values are examples.
            env.push((
                name.as_str(),
                match name.as_str() {
                    "BERTH_ADDRESS" => &address,
                    "BERTH_TLS_CA" => ca.to_str().unwrap(),
                    "BERTH_TOKEN" => &cluster.admin_token,
                    _ => panic!("{name} is not known here"),
                },
            ));
        }
        let args: Vec<&str> = block.args.iter().map(String::as_str).collect();
        let log = home.path().join("mcp.log");
        let mut mcp = Mcp::start_command(Path::new(&block.command), &args, &env, USUAL, log).await;
        let ran = mcp.ok("run_shell", json!({"command": "echo it works"})).await;
        assert_eq!(ran["stdout"], "it works\n", "{ran}");
        assert_eq!(mcp.end().await, Some(0));
    }
    left::assert_nothing(home.path());
    cluster.stop().await;
}
