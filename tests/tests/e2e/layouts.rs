//! What holds a native sandbox is the kernel's, and cgroups are laid out otherwise on other machines than on this one. So a
//! kernel of the tests' own (Debian's, in an emulator: `scripts/vm.sh`) runs the same on each layout that there is, above all on
//! that of most machines: all controllers on cgroup2, mounted with `nsdelegate`.

use std::{process::Stdio, time::Duration};

use berth_tests::{pages, process, skip};

/// Of an emulated machine, on a busy one.
const LONG: Duration = Duration::from_secs(400);

/// Red when PID 1 makes its cgroup namespace itself on `nsdelegate`: no task starts there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_sandboxes_hold_on_cgroups_of_v2() {
    let layouts = [
        ("nsdelegate", "cgroup v2,", "0::/t/task-1", "/sys/fs/cgroup/berth-"),
        // With no more rights than it has there.
        ("kubernetes", "cgroup v2,", "0::/t/task-1", "/sys/fs/cgroup/berth-"),
        // Within a service's own cgroup.
        ("service", "cgroup v2,", "0::/t/task-1", "/sys/fs/cgroup/system.slice/berth-worker.service/berth-"),
        ("v2", "cgroup v2,", "0::/../t/task-1", "/sys/fs/cgroup/berth-"),
    ];
    let said = hold("native_sandboxes_hold_on_cgroups_of_v2", "v2", &layouts).await;
    if said.is_empty() {
        return;
    }
    // Red when the preflight's rehearsal makes no cgroups: it finds nothing then.
    let full = said.lines().find(|line| line.starts_with("vm: full: doctor: ")).unwrap_or_default();
    assert!(full.contains("✗") && full.contains("full.service/berth-doctor-"), "{said}");
    // Its session lived on, and went when it was told to. Red when only a worker's own cgroup is looked at: the directories stay.
    for line in
        ["doctor without its directory: 1", "doctor: 0", "after: 1", "left of all: 0 0", "left of tasks: 0"]
    {
        let line = format!("vm: moved: {line}");
        assert!(said.lines().any(|said| said.trim_end() == line), "{line}\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_sandboxes_hold_on_cgroups_of_v1() {
    let layouts = [
        ("v1", "cgroup v1,", ":memory:/../t/task-1", "/sys/fs/cgroup/memory/berth-"),
        // With nsdelegate on the v2 beside it, as systemd has that too.
        ("hybrid", "cgroup v1-hybrid,", ":memory:/t/task-1", "/sys/fs/cgroup/unified/berth-"),
    ];
    hold("native_sandboxes_hold_on_cgroups_of_v1", "v1", &layouts).await;
}

/// The layouts that `tests/vm/cgroups.sh` tries in this machine, what preflight says of each, a part of what a task reads of itself, and where its cgroups are.
/// Returns all that was printed; nothing where the test is skipped.
async fn hold(test: &str, machine: &str, layouts: &[(&str, &str, &str, &str)]) -> String {
    let test = format!("e2e layouts {test}");
    let target = pages::checkout().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into()));
    if skip::without_root(&test) || skip::without_vm(&target, &test) {
        return String::new();
    }
    let programs = process::binary("berth").parent().expect("it is in a directory").to_owned();
    let output = tokio::process::Command::new("sh")
        .args(["scripts/vm.sh", "bash", "tests/vm/cgroups.sh", &worker_of_kubernetes()])
        .current_dir(pages::checkout())
        .env("BERTH_VM_CGROUPS", machine)
        .env("BERTH_BIN_DIR", programs)
        .env("BERTH_NO_INSTALL", "1")
        // It ends by itself; its emulator, too, which a kill of the script would leave.
        .env("BERTH_VM_SECONDS", LONG.as_secs().to_string())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("sh");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    for (layout, found, cgroup, place) in layouts {
        let of = |what: &str| {
            let begin = format!("vm: {layout}: {what}: ");
            let lines: Vec<&str> =
                said.lines().filter_map(|line| line.trim_end().strip_prefix(&begin)).collect();
            assert_eq!(lines.len(), 1, "{begin}\n{said}");
            lines[0].to_owned()
        };
        assert!(of("doctor").contains(found), "{layout}\n{said}");
        assert!(of("where").contains(place), "{layout}\n{said}");
        let own = of("cgroup");
        assert!(own.contains(cgroup) && !own.contains("berth-"), "{layout}: {own}\n{said}");
        assert_eq!(of("processes"), "True", "{layout}: no limit, or not the session's\n{said}");
        assert!(of("memory").contains("ended with 137"), "{layout}\n{said}");
        let left = (of("after"), of("left of tasks"), of("left of all"));
        assert_eq!(left, ("done".into(), "0".into(), "0 0".into()), "{layout}\n{said}");
    }
    said
}

/// The capabilities that its manifest adds, in setpriv's words.
fn worker_of_kubernetes() -> String {
    let path = pages::checkout().join("deploy/kubernetes/workers-native/worker.yaml");
    let text = std::fs::read_to_string(&path).expect("a manifest");
    let worker = text.split("- name: worker\n").nth(1).expect("the worker's container");
    let added = worker.lines().find_map(|line| line.trim().strip_prefix("add: [")?.strip_suffix(']'));
    let added = added.expect("it adds some").split(", ").map(|name| format!("+{}", name.to_lowercase()));
    added.collect::<Vec<_>>().join(",")
}
