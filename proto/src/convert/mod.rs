//! The one place where the wire meets the domain. What comes in is checked here and
//! nowhere else; what goes out is written here and nowhere else.
//!
//! One file a subject; here is what all of them use. Callers say `convert::…` for all of it.

mod egress;
mod file;
mod interpreter;
mod limits;
mod port;
mod session;
mod state;
mod task;
mod worker;

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use crate::{
    domain::Labels,
    error::{Error, Reason},
    ids::{SessionId, TaskId},
};

pub use file::{unpack_broken, upload_broken};
pub use limits::full_limits;
pub use port::{connection_broken, dial_header, port, too_many_connections};
pub use state::{end_reason, session_state};
pub use task::{grace, outcome_words, same_placement, shown_spec, signal};

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
    /// From 1970 to the end of 9999, which is what a timestamp of protocol buffers may be. Later ones would overflow what
    /// is reckoned with them, and the microseconds that a store holds.
    pub const TIME_END: Duration = Duration::from_secs(253_402_300_800);
    pub const CPU_MILLIS_MIN: u32 = 10;
    /// A thousand cores. Like the two below: more than a machine has, and far from where a
    /// sum over a worker's sessions would overflow.
    pub const CPU_MILLIS_MAX: u32 = 1_000_000;
    pub const MEMORY_MIN: u64 = 16 << 20;
    /// 1 PiB.
    pub const MEMORY_MAX: u64 = 1 << 50;
    pub const DISK_MIN: u64 = 1 << 20;
    /// 1 PiB.
    pub const DISK_MAX: u64 = 1 << 50;
    pub const PIDS_MIN: u32 = 4;
    /// Linux's PID_MAX_LIMIT: pids.max takes no more.
    pub const PIDS_MAX: u32 = 4 << 20;
    /// Tasks of one session at a time. Each is at least a process.
    pub const CONCURRENT_MAX: u32 = 65_536;
    pub const CHECKPOINT_INTERVAL_MIN: Duration = Duration::from_secs(1);
    /// Of those that are taken by policy, of one session.
    pub const CHECKPOINTS_KEPT: u32 = 1000;
    /// Rules of one session's egress.
    pub const EGRESS_RULES: usize = 64;
    /// Bytes of the code of one execution.
    pub const CODE: usize = 512 << 10;
    /// Bytes that are kept of what one execution puts out.
    pub const EXECUTION_OUTPUT_DEFAULT: u64 = 4 << 20;
    pub const EXECUTION_OUTPUT_MAX: u64 = 16 << 20;
    pub const PAGE_DEFAULT: u32 = 100;
    pub const PAGE_MAX: u32 = 1000;
}

/// A duration from the wire: not negative, and not absurd.
pub fn duration(field: &str, value: prost_types::Duration) -> Result<Duration, Error> {
    let duration = Duration::try_from(value).map_err(|_| {
        Error::invalid(field, "must not be negative").hint("give a time span of zero or more")
    })?;
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

/// A time from the wire; one before 1970, or after the year 9999, is refused.
pub fn time(field: &str, value: prost_types::Timestamp) -> Result<SystemTime, Error> {
    let time = SystemTime::try_from(value).ok();
    let since = |time: &SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
    time.filter(|time| since(time).is_some_and(|since| since < bounds::TIME_END))
        .ok_or_else(|| Error::invalid(field, "is not a time").hint("a timestamp from 1970 to 9999"))
}

fn no_nul(field: &str, text: &str) -> Result<(), Error> {
    if text.contains('\0') {
        return Err(Error::invalid(field, "must not contain a NUL byte")
            .hint("no program can be given one; send binary data as a file or on standard input"));
    }
    Ok(())
}

/// Labels or a selector.
pub fn labels(field: &str, map: HashMap<String, String>) -> Result<Labels, Error> {
    if map.len() > bounds::LABELS {
        return Err(Error::invalid(field, format!("more than {} labels", bounds::LABELS))
            .hint("labels are to find things by: keep data in the session's files"));
    }
    for (key, value) in &map {
        if key.is_empty() || key.len() > bounds::LABEL || value.len() > bounds::LABEL {
            return Err(Error::invalid(
                field,
                format!("{key:?}: a label's name is 1 to {0} bytes, its value at most {0}", bounds::LABEL),
            )
            .hint("shorten it, or leave it out"));
        }
    }
    Ok(map.into_iter().collect())
}

/// Environment variables.
pub fn env(field: &str, map: HashMap<String, String>) -> Result<Labels, Error> {
    let mut total = 0;
    for (name, value) in &map {
        if name.is_empty() || name.contains('=') {
            return Err(Error::invalid(field, format!("{name:?} is no variable's name"))
                .hint("a name is not empty and has no `=` in it"));
        }
        no_nul(field, name)?;
        no_nul(field, value)?;
        if name.len() + value.len() + 2 > bounds::ARG {
            return Err(Error::invalid(
                field,
                format!("{name} is longer than the kernel's 128 KiB for one variable"),
            )
            .hint("write the value to a file in the session, and name that"));
        }
        total += name.len() + value.len() + 2;
    }
    if total > bounds::ENV_TOTAL {
        return Err(Error::invalid(field, format!("{total} bytes are more than {}", bounds::ENV_TOTAL))
            .hint("write large values to files in the session"));
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
        return Err(Error::invalid(field, format!("{} bytes are more than {}", path.len(), bounds::PATH))
            .hint("the kernel takes no longer path: use a shorter one, relative to the workspace"));
    }
    if path.split('/').any(|name| name.len() > bounds::NAME) {
        return Err(Error::invalid(field, format!("a name in it is longer than {} bytes", bounds::NAME))
            .hint("no file system here takes a longer name: shorten it"));
    }
    Ok(path)
}

/// A page size: zero is the default, more than the maximum is refused.
pub fn page_size(value: u32, default: u32) -> Result<usize, Error> {
    match value {
        0 => Ok(default as usize),
        1..=bounds::PAGE_MAX => Ok(value as usize),
        _ => Err(Error::invalid("page_size", format!("{value} is more than {}", bounds::PAGE_MAX))
            .hint("ask for pages, and go on with next_page_token")),
    }
}

/// An idempotency key; empty is none.
pub fn request_id(value: String) -> Result<Option<String>, Error> {
    if value.len() > bounds::REQUEST_ID {
        return Err(Error::invalid("request_id", format!("longer than {} bytes", bounds::REQUEST_ID))
            .hint("any text that is used once will do: a UUID has 36"));
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
    value.ok_or_else(|| Error::invalid(field, "is missing").hint(format!("set `{field}`")))
}

/// The error for a page token that we did not make.
pub fn bad_page_token() -> Error {
    Error::new(crate::Code::InvalidArgument, Reason::InvalidField, "page_token: not one of this listing")
        .hint("pass next_page_token on as it came")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_kernel_takes_is_refused() {
        assert!(path("path", "x".repeat(5000)).is_err());
        assert!(path("path", "x".repeat(256)).is_err());
        assert!(path("path", "x".repeat(255)).is_ok());
        assert!(path("path", "a\0".into()).unwrap_err().to_string().contains("NUL"));
    }

    /// Red when the two bounds are taken out: prost itself takes -5 and 2^62 seconds.
    #[test]
    fn a_time_is_from_1970_to_9999() {
        let of = |seconds, nanos| time("at", prost_types::Timestamp { seconds, nanos });
        for (seconds, nanos) in
            [(-5, 0), (0, -1), (253_402_300_800, 0), (1 << 62, 0), (i64::MIN, 0), (i64::MAX, 0)]
        {
            assert!(of(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
        assert_eq!(of(0, 0).unwrap(), SystemTime::UNIX_EPOCH);
        assert!(of(253_402_300_799, 999_999_999).is_ok());
    }

    #[test]
    fn env_names_are_checked() {
        let one = |name: &str| env("env", HashMap::from([(name.to_owned(), "v".to_owned())]));
        assert!(one("").is_err() && one("A=B").is_err() && one("A\0").is_err());
        assert!(one("A").is_ok());
    }
}
