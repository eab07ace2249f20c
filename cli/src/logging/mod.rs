//! Logs: text on a terminal, JSON lines elsewhere, always on stderr. The transport's
//! own talk (h2, hyper, tonic) only when something is wrong with it.
//!
//! Where JSON was asked for by name, a component prints nothing else: not when it is ready, nor when it can't start, nor
//! when it panics.

pub mod json;

use std::{
    io::{self, IsTerminal},
    sync::atomic::{AtomicBool, Ordering},
};

use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt::{self, format::JsonFields},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use self::json::{Json, Line};
use crate::{failure::Failure, output};

/// Whether JSON was asked for by name.
static ONLY_JSON: AtomicBool = AtomicBool::new(false);

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum LogLevel {
    Off,
    Error,
    #[value(alias = "warning")]
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Off => LevelFilter::OFF,
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

/// Settings of the log, the same for every command that logs.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct LogArgs {
    /// How much to log
    #[arg(long, env = crate::env::LOG_LEVEL, value_enum, ignore_case = true, default_value_t, value_name = "LEVEL")]
    pub log_level: LogLevel,

    /// How log lines look [default: text on a terminal, else json]
    #[arg(long, env = crate::env::BERTH_LOG_FORMAT, value_enum, ignore_case = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

fn filter(level: LogLevel) -> Targets {
    let level = level.filter();
    let quiet = level.min(LevelFilter::WARN);
    ["h2", "hyper", "hyper_util", "tonic", "tower", "rustls", "bollard", "sqlx", "rmcp"]
        .into_iter()
        .fold(Targets::new().with_default(level), |targets, name| targets.with_target(name, quiet))
}

/// Looks whether JSON is asked for by name, before anything is parsed: also what is wrong with the settings is told so.
pub fn look(args: impl Iterator<Item = std::ffi::OsString>) {
    let is_json = |value: &std::ffi::OsStr| value.eq_ignore_ascii_case("json");
    let args: Vec<_> = args.collect();
    let mut asked = std::env::var_os(crate::env::BERTH_LOG_FORMAT).is_some_and(|value| is_json(&value));
    for (n, arg) in args.iter().enumerate() {
        if arg == "--log-format" {
            asked = args.get(n + 1).is_some_and(|value| is_json(value));
        } else if let Some(value) = arg.to_str().and_then(|arg| arg.strip_prefix("--log-format=")) {
            asked = is_json(value.as_ref());
        }
    }
    ONLY_JSON.store(asked, Ordering::Relaxed);
}

/// What is printed is for whoever asks, and no log.
pub fn answers() {
    ONLY_JSON.store(false, Ordering::Relaxed);
}

/// Whether what a component prints is JSON, all of it.
pub fn only_json() -> bool {
    ONLY_JSON.load(Ordering::Relaxed)
}

/// What a component says when it fails: as a line of its log.
pub fn fail(message: &str, hints: &[String]) {
    let mut line = Line::new("error", message);
    if !hints.is_empty() {
        line.fields.insert("hint".to_owned(), hints.join("\n").into());
    }
    output::say_json(&line);
}

/// A panic is a line of the log too.
fn tell_of_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let said = panic.payload_as_str().unwrap_or("it says nothing of why");
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => Some(backtrace.to_string()),
            _ => None,
        };
        tracing::error!(
            location = panic.location().map(ToString::to_string),
            thread = thread.name(),
            backtrace,
            "a thread panicked: {said}"
        );
    }));
}

/// Starts logging. Once a process; a second call changes nothing.
pub fn start(args: LogArgs) {
    let terminal = std::io::stderr().is_terminal();
    let format = args.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let layer = match format {
        LogFormat::Text => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(terminal && crate::output::colors_wanted())
            .with_target(false)
            .boxed(),
        LogFormat::Json => {
            fmt::layer().fmt_fields(JsonFields::new()).event_format(Json).with_writer(std::io::stderr).boxed()
        }
    };
    init(layer, args.log_level);
}

fn init(layer: Box<dyn Layer<Registry> + Send + Sync>, level: LogLevel) {
    if tracing_subscriber::registry().with(layer.with_filter(filter(level))).try_init().is_ok() {
        tell_of_panics();
    }
}

/// Starts logging to a file that is turned over when it is full: JSON lines unless text is
/// asked for. One older file is kept beside it.
pub fn start_in_file(args: LogArgs, path: &std::path::Path) -> Result<(), Failure> {
    let file = Capped::open(path.to_owned(), LOG_CAP).map_err(|error| Failure::io(path.display(), error))?;
    // With what wrote a line: `berth logs worker` goes by it.
    let layer = fmt::layer().with_ansi(false).with_writer(std::sync::Mutex::new(file));
    let layer = match args.log_format {
        Some(LogFormat::Json) => layer.fmt_fields(JsonFields::new()).event_format(Json).boxed(),
        Some(LogFormat::Text) | None => layer.boxed(),
    };
    init(layer, args.log_level);
    Ok(())
}

/// Bytes of a log file at which it is turned over.
const LOG_CAP: u64 = 16 << 20;

/// A file that becomes `<name>.1` when it is full.
struct Capped {
    path: std::path::PathBuf,
    file: std::fs::File,
    written: u64,
    cap: u64,
}

impl Capped {
    fn open(path: std::path::PathBuf, cap: u64) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, cap })
    }

    fn turn_over(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)?;
        *self = Self::open(std::mem::take(&mut self.path), self.cap)?;
        Ok(())
    }
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.cap {
            // A full disk or a vanished directory is no reason to lose the line.
            let path = self.path.clone();
            if self.turn_over().is_err() {
                self.path = path;
            }
        }
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_full_log_is_turned_over_once() {
        let dir = std::env::temp_dir().join(format!("berth-log-{}", berth_client::TaskId::new()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("berth.log");
        let mut log = Capped::open(path.clone(), 10).unwrap();
        for line in ["first line\n", "second line\n", "third\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third\n");
        assert_eq!(std::fs::read_to_string(dir.join("berth.log.1")).unwrap(), "second line\n");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
