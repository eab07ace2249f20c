//! What a sandbox takes, as a series in time.
//!
//! Berth takes a reading when it is asked for one, and samples nothing by itself: a series would cost each session something
//! for ever, and nobody may ever look. So a series begins with the first question about a sandbox, and each question adds
//! the present to it, once a second at most. It is kept here, for so many sandboxes and samples; a gateway that is started
//! anew begins with an empty one.
//!
//! E2B's `cpuUsedPct` is a rate, and a reading is a sum. It is told over the time since the sample before; the first one over
//! a moment that is waited for.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use berth_client::{
    Reason, Session, SessionId,
    domain::Limits,
    model::{SessionInfo, SessionUsage},
};
use berth_proto::world;
use http::Response;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{body::Body, control::paged, problem::Problem, text};

/// Sandboxes of which samples are kept; the one that was not asked about for longest goes first.
const SANDBOXES: usize = 512;
/// Of each; the oldest go first. 100 bytes each.
const SAMPLES: usize = 360;
/// Samples are this far apart, at least.
const APART: Duration = Duration::from_secs(1);
/// Over which the first rate is measured.
const MOMENT: Duration = Duration::from_millis(250);

/// Series by sandbox.
#[derive(Default)]
pub struct Series(Mutex<HashMap<SessionId, Kept>>);

struct Kept {
    samples: VecDeque<Sample>,
    asked: Instant,
}

/// One reading, and what it means after the one before.
#[derive(Clone, Debug)]
struct Sample {
    at: SystemTime,
    taken: Instant,
    /// The sum, for the next one.
    cpu: Duration,
    cpu_millis: u64,
    cpu_used: f64,
    memory: u64,
    memory_total: u64,
    cache: u64,
    disk: u64,
    disk_total: u64,
}

/// From when to when, in seconds since 1970, both included.
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    fn of(query: &[(String, String)]) -> Result<Self, Problem> {
        let seconds = |name: &'static str, default: u64| match text::value(query, name) {
            None | Some("") => Ok(default),
            Some(text) => {
                let number = text.parse::<i64>().ok().and_then(|number| u64::try_from(number).ok());
                number.ok_or_else(|| Problem::invalid(format!("{name}: seconds since 1970")))
            }
        };
        let span = Self { start: seconds("start", 0)?, end: seconds("end", u64::MAX)? };
        if span.start > span.end {
            return Err(Problem::invalid("start: later than end"));
        }
        Ok(span)
    }

    fn has(&self, at: SystemTime) -> bool {
        (self.start..=self.end).contains(&unix(at))
    }
}

fn unix(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// All that is known of a sandbox within the time that is asked for; the present too, if that is in it.
pub async fn of(
    series: &Series,
    session: &Session,
    info: &SessionInfo,
    query: &[(String, String)],
) -> Result<Response<Body>, Problem> {
    let span = Span::of(query)?;
    if span.has(world::now()) && !series.is_fresh(info.id) {
        match read(series, session, &info.limits).await {
            Ok(sample) => series.add(info.id, sample),
            // It takes nothing, and what it took is known.
            Err(error) if error.is(Reason::SessionParked) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(paged(series.within(info.id, &span), None))
}

async fn read(series: &Series, session: &Session, limits: &Limits) -> Result<Sample, berth_client::Error> {
    let mut usage = session.usage().await?;
    let before = series.newest(session.id());
    // A sandbox that was placed anew begins at zero.
    let before = match before.filter(|before| usage.cpu.unwrap_or_default() >= before.cpu) {
        Some(before) => (before.at, before.cpu),
        None => {
            let first = (usage.read_at, usage.cpu.unwrap_or_default());
            tokio::time::sleep(MOMENT).await;
            usage = session.usage().await?;
            first
        }
    };
    Ok(Sample::new(&usage, before, limits))
}

impl Sample {
    fn new(usage: &SessionUsage, (since, cpu_then): (SystemTime, Duration), limits: &Limits) -> Self {
        let cpu = usage.cpu.unwrap_or_default();
        let cpu_millis = usage.cpu_limit_millis.unwrap_or(u64::from(limits.cpu_millis));
        // Of all that it may take, as E2B has it. The machine's clock may have been set in between.
        let could = usage.read_at.duration_since(since).unwrap_or_default().as_secs_f64();
        let could = could * cpu_millis as f64 / 1000.0;
        let part = if could > 0.0 { cpu.saturating_sub(cpu_then).as_secs_f64() / could } else { 0.0 };
        let cache = usage.memory_cache_bytes.unwrap_or(0);
        Self {
            at: usage.read_at,
            taken: Instant::now(),
            cpu,
            cpu_millis,
            cpu_used: (part.clamp(0.0, 1.0) * 10_000.0).round() / 100.0,
            memory: usage.memory_bytes.unwrap_or(0).saturating_sub(cache),
            memory_total: usage.memory_limit_bytes.unwrap_or(limits.memory_bytes),
            cache,
            disk: usage.disk_bytes.unwrap_or(0),
            disk_total: usage.disk_limit_bytes.unwrap_or(limits.disk_bytes),
        }
    }

    fn told(&self) -> Value {
        json!({
            "timestamp": text::time(self.at),
            "timestampUnix": unix(self.at),
            "cpuCount": self.cpu_millis.div_ceil(1000),
            "cpuUsedPct": self.cpu_used,
            "memUsed": self.memory,
            "memTotal": self.memory_total,
            "memCache": self.cache,
            "diskUsed": self.disk,
            "diskTotal": self.disk_total,
        })
    }
}

impl Series {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<SessionId, Kept>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn newest(&self, session: SessionId) -> Option<Sample> {
        self.with(|all| all.get(&session)?.samples.back().cloned())
    }

    /// Whether its newest sample is so new that there is no other.
    fn is_fresh(&self, session: SessionId) -> bool {
        self.newest(session).is_some_and(|sample| sample.taken.elapsed() < APART)
    }

    fn add(&self, session: SessionId, sample: Sample) {
        self.with(|all| {
            if !all.contains_key(&session) && all.len() >= SANDBOXES {
                let oldest = all.iter().min_by_key(|(_, kept)| kept.asked).map(|(id, _)| *id);
                oldest.and_then(|id| all.remove(&id));
            }
            let fresh = || Kept { samples: VecDeque::new(), asked: Instant::now() };
            let kept = all.entry(session).or_insert_with(fresh);
            if kept.samples.len() >= SAMPLES {
                kept.samples.pop_front();
            }
            kept.samples.push_back(sample);
        });
    }

    fn within(&self, session: SessionId, span: &Span) -> Vec<Value> {
        self.with(|all| {
            let Some(kept) = all.get_mut(&session) else { return Vec::new() };
            kept.asked = Instant::now();
            kept.samples.iter().filter(|sample| span.has(sample.at)).map(Sample::told).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { cpu_millis: 2000, memory_bytes: 512, disk_bytes: 1024, pids: 9 };

    fn usage(at: u64, cpu_millis: u64) -> SessionUsage {
        SessionUsage {
            read_at: SystemTime::UNIX_EPOCH + Duration::from_secs(at),
            cpu: Some(Duration::from_millis(cpu_millis)),
            cpu_limit_millis: None,
            memory_bytes: Some(100),
            memory_cache_bytes: Some(30),
            memory_peak_bytes: None,
            memory_limit_bytes: None,
            pids: None,
            pids_limit: None,
            disk_bytes: None,
            disk_limit_bytes: None,
            inodes: None,
            inodes_limit: None,
            tasks: 0,
            tasks_limit: 1,
            summed: false,
        }
    }

    fn sample(at: u64, cpu_millis: u64, since: u64) -> Sample {
        let since = (SystemTime::UNIX_EPOCH + Duration::from_secs(since), Duration::ZERO);
        Sample::new(&usage(at, cpu_millis), since, &LIMITS)
    }

    /// Red when it is of one CPU and not of all that the sandbox may take, or a clock that was set back makes it more than that.
    #[tokio::test]
    async fn a_rate_is_of_all_that_a_sandbox_may_take() {
        // Two CPUs, ten seconds, five of CPU time.
        assert!((sample(20, 5_000, 10).cpu_used - 25.0).abs() < 0.01);
        assert!((sample(20, 500_000, 10).cpu_used - 100.0).abs() < 0.01);
        assert!(sample(10, 5_000, 20).cpu_used.abs() < 0.01);
        let told = sample(20, 5_000, 10).told();
        assert_eq!((told["memUsed"].as_u64(), told["memCache"].as_u64()), (Some(70), Some(30)));
        assert_eq!((told["memTotal"].as_u64(), told["diskTotal"].as_u64()), (Some(512), Some(1024)));
        assert_eq!((told["cpuCount"].as_u64(), told["timestampUnix"].as_u64()), (Some(2), Some(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn series_are_bounded() {
        let series = Series::default();
        let all = Span { start: 0, end: u64::MAX };
        let first = SessionId::new();
        for at in 0..1000 {
            series.add(first, sample(at, 0, 0));
        }
        let kept = series.within(first, &all);
        assert_eq!((kept.len(), kept[0]["timestampUnix"].as_u64()), (SAMPLES, Some(1000 - SAMPLES as u64)));
        assert_eq!(series.within(first, &Span { start: 990, end: 991 }).len(), 2);
        assert!(series.is_fresh(first));
        tokio::time::advance(APART).await;
        assert!(!series.is_fresh(first));
        for _ in 0..SANDBOXES {
            tokio::time::advance(Duration::from_millis(1)).await;
            series.add(SessionId::new(), sample(1, 0, 0));
        }
        assert!(series.within(first, &all).is_empty(), "it was asked about longest ago");
        assert_eq!(series.with(|all| all.len()), SANDBOXES);
    }

    #[test]
    fn a_span_is_read_as_the_sdks_write_it() {
        let of = |query: &str| Span::of(&text::query(query)).map(|span| (span.start, span.end));
        assert_eq!(of("").unwrap(), (0, u64::MAX));
        assert_eq!(of("start=5&end=7").unwrap(), (5, 7));
        for bad in ["start=x", "end=-1", "start=7&end=5", "start=1.5"] {
            assert!(of(bad).unwrap_err().is("invalid_argument"), "{bad}");
        }
    }
}
