//! What components count and measure, and the text in which Prometheus reads it.
//!
//! A crate declares its metrics in one file, as fields of one value that it is given: a process may hold a coordinator and
//! several workers, and a simulation many of both, so nothing here is global. (Rejected for that: the `metrics` facade, whose
//! recorder is one for the process.)
//!
//! INVARIANT: a label's value is a `&'static str`. What is known only while the program runs, such as an id, a name, an
//! address, a tenant or a file, can't become one; so no label grows without bound, and none tells of anybody.
//!
//! The unit is in the name; what is declared and was not recorded yet is shown too, as its description alone.

mod process;

use std::{collections::BTreeSet, fmt::Write, sync::atomic::AtomicU64, time::Duration};

pub use process::Process;
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{
        family::{Family, MetricConstructor},
        histogram, {counter, gauge},
    },
    registry,
};

/// What the text says of itself.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds, for calls and what takes about as long.
pub const LATENCY: &[f64] =
    &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Seconds, for what may take long: to wait for a place, a task.
pub const WAIT: &[f64] = &[0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0];

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only grows; its name ends with `_total`.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric, as it was declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Declared {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Declared {
    /// Its name in the lines that describe it: of a counter without `_total`.
    fn family(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }
}

/// The metrics of one component.
#[derive(Default)]
pub struct Registry {
    inner: registry::Registry,
    declared: Vec<Declared>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("declared", &self.declared.len()).finish_non_exhaustive()
    }
}

impl Registry {
    /// What it holds, in the order of its declarations.
    pub fn declared(&self) -> &[Declared] {
        &self.declared
    }

    fn declare(
        &mut self,
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
        metric: impl registry::Metric,
    ) {
        let declared = Declared { name, kind, labels, help };
        debug_assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        debug_assert!(self.declared.iter().all(|other| other.name != name), "{name} is declared twice");
        self.inner.register(declared.family(), help, metric);
        self.declared.push(declared);
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.declare(name, Kind::Counter, &[], help, counter.0.clone());
        counter
    }

    /// One counter for each combination of labels' values.
    pub fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; N],
        help: &'static str,
    ) -> Counters<N> {
        let family = Family::default();
        self.declare(name, Kind::Counter, labels, help, family.clone());
        Counters { labels, family }
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.declare(name, Kind::Gauge, &[], help, gauge.0.clone());
        gauge
    }

    pub fn gauges<const N: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; N],
        help: &'static str,
    ) -> Gauges<N> {
        let family = Family::default();
        self.declare(name, Kind::Gauge, labels, help, family.clone());
        Gauges { labels, family }
    }

    /// A histogram without labels, with these upper bounds.
    pub fn histogram(&mut self, name: &'static str, bounds: &'static [f64], help: &'static str) -> Histogram {
        let histogram = Bounds(bounds).new_metric();
        self.declare(name, Kind::Histogram, &[], help, histogram.clone());
        Histogram(histogram)
    }

    pub fn histograms<const N: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; N],
        bounds: &'static [f64],
        help: &'static str,
    ) -> Histograms<N> {
        let family = Family::new_with_constructor(Bounds(bounds));
        self.declare(name, Kind::Histogram, labels, help, family.clone());
        Histograms { labels, family }
    }
}

/// The text of what these hold: of one component, or of several that are in one process.
pub fn text<'a>(registries: impl IntoIterator<Item = &'a Registry> + Clone) -> String {
    let mut text = String::new();
    for registry in registries.clone() {
        // Nothing is written but into this text.
        let _ = encode_registry(&mut text, &registry.inner);
    }
    let mut silent = String::new();
    let told: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for declared in registries.into_iter().flat_map(Registry::declared) {
        let family = declared.family();
        if !told.contains(family) {
            let (help, kind) = (declared.help, declared.kind.as_str());
            let _ = writeln!(silent, "# HELP {family} {help}.\n# TYPE {family} {kind}");
        }
    }
    text.push_str(&silent);
    let _ = encode_eof(&mut text);
    text
}

type Labels<const N: usize> = [(&'static str, &'static str); N];

fn labelled<const N: usize>(names: &[&'static str; N], values: [&'static str; N]) -> Labels<N> {
    std::array::from_fn(|n| (names[n], values[n]))
}

/// Counts.
#[derive(Clone, Debug, Default)]
pub struct Counter(counter::Counter);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.inc_by(count);
    }

    /// What something else has counted since it began.
    pub fn show(&self, total: u64) {
        self.0.inner().store(total, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Counts, by labels.
#[derive(Clone, Debug)]
pub struct Counters<const N: usize> {
    labels: &'static [&'static str; N],
    family: Family<Labels<N>, counter::Counter>,
}

impl<const N: usize> Counters<N> {
    pub fn add(&self, values: [&'static str; N], count: u64) {
        self.family.get_or_create(&labelled(self.labels, values)).inc_by(count);
    }

    /// These are there from the start, with 0: what happens for the first time is a change then, and no beginning.
    #[must_use]
    pub fn with(self, values: impl IntoIterator<Item = [&'static str; N]>) -> Self {
        for values in values {
            self.add(values, 0);
        }
        self
    }
}

/// A figure that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(gauge::Gauge<f64, AtomicU64>);

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.set(value);
    }
}

/// Such figures, by labels.
#[derive(Clone, Debug)]
pub struct Gauges<const N: usize> {
    labels: &'static [&'static str; N],
    family: Family<Labels<N>, gauge::Gauge<f64, AtomicU64>>,
}

impl<const N: usize> Gauges<N> {
    pub fn set(&self, values: [&'static str; N], value: f64) {
        self.family.get_or_create(&labelled(self.labels, values)).set(value);
    }
}

/// How often something was how large.
#[derive(Clone, Debug)]
pub struct Histogram(histogram::Histogram);

impl Histogram {
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }

    /// A time, in seconds.
    pub fn took(&self, time: Duration) {
        self.0.observe(time.as_secs_f64());
    }
}

/// The same, by labels.
#[derive(Clone, Debug)]
pub struct Histograms<const N: usize> {
    labels: &'static [&'static str; N],
    family: Family<Labels<N>, histogram::Histogram, Bounds>,
}

impl<const N: usize> Histograms<N> {
    /// A time, in seconds.
    pub fn took(&self, values: [&'static str; N], time: Duration) {
        self.family.get_or_create(&labelled(self.labels, values)).observe(time.as_secs_f64());
    }
}

#[derive(Clone, Copy, Debug)]
struct Bounds(&'static [f64]);

impl MetricConstructor<histogram::Histogram> for Bounds {
    fn new_metric(&self) -> histogram::Histogram {
        histogram::Histogram::new(self.0.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declared_is_shown_whether_or_not_it_was_recorded() {
        let mut registry = Registry::default();
        let calls = registry.counters("x_calls_total", &["method"], "Calls");
        let depth = registry.gauge("x_depth", "How many wait");
        let took = registry.histograms("x_duration_seconds", &["method"], &[0.1, 1.0], "How long");
        registry.counters("x_never_total", &["why"], "Nothing of this came");
        let before = text([&registry]);
        assert!(before.contains("# TYPE x_calls counter\n") && before.contains("# TYPE x_never counter\n"));
        assert!(!before.contains("x_calls_total"), "{before}");
        calls.add(["Run"], 2);
        depth.set(3.0);
        took.took(["Run"], Duration::from_millis(500));
        let mut other = Registry::default();
        other.counter("y_total", "Of another component").add(1);
        let all = text([&registry, &other]);
        for line in [
            "x_calls_total{method=\"Run\"} 2",
            "x_depth 3.0",
            "x_duration_seconds_bucket{le=\"0.1\",method=\"Run\"} 0",
            "x_duration_seconds_bucket{le=\"1.0\",method=\"Run\"} 1",
            "x_duration_seconds_count{method=\"Run\"} 1",
            "# TYPE x_never counter",
            "y_total 1",
        ] {
            assert!(all.lines().any(|l| l == line), "{line}:\n{all}");
        }
        assert!(all.ends_with("# EOF\n"));
        assert_eq!(all.matches("# TYPE x_calls ").count(), 1);
        assert_eq!(registry.declared().len(), 4);
    }

    /// What it costs to record. A figure for the record, and no bound: machines differ.
    #[test]
    fn what_recording_costs() {
        let mut registry = Registry::default();
        let calls = registry.counters("x_calls_total", &["service", "method", "code"], "Calls");
        let took = registry.histograms("x_duration_seconds", &["service", "method"], LATENCY, "How long");
        let (times, begun) = (100_000_u32, std::time::Instant::now());
        for _ in 0..times {
            calls.add(["TaskService", "Run", "OK"], 1);
            took.took(["TaskService", "Run"], Duration::from_millis(3));
        }
        eprintln!("a call's count and its time: {:?}", begun.elapsed() / times);
        assert!(text([&registry]).contains("code=\"OK\"} 100000\n"));
    }
}
