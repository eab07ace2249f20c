//! The one place where the wire meets the domain. What comes in is checked here and
//! nowhere else; what goes out is written here and nowhere else.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use crate::{
    domain::*,
    error::{Error, Reason},
    ids::{Epoch, SessionId, TaskId},
    v1,
};

/// What a field may hold. The sources: Linux's MAX_ARG_STRLEN (128 KiB for one
/// argument or variable) and, for the rest, what keeps a request far below the message limit.
pub mod bounds {
    use std::time::Duration;

    pub const REQUEST_ID: usize = 128;
    pub const ARG: usize = 128 << 10;
    pub const ARGS_TOTAL: usize = 1 << 20;
    pub const ENV_TOTAL: usize = 256 << 10;
    pub const LABELS: usize = 64;
    pub const LABEL: usize = 256;
    /// Linux's PATH_MAX, less the NUL.
    pub const PATH: usize = 4095;
    /// Linux's NAME_MAX.
    pub const NAME: usize = 255;
    pub const PRIORITY: i32 = 100;
    pub const SPOOL_DEFAULT: u64 = 64 << 20;
    pub const SPOOL_MIN: u64 = 64 << 10;
    pub const SPOOL_MAX: u64 = 1 << 30;
    pub const GRACE_DEFAULT: Duration = Duration::from_secs(2);
    pub const GRACE_MAX: Duration = Duration::from_secs(60);
    pub const REATTACH_GRACE: Duration = Duration::from_secs(30);
    pub const WAIT_FOR_PLACE: Duration = Duration::from_secs(30);
    /// Ten years: longer is a mistake, and would overflow a timer.
    pub const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
    pub const CPU_MILLIS_MIN: u32 = 10;
    pub const MEMORY_MIN: u64 = 16 << 20;
    pub const DISK_MIN: u64 = 1 << 20;
    pub const PIDS_MIN: u32 = 4;
    pub const PAGE_DEFAULT: u32 = 100;
    pub const PAGE_MAX: u32 = 1000;
}

// ---- small values -----------------------------------------------------------

/// A duration from the wire: not negative, and not absurd.
pub fn duration(field: &str, value: prost_types::Duration) -> Result<Duration, Error> {
    let duration = Duration::try_from(value).map_err(|_| Error::invalid(field, "must not be negative"))?;
    if duration > bounds::DURATION_MAX {
        return Err(Error::invalid(field, "is longer than ten years").hint("zero means no limit"));
    }
    Ok(duration)
}

/// Absent → `None`, zero → `Some(None)`, else the duration.
pub fn optional_limit(
    field: &str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Option<Duration>>, Error> {
    let Some(value) = value else { return Ok(None) };
    let value = duration(field, value)?;
    Ok(Some((!value.is_zero()).then_some(value)))
}

pub fn duration_out(value: Duration) -> prost_types::Duration {
    let value = value.min(bounds::DURATION_MAX);
    prost_types::Duration { seconds: value.as_secs() as i64, nanos: value.subsec_nanos() as i32 }
}

pub fn time_out(value: SystemTime) -> prost_types::Timestamp {
    value.into()
}

/// A time from the wire; one before 1970 is refused.
pub fn time(field: &str, value: prost_types::Timestamp) -> Result<SystemTime, Error> {
    SystemTime::try_from(value).map_err(|_| Error::invalid(field, "is not a time"))
}

fn no_nul(field: &str, text: &str) -> Result<(), Error> {
    if text.contains('\0') { Err(Error::invalid(field, "must not contain a NUL byte")) } else { Ok(()) }
}

/// Labels or a selector.
pub fn labels(field: &str, map: HashMap<String, String>) -> Result<Labels, Error> {
    if map.len() > bounds::LABELS {
        return Err(Error::invalid(field, format!("more than {} labels", bounds::LABELS)));
    }
    for (key, value) in &map {
        if key.is_empty() || key.len() > bounds::LABEL || value.len() > bounds::LABEL {
            return Err(Error::invalid(
                field,
                format!("{key:?}: a label's name is 1 to {0} bytes, its value at most {0}", bounds::LABEL),
            ));
        }
    }
    Ok(map.into_iter().collect())
}

/// Environment variables.
pub fn env(field: &str, map: HashMap<String, String>) -> Result<Labels, Error> {
    let mut total = 0;
    for (name, value) in &map {
        if name.is_empty() || name.contains('=') {
            return Err(Error::invalid(field, format!("{name:?} is no variable's name")));
        }
        no_nul(field, name)?;
        no_nul(field, value)?;
        if name.len() + value.len() + 2 > bounds::ARG {
            return Err(Error::invalid(
                field,
                format!("{name} is longer than the kernel's 128 KiB for one variable"),
            ));
        }
        total += name.len() + value.len() + 2;
    }
    if total > bounds::ENV_TOTAL {
        return Err(Error::invalid(field, format!("{total} bytes are more than {}", bounds::ENV_TOTAL)));
    }
    Ok(map.into_iter().collect())
}

/// A path in a session. Where it leads is the kernel's business; this only keeps out
/// what no kernel would take, with a clear word.
pub fn path(field: &str, path: String) -> Result<String, Error> {
    if path.is_empty() {
        return Err(Error::invalid(field, "is empty").hint("`.` is the workspace"));
    }
    no_nul(field, &path)?;
    if path.len() > bounds::PATH {
        return Err(Error::invalid(field, format!("{} bytes are more than {}", path.len(), bounds::PATH)));
    }
    if path.split('/').any(|name| name.len() > bounds::NAME) {
        return Err(Error::invalid(field, format!("a name in it is longer than {} bytes", bounds::NAME)));
    }
    Ok(path)
}

/// A page size: zero is the default, more than the maximum is refused.
pub fn page_size(value: u32, default: u32) -> Result<usize, Error> {
    match value {
        0 => Ok(default as usize),
        1..=bounds::PAGE_MAX => Ok(value as usize),
        _ => Err(Error::invalid("page_size", format!("at most {}", bounds::PAGE_MAX))),
    }
}

/// An idempotency key; empty is none.
pub fn request_id(value: String) -> Result<Option<String>, Error> {
    if value.len() > bounds::REQUEST_ID {
        return Err(Error::invalid("request_id", format!("longer than {} bytes", bounds::REQUEST_ID)));
    }
    Ok((!value.is_empty()).then_some(value))
}

pub fn session_id(value: &str) -> Result<SessionId, Error> {
    value.parse()
}

pub fn task_id(value: &str) -> Result<TaskId, Error> {
    value.parse()
}

/// A required message field.
pub fn required<T>(field: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::invalid(field, "is missing"))
}

// ---- limits and defaults ----------------------------------------------------

fn at_least<T: PartialOrd + std::fmt::Display>(
    field: &str,
    value: Option<T>,
    min: T,
) -> Result<Option<T>, Error> {
    match value {
        Some(value) if value < min => {
            Err(Error::invalid(field, format!("{value} is less than the least, {min}")))
        }
        other => Ok(other),
    }
}

impl TryFrom<v1::Limits> for LimitsPatch {
    type Error = Error;
    fn try_from(wire: v1::Limits) -> Result<Self, Error> {
        Ok(Self {
            cpu_millis: at_least("limits.cpu_millis", wire.cpu_millis, bounds::CPU_MILLIS_MIN)?,
            memory_bytes: at_least("limits.memory_bytes", wire.memory_bytes, bounds::MEMORY_MIN)?,
            disk_bytes: at_least("limits.disk_bytes", wire.disk_bytes, bounds::DISK_MIN)?,
            pids: at_least("limits.pids", wire.pids, bounds::PIDS_MIN)?,
        })
    }
}

/// Limits with all fields set, as between coordinator and worker.
pub fn full_limits(wire: v1::Limits) -> Result<Limits, Error> {
    let patch = LimitsPatch::try_from(wire)?;
    Ok(Limits {
        cpu_millis: required("limits.cpu_millis", patch.cpu_millis)?,
        memory_bytes: required("limits.memory_bytes", patch.memory_bytes)?,
        disk_bytes: required("limits.disk_bytes", patch.disk_bytes)?,
        pids: required("limits.pids", patch.pids)?,
    })
}

impl From<Limits> for v1::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            cpu_millis: Some(limits.cpu_millis),
            memory_bytes: Some(limits.memory_bytes),
            disk_bytes: Some(limits.disk_bytes),
            pids: Some(limits.pids),
        }
    }
}

impl TryFrom<v1::PtySize> for PtySize {
    type Error = Error;
    fn try_from(wire: v1::PtySize) -> Result<Self, Error> {
        let side = |field, value: u32| match u16::try_from(value) {
            Ok(value) if value > 0 => Ok(value),
            _ => Err(Error::invalid(field, "must be 1 to 65535")),
        };
        Ok(Self { cols: side("pty_size.cols", wire.cols)?, rows: side("pty_size.rows", wire.rows)? })
    }
}

impl From<PtySize> for v1::PtySize {
    fn from(size: PtySize) -> Self {
        Self { cols: size.cols.into(), rows: size.rows.into() }
    }
}

impl TryFrom<v1::TaskDefaults> for TaskDefaultsPatch {
    type Error = Error;
    fn try_from(wire: v1::TaskDefaults) -> Result<Self, Error> {
        Ok(Self {
            timeout: optional_limit("task_defaults.timeout", wire.timeout)?,
            pty_size: wire.pty_size.map(PtySize::try_from).transpose()?,
            max_concurrent: at_least("task_defaults.max_concurrent", wire.max_concurrent, 1)?,
        })
    }
}

impl From<TaskDefaults> for v1::TaskDefaults {
    fn from(defaults: TaskDefaults) -> Self {
        Self {
            timeout: Some(duration_out(defaults.timeout.unwrap_or_default())),
            pty_size: Some(defaults.pty_size.into()),
            max_concurrent: Some(defaults.max_concurrent),
        }
    }
}

// ---- backends and states ----------------------------------------------------

impl std::str::FromStr for BackendChoice {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "auto" || text.is_empty() {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Only)
    }
}

impl std::str::FromStr for Backend {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|b| b.as_str() == text).ok_or_else(|| {
            Error::invalid("backend", format!("{text:?} is not one")).hint("auto, native, docker or fake")
        })
    }
}

impl From<SessionState> for v1::SessionState {
    fn from(state: SessionState) -> Self {
        match state {
            SessionState::Pending => Self::Pending,
            SessionState::Placed => Self::Placed,
            SessionState::Ready => Self::Ready,
            SessionState::Paused => Self::Paused,
            SessionState::Ending => Self::Ending,
            SessionState::Ended => Self::Ended,
        }
    }
}

/// A state from the wire; unknown numbers are refused.
pub fn session_state(field: &str, value: i32) -> Result<SessionState, Error> {
    Ok(match v1::SessionState::try_from(value) {
        Ok(v1::SessionState::Pending) => SessionState::Pending,
        Ok(v1::SessionState::Placed) => SessionState::Placed,
        Ok(v1::SessionState::Ready) => SessionState::Ready,
        Ok(v1::SessionState::Paused) => SessionState::Paused,
        Ok(v1::SessionState::Ending) => SessionState::Ending,
        Ok(v1::SessionState::Ended) => SessionState::Ended,
        Ok(v1::SessionState::Unspecified) | Err(_) => {
            return Err(Error::invalid(field, format!("{value} is no session state")));
        }
    })
}

impl From<EndReason> for v1::EndReason {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Deleted => Self::Deleted,
            EndReason::TtlExpired => Self::TtlExpired,
            EndReason::Idle => Self::Idle,
            EndReason::NoPlace => Self::NoPlace,
            EndReason::WorkerLost => Self::WorkerLost,
            EndReason::SandboxFailed => Self::SandboxFailed,
            EndReason::Drained => Self::Drained,
            EndReason::Abandoned => Self::Abandoned,
        }
    }
}

/// An end reason from the wire. `None`: not ended.
pub fn end_reason(value: i32) -> Option<EndReason> {
    Some(match v1::EndReason::try_from(value).ok()? {
        v1::EndReason::Unspecified => return None,
        v1::EndReason::Deleted => EndReason::Deleted,
        v1::EndReason::TtlExpired => EndReason::TtlExpired,
        v1::EndReason::Idle => EndReason::Idle,
        v1::EndReason::NoPlace => EndReason::NoPlace,
        v1::EndReason::WorkerLost => EndReason::WorkerLost,
        v1::EndReason::SandboxFailed => EndReason::SandboxFailed,
        v1::EndReason::Drained => EndReason::Drained,
        v1::EndReason::Abandoned => EndReason::Abandoned,
    })
}

// ---- tasks ------------------------------------------------------------------

impl TryFrom<v1::TaskSpec> for TaskSpec {
    type Error = Error;
    fn try_from(wire: v1::TaskSpec) -> Result<Self, Error> {
        let cwd = if wire.cwd.is_empty() { String::new() } else { path("task.cwd", wire.cwd)? };
        let spool_bytes = match wire.spool_bytes {
            0 => bounds::SPOOL_DEFAULT,
            n if (bounds::SPOOL_MIN..=bounds::SPOOL_MAX).contains(&n) => n,
            n => {
                return Err(Error::invalid(
                    "task.spool_bytes",
                    format!("{n} is not within {} to {}", bounds::SPOOL_MIN, bounds::SPOOL_MAX),
                ));
            }
        };
        let timeout = match optional_limit("task.timeout", wire.timeout)? {
            None => Timeout::Default,
            Some(None) => Timeout::Never,
            Some(Some(after)) => Timeout::After(after),
        };
        if wire.pty_size.is_some() && !wire.pty {
            return Err(Error::invalid("task.pty_size", "needs `pty`"));
        }
        let pty_size = wire.pty_size.map(PtySize::try_from).transpose()?;
        Ok(Self {
            program: program(wire.program)?,
            cwd,
            env: env("task.env", wire.env)?,
            timeout,
            output_limit: (wire.output_limit > 0).then_some(wire.output_limit),
            spool_bytes,
            pty: wire.pty.then_some(pty_size),
            stdin: wire.stdin || wire.pty,
            detached: wire.detached,
            reattach_grace: match wire.reattach_grace {
                None => bounds::REATTACH_GRACE,
                Some(value) => duration("task.reattach_grace", value)?,
            },
        })
    }
}

fn program(wire: Option<v1::task_spec::Program>) -> Result<Program, Error> {
    match required("task.program", wire).map_err(|e| e.hint("give `argv` or `shell`"))? {
        v1::task_spec::Program::Argv(v1::Argv { args }) => {
            if args.first().is_none_or(String::is_empty) {
                return Err(
                    Error::invalid("task.argv", "names no program").hint("give at least one argument")
                );
            }
            let mut total = 0;
            for arg in &args {
                no_nul("task.argv", arg)?;
                if arg.len() >= bounds::ARG {
                    return Err(Error::invalid(
                        "task.argv",
                        "an argument is longer than the kernel's 128 KiB",
                    )
                    .hint("write it to a file first"));
                }
                total += arg.len() + 1;
            }
            if total > bounds::ARGS_TOTAL {
                return Err(Error::invalid(
                    "task.argv",
                    format!("{total} bytes are more than {}", bounds::ARGS_TOTAL),
                ));
            }
            Ok(Program::Argv(args))
        }
        v1::task_spec::Program::Shell(line) => {
            no_nul("task.shell", &line)?;
            if line.trim().is_empty() {
                return Err(Error::invalid("task.shell", "is empty"));
            }
            if line.len() >= bounds::ARG {
                return Err(Error::invalid(
                    "task.shell",
                    "is longer than the kernel's 128 KiB for one argument",
                )
                .hint("write it to a file and run that"));
            }
            Ok(Program::Shell(line))
        }
    }
}

/// The spec as it is shown: without the environment, which may hold secrets.
pub fn shown_spec(mut wire: v1::TaskSpec) -> v1::TaskSpec {
    wire.env.clear();
    wire
}

impl From<Outcome> for v1::Outcome {
    fn from(outcome: Outcome) -> Self {
        use v1::outcome::{Empty, Kind};
        let kind = match outcome {
            Outcome::Exited(code) => Kind::Exited(code),
            Outcome::Signaled(signal) => Kind::Signaled(signal),
            Outcome::TimedOut => Kind::TimedOut(Empty {}),
            Outcome::OutOfMemory => Kind::OutOfMemory(Empty {}),
            Outcome::OutputLimit => Kind::OutputLimit(Empty {}),
            Outcome::Cancelled => Kind::Cancelled(Empty {}),
            Outcome::SessionEnded => Kind::SessionEnded(Empty {}),
            Outcome::WorkerLost => Kind::WorkerLost(Empty {}),
            Outcome::SandboxFailed => Kind::SandboxFailed(Empty {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = Error;
    fn try_from(wire: v1::Outcome) -> Result<Self, Error> {
        use v1::outcome::Kind;
        Ok(match required("outcome.kind", wire.kind)? {
            Kind::Exited(code) => Self::Exited(code),
            Kind::Signaled(signal) => Self::Signaled(signal),
            Kind::TimedOut(_) => Self::TimedOut,
            Kind::OutOfMemory(_) => Self::OutOfMemory,
            Kind::OutputLimit(_) => Self::OutputLimit,
            Kind::Cancelled(_) => Self::Cancelled,
            Kind::SessionEnded(_) => Self::SessionEnded,
            Kind::WorkerLost(_) => Self::WorkerLost,
            Kind::SandboxFailed(_) => Self::SandboxFailed,
        })
    }
}

impl From<Usage> for v1::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            cpu_user: Some(duration_out(usage.cpu_user)),
            cpu_system: Some(duration_out(usage.cpu_system)),
            peak_memory_bytes: usage.peak_memory_bytes,
            oom_kills: usage.oom_kills,
        }
    }
}

// ---- sessions ---------------------------------------------------------------

impl TryFrom<v1::CreateSessionRequest> for CreateSession {
    type Error = Error;
    fn try_from(wire: v1::CreateSessionRequest) -> Result<Self, Error> {
        if wire.priority.abs() > bounds::PRIORITY {
            return Err(Error::invalid("priority", format!("must be -{0} to {0}", bounds::PRIORITY)));
        }
        Ok(Self {
            request_id: request_id(wire.request_id)?,
            template: if wire.template.is_empty() { "base".to_owned() } else { wire.template },
            limits: wire.limits.map(LimitsPatch::try_from).transpose()?.unwrap_or_default(),
            env: env("env", wire.env)?,
            labels: labels("labels", wire.labels)?,
            ttl: optional_limit("ttl", wire.ttl)?,
            idle_timeout: optional_limit("idle_timeout", wire.idle_timeout)?,
            worker_selector: labels("worker_selector", wire.worker_selector)?,
            priority: wire.priority,
            wait_for_place: match wire.wait_for_place {
                None => bounds::WAIT_FOR_PLACE,
                Some(value) => duration("wait_for_place", value)?,
            },
            task_defaults: wire
                .task_defaults
                .map(TaskDefaultsPatch::try_from)
                .transpose()?
                .unwrap_or_default(),
        })
    }
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl TryFrom<v1::TemplateSpec> for TemplateSpec {
    type Error = Error;
    fn try_from(wire: v1::TemplateSpec) -> Result<Self, Error> {
        Ok(Self {
            name: wire.name,
            root: non_empty(wire.root),
            image: non_empty(wire.image),
            backend: wire.backend.parse()?,
            user: wire.user,
        })
    }
}

impl From<TemplateSpec> for v1::TemplateSpec {
    fn from(spec: TemplateSpec) -> Self {
        Self {
            name: spec.name,
            root: spec.root.unwrap_or_default(),
            image: spec.image.unwrap_or_default(),
            backend: spec.backend.to_string(),
            user: spec.user,
        }
    }
}

impl TryFrom<v1::PlaceSession> for Placement {
    type Error = Error;
    fn try_from(wire: v1::PlaceSession) -> Result<Self, Error> {
        let defaults = TaskDefaultsPatch::try_from(wire.task_defaults.unwrap_or_default())?;
        Ok(Self {
            session: session_id(&wire.session_id)?,
            epoch: Epoch(wire.epoch),
            template: required("template", wire.template)?.try_into()?,
            limits: full_limits(required("limits", wire.limits)?)?,
            env: env("env", wire.env)?,
            created_at: time("created_at", required("created_at", wire.created_at)?)?,
            expires_at: wire.expires_at.map(|t| time("expires_at", t)).transpose()?,
            idle_timeout: optional_limit("idle_timeout", wire.idle_timeout)?.flatten(),
            task_defaults: defaults.over(TaskDefaults::default()),
            start_timeout: duration("start_timeout", required("start_timeout", wire.start_timeout)?)?,
        })
    }
}

impl From<Placement> for v1::PlaceSession {
    fn from(placement: Placement) -> Self {
        Self {
            session_id: placement.session.to_string(),
            epoch: placement.epoch.0,
            template: Some(placement.template.into()),
            limits: Some(placement.limits.into()),
            env: placement.env.into_iter().collect(),
            created_at: Some(time_out(placement.created_at)),
            expires_at: placement.expires_at.map(time_out),
            idle_timeout: placement.idle_timeout.map(duration_out),
            task_defaults: Some(placement.task_defaults.into()),
            start_timeout: Some(duration_out(placement.start_timeout)),
        }
    }
}

impl From<v1::Capacity> for Capacity {
    fn from(wire: v1::Capacity) -> Self {
        Self {
            cpu_millis: wire.cpu_millis,
            memory_bytes: wire.memory_bytes,
            disk_bytes: wire.disk_bytes,
            max_sessions: wire.max_sessions,
        }
    }
}

impl From<Capacity> for v1::Capacity {
    fn from(capacity: Capacity) -> Self {
        Self {
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            disk_bytes: capacity.disk_bytes,
            max_sessions: capacity.max_sessions,
        }
    }
}

/// A signal from the wire.
pub fn signal(value: i32) -> Result<i32, Error> {
    if (1..=64).contains(&value) { Ok(value) } else { Err(Error::invalid("signal", "must be 1 to 64")) }
}

/// The time between TERM and KILL.
pub fn grace(value: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let Some(value) = value else { return Ok(bounds::GRACE_DEFAULT) };
    let value = duration("grace", value)?;
    if value > bounds::GRACE_MAX {
        return Err(Error::invalid("grace", format!("at most {} s", bounds::GRACE_MAX.as_secs())));
    }
    Ok(value)
}

/// The messages of an upload: one header, any number of data, one end.
impl v1::WriteRequest {
    pub fn header(header: v1::WriteHeader) -> Self {
        Self { part: Some(v1::write_request::Part::Header(header)) }
    }

    pub fn data(data: impl Into<bytes::Bytes>) -> Self {
        Self { part: Some(v1::write_request::Part::Data(data.into())) }
    }

    /// The file is complete.
    pub fn end() -> Self {
        Self { part: Some(v1::write_request::Part::End(v1::WriteEnd {})) }
    }
}

/// The error for an upload that ended without [`v1::WriteRequest::end`].
pub fn upload_broken(path: &str) -> Error {
    Error::new(
        crate::Code::Aborted,
        Reason::UploadBroken,
        format!("{path}: the upload ended before it was complete, and nothing was written"),
    )
    .hint("send it again; the last message of an upload is `end`")
}

/// The error for a page token that we did not make.
pub fn bad_page_token() -> Error {
    Error::new(crate::Code::InvalidArgument, Reason::InvalidField, "page_token: not one of this listing")
        .hint("pass next_page_token on as it came")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(args: &[&str]) -> v1::TaskSpec {
        v1::TaskSpec {
            program: Some(v1::task_spec::Program::Argv(v1::Argv {
                args: args.iter().map(|a| a.to_string()).collect(),
            })),
            ..Default::default()
        }
    }

    fn problem(spec: v1::TaskSpec) -> String {
        TaskSpec::try_from(spec).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_task_needs_a_program() {
        assert_eq!(problem(v1::TaskSpec::default()), "task.program: is missing");
        assert_eq!(problem(argv(&[])), "task.argv: names no program");
        assert_eq!(problem(argv(&[""])), "task.argv: names no program");
    }

    #[test]
    fn nul_bytes_are_refused_wherever_they_come() {
        assert!(problem(argv(&["a", "b\0c"])).contains("NUL"));
        assert!(problem(v1::TaskSpec { cwd: "a\0b".into(), ..argv(&["x"]) }).contains("NUL"));
        assert!(path("path", "a\0".into()).unwrap_err().to_string().contains("NUL"));
    }

    #[test]
    fn a_name_that_no_kernel_takes_is_refused() {
        assert!(path("path", "x".repeat(5000)).is_err());
        assert!(path("path", "x".repeat(256)).is_err());
        assert!(path("path", "x".repeat(255)).is_ok());
    }

    #[test]
    fn zero_timeout_is_none_and_absent_is_the_default() {
        let with = |timeout| TaskSpec::try_from(v1::TaskSpec { timeout, ..argv(&["x"]) }).unwrap().timeout;
        assert_eq!(with(None), Timeout::Default);
        assert_eq!(with(Some(duration_out(Duration::ZERO))), Timeout::Never);
        assert_eq!(with(Some(duration_out(Duration::from_secs(2)))), Timeout::After(Duration::from_secs(2)));
        assert!(
            problem(v1::TaskSpec {
                timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                ..argv(&["x"])
            })
            .contains("negative")
        );
    }

    #[test]
    fn env_names_are_checked() {
        let one = |name: &str| env("env", HashMap::from([(name.to_owned(), "v".to_owned())]));
        assert!(one("").is_err() && one("A=B").is_err() && one("A\0").is_err());
        assert!(one("A").is_ok());
    }

    #[test]
    fn outcomes_survive_the_wire() {
        for outcome in [
            Outcome::Exited(3),
            Outcome::Signaled(9),
            Outcome::TimedOut,
            Outcome::OutOfMemory,
            Outcome::OutputLimit,
            Outcome::Cancelled,
            Outcome::SessionEnded,
            Outcome::WorkerLost,
            Outcome::SandboxFailed,
        ] {
            assert_eq!(Outcome::try_from(v1::Outcome::from(outcome)).unwrap(), outcome);
        }
        assert!(Outcome::try_from(v1::Outcome { kind: None }).is_err());
    }

    #[test]
    fn a_placement_survives_the_wire() {
        let placement = Placement {
            session: SessionId::new(),
            epoch: Epoch(4),
            template: TemplateSpec {
                name: "base".into(),
                root: None,
                image: Some("i".into()),
                backend: BackendChoice::Only(Backend::Docker),
                user: "user".into(),
            },
            limits: Limits { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30, pids: 64 },
            env: Labels::from([("A".to_owned(), "1".to_owned())]),
            created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
            expires_at: None,
            idle_timeout: Some(Duration::from_secs(9)),
            task_defaults: TaskDefaults { timeout: None, ..TaskDefaults::default() },
            start_timeout: Duration::from_secs(30),
        };
        assert_eq!(Placement::try_from(v1::PlaceSession::from(placement.clone())).unwrap(), placement);
    }
}
