//! Limits and the defaults of tasks: what is left out, what is too little, what is too much.

use super::{bounds, duration_out, optional_limit, required};
use crate::{
    domain::{Limits, LimitsPatch, PtySize, TaskDefaults, TaskDefaultsPatch},
    error::Error,
    v1,
};

/// A figure within its bounds, if there is one.
fn within<T: PartialOrd + std::fmt::Display>(
    field: &str,
    value: Option<T>,
    least: T,
    most: T,
) -> Result<Option<T>, Error> {
    match value {
        Some(value) if value < least => {
            Err(Error::invalid(field, format!("{value} is less than the least, {least}"))
                .hint(format!("give at least {least}, or leave it out for the template's value")))
        }
        Some(value) if value > most => {
            Err(Error::invalid(field, format!("{value} is more than the most, {most}"))
                .hint(format!("give at most {most}, or leave it out for the template's value")))
        }
        other => Ok(other),
    }
}

impl TryFrom<v1::Limits> for LimitsPatch {
    type Error = Error;
    fn try_from(wire: v1::Limits) -> Result<Self, Error> {
        use bounds::*;
        Ok(Self {
            cpu_millis: within("limits.cpu_millis", wire.cpu_millis, CPU_MILLIS_MIN, CPU_MILLIS_MAX)?,
            memory_bytes: within("limits.memory_bytes", wire.memory_bytes, MEMORY_MIN, MEMORY_MAX)?,
            disk_bytes: within("limits.disk_bytes", wire.disk_bytes, DISK_MIN, DISK_MAX)?,
            pids: within("limits.pids", wire.pids, PIDS_MIN, PIDS_MAX)?,
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
            _ => Err(Error::invalid(field, "must be 1 to 65535").hint("80 columns and 24 rows are usual")),
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
            max_concurrent: within(
                "task_defaults.max_concurrent",
                wire.max_concurrent,
                1,
                bounds::CONCURRENT_MAX,
            )?,
        })
    }
}

impl From<TaskDefaultsPatch> for v1::TaskDefaults {
    fn from(wanted: TaskDefaultsPatch) -> Self {
        Self {
            timeout: wanted.timeout.map(|timeout| duration_out(timeout.unwrap_or_default())),
            pty_size: wanted.pty_size.map(Into::into),
            max_concurrent: wanted.max_concurrent,
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn a_limit_beyond_its_bounds_is_refused_with_the_field_the_figure_and_a_hint() {
        let refused = |limits: v1::Limits| LimitsPatch::try_from(limits).expect_err("must be refused");
        let cases = [
            ("cpu_millis", 1_000_001u64, v1::Limits { cpu_millis: Some(1_000_001), ..Default::default() }),
            ("memory_bytes", u64::MAX, v1::Limits { memory_bytes: Some(u64::MAX), ..Default::default() }),
            ("disk_bytes", u64::MAX, v1::Limits { disk_bytes: Some(u64::MAX), ..Default::default() }),
            ("pids", 4_194_305, v1::Limits { pids: Some(4_194_305), ..Default::default() }),
            ("pids", u32::MAX.into(), v1::Limits { pids: Some(u32::MAX), ..Default::default() }),
            ("pids", 0, v1::Limits { pids: Some(0), ..Default::default() }),
        ];
        for (field, figure, limits) in cases {
            let error = refused(limits);
            assert_eq!((error.code(), error.reason()), (crate::Code::InvalidArgument, Reason::InvalidField));
            let start = format!("limits.{field}: {figure} is ");
            assert!(error.to_string().starts_with(&start), "{error}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("give at ")), "{error:?}");
        }
    }

    #[test]
    fn the_most_itself_is_taken() {
        let most = v1::Limits {
            cpu_millis: Some(bounds::CPU_MILLIS_MAX),
            memory_bytes: Some(bounds::MEMORY_MAX),
            disk_bytes: Some(bounds::DISK_MAX),
            pids: Some(4_194_304),
        };
        assert_eq!(full_limits(most).unwrap().pids, 4_194_304);
    }
}
