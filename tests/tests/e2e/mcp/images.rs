//! What programs draw.

use berth_tests::{Cluster, Setup, mcp::Mcp, skip};
use serde_json::{Value, json};

use super::{USUAL, cluster, finish, native};
use crate::egress::packages::without_index;

/// Python that writes images: `png(path, bytes)` one of at least so many bytes.
const DRAW: &str = r#"
import os, struct, zlib
def png(path, size=0):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"tEXt", b"x" * size) + chunk(b"IEND", b"")
    with open(path, "wb") as file:
        file.write(head + body)
os.makedirs("/workspace/artifacts/deep", exist_ok=True)
os.chdir("/workspace/artifacts")
"#;

fn images(result: &Value) -> Vec<&Value> {
    result["content"].as_array().expect("content").iter().filter(|block| block["type"] == "image").collect()
}

fn told(result: &Value) -> Vec<(&str, Option<&str>)> {
    let images = result["structuredContent"]["images"].as_array().into_iter().flatten();
    images.map(|image| (image["path"].as_str().expect("a path"), image["left_out"].as_str())).collect()
}

async fn draws(cluster: Cluster) {
    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    let code = format!(
        "{DRAW}\npng('a.png'); open('b.svg', 'w').write('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')\n\
         open('deep/c.jpg', 'wb').write(b'\\xff\\xd8\\xff\\xe0'); open('d.txt', 'w').write('no image'); print('drawn')"
    );
    let result = mcp.call("run_python", json!({"code": code})).await;
    assert_eq!(result["structuredContent"]["stdout"], "drawn\n", "{result}");
    let kinds: Vec<&Value> = images(&result).iter().map(|image| &image["mimeType"]).collect();
    assert_eq!(kinds, ["image/png", "image/svg+xml", "image/jpeg"], "{result}");
    assert!(images(&result)[0]["data"].as_str().unwrap().starts_with("iVBORw0KGgo"), "{result}");
    let all = ["/workspace/artifacts/a.png", "/workspace/artifacts/b.svg", "/workspace/artifacts/deep/c.jpg"];
    assert_eq!(told(&result), all.map(|path| (path, None)), "{result}");
    let text = result["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("drawn\n") && text.contains("[image: /workspace/artifacts/a.png]"), "{text}");
    let uri = result["structuredContent"]["images"][0]["uri"].as_str().unwrap().to_owned();
    assert_eq!(mcp.read(&uri).await["blob"], images(&result)[0]["data"], "the same is read as a resource");
    // What was there is not made again; what is changed is.
    let result = mcp.call("run_shell", json!({"command": "echo nothing"})).await;
    assert_eq!((images(&result).len(), result["content"].as_array().unwrap().len()), (0, 1), "{result}");
    assert!(result["structuredContent"]["images"].is_null(), "{result}");
    let result = mcp.call("run_shell", json!({"command": "printf ' ' >> artifacts/b.svg; exit 3"})).await;
    assert_eq!(told(&result), [("/workspace/artifacts/b.svg", None)], "{result}");
    assert_eq!(result["structuredContent"]["exit_code"], 3, "{result}");
    finish(cluster, mcp).await;
}

/// Red when a run's images do not come, or come with every run after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_draws_is_in_its_answer() {
    let Some(cluster) = cluster("native", "what_a_run_draws_is_in_its_answer").await else { return };
    draws(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_draws_in_docker_is_in_its_answer() {
    let Some(cluster) = cluster("docker", "what_a_run_draws_in_docker_is_in_its_answer").await else {
        return;
    };
    draws(cluster).await;
}

/// Too many, too large, and what only calls itself an image. Red when an answer grows with them, waits for one, or does not
/// say what it left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_bounded_and_what_is_left_out_is_named() {
    let Some((cluster, mut mcp)) = native("images_are_bounded_and_what_is_left_out_is_named").await else {
        return;
    };
    let code = format!(
        "{DRAW}\npng('big.png', 4 << 20); open('fake.png', 'w').write('text'); os.mkfifo('pipe.png'); os.mkdir('dir.png')\n\
         os.symlink('/dev/zero', 'zero.png'); open('evil.svg', 'wb').write(b'\\xff<svg'); png('odd\\n\\x1b[2J.png')"
    );
    let result = mcp.call("run_python", json!({"code": code})).await;
    assert_eq!(images(&result).len(), 1, "{}", result["structuredContent"]);
    let mut left_out: Vec<_> = told(&result).into_iter().filter(|(_, why)| why.is_some()).collect();
    left_out.sort_unstable();
    let expected = [
        ("big.png", "it is above 512 KiB"),
        ("evil.svg", "its content is no such image"),
        ("fake.png", "its content is no such image"),
    ];
    let names: Vec<_> =
        left_out.iter().map(|(path, why)| (path.rsplit('/').next().unwrap(), why.unwrap())).collect();
    assert_eq!(names, expected, "{}", result["structuredContent"]);
    let text = result["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("[image left out, it is above 512 KiB: /workspace/artifacts/big.png"), "{text}");
    assert!(text.contains("berth://") && !text.contains('\u{1b}'), "{text}");
    let code = format!("{DRAW}\nfor i in range(70): png(f'{{i:02}}.png')");
    let result = mcp.call("run_python", json!({"code": code})).await;
    assert_eq!((images(&result).len(), told(&result).len()), (8, 50), "{}", result["structuredContent"]);
    let text = result["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("and 20 images more") && text.contains("fs_list"), "{text}");
    let code = format!("{DRAW}\nfor i in range(4): png(f'large{{i}}.png', 200 << 10)");
    let result = mcp.call("run_python", json!({"code": code})).await;
    assert_eq!((images(&result).len(), told(&result).len()), (2, 4), "{}", result["structuredContent"]);
    assert!(result.to_string().len() <= 1_000_000);
    let links: Vec<_> = result["content"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|block| block["type"] == "resource_link")
        .collect();
    assert_eq!(links.len(), 2, "{}", result["structuredContent"]);
    assert!(
        mcp.read(links[0]["uri"].as_str().unwrap()).await["blob"]
            .as_str()
            .unwrap()
            .starts_with("iVBORw0KGgo")
    );
    // A directory that is another thing fails no run.
    let ran = mcp
        .ok("run_shell", json!({"command": "rm -r artifacts; ln -s artifacts artifacts; echo fine"}))
        .await;
    assert_eq!((&ran["stdout"], &ran["images"]), (&json!("fine\n"), &Value::Null), "{ran}");
    finish(cluster, mcp).await;
}

/// By matplotlib itself, from the index. Red when show() waits for a screen, or its figures are nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_that_are_shown_are_images() {
    const NAME: &str = "e2e mcp figures_that_are_shown_are_images";
    if skip::without_root(NAME) || without_index(NAME) {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let mut mcp = Mcp::start(&cluster, &["--egress", "packages"], USUAL).await;
    mcp.ok("pkg_install", json!({"packages": ["matplotlib"]})).await;
    let code = "import matplotlib.pyplot as plt\nfor n in 1, 2:\n    plt.figure(); plt.plot([1, 3, 2])\nplt.show()\n\
        plt.plot([1]); plt.savefig('/workspace/artifacts/mine.svg'); print(len(plt.get_fignums()))";
    let result = mcp.call("run_python", json!({"code": code})).await;
    assert_eq!(result["structuredContent"]["stdout"], "1\n", "{}", result["structuredContent"]);
    let names: Vec<_> = told(&result).iter().map(|(path, _)| path.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["figure-1.png", "figure-2.png", "mine.svg"], "{}", result["structuredContent"]);
    assert_eq!(images(&result).len(), 3);
    // What the program says itself goes before it.
    let own =
        json!({"code": "import matplotlib; print(matplotlib.get_backend())", "env": {"MPLBACKEND": "pdf"}});
    assert_eq!(mcp.ok("run_python", own).await["stdout"], "pdf\n");
    finish(cluster, mcp).await;
}
