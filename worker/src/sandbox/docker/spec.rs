//! What the engine is asked for: one pure function from a plan to a container. All that
//! makes a container a sandbox is on this page, so that it can be read, and tested, as one.
//!
//! Nothing of a template gets here but an image, a user's name and limits: there is no way
//! to ask for a mount, a device, a capability or a network.

use std::{collections::HashMap, path::PathBuf};

use berth_proto::{
    SessionId,
    agent_config::{self, AGENT_PATH},
    domain::Limits,
    secret,
};
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use sha2::{Digest, Sha256};

use super::{engine::Facts, image::Image, volume::Volume};
use crate::sandbox::{
    MEMLOCK, NOFILE, PROC_HIDDEN,
    cgroup::AGENT_MEMORY,
    memory_files::{self, MemoryFiles},
};

/// Labels of everything that we make on an engine.
pub const LABEL_INSTANCE: &str = "berth.instance";
pub const LABEL_SESSION: &str = "berth.session";
pub const LABEL_UID: &str = "berth.uid";
pub const LABEL_USER: &str = "berth.user";
/// The session's directory as the worker sees it: where files must be taken back from.
pub const LABEL_ROOT: &str = "berth.root";

/// What the agent needs: these and no more (ARCHITECTURE, decision 1).
pub const CAPABILITIES: [&str; 4] = ["SETUID", "SETGID", "KILL", "SETPCAP"];
/// Threads of the agent: PID 1, the server, its file threads.
const AGENT_PIDS: i64 = 64;
const MIB: u64 = 1 << 20;

/// Everything about one container that is not the same for all.
pub struct Plan<'a> {
    pub instance: &'a str,
    pub session: SessionId,
    pub uid: u32,
    pub user: &'a str,
    pub image: &'a Image,
    pub limits: Limits,
    /// Memory that the session's files may take on top.
    pub files_in_memory: u64,
    pub mounts: Vec<Bind>,
    /// The session's own files, where the engine mounts them; else they are among the mounts.
    pub volume: Option<&'a Volume>,
    /// The session's directory on the worker.
    pub root: String,
    /// Tasks have cgroups of their own: Docker's holds the agent alone.
    pub own_cgroups: bool,
    pub facts: &'a Facts,
    /// A group that the agent needs to reach its own files: the worker's, where the worker is not root.
    pub agent_group: Option<u32>,
    /// `None`: the engine's default.
    pub runtime: Option<String>,
}

/// A host path and where it appears inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    pub host: PathBuf,
    pub inside: String,
    pub read_only: bool,
    /// Below the engine's own directory (a volume): it insists on its own kind of propagation there.
    pub on_volume: bool,
}

/// `berth-<8 of the instance's hash>-<session>`: names are for people, labels are what counts.
pub fn name(instance: &str, session: SessionId) -> String {
    let hash = Sha256::digest(instance.as_bytes());
    format!("berth-{:02x}{:02x}{:02x}{:02x}-{session}", hash[0], hash[1], hash[2], hash[3])
}

/// What the inside calls its machine. The end of the id: its beginning is the time.
pub fn hostname(session: SessionId) -> String {
    session.to_string()[20..].to_owned()
}

/// The container for a plan.
pub fn container(plan: Plan<'_>) -> ContainerCreateBody {
    ContainerCreateBody {
        hostname: Some(hostname(plan.session)),
        user: Some("0:0".into()),
        // A name without `=` removes what the image sets. The agent gives tasks an environment anyway.
        env: Some(plan.image.env.clone()),
        entrypoint: Some(vec![AGENT_PATH.into()]),
        cmd: Some(Vec::new()),
        image: Some(plan.image.id.clone()),
        working_dir: Some("/".into()),
        // The image's own would run as root beside the agent.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
        attach_stdin: Some(false),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        network_disabled: Some(true),
        labels: Some(HashMap::from([
            (LABEL_INSTANCE.to_owned(), plan.instance.to_owned()),
            (LABEL_SESSION.to_owned(), plan.session.to_string()),
            (LABEL_UID.to_owned(), plan.uid.to_string()),
            (LABEL_USER.to_owned(), plan.user.to_owned()),
            (LABEL_ROOT.to_owned(), plan.root.clone()),
        ])),
        host_config: Some(host_config(plan)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(plan: Plan<'_>) -> HostConfig {
    let sizes = Sizes::of(plan.limits, plan.image);
    // Files that the agent writes to a tmpfs are charged to it, so its own share covers them all.
    let memory = if plan.own_cgroups { sizes.total() } else { plan.limits.memory_bytes } + AGENT_MEMORY;
    let memory = i64::try_from(memory.saturating_add(plan.files_in_memory)).unwrap_or(i64::MAX);
    let (core, locked) = crate::weaken::limits(0, MEMLOCK);
    let cpu_millis = plan.limits.cpu_millis.clamp(10, plan.facts.cpus.saturating_mul(1000));
    HostConfig {
        // ---- who it is on the host
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(CAPABILITIES.map(String::from).to_vec()),
        // The same system calls as in the agent's filter, which is the inner one.
        security_opt: Some(security_options(plan.facts)),
        privileged: Some(false),
        group_add: plan.agent_group.map(|gid| vec![gid.to_string()]),
        userns_mode: None,
        // ---- what it sees
        network_mode: Some("none".into()),
        ipc_mode: Some("private".into()),
        // With a cgroup namespace of its own the kernel may refuse to move tasks out to our tree.
        cgroupns_mode: Some(if plan.own_cgroups {
            HostConfigCgroupnsModeEnum::HOST
        } else {
            HostConfigCgroupnsModeEnum::PRIVATE
        }),
        masked_paths: Some(masked()),
        readonly_paths: Some(READ_ONLY.map(String::from).to_vec()),
        // ---- what it can write
        readonly_rootfs: Some(true),
        mounts: Some(plan.mounts.iter().map(bind).chain(plan.volume.map(Volume::mount)).collect()),
        binds: plan.volume.map(Volume::binds),
        tmpfs: Some(sizes.mounts()),
        // /dev/shm is among them: the engine's own setting for it knows a size, but no number of files.
        shm_size: None,
        // Of the sandbox's own IPC namespace: shared memory ends with the last process that has it.
        sysctls: Some([("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into()),
        // ---- how much of the machine it has
        memory: Some(memory),
        // Memory and swap together: no swap.
        memory_swap: Some(memory),
        memory_swappiness: (plan.facts.cgroup_version != "2").then_some(0),
        nano_cpus: Some(i64::from(cpu_millis) * 1_000_000),
        pids_limit: Some(i64::from(plan.limits.pids) + AGENT_PIDS),
        ulimits: Some(vec![
            ulimit("core", core as i64, core as i64),
            ulimit("nofile", NOFILE.0 as i64, NOFILE.1 as i64),
            ulimit("memlock", locked as i64, locked as i64),
            ulimit("nice", 0, 0),
            ulimit("rtprio", 0, 0),
        ]),
        // ---- how it lives: its exit code must survive a worker's crash, and it never comes back by itself
        init: Some(false),
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..Default::default() }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".into()),
            config: Some([("max-size", "1m"), ("max-file", "1")].map(|(k, v)| (k.into(), v.into())).into()),
        }),
        runtime: plan.runtime,
        ..HostConfig::default()
    }
}

fn security_options(facts: &Facts) -> Vec<String> {
    let own = || (!facts.podman).then(|| format!("seccomp={}", super::seccomp::profile()));
    let seccomp = crate::weaken::seccomp_option().or_else(own);
    ["no-new-privileges:true".to_owned()].into_iter().chain(seccomp).collect()
}

/// Docker's own list, what the native backend hides too, and a little of /sys.
fn masked() -> Vec<String> {
    let docker = ["/proc/acpi", "/proc/asound", "/proc/scsi", "/proc/timer_stats"];
    let sys = ["/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/cgroup"];
    docker.into_iter().chain(PROC_HIDDEN).chain(sys).map(str::to_owned).collect()
}

/// Docker's own list.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The Engine API (1.41) has no `nosuid` or `nodev` for a bind: `no_new_privs`, the missing MKNOD and the engine's
/// list of devices stand in for them.
fn bind(bind: &Bind) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.host.to_string_lossy().into_owned()),
        target: Some(bind.inside.clone()),
        read_only: Some(bind.read_only),
        bind_options: (!bind.on_volume).then(|| MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

fn ulimit(name: &str, soft: i64, hard: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.into()), soft: Some(soft), hard: Some(hard) }
}

/// Bytes of the file systems that live in memory. What is in them counts as the session's memory.
struct Sizes<'a> {
    files: MemoryFiles,
    /// Paths that the image declares as volumes: they would be on the host's disk, with no limit.
    volumes: (&'a [String], u64),
}

const RUN: u64 = 8 * MIB;

/// Where tasks may write beside the session's own files.
pub fn writable(image: &Image) -> Vec<PathBuf> {
    let volumes = image.volumes.iter().map(PathBuf::from);
    agent_config::memory_files().into_iter().chain(["/run".into()]).chain(volumes).collect()
}

impl<'a> Sizes<'a> {
    fn of(limits: Limits, image: &'a Image) -> Self {
        let volume = (limits.memory_bytes / 8).clamp(8 * MIB, 64 * MIB);
        Self { files: MemoryFiles::of(&limits), volumes: (&image.volumes, volume) }
    }

    /// All that can be put into them, files' own cost included.
    fn total(&self) -> u64 {
        let volumes = u64::try_from(self.volumes.0.len()).unwrap_or(0);
        self.files.charge() + memory_files::charge(RUN) + volumes * memory_files::charge(self.volumes.1)
    }

    fn mounts(&self) -> HashMap<String, String> {
        let options = |size: u64, mode: &str, exec: &str| {
            let files = memory_files::files(size);
            format!("rw,nosuid,nodev,{exec},size={size},nr_inodes={files},mode={mode}")
        };
        let volumes =
            self.volumes.0.iter().map(|path| (path.clone(), options(self.volumes.1, "1777", "exec")));
        volumes
            .chain([
                ("/tmp".to_owned(), options(self.files.tmp, "1777", "exec")),
                ("/var/tmp".to_owned(), options(self.files.var_tmp, "1777", "exec")),
                ("/dev/shm".to_owned(), options(self.files.shm, "1777", "noexec")),
                ("/run".to_owned(), options(RUN, "755", "noexec")),
                (secret::DIR.to_owned(), options(memory_files::SECRETS, "755", "noexec")),
            ])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { cpu_millis: 1500, memory_bytes: 512 << 20, disk_bytes: 1 << 30, pids: 100 };

    fn body(limits: Limits, own_cgroups: bool, image: &Image) -> ContainerCreateBody {
        container(Plan {
            instance: "i",
            session: SessionId::from_u128(7),
            uid: 70_000,
            user: "user",
            image,
            limits,
            files_in_memory: 0,
            root: "/s".into(),
            volume: None,
            mounts: vec![Bind {
                host: "/h".into(),
                inside: "/workspace".into(),
                read_only: false,
                on_volume: false,
            }],
            own_cgroups,
            facts: &Facts::sample(),
            agent_group: None,
            runtime: None,
        })
    }

    #[test]
    fn the_image_decides_nothing_that_runs_as_root() {
        let image =
            Image { id: "sha256:x".into(), env: vec!["LD_PRELOAD".into()], volumes: vec!["/data".into()] };
        let body = body(LIMITS, true, &image);
        assert_eq!(body.entrypoint.as_deref(), Some(&[AGENT_PATH.to_owned()][..]));
        assert_eq!(body.cmd.as_deref(), Some(&[][..]));
        assert_eq!(body.user.as_deref(), Some("0:0"));
        assert_eq!(body.healthcheck.and_then(|h| h.test), Some(vec!["NONE".to_owned()]));
        assert_eq!(body.env, Some(vec!["LD_PRELOAD".to_owned()]));
        let host = body.host_config.expect("it has one");
        assert!(
            host.tmpfs.expect("it has some").contains_key("/data"),
            "a volume would be on the host's disk"
        );
    }

    #[test]
    fn the_agent_always_has_room_beside_the_tasks() {
        let image = Image { id: "x".into(), env: vec![], volumes: vec![] };
        let memory =
            |limits, own| body(limits, own, &image).host_config.and_then(|h| h.memory).expect("it is set");
        let headroom = i64::try_from(AGENT_MEMORY).expect("fits");
        assert_eq!(memory(LIMITS, false), (512 << 20) + headroom);
        // All of what the agent could be made to put into memory, the files' own cost included, and its own.
        let put = memory(LIMITS, true) - headroom;
        assert!(put >= (256 + 64 + 8 + 4 + 128) << 20, "{put}");
        assert!(put <= (320 + 80 + 10 + 5 + 160) << 20, "{put}");
        let host = body(LIMITS, true, &image).host_config.expect("it has one");
        assert_eq!(host.pids_limit, Some(164));
        assert_eq!(host.memory, host.memory_swap);
    }

    #[test]
    fn every_file_system_in_memory_has_a_size_and_a_number_of_files() {
        let image = Image { id: "x".into(), env: vec![], volumes: vec!["/data".into()] };
        let host = body(LIMITS, true, &image).host_config.expect("it has one");
        assert_eq!(host.shm_size, None, "it would have no number of files");
        let tmpfs = host.tmpfs.expect("it has some");
        for path in ["/tmp", "/var/tmp", "/dev/shm", "/run", "/run/secrets", "/data"] {
            let options: Vec<&str> = tmpfs[path].split(',').collect();
            let number = |name: &str| {
                let value =
                    options.iter().find_map(|o| o.strip_prefix(name)).and_then(|n| n.parse::<u64>().ok());
                value.unwrap_or_else(|| panic!("{path} has no {name}: {options:?}"))
            };
            assert!(number("size=") > 0 && number("nr_inodes=") > 0);
            assert!(options.contains(&"nosuid") && options.contains(&"nodev"), "{path}: {options:?}");
        }
    }

    #[test]
    fn a_bind_is_private_but_on_a_volume_as_the_engine_has_it() {
        let propagation = |on_volume| {
            let bind = Bind { host: "/h".into(), inside: "/i".into(), read_only: true, on_volume };
            super::bind(&bind).bind_options.and_then(|options| options.propagation)
        };
        assert_eq!(propagation(false), Some(MountBindOptionsPropagationEnum::RPRIVATE));
        assert_eq!(propagation(true), None);
    }

    #[test]
    fn an_engine_is_not_asked_for_more_cores_than_it_has() {
        let image = Image { id: "x".into(), env: vec![], volumes: vec![] };
        let cpus = |cpu_millis| {
            body(Limits { cpu_millis, ..LIMITS }, true, &image).host_config.and_then(|h| h.nano_cpus)
        };
        assert_eq!(cpus(1500), Some(1_500_000_000));
        assert_eq!(cpus(64_000), Some(2_000_000_000));
        assert_eq!(cpus(1), Some(10_000_000));
    }

    #[test]
    fn names_are_short_and_of_one_instance() {
        let (a, b) = (name("a", SessionId::from_u128(1)), name("b", SessionId::from_u128(1)));
        assert_ne!(a, b);
        assert_eq!(a.len(), "berth-".len() + 8 + 1 + 32);
        assert_eq!(hostname(SessionId::from_u128(0xabc)), "000000000abc");
    }
}
