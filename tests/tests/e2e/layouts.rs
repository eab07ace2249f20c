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
        ("nsdelegate", "cgroup v2,", "0::/t/task-1"),
        // Within a service's own cgroup.
        ("service", "cgroup v2,", "0::/t/task-1"),
        ("v2", "cgroup v2,", "0::/../t/task-1"),
    ];
    hold("native_sandboxes_hold_on_cgroups_of_v2", "v2", &layouts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_sandboxes_hold_on_cgroups_of_v1() {
    let layouts = [
        ("v1", "cgroup v1,", ":memory:/../t/task-1"),
        // With nsdelegate on the v2 beside it, as systemd has that too.
        ("hybrid", "cgroup v1-hybrid,", ":memory:/t/task-1"),
    ];
    hold("native_sandboxes_hold_on_cgroups_of_v1", "v1", &layouts).await;
}

/// The layouts that `tests/vm/cgroups.sh` tries in this machine, what preflight says of each, and a part of what a task reads of itself.
async fn hold(test: &str, machine: &str, layouts: &[(&str, &str, &str)]) {
    let test = format!("e2e layouts {test}");
    let target = pages::checkout().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into()));
    if skip::without_root(&test) || skip::without_vm(&target, &test) {
        return;
    }
    let programs = process::binary("berth").parent().expect("it is in a directory").to_owned();
    let output = tokio::process::Command::new("sh")
        .args(["scripts/vm.sh", "bash", "tests/vm/cgroups.sh"])
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
    for (layout, found, cgroup) in layouts {
        let of = |what: &str| {
            let begin = format!("vm: {layout}: {what}: ");
            let lines: Vec<&str> =
                said.lines().filter_map(|line| line.trim_end().strip_prefix(&begin)).collect();
            assert_eq!(lines.len(), 1, "{begin}\n{said}");
            lines[0].to_owned()
        };
        assert!(of("doctor").contains(found), "{layout}\n{said}");
        let own = of("cgroup");
        assert!(own.contains(cgroup) && !own.contains("berth-"), "{layout}: {own}\n{said}");
        assert_eq!(of("processes"), "True", "{layout}: no limit, or not the session's\n{said}");
        assert!(of("memory").contains("ended with 137"), "{layout}\n{said}");
        let left = (of("after"), of("left of tasks"), of("left of all"));
        assert_eq!(left, ("done".into(), "0".into(), "0 0".into()), "{layout}\n{said}");
    }
}
