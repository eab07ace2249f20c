//! A log line as one JSON object, for whoever collects logs: `timestamp` (RFC 3339, UTC), `level` (lower case), `msg`, and
//! whatever else is known, ids first of all: `sessionId`, `taskId`, `workerId`. Fields of the spans that a line is in are its
//! own.
//!
//! Our own, because the library's has other names for the first three, and puts spans' fields into objects of their own,
//! which most collectors can't search.

use std::{fmt, time::SystemTime};

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormattedFields,
        format::{JsonFields, Writer},
    },
    registry::LookupSpan,
};

/// Names that are the line's own: a field of such a name gets a `_` behind it.
const TAKEN: [&str; 3] = ["timestamp", "level", "msg"];

/// One line.
#[derive(Serialize)]
pub struct Line<'a> {
    timestamp: String,
    level: &'a str,
    pub msg: String,
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl<'a> Line<'a> {
    pub fn new(level: &'a str, msg: impl Into<String>) -> Self {
        Self {
            timestamp: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            level,
            msg: msg.into(),
            fields: Map::new(),
        }
    }

    fn take(&mut self, name: &str, value: Value) {
        self.fields.insert(key(name), value);
    }

    pub fn text(&self) -> String {
        // Strings, numbers and truths: nothing of it can't be JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// `task.id` is `taskId`.
fn key(name: &str) -> String {
    let mut words = name.split('.');
    let mut key = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        key.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        key.push_str(letters.as_str());
    }
    if TAKEN.contains(&key.as_str()) {
        key.push('_');
    }
    key
}

/// Formats events so.
pub struct Json;

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, JsonFields> for Json {
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let mut line = Line::new(&level, String::new());
        line.take("target", event.metadata().target().into());
        for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root)
        {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>();
            let fields = fields.and_then(|fields| serde_json::from_str(&fields.fields).ok());
            for (name, value) in fields.unwrap_or_else(Map::new) {
                line.take(&name, value);
            }
        }
        event.record(&mut line);
        writeln!(writer, "{}", line.text())
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.msg = text } else { self.take(field.name(), text.into()) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.msg)
        } else {
            self.take(field.name(), value.into())
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field.name(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::{fmt as layer, layer::SubscriberExt};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(what: impl FnOnce()) -> Vec<Value> {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = layer::layer()
            .fmt_fields(JsonFields::new())
            .event_format(Json)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), what);
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_is_an_object_with_ids_of_its_spans() {
        let lines = logged(|| {
            let span = tracing::info_span!("call", session.id = "s", task.id = "outer", n = 1);
            let _inside = span.enter();
            let _too = tracing::info_span!("inner", task.id = "t").entered();
            tracing::warn!(worker.id = %"w", level = "mine", ok = true, "said {}\n\"so\"", 5);
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        for (name, value) in [
            ("level", Value::from("warn")),
            ("msg", "said 5\n\"so\"".into()),
            ("sessionId", "s".into()),
            ("taskId", "t".into()),
            ("workerId", "w".into()),
            ("level_", "mine".into()),
            ("ok", true.into()),
            ("n", 1.into()),
        ] {
            assert_eq!(line[name], value, "{name}: {line}");
        }
        assert!(humantime::parse_rfc3339(line["timestamp"].as_str().unwrap()).is_ok(), "{line}");
    }

    /// Red without the hook: then the panic is plain text on stderr, and nothing of it is in the log.
    #[test]
    fn a_panic_is_a_line_of_the_log() {
        let before = std::panic::take_hook();
        let lines = logged(|| {
            super::super::tell_of_panics();
            let _ = std::panic::catch_unwind(|| panic!("it broke"));
        });
        std::panic::set_hook(before);
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!(
            (line["level"].as_str(), line["msg"].as_str()),
            (Some("error"), Some("a thread panicked: it broke"))
        );
        assert!(line["location"].as_str().unwrap().contains("json.rs:"), "{line}");
    }
}
