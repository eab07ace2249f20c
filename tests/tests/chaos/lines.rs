//! Lines that a task writes, and what they prove: each is numbered and has a checksum over all of it.

use std::collections::BTreeMap;

/// CRC-32 as in zlib.
pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    };
    !bytes.iter().fold(!0, step)
}

/// The text of a line, if its checksum fits.
pub fn checked(line: &str) -> Option<&str> {
    let (text, sum) = line.rsplit_once(' ')?;
    (sum.parse() == Ok(crc32(text.as_bytes()))).then_some(text)
}

/// A line of the log that a session keeps: [`super::moving`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// From 0 on, without a gap, over all tasks of the session.
    pub number: u64,
    /// Drawn by each process that writes.
    pub run: String,
    /// Nanoseconds since 1970.
    pub wall: u64,
    /// Nanoseconds since the machine started: the same clock in all sandboxes.
    pub boot: u64,
}

impl Entry {
    pub fn read(line: &str) -> Option<Self> {
        let mut fields = checked(line)?.split(' ');
        let mut next = || fields.next();
        Some(Self {
            number: next()?.parse().ok()?,
            run: next()?.to_owned(),
            wall: next()?.parse().ok()?,
            boot: next()?.parse().ok()?,
        })
    }
}

/// A whole log. `Err`: what is wrong with it.
pub fn read_log(text: &str) -> Result<Vec<Entry>, String> {
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("its last line is torn".to_owned());
    }
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match Entry::read(line) {
            Some(entry) if entry.number == number as u64 => entries.push(entry),
            Some(entry) => return Err(format!("line {number} has the number {}", entry.number)),
            None => return Err(format!("line {number} is damaged: {line:?}")),
        }
    }
    Ok(entries)
}

/// Two runs that wrote at the same time: each session's runs come one after the other.
pub fn overlap<'a>(entries: impl Iterator<Item = &'a Entry>) -> Option<String> {
    let mut spans: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for entry in entries {
        let span = spans.entry(&entry.run).or_insert((entry.boot, entry.boot));
        *span = (span.0.min(entry.boot), span.1.max(entry.boot));
    }
    let mut spans: Vec<_> = spans.into_iter().map(|(run, (from, to))| (from, to, run)).collect();
    spans.sort_unstable();
    let both = spans.windows(2).find(|pair| pair[1].0 <= pair[0].1)?;
    let by = (both[0].1 - both[1].0) / 1_000_000;
    Some(format!("runs {} and {} wrote at the same time, for {by} ms", both[0].2, both[1].2))
}

#[test]
fn a_log_is_read_and_what_is_wrong_with_it_is_told() {
    let line = |number: u64, run: &str, at: u64| {
        let text = format!("{number} {run} {at} {at}");
        format!("{text} {}\n", crc32(text.as_bytes()))
    };
    let whole = [line(0, "a", 10), line(1, "a", 20), line(2, "b", 30)].concat();
    let entries = read_log(&whole).expect("it is whole");
    assert_eq!((entries.len(), overlap(entries.iter())), (3, None));
    assert!(read_log(&whole[..whole.len() - 1]).is_err(), "torn");
    assert!(read_log(&whole.replace("1 a 20", "1 a 21")).is_err(), "damaged");
    assert!(read_log(&[line(0, "a", 1), line(2, "a", 2)].concat()).is_err(), "a gap");
    let both = read_log(&[line(0, "a", 10), line(1, "b", 15), line(2, "a", 20)].concat()).expect("whole");
    assert!(overlap(both.iter()).is_some());
}
