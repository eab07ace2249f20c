//! Whether native sandboxes can be made here: all that is wrong at once, and then a rehearsal of a whole launch.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use berth_proto::{SessionId, domain::Limits};

use super::{
    Inner,
    plan::{self, Plan, Reply},
    uids,
};
use crate::sandbox::{Preflight, Problem, cgroup::Layout, landlock, memory_files::MemoryFiles};

impl Inner {
    pub(super) fn preflight(&self) -> Preflight {
        let mut found = Preflight::default();
        let mut problem = |what: String, hint: &str| found.problems.push(Problem { what, hint: hint.into() });
        if !nix::unistd::geteuid().is_root() {
            problem("native sandboxes need root".into(), "run as root, or use BERTH_SANDBOX=docker");
            return found;
        }
        if self.short_lived && !self.settings.in_container {
            problem(
                "the worker is its container's main process: a restart of it would end all native sessions"
                    .into(),
                "use BERTH_SANDBOX=docker, or say that this may be: BERTH_NATIVE_IN_CONTAINER=true",
            );
        }
        match is_static(&self.settings.agent) {
            Ok(true) => {}
            Ok(false) => problem(
                format!("the agent {} is not a static program", self.settings.agent.display()),
                "build it with `make build`",
            ),
            Err(error) => problem(
                format!("the agent {} can't be read: {error}", self.settings.agent.display()),
                "build it with `make build`, or name it with BERTH_AGENT",
            ),
        }
        if !fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("\nSeccomp:")) {
            problem("the kernel has no seccomp".into(), "use a kernel with CONFIG_SECCOMP_FILTER");
        }
        if self.short_lived && self.settings.in_container {
            found
                .weaker
                .push("a restart of the worker ends its sessions: it is its container's main process".into());
        }
        match &self.cgroups {
            Ok(tree) => {
                found.facts.push(format!("cgroup {}", tree.layout().as_str()));
                if tree.layout() == Layout::V1 {
                    found.weaker.push("no cgroup v2 mount: tasks are ended by walking /proc".into());
                }
            }
            Err(error) => problem(error.clone(), "see docs/security.md, cgroups"),
        }
        if found.problems.is_empty()
            && let Err(what) = self.rehearse()
        {
            let hint = "the kernel must allow user namespaces (user.max_user_namespaces) and mounts in them, and cgroups below the \
                        worker's own";
            found.problems.push(Problem { what, hint: hint.into() });
        }
        found.facts.push("user namespace per session, seccomp, no network".into());
        landlock::describe(&mut found);
        found
    }

    /// Does everything up to the exec, in cgroups as a session has them, and nothing stays.
    fn rehearse(&self) -> Result<(), String> {
        let mut rehearsed = self.rehearsed.lock().unwrap_or_else(PoisonError::into_inner);
        if *rehearsed {
            return Ok(());
        }
        let tree = self.cgroups.as_ref()?;
        // One that was killed may have left some.
        tree.sweep(REHEARSAL);
        let name = format!("{REHEARSAL}{}", SessionId::new());
        let etc = tempfile_dir(&self.settings.scratch).map_err(|e| format!("no scratch directory: {e}"))?;
        let result = self.rehearse_as(&name, &etc);
        let _ = fs::remove_dir_all(&etc);
        result.and(tree.remove(&name).map_err(|e| e.to_string()))?;
        *rehearsed = true;
        Ok(())
    }

    fn rehearse_as(&self, name: &str, etc: &Path) -> Result<(), String> {
        plan::write_etc(etc, "user", "preflight").map_err(|e| format!("/etc of a sandbox: {e}"))?;
        let range = uids::claim().map_err(|e| format!("host ids: {e}"))?;
        let cgroups = self.cgroups(name, &LIMITS, 0, &range).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        })?;
        let (links, mut mounts) = plan::host_root(etc).map_err(|e| format!("the host's /usr: {e}"))?;
        mounts.extend(plan::common_mounts());
        let plan = Plan {
            hostname: "preflight".into(),
            uid_base: range.base,
            uid_count: uids::SIZE,
            links,
            mounts,
            cgroup: cgroups.agent_v2(),
            cgroup_tasks: cgroups.agent_v1(),
            log: "/dev/null".into(),
            memory_files: MemoryFiles::SMALLEST,
            program: String::new(),
        };
        match self.launcher.launch(plan, &range.claim, cgroups.namespace.as_ref()) {
            Ok(Reply::Started { .. }) => Ok(()),
            Ok(Reply::Failed { stage, error }) => {
                Err(format!("a sandbox can't be made here: {stage}: {error}"))
            }
            Ok(Reply::Namespace) => Err("the launcher answers what was not asked".into()),
            Err(error) => Err(format!("the launcher failed: {error}")),
        }
    }
}

/// How the names of its cgroups and of its directory begin: no session's, so nobody takes them for one that was left.
const REHEARSAL: &str = "preflight-";
/// Of the rehearsal: enough for what a sandbox does to itself.
const LIMITS: Limits = Limits { cpu_millis: 500, memory_bytes: 64 << 20, disk_bytes: 0, pids: 32 };

fn tempfile_dir(parent: &Path) -> io::Result<PathBuf> {
    let dir = parent.join(format!("{REHEARSAL}{}", SessionId::new()));
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}

/// Removes what processes left that were killed in a rehearsal. For a directory that only the caller uses.
pub fn sweep_scratch(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| {
            name.strip_prefix(REHEARSAL).is_some_and(|id| id.parse::<SessionId>().is_ok())
        });
        if ours && let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "a scratch directory stays");
        }
    }
}

/// Whether an ELF program has no interpreter: it must run in a root that is not ours.
fn is_static(path: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let bytes = fs::read(path)?;
    let short = || io::Error::new(io::ErrorKind::InvalidData, "not an ELF program");
    if bytes.get(..5) != Some(b"\x7fELF\x02") {
        return Err(short());
    }
    // Elf64_Ehdr: e_phoff at 32 (8 bytes), e_phentsize at 54, e_phnum at 56.
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?) as usize);
    let offset =
        bytes.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or_else(short)?;
    let (size, count) = (u16_at(54).ok_or_else(short)?, u16_at(56).ok_or_else(short)?);
    for i in 0..count {
        let at = offset as usize + i * size;
        let kind = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        if kind.ok_or_else(short)? == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when the name is not looked at, or nothing is removed.
    #[test]
    fn what_a_killed_rehearsal_left_goes_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let left = tempfile_dir(temp.path()).unwrap();
        fs::write(left.join("hosts"), "x").unwrap();
        let others = ["preflight-notes", "sessions"].map(|name| temp.path().join(name));
        others.iter().for_each(|other| fs::create_dir(other).unwrap());
        sweep_scratch(temp.path());
        assert!(!left.exists());
        assert!(others.iter().all(|other| other.exists()));
    }

    #[test]
    fn a_dynamic_program_is_not_taken_for_the_agent() {
        assert!(!is_static(Path::new("/proc/self/exe")).unwrap());
        assert!(is_static(Path::new("/etc/passwd")).is_err());
    }
}
