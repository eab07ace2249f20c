//! Samples, their median and p99, and the table that shows them.

use std::{collections::BTreeMap, time::Duration};

use comfy_table::{CellAlignment, presets::ASCII_MARKDOWN};

pub struct Table {
    title: &'static str,
    rows: Vec<&'static str>,
    columns: Vec<String>,
    /// (row, column) → text.
    cells: BTreeMap<(String, String), String>,
    notes: Vec<String>,
}

impl Table {
    /// Its rows are what is measured, in their order.
    pub fn new(title: &'static str, rows: impl IntoIterator<Item = &'static str>) -> Self {
        let rows = rows.into_iter().collect();
        Self { title, rows, columns: Vec::new(), cells: BTreeMap::new(), notes: Vec::new() }
    }

    /// A peer that is not measured, and why.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        eprintln!("{text}");
        self.notes.push(text);
    }

    pub fn add(&mut self, row: &str, column: &str, samples: Vec<Duration>) {
        assert!(self.rows.contains(&row), "{row:?} is no row");
        if samples.is_empty() {
            return;
        }
        if !self.columns.iter().any(|c| c == column) {
            self.columns.push(column.to_owned());
        }
        let (median, p99) = summary(samples);
        let text = format!("{} / {}", millis(median), millis(p99));
        eprintln!("{column}: {row}: {text}");
        self.cells.insert((row.to_owned(), column.to_owned()), text);
    }

    pub fn print(&self) {
        let mut table = comfy_table::Table::new();
        table.load_style(ASCII_MARKDOWN);
        let mut header = vec![format!("{}p50 / p99, ms", self.title)];
        header.extend(self.columns.clone());
        table.set_header(header);
        for &row in &self.rows {
            let cell = |column: &String| self.cells.get(&(row.to_owned(), column.clone())).cloned();
            let cells = self.columns.iter().map(|column| cell(column).unwrap_or_else(|| "-".into()));
            table.add_row(std::iter::once(row.to_owned()).chain(cells));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
        for note in &self.notes {
            println!("{note}");
        }
    }
}

/// Median and 99th percentile in words, for a note.
pub fn summary_of(samples: Vec<Duration>) -> String {
    let (median, p99) = summary(samples);
    format!("p50 {} ms, p99 {} ms", millis(median), millis(p99))
}

fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 10.0 { format!("{millis:.2}") } else { format!("{millis:.0}") }
}

/// Median and 99th percentile, nearest rank.
fn summary(mut samples: Vec<Duration>) -> (Duration, Duration) {
    samples.sort_unstable();
    let rank = |p: f64| samples[((samples.len() as f64 * p).ceil() as usize).clamp(1, samples.len()) - 1];
    (rank(0.5), rank(0.99))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let samples = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(summary(samples), (Duration::from_millis(50), Duration::from_millis(99)));
        assert_eq!(summary(vec![Duration::from_secs(1)]).1, Duration::from_secs(1));
    }
}
