//! What a component tells at `/metrics`, read strictly: a line that is neither a comment nor a sample fails the test.

use std::collections::{BTreeMap, BTreeSet};

use berth_tests::{READY, http::Http, until};

/// One answer.
#[derive(Debug, Default)]
pub struct Scrape {
    pub text: String,
    /// What is declared, without `_total`, and its type.
    pub families: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Where it is served, as the log says.
pub async fn address(log: impl Fn() -> String) -> String {
    until(READY, "the port for metrics", async || {
        let log = log();
        let (_, rest) = log.rsplit_once("metrics are served on http://")?;
        rest.split_once("/metrics").map(|(address, _)| address.to_owned())
    })
    .await
}

/// Asks there, without a token.
pub async fn get(address: &str, path: &str) -> (u16, String) {
    let http = Http::new(address, "none").with("Authorization", "");
    let reply = http.send("GET", path, "").await;
    (reply.status, reply.body)
}

pub async fn scrape(address: &str) -> Scrape {
    let http = Http::new(address, "none").with("Authorization", "");
    let reply = http.send("GET", "/metrics", "").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.headers["content-type"].starts_with("application/openmetrics-text"), "{reply:?}");
    Scrape::read(reply.body)
}

impl Scrape {
    pub fn read(text: String) -> Self {
        let (mut families, mut samples) = (BTreeMap::new(), Vec::new());
        let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end:\n{text}"));
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                let before = families.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "{name} is told twice:\n{text}");
            } else if !line.starts_with("# HELP ") {
                samples.push(Sample::read(line));
            }
        }
        for sample in &samples {
            assert!(families.contains_key(sample.family(&families)), "{sample:?} is of nothing declared");
        }
        Self { families, samples, text }
    }

    /// The sum of a metric's samples with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            let of = |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|v| v == value);
            sample.name == name && labels.iter().all(of)
        };
        // Of no samples at all it would be -0.
        self.samples.iter().filter(has).map(|sample| sample.value).sum::<f64>() + 0.0
    }
}

impl Sample {
    fn read(line: &str) -> Self {
        let bad = || panic!("no sample: {line}");
        let (head, value) = line.rsplit_once(' ').unwrap_or_else(bad);
        let (name, inside) = match head.split_once('{') {
            Some((name, rest)) => {
                (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("no sample: {line}")))
            }
            None => (head, ""),
        };
        let label = |pair: &str| {
            let (label, value) = pair.split_once("=\"")?;
            Some((label.to_owned(), value.strip_suffix('"')?.to_owned()))
        };
        let pairs = inside.split(',').filter(|pair| !pair.is_empty());
        let labels =
            pairs.map(|pair| label(pair).unwrap_or_else(|| panic!("no label {pair}: {line}"))).collect();
        let value = value.parse().unwrap_or_else(|_| panic!("no value: {line}"));
        Self { name: name.to_owned(), labels, value }
    }

    /// Which of what is declared it belongs to.
    pub fn family<'a>(&'a self, families: &BTreeMap<String, String>) -> &'a str {
        let of = |suffix: &str| self.name.strip_suffix(suffix).filter(|name| families.contains_key(*name));
        ["_total", "_bucket", "_sum", "_count"].iter().find_map(|suffix| of(suffix)).unwrap_or(&self.name)
    }
}

/// All that several scrapes of several components told.
#[derive(Debug, Default)]
pub struct Seen {
    pub declared: BTreeSet<String>,
    /// Of these a sample was not 0.
    pub recorded: BTreeSet<String>,
    /// Names of samples, each with the labels that it has.
    pub series: BTreeMap<String, BTreeSet<String>>,
}

impl Seen {
    pub fn add(&mut self, scrape: &Scrape) {
        self.declared.extend(scrape.families.keys().cloned());
        for sample in &scrape.samples {
            if sample.value != 0.0 {
                self.recorded.insert(sample.family(&scrape.families).to_owned());
            }
            self.series.entry(sample.name.clone()).or_default().extend(sample.labels.keys().cloned());
        }
    }

    /// Declared, and never anything but 0.
    pub fn silent(&self) -> Vec<&str> {
        self.declared.difference(&self.recorded).map(String::as_str).collect()
    }
}
