//! One record, and the sum that ties it to the one before it.

use std::{collections::BTreeMap, time::SystemTime};

use sha2::{Digest as _, Sha256};

use crate::auth::Digest;

/// Bytes of any one text in a record: more is cut.
const TEXT_MAX: usize = 512;

/// What Berth did by itself.
pub const BERTH: &str = "-";

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub at: SystemTime,
    pub who: String,
    pub tenant: String,
    pub what: String,
    pub session: String,
    pub task: String,
    pub outcome: String,
    pub details: BTreeMap<String, String>,
}

impl Record {
    /// What happened, and nothing else of it yet.
    pub fn new(at: SystemTime, who: &str, what: &str) -> Self {
        Self {
            at,
            who: who.to_owned(),
            tenant: String::new(),
            what: what.to_owned(),
            session: String::new(),
            task: String::new(),
            outcome: String::new(),
            details: BTreeMap::new(),
        }
    }

    /// With no text longer than is kept.
    pub fn bounded(mut self) -> Self {
        let Self { who, tenant, what, session, task, outcome, .. } = &mut self;
        for text in [who, tenant, what, session, task, outcome] {
            cut(text);
        }
        self.details.values_mut().for_each(cut);
        self
    }
}

fn cut(text: &mut String) {
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text.push('…');
    }
}

/// A row as it is stored; the sum is over exactly these.
pub struct Row<'a> {
    pub sequence: i64,
    pub at: i64,
    pub texts: [&'a str; 7],
}

/// Of a row and the sum of the one before it. Each text with its length before it, so that none runs into the next.
pub fn sum(before: &Digest, row: &Row<'_>) -> Digest {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(row.sequence.to_be_bytes());
    hash.update(row.at.to_be_bytes());
    for text in row.texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().into()
}
