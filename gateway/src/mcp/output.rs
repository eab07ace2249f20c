//! What a program wrote, as much of it as an answer holds: the beginning, where most say what they are about, and the
//! end, where they say what came of it. The rest is counted and not kept, however much it is.

use std::collections::VecDeque;

use super::text;

/// A stream as it comes, kept to a size.
pub struct Kept {
    limit: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// Bytes that came, those that the worker no longer had included.
    total: u64,
}

impl Kept {
    /// At most `limit` bytes are kept: half of them from the beginning.
    pub fn new(limit: usize) -> Self {
        Self { limit, head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    pub fn push(&mut self, data: &[u8]) {
        self.total += data.len() as u64;
        let room = (self.limit / 2).saturating_sub(self.head.len()).min(data.len());
        let (first, rest) = data.split_at(room);
        self.head.extend_from_slice(first);
        let tail = self.limit - self.limit / 2;
        let rest = &rest[rest.len().saturating_sub(tail)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(tail);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    /// Bytes that can't be had any more.
    pub fn lost(&mut self, count: u64) {
        self.total += count;
    }

    /// The same with at most `limit` bytes of it.
    pub fn within(&self, limit: usize) -> Self {
        let mut less = Self::new(limit);
        let (first, last) = self.tail.as_slices();
        // Where nothing is left out head and tail are one.
        let head =
            if self.left_out() == 0 { [&self.head[..], first, last].concat() } else { self.head.clone() };
        less.head.extend_from_slice(&head[..head.len().min(limit / 2)]);
        let tail = if self.left_out() == 0 { &head[less.head.len()..] } else { &[first, last].concat()[..] };
        less.tail.extend(&tail[tail.len().saturating_sub(limit - limit / 2)..]);
        less.total = self.total;
        less
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes between beginning and end that are not here.
    pub fn left_out(&self) -> u64 {
        self.total - (self.head.len() + self.tail.len()) as u64
    }

    /// Where what was left out begins.
    pub fn gap(&self) -> u64 {
        self.head.len() as u64
    }

    /// The last line with something in it, for a word of progress.
    pub fn last_line(&self) -> String {
        let bytes: Vec<u8> = match self.tail.is_empty() {
            true => self.head.clone(),
            false => self.tail.iter().copied().collect(),
        };
        let recent = &bytes[bytes.len().saturating_sub(400)..];
        let line = recent.split(|b| *b == b'\n' || *b == b'\r').rfind(|line| !line.trim_ascii().is_empty());
        text::clipped(&String::from_utf8_lossy(line.unwrap_or_default()), 160)
    }

    /// As text to read. `how` names the tool call that reads what was left out.
    pub fn text(&self, how: impl FnOnce(u64) -> String) -> String {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        match self.left_out() {
            0 => text::readable(&[&self.head[..], &tail].concat()),
            bytes => format!(
                "{}\n[… {bytes} bytes are left out here; {} …]\n{}",
                text::readable(&self.head),
                how(self.gap()),
                text::readable(&tail)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when the tail is not bounded, or when a byte is counted twice.
    #[test]
    fn beginning_and_end_are_kept_and_the_rest_is_counted() {
        let mut kept = Kept::new(8);
        for piece in [&b"abc"[..], b"defgh", b"ij", &[b'x'; 1000], b"yz"] {
            kept.push(piece);
        }
        assert_eq!((kept.total(), kept.left_out(), kept.gap()), (1012, 1004, 4));
        assert_eq!(
            kept.text(|at| format!("from {at}")),
            "abcd\n[… 1004 bytes are left out here; from 4 …]\nxxyz"
        );
        assert!(kept.tail.len() <= 4);
    }

    /// Red when what is told of less is not what were kept of less.
    #[test]
    fn less_is_told_as_if_no_more_had_been_kept() {
        for length in [0, 3, 8, 9, 16, 17, 40] {
            let data: Vec<u8> = (0..length).map(|n| b'a' + n % 26).collect();
            let of = |limit| {
                let mut kept = Kept::new(limit);
                kept.push(&data);
                kept
            };
            for limit in 1..=16 {
                let (less, same) = (of(16).within(limit), of(limit));
                assert_eq!(
                    (less.total(), less.left_out(), less.gap()),
                    (same.total(), same.left_out(), same.gap())
                );
                let how = |at: u64| at.to_string();
                assert_eq!(less.text(how), same.text(how), "{length} within {limit}");
            }
        }
    }

    #[test]
    fn what_fits_is_whole_also_where_a_character_is_cut_by_pieces() {
        let mut kept = Kept::new(8);
        for byte in "a€bc".bytes() {
            kept.push(&[byte]);
        }
        assert_eq!(kept.text(|_| unreachable!()), "a€bc");
    }
}
