//! Templates: what a session is made from, by name. A TOML file, read once and strictly:
//! an unknown key is an error that names its line, because a misspelt limit that is
//! silently ignored is worse than none.
//!
//! ```toml
//! [[template]]
//! name = "python"
//! description = "Python 3 with the usual packages"
//! image = "berth-sandbox"          # docker; or root = "/srv/roots/python" for native
//! limits = { cpu_millis = 2000, memory = "1GiB", disk = "4GiB", pids = 512 }
//! ttl = "2h"                        # "0" is no end
//! tasks = { timeout = "10m" }
//! ```
//!
//! `base` is always there; a template of that name in the file takes its place whole. What
//! any template leaves out of limits, life span, account and task defaults is as in the
//! built-in `base`, never as in one of the file; its description, root, image and env are
//! empty then, and its backend is `auto`.

use std::{collections::BTreeMap, path::Path, time::Duration};

use berth_proto::{
    Error, Reason,
    convert::bounds,
    domain::{BackendChoice, Egress, Labels, Limits, PtySize, TaskDefaults, TaskDefaultsPatch, TemplateSpec},
    v1,
};
use serde::{Deserialize, Deserializer, de};

/// A template, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub spec: TemplateSpec,
    pub description: String,
    pub limits: Limits,
    pub env: Labels,
    pub ttl: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// What it leaves out is the worker's.
    pub task_defaults: TaskDefaultsPatch,
    pub egress: Egress,
}

impl Template {
    /// What is there without any file: the backend's own root (native: the host's `/usr`;
    /// docker: the worker's default image), so what is in it differs by worker. The limits suit a small agent; the TTL is what ends
    /// a session that everybody forgot.
    pub fn base() -> Self {
        Self {
            spec: TemplateSpec {
                name: "base".to_owned(),
                root: None,
                image: None,
                backend: BackendChoice::Auto,
                user: "user".to_owned(),
            },
            description: "A Linux userland with a shell, and Python where the root has it".to_owned(),
            limits: Limits { cpu_millis: 1000, memory_bytes: 512 << 20, disk_bytes: 1 << 30, pids: 256 },
            env: Labels::new(),
            ttl: Some(Duration::from_secs(3600)),
            idle_timeout: None,
            task_defaults: TaskDefaultsPatch::default(),
            egress: Egress::default(),
        }
    }
}

/// All templates by name.
#[derive(Clone, Debug)]
pub struct Templates(BTreeMap<String, Template>);

impl Default for Templates {
    fn default() -> Self {
        Self(BTreeMap::from([("base".to_owned(), Template::base())]))
    }
}

impl Templates {
    /// Reads a file. The error is for the operator: it names the file and the place.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        let mut templates = Self::default();
        let mut seen = std::collections::BTreeSet::new();
        for entry in file.template {
            let name = entry.name.clone();
            if !seen.insert(name.clone()) {
                return Err(format!("template {name:?} stands there twice"));
            }
            let template = entry.complete().map_err(|e| format!("template {name:?}: {e}"))?;
            templates.0.insert(name, template);
        }
        Ok(templates)
    }

    pub fn get(&self, name: &str) -> Result<&Template, Error> {
        self.0.get(name).ok_or_else(|| {
            let names: Vec<_> = self.0.keys().map(String::as_str).collect();
            Error::not_found(Reason::TemplateNotFound, format!("no template is called {name:?}"))
                .hint(format!("there are: {}", names.join(", ")))
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Template> {
        self.0.values()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    template: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    description: Option<String>,
    root: Option<String>,
    image: Option<String>,
    backend: Option<String>,
    #[serde(default)]
    limits: LimitsEntry,
    #[serde(default)]
    env: Labels,
    user: Option<String>,
    egress: Option<String>,
    #[serde(default)]
    egress_allow: Vec<String>,
    ttl: Option<Span>,
    idle_timeout: Option<Span>,
    #[serde(default)]
    tasks: TasksEntry,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct LimitsEntry {
    cpu_millis: Option<u32>,
    memory: Option<Size>,
    disk: Option<Size>,
    pids: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TasksEntry {
    timeout: Option<Span>,
    max_concurrent: Option<u32>,
    pty_cols: Option<u16>,
    pty_rows: Option<u16>,
}

impl Entry {
    fn complete(self) -> Result<Template, String> {
        let base = Template::base();
        let named = |text: &str| {
            (1..=63).contains(&text.len())
                && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
        };
        if !named(&self.name) {
            return Err("a name is 1 to 63 of a-z 0-9 - . _".to_owned());
        }
        let egress = v1::Egress { preset: self.egress.unwrap_or_default(), allow: self.egress_allow };
        let egress = Egress::try_from(egress).map_err(|e| e.to_string())?;
        if self.root.as_deref().is_some_and(|root| !root.starts_with('/')) {
            return Err("root: must be an absolute path on the worker".to_owned());
        }
        let backend = self.backend.as_deref().unwrap_or("auto").parse().map_err(|e: Error| e.to_string())?;
        let user = self.user.unwrap_or(base.spec.user);
        if user == "root" || !named(&user) {
            return Err(format!("user: {user:?} can't be the account of tasks"));
        }
        let env =
            berth_proto::convert::env("env", self.env.into_iter().collect()).map_err(|e| e.to_string())?;
        Ok(Template {
            spec: TemplateSpec { name: self.name, root: self.root, image: self.image, backend, user },
            description: self.description.unwrap_or_default(),
            limits: limits(self.limits, base.limits)?,
            env,
            ttl: self.ttl.map_or(base.ttl, |Span(span)| some(span)),
            idle_timeout: self.idle_timeout.map_or(base.idle_timeout, |Span(span)| some(span)),
            task_defaults: tasks(&self.tasks)?,
            egress,
        })
    }
}

/// Zero is "no limit".
fn some(span: Duration) -> Option<Duration> {
    (!span.is_zero()).then_some(span)
}

fn limits(entry: LimitsEntry, base: Limits) -> Result<Limits, String> {
    let limits = Limits {
        cpu_millis: entry.cpu_millis.unwrap_or(base.cpu_millis),
        memory_bytes: entry.memory.map_or(base.memory_bytes, |Size(bytes)| bytes),
        disk_bytes: entry.disk.map_or(base.disk_bytes, |Size(bytes)| bytes),
        pids: entry.pids.unwrap_or(base.pids),
    };
    let figures = [
        (
            "cpu_millis",
            limits.cpu_millis.into(),
            bounds::CPU_MILLIS_MIN.into(),
            bounds::CPU_MILLIS_MAX.into(),
        ),
        ("memory", limits.memory_bytes, bounds::MEMORY_MIN, bounds::MEMORY_MAX),
        ("disk", limits.disk_bytes, bounds::DISK_MIN, bounds::DISK_MAX),
        ("pids", limits.pids.into(), bounds::PIDS_MIN.into(), bounds::PIDS_MAX.into()),
    ];
    figures.into_iter().try_for_each(|(name, value, least, most)| within(name, value, least, most))?;
    Ok(limits)
}

fn within(name: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if value < least {
        return Err(format!("limits.{name}: {value} is less than the least, {least}"));
    }
    if value > most {
        return Err(format!("limits.{name}: {value} is more than the most, {most}"));
    }
    Ok(())
}

fn tasks(entry: &TasksEntry) -> Result<TaskDefaultsPatch, String> {
    if entry.max_concurrent.is_some_and(|most| most > bounds::CONCURRENT_MAX) {
        return Err(format!("tasks.max_concurrent: at most {}", bounds::CONCURRENT_MAX));
    }
    if entry.max_concurrent == Some(0) || entry.pty_cols == Some(0) || entry.pty_rows == Some(0) {
        return Err("tasks: max_concurrent, pty_cols and pty_rows must be at least 1".to_owned());
    }
    let usual = TaskDefaults::default().pty_size;
    let sized = entry.pty_cols.is_some() || entry.pty_rows.is_some();
    Ok(TaskDefaultsPatch {
        timeout: entry.timeout.as_ref().map(|Span(span)| some(*span)),
        pty_size: sized.then(|| PtySize {
            cols: entry.pty_cols.unwrap_or(usual.cols),
            rows: entry.pty_rows.unwrap_or(usual.rows),
        }),
        max_concurrent: entry.max_concurrent,
    })
}

/// Bytes: a number, or a number with KiB, MiB, GiB or TiB.
struct Size(u64);

/// A time span: "90s", "15m", "2h", "1d", or whole seconds.
struct Span(Duration);

#[derive(Deserialize)]
#[serde(untagged)]
enum Figure {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const UNITS: [(&str, u64); 5] =
            [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("", 1)];
        match Figure::deserialize(deserializer)? {
            Figure::Number(bytes) => Ok(Self(bytes)),
            Figure::Text(text) => with_unit(&text, &UNITS)
                .map(Self)
                .ok_or_else(|| de::Error::custom(format!("{text:?} is no size: say 512MiB or 2GiB"))),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const UNITS: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("", 1)];
        let (shown, seconds) = match Figure::deserialize(deserializer)? {
            Figure::Number(seconds) => (seconds.to_string(), Some(seconds)),
            Figure::Text(text) => (text.clone(), with_unit(&text, &UNITS)),
        };
        seconds
            .map(Duration::from_secs)
            .filter(|span| *span <= bounds::DURATION_MAX)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("{shown:?} is no time span: say 90s, 15m, 2h or 1d")))
    }
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use berth_proto::domain::Preset;

    use super::*;

    #[test]
    fn a_file_adds_templates_and_may_replace_base() {
        let templates = Templates::parse(
            r#"
            [[template]]
            name = "python"
            image = "berth-sandbox"
            backend = "docker"
            limits = { memory = "1GiB", pids = 512 }
            ttl = "2h"
            idle_timeout = 600
            env = { A = "1" }
            egress = "packages"
            egress_allow = ["*.example.org"]
            tasks = { timeout = "0s", max_concurrent = 4 }
            [[template]]
            name = "base"
            limits = { cpu_millis = 500 }
            "#,
        )
        .unwrap();
        let python = templates.get("python").unwrap();
        assert_eq!(python.limits.memory_bytes, 1 << 30);
        assert_eq!(python.limits.cpu_millis, 1000);
        assert_eq!(python.ttl, Some(Duration::from_secs(7200)));
        assert_eq!(python.idle_timeout, Some(Duration::from_secs(600)));
        assert_eq!(python.task_defaults.timeout, Some(None));
        assert_eq!(python.egress.preset, Preset::Packages);
        assert_eq!(python.egress.allow, ["*.example.org".parse().unwrap()]);
        assert!(templates.get("base").unwrap().egress.is_none());
        assert_eq!(templates.get("base").unwrap().limits.cpu_millis, 500);
        assert_eq!(templates.get("nope").unwrap_err().reason(), Reason::TemplateNotFound);
    }

    #[test]
    fn what_is_left_out_is_as_in_the_built_in_base() {
        let text = "[[template]]\nname = \"base\"\nlimits = { pids = 9 }\n[[template]]\nname = \"x\"\n";
        let templates = Templates::parse(text).unwrap();
        let (built_in, base, x) =
            (Template::base(), templates.get("base").unwrap(), templates.get("x").unwrap());
        assert_eq!((base.limits.pids, x.limits), (9, built_in.limits), "not as in the file's base");
        for template in [base, x] {
            assert_eq!((template.ttl, template.idle_timeout), (built_in.ttl, built_in.idle_timeout));
            assert_eq!(template.task_defaults, built_in.task_defaults);
            assert_eq!(
                (&template.spec.user, template.spec.backend),
                (&built_in.spec.user, BackendChoice::Auto)
            );
            assert_eq!(template.description, "");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let problem = |text: &str| Templates::parse(text).expect_err("must be refused");
        let misspelt = problem("[[template]]\nname = \"x\"\nlimits = { memroy = \"1GiB\" }\n");
        assert!(misspelt.contains("line 3") && misspelt.contains("memroy"), "{misspelt}");
        assert!(problem("[[template]]\nname = \"x\"\negress = \"all\"\n").contains("egress.preset"));
        assert!(problem("[[template]]\nname = \"x\"\negress_allow = [\"a b\"]\n").contains("egress.allow"));
        assert!(problem("[[template]]\nname = \"x\"\nuser = \"root\"\n").contains("user"));
        assert!(problem("[[template]]\nname = \"X y\"\n").contains("name"));
        assert!(problem("[[template]]\nname = \"x\"\nbackend = \"kvm\"\n").contains("backend"));
        assert!(problem("[[template]]\nname = \"x\"\nlimits = { memory = \"1KiB\" }\n").contains("least"));
        assert!(problem("[[template]]\nname = \"x\"\nlimits = { pids = 4194305 }\n").contains("most"));
        assert!(problem("[[template]]\nname = \"x\"\nlimits = { disk = \"2000TiB\" }\n").contains("most"));
        assert!(problem("[[template]]\nname = \"x\"\nttl = \"2 weeks\"\n").contains("line 3"));
        assert!(problem("[[template]]\nname = \"x\"\n[[template]]\nname = \"x\"\n").contains("twice"));
    }
}
