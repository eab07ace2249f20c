//! What the process itself takes, as the kernel tells in `/proc/self`, under the names that Prometheus' own libraries use.
//! What can't be read is not shown anew; where there is no `/proc` it stays at 0.

use std::{fs, sync::Mutex};

use prometheus_client::metrics::counter;

use crate::{Gauge, Kind, Registry};

/// Of a tick of `/proc/self/stat`: USER_HZ is 100 on every machine that this runs on.
const TICKS_A_SECOND: f64 = 100.0;

/// The process, and the build that it runs.
pub struct Process {
    pub registry: Registry,
    cpu: counter::Counter<f64, std::sync::atomic::AtomicU64>,
    resident: Gauge,
    descriptors: Gauge,
    most_descriptors: Gauge,
    /// One looks at a time, so that the time of the CPU never goes back.
    looking: Mutex<()>,
}

impl Process {
    /// `component`: what the process is (coordinator, worker, up).
    pub fn new(component: &'static str, version: &'static str) -> Self {
        let mut registry = Registry::default();
        let build = registry.gauges(
            "berth_build_info",
            &["component", "version"],
            "Which build this is; the value is always 1",
        );
        build.set([component, version], 1.0);
        let cpu = counter::Counter::default();
        let help = "CPU time of this process, user and system; of its children nothing";
        registry.declare("process_cpu_seconds_total", Kind::Counter, &[], help, cpu.clone());
        let start = registry.gauge("process_start_time_seconds", "When the process started, since 1970");
        start.set(started().unwrap_or_default());
        Self {
            cpu,
            resident: registry.gauge("process_resident_memory_bytes", "Memory of the process that is in RAM"),
            descriptors: registry.gauge("process_open_fds", "File descriptors that are open"),
            most_descriptors: registry.gauge("process_max_fds", "File descriptors that may be open"),
            looking: Mutex::default(),
            registry,
        }
    }

    /// Reads how it stands now.
    pub fn look(&self) {
        let _alone = self.looking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(stat) = stat() {
            let ticks = |field| {
                stat.get(field).and_then(|ticks: &String| ticks.parse::<f64>().ok()).unwrap_or_default()
            };
            let cpu = (ticks(UTIME) + ticks(STIME)) / TICKS_A_SECOND;
            self.cpu.inner().store(cpu.to_bits(), std::sync::atomic::Ordering::Relaxed);
        }
        let resident = number_in("/proc/self/status", "VmRSS:").map(|kib| kib * 1024.0);
        resident.into_iter().for_each(|bytes| self.resident.set(bytes));
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // Of these one is this look's own.
            self.descriptors.set(open.count().saturating_sub(1) as f64);
        }
        let most = number_in("/proc/self/limits", "Max open files");
        most.into_iter().for_each(|most| self.most_descriptors.set(most));
    }
}

/// Numbers of fields behind the program's name, which may hold anything.
const UTIME: usize = 11;
const STIME: usize = 12;
const STARTED: usize = 19;

fn stat() -> Option<Vec<String>> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn started() -> Option<f64> {
    let since_boot = stat()?.get(STARTED)?.parse::<f64>().ok()? / TICKS_A_SECOND;
    Some(number_in("/proc/stat", "btime")? + since_boot)
}

/// The first number behind this word.
fn number_in(path: &str, word: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a field's number is wrong: the start is not this year then, or the time is none.
    #[test]
    fn a_process_knows_itself() {
        let process = Process::new("test", "1.2.3");
        // The kernel counts in hundredths; a test that never gets there is ended by its runner.
        while process.cpu.get() == 0.0 {
            process.look();
        }
        let text = crate::text([&process.registry]);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("{name}: {text}"))
        };
        assert!(text.contains("berth_build_info{component=\"test\",version=\"1.2.3\"} 1.0\n"), "{text}");
        assert!(value("process_cpu_seconds_total") > 0.0 && value("process_cpu_seconds_total") < 3600.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        assert!((now.as_secs_f64() - value("process_start_time_seconds")).abs() < 3600.0, "{text}");
    }
}
