//! Whether the docker backend can work here: everything that is wrong, at once, each with
//! what to do about it.

use std::{io::Read, path::Path};

use super::{Inner, cgroups, engine::Facts, image};
use crate::{
    sandbox::{Preflight, Problem, landlock},
    workspace::store::Kind,
};

pub(super) async fn check(inner: &Inner) -> Preflight {
    let mut report = Preflight::default();
    if let Err(problem) = agent(&inner.settings.agent) {
        report.problems.push(problem);
    }
    // An engine that was there when we last asked may be gone.
    if let Err(problem) = inner.engine.answers().await {
        report.problems.push(problem);
        return report;
    }
    let (docker, facts) = match (inner.engine.client().await, inner.engine.look().await) {
        (Ok(docker), Ok(facts)) => (docker, facts),
        (Err(error), _) | (_, Err(error)) => {
            report.problems.push(problem(&error));
            return report;
        }
    };
    describe(&facts, &mut report);
    // Of this kernel, which is the sandboxes' too where the engine's own runtime makes them. Another one may have its own.
    if inner.settings.runtime.is_none() {
        landlock::describe(&mut report);
    }
    runtime(inner.settings.runtime.as_deref(), &facts, &mut report);
    if inner.settings.files.mounts()
        && let Err(why) = inner.engine.sees_our_mounts().await
    {
        report.problems.push(Problem {
            what: format!("sessions can't be held to their disk limit: {why}"),
            hint: "have the engine mount sessions' files: BERTH_WORKSPACE=volume; or run the worker beside the engine, in \
                   no container and no mount namespace of its own"
                .into(),
        });
    }
    if inner.settings.files == Kind::Volume && facts.rootless {
        report.problems.push(Problem {
            what:
                "sessions can't be held to their disk limit: a rootless engine mounts no volume from a device"
                    .into(),
            hint: "use an engine that runs as root; or, if any session may fill this disk, say so: \
                   BERTH_WORKSPACE=directory"
                .into(),
        });
    }
    tree(inner, &mut report).await;

    let default = &inner.settings.default_image;
    match image::find(docker, default, default).await {
        Ok(_) => report.facts.push(format!("image {default}")),
        Err(_) => report.problems.push(Problem {
            what: format!("the sandbox image {default} is not on the engine"),
            hint: "make sandbox-image".into(),
        }),
    }
    match inner.owner().await {
        Ok(owner) if owner.needs_help() => report.weaker.push(
            "each session takes two short-lived containers more, to set the owners of its files (no root)"
                .into(),
        ),
        Ok(_) => {}
        Err(error) => report.problems.push(problem(&error)),
    }
    report
}

/// What the engine has in force, and what it lacks.
fn describe(facts: &Facts, report: &mut Preflight) {
    report.facts.push(format!("engine {} (API {})", facts.version, facts.api));
    report.facts.push(format!("storage {}", facts.storage));
    report.facts.push(format!("cgroup v{} by {}", facts.cgroup_version, facts.cgroup_driver));
    if facts.seccomp {
        report.facts.push("seccomp".into());
    } else {
        report.problems.push(Problem {
            what: "the engine has no seccomp".into(),
            hint: "use an engine and a kernel with seccomp support".into(),
        });
    }
    if facts.podman {
        report
            .weaker
            .push("the engine is podman: the agent is under its own system call profile, not Berth's".into());
    }
    if facts.cgroup_driver == "none" {
        report.weaker.push("the engine can't limit memory, cpu and processes".into());
    }
    if !facts.live_restore {
        report.weaker.push(
            "sandboxes end when the engine restarts: its live-restore is off (`\"live-restore\": true` in \
             /etc/docker/daemon.json)"
                .into(),
        );
    }
    if !facts.remapped && !facts.rootless {
        report.weaker.push("the agent is the host's root with four capabilities (no user namespace)".into());
    }
}

/// What sandboxes run under, if that is not the engine's default: whether the engine knows it, and whether a runsc is set
/// up so that the worker can reach the agent. What else a runtime lacks shows in the first session, the worker's own.
fn runtime(wanted: Option<&str>, facts: &Facts, report: &mut Preflight) {
    let Some(wanted) = wanted else { return };
    let Some(runtime) = facts.runtimes.get(wanted) else {
        let known: Vec<&str> = facts.runtimes.keys().map(String::as_str).collect();
        report.problems.push(Problem {
            what: format!(
                "the engine has no runtime {wanted} (BERTH_DOCKER_RUNTIME); it has {}",
                known.join(", ")
            ),
            hint: "add it to `runtimes` in /etc/docker/daemon.json, and reload the engine".into(),
        });
        return;
    };
    report.facts.push(format!("runtime {wanted}"));
    let gvisor = Path::new(&runtime.path).file_name().is_some_and(|name| name == "runsc");
    if gvisor && !lets_sockets_out(&runtime.arguments) {
        report.problems.push(Problem {
            what: format!(
                "the runtime {wanted} lets no socket out of a sandbox, and by one the worker reaches the agent"
            ),
            hint: "give it `--host-uds=create` in its `runtimeArgs` in /etc/docker/daemon.json, and reload the engine"
                .into(),
        });
    }
}

/// Whether runsc is told to make on the host the sockets that a sandbox binds in a mounted directory.
fn lets_sockets_out(arguments: &[String]) -> bool {
    let set = |argument: &String| {
        let (name, value) = argument.trim_start_matches('-').split_once('=')?;
        (name == "host-uds").then_some(matches!(value, "create" | "all"))
    };
    // The last one counts.
    arguments.iter().filter_map(set).next_back().unwrap_or(false)
}

async fn tree(inner: &Inner, report: &mut Preflight) {
    let cgroups = inner.cgroups.clone();
    let runtime = inner.settings.runtime.as_deref();
    let why_not = match cgroups::why_not_with(runtime) {
        Some(why) => Ok(Some(why)),
        None => inner.why_no_cgroups().await,
    };
    let usable = match why_not {
        Err(error) => Err(error.to_string()),
        Ok(Some(why)) => Err(why.to_owned()),
        Ok(None) => match tokio::task::spawn_blocking(move || cgroups.probe()).await {
            Ok(Ok(layout)) => Ok(layout),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        },
    };
    match usable {
        Ok(layout) => report.facts.push(format!("a cgroup for each task ({})", layout.as_str())),
        Err(why) => report.weaker.push(format!(
            "tasks share the agent's cgroup, so memory is limited for a session only, and a runaway task may end it ({why})"
        )),
    }
}

fn problem(error: &berth_proto::Error) -> Problem {
    let hint = error.hint_text().unwrap_or("see the worker's log").to_owned();
    Problem { what: error.message().to_owned(), hint }
}

/// The agent must be there, be a program, and bring its own libc: it runs in any image.
fn agent(path: &Path) -> Result<(), Problem> {
    let hint = "build it: `sh scripts/build.sh`, or name another with BERTH_AGENT".to_owned();
    let absent = |what: String| Problem { what, hint: hint.clone() };
    let mut head = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(64 << 10).read_to_end(&mut head))
        .map_err(|error| absent(format!("the agent {} can't be read: {error}", path.display())))?;
    match interpreter(&head) {
        Some(false) => Ok(()),
        Some(true) => Err(absent(format!("the agent {} is not a static program", path.display()))),
        None => Err(absent(format!("the agent {} is not a 64-bit program", path.display()))),
    }
}

/// Whether a 64-bit little-endian ELF file asks for a dynamic loader. `None`: it is no such file.
fn interpreter(head: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| head.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let word = |at: usize| head.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    // The program headers follow the file header in every linker's output.
    let (offset, size, count) = (word(32)?, half(54)?, half(56)?);
    for i in 0..usize::from(count) {
        let at = usize::try_from(offset).ok()?.checked_add(i.checked_mul(usize::from(size))?)?;
        if word(at)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::docker::engine::Runtime;

    #[test]
    fn an_agent_that_needs_the_hosts_libraries_is_refused() {
        // Tests are linked dynamically on every target that we build on.
        let own = std::env::current_exe().expect("it has a path");
        let problem = agent(&own).expect_err("it is dynamic");
        assert!(problem.what.contains("not a static program"), "{}", problem.what);
        assert!(agent(Path::new("/nonexistent")).is_err());
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter(b"\x7fELF\x02\x01"), None, "cut short");
    }

    /// Red when a runtime is not asked for, when its arguments are not looked at, and when the first of two counts.
    #[test]
    fn a_runtime_must_be_there_and_let_the_agents_socket_out() {
        let of = |path: &str, arguments: &[&str]| Runtime {
            path: path.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        };
        let seen = |wanted: Option<&str>, known: Runtime| {
            let facts = Facts { runtimes: [("own".to_owned(), known)].into(), ..Facts::sample() };
            let mut report = Preflight::default();
            runtime(wanted, &facts, &mut report);
            report.problems.into_iter().map(|problem| problem.what).collect::<Vec<_>>().concat()
        };
        assert_eq!(seen(None, of("/usr/bin/runsc", &[])), "", "it is not used");
        assert!(
            seen(Some("other"), of("/x", &[]))
                .contains("no runtime other (BERTH_DOCKER_RUNTIME); it has own")
        );
        for bad in
            [&[][..], &["--host-uds=open"], &["--host-uds=none"], &["--host-uds=create", "--host-uds=open"]]
        {
            assert!(seen(Some("own"), of("/usr/bin/runsc", bad)).contains("lets no socket out"), "{bad:?}");
        }
        for good in
            [&["--host-uds=create"][..], &["-host-uds=all"], &["--host-uds=none", "--host-uds=create"]]
        {
            assert_eq!(seen(Some("own"), of("runsc", good)), "", "{good:?}");
        }
        // What another program wants to be told, a wrapper around runsc for one, is its own.
        assert_eq!(seen(Some("own"), of("/opt/kata", &[])), "");
    }

    #[test]
    fn an_engine_without_seccomp_is_a_problem_and_without_live_restore_is_weaker() {
        let facts = Facts { seccomp: false, ..Facts::sample() };
        let mut report = Preflight::default();
        describe(&facts, &mut report);
        assert_eq!(report.problems.len(), 1);
        assert!(report.weaker.iter().any(|w| w.contains("live-restore")));
        let mut report = Preflight::default();
        describe(&Facts { seccomp: true, live_restore: true, ..facts }, &mut report);
        assert!(report.ready() && !report.weaker.iter().any(|w| w.contains("live-restore")));
    }
}
