//! `examples/coding_agent.py`, with a stand-in for the agent's command line that needs what such a program needs: a terminal,
//! its key, and its API.

use std::path::Path;

use berth_tests::{Cluster, Setup, skip};

use crate::{
    egress::origin::{KEY, Origin},
    python_client::{Installed, told},
};

/// Works in the directory that it is started in. Its exit codes: 2, it has not what it needs; 3, its key is refused.
const STAND_IN: &str = r#"
import os, sys, urllib.error, urllib.request

def end(code, why):
    print(why)
    sys.exit(code)

if not (sys.stdin.isatty() and sys.stdout.isatty()):
    end(2, "I want a terminal")
path = "/run/secrets/agent-key"
key = open(path).read()
try:
    open(path, "a")
    end(2, "the key may be changed")
except OSError:
    print("the key is read-only")

def ask(host):
    request = urllib.request.Request(f"http://{host}/keyed", headers={"Authorization": f"Bearer {key}"})
    return urllib.request.urlopen(request, timeout=60).read().decode()

print("I was asked to", input("what shall I do? "))
api, other = sys.argv[1:]
try:
    ask(other)
    end(2, "I reach what I should not")
except OSError as error:
    print("elsewhere:", getattr(error, "code", error))
try:
    answer = ask(api)
except urllib.error.HTTPError as error:
    end(3, f"the key is refused: {error.code}")
except OSError as error:
    end(2, f"I can't reach my API: {error}")
os.makedirs("made", exist_ok=True)
open("made/greeting.txt", "w").write(answer)
open("notes.txt", "a").write("done\n")
os.symlink("/etc/passwd", "made/link")
end(0, "I am done")
"#;

/// Gives what it runs a terminal, and types what comes in.
const ON_A_TERMINAL: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

struct Desk {
    cluster: Cluster,
    installed: Installed,
    project: tempfile::TempDir,
    hosts: [String; 2],
}

impl Desk {
    async fn set_key(&self, value: &str) {
        self.cluster.berth_with(&["secret", "set", "agent-key"], value.as_bytes()).await.ok();
    }

    /// Runs the example; its exit code, and all that a user sees.
    async fn run(&self, options: &[&str], input: &str) -> (Option<i32>, String) {
        let python = self.installed.python.to_str().expect("UTF-8");
        let project = self.project.path().to_str().expect("UTF-8");
        let example = ["-c", ON_A_TERMINAL, python, "../../examples/coding_agent.py", "--project", project];
        let agent = ["--", "python3", "agent.py", &self.hosts[0], &self.hosts[1]];
        let args: Vec<&str> = example.iter().chain(options).chain(&agent).copied().collect();
        let output = self.installed.run_with(&self.cluster, &args, input.as_bytes()).await;
        (output.status.code(), told(&output))
    }

    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.project.path().join(name)).ok()
    }
}

fn write(project: &Path, name: &str, text: &str) {
    std::fs::write(project.join(name), text).expect("it can be written");
}

/// Red when the secret is not given, when no host may be reached, or when all may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_a_coding_agent_works_with_its_key_and_its_host_only() {
    const NAME: &str = "e2e the_example_of_a_coding_agent";
    if skip::without_root(NAME) {
        return;
    }
    let Some(installed) = Installed::new(NAME).await else { return };
    let origin = Origin::start().await;
    let hosts = [format!("api.test:{}", origin.port), format!("other.test:{}", origin.port)];
    let mut setup = Setup::new("native");
    setup.worker_env = vec![
        ("BERTH_EGRESS_EXEMPT".into(), hosts.join(",")),
        ("BERTH_EGRESS_HOSTS".into(), "api.test=127.0.0.1,other.test=127.0.0.1".into()),
    ];
    let cluster = Cluster::start(setup).await;
    let project = tempfile::tempdir().expect("a directory");
    write(project.path(), "agent.py", STAND_IN);
    write(project.path(), "notes.txt", "begun\n");
    let desk = Desk { cluster, installed, project, hosts };
    let (secret, allow) = (["--secret", "agent-key"], format!("--allow={}", desk.hosts[0]));
    let usual = [secret[0], secret[1], &allow];

    // Before there is a key.
    let (code, text) = desk.run(&usual, "work\n").await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("error: ") && text.contains("agent-key"), "{text}");

    desk.set_key("a-bad-key").await;
    let (code, text) = desk.run(&usual, "work\n").await;
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("the key is refused: 401"), "{text}");
    assert_eq!(desk.file("notes.txt").as_deref(), Some("begun\n"));
    assert_eq!(origin.take().len(), 1, "the other host heard nothing");

    desk.set_key(KEY).await;
    let (code, text) = desk.run(&secret, "work\n").await;
    assert_eq!(code, Some(2), "no host may be reached: {text}");
    assert!(text.contains("I can't reach my API"), "{text}");
    assert!(origin.take().is_empty());

    let (code, text) = desk.run(&usual, "greet\n").await;
    assert_eq!(code, Some(0), "{text}");
    for line in ["the key is read-only", "I was asked to greet", "elsewhere: 403", "I am done"] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(text.contains("new: ") && text.contains("changed: "), "{text}");
    assert_eq!(desk.file("made/greeting.txt").as_deref(), Some("hello\n"));
    assert_eq!(desk.file("notes.txt").as_deref(), Some("begun\ndone\n"));
    assert_eq!(desk.file("made/link"), None, "links stay in the sandbox");
    let heard = origin.take();
    assert!(heard.len() == 1 && heard[0].contains(KEY), "{heard:?}");
    // Each has ended its session.
    assert_eq!(desk.cluster.berth(&["ps", "--format", "json"]).await.ok().trim(), "[]");
    desk.cluster.stop().await;
}
