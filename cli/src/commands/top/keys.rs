//! What the keys do: which sessions are seen, and in which order.

use std::cmp::Ordering;

use berth_client::SessionId;

use super::{
    Sort,
    look::{Look, Row},
};
use crate::select;

/// A key that means something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    Quit,
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Sort,
    Reverse,
}

impl Key {
    /// What was typed, as terminals send it. Of keys that mean nothing here nothing is left.
    pub fn of(mut typed: &[u8]) -> Vec<Self> {
        const KEYS: [(&[u8], Key); 20] = [
            (b"\x1b[A", Key::Up),
            (b"\x1bOA", Key::Up),
            (b"k", Key::Up),
            (b"\x1b[B", Key::Down),
            (b"\x1bOB", Key::Down),
            (b"j", Key::Down),
            (b"\x1b[5~", Key::PageUp),
            (b"\x1b[6~", Key::PageDown),
            (b" ", Key::PageDown),
            (b"\x1b[H", Key::First),
            (b"\x1b[1~", Key::First),
            (b"\x1b[F", Key::Last),
            (b"\x1b[4~", Key::Last),
            (b"\x1b[C", Key::Sort),
            (b"s", Key::Sort),
            (b"r", Key::Reverse),
            (b"q", Key::Quit),
            (b"Q", Key::Quit),
            // Ctrl-C and Ctrl-D: the terminal is raw.
            (b"\x03", Key::Quit),
            (b"\x04", Key::Quit),
        ];
        let mut keys = Vec::new();
        while !typed.is_empty() {
            match KEYS.into_iter().find(|(sent, _)| typed.starts_with(sent)) {
                Some((sent, key)) => {
                    keys.push(key);
                    typed = &typed[sent.len()..];
                }
                None => typed = &typed[unknown(typed)..],
            }
        }
        keys
    }
}

/// The length of a key that means nothing: a whole sequence, so that its last letter is not taken for a key.
fn unknown(typed: &[u8]) -> usize {
    match typed {
        [0x1b, b'[', rest @ ..] => {
            rest.iter().position(|byte| (0x40..=0x7e).contains(byte)).map_or(typed.len(), |end| end + 3)
        }
        [0x1b, b'O', _, ..] => 3,
        [0x1b, _, ..] => 2,
        _ => 1,
    }
}

/// What is seen of the sessions.
pub struct Screen {
    pub sort: Sort,
    pub reverse: bool,
    /// The row that is marked.
    pub marked: usize,
    /// The first row that is seen, and how many there is room for.
    pub first: usize,
    pub room: usize,
}

impl Screen {
    pub fn new(sort: Sort) -> Self {
        Self { sort, reverse: false, marked: 0, first: 0, room: 50 }
    }

    pub fn press(&mut self, key: Key) {
        let page = self.room.max(1);
        match key {
            Key::Quit => {}
            Key::Up => self.marked = self.marked.saturating_sub(1),
            Key::Down => self.marked = self.marked.saturating_add(1),
            Key::PageUp => self.marked = self.marked.saturating_sub(page),
            Key::PageDown => self.marked = self.marked.saturating_add(page),
            Key::First => self.marked = 0,
            Key::Last => self.marked = usize::MAX,
            Key::Reverse => self.reverse = !self.reverse,
            Key::Sort => {
                self.sort = match self.sort {
                    Sort::Cpu => Sort::Memory,
                    Sort::Memory => Sort::Tasks,
                    Sort::Tasks => Sort::Age,
                    Sort::Age => Sort::Name,
                    Sort::Name => Sort::Cpu,
                }
            }
        }
    }

    /// Keeps the mark among so many rows, and in sight.
    pub fn settle(&mut self, rows: usize, room: usize) {
        self.room = room;
        self.marked = self.marked.min(rows.saturating_sub(1));
        self.first = self.first.min(self.marked).max((self.marked + 1).saturating_sub(room));
        self.first = self.first.min(rows.saturating_sub(room));
    }

    /// The rows in order.
    pub fn sorted<'a>(&self, look: &'a Look) -> Vec<&'a Row> {
        let mut rows: Vec<&Row> = look.sessions.iter().collect();
        // Ids grow with time: what is alike is in the order in which it came.
        rows.sort_by(|a, b| {
            let order = self.order(a, b).then_with(|| b.session.id.cmp(&a.session.id));
            if self.reverse { order.reverse() } else { order }
        });
        rows
    }

    fn order(&self, a: &Row, b: &Row) -> Ordering {
        let memory = |row: &Row| row.usage.as_ref().and_then(|usage| usage.memory_bytes);
        let tasks = |row: &Row| row.usage.as_ref().map(|usage| usage.tasks);
        match self.sort {
            Sort::Cpu => b.cpu.unwrap_or(-1.0).total_cmp(&a.cpu.unwrap_or(-1.0)),
            Sort::Memory => memory(b).cmp(&memory(a)),
            Sort::Tasks => tasks(b).cmp(&tasks(a)),
            Sort::Age => Ordering::Equal,
            Sort::Name => name(a).cmp(name(b)),
        }
    }

    /// Whose usage is asked for next: what is in sight. By what they take all of them can only be sorted if all are asked,
    /// so of a fleet that is small enough all are.
    pub fn visible(&self, look: Option<&Look>) -> Vec<SessionId> {
        let Some(look) = look else { return Vec::new() };
        let rows = self.sorted(look);
        let seen = match rows.len() <= super::MOST_ASKED {
            true => &rows[..],
            false => {
                let first = self.first.min(rows.len());
                &rows[first..(first + self.room).min(rows.len())]
            }
        };
        seen.iter().map(|row| row.session.id).collect()
    }
}

/// Without one it comes last.
fn name(row: &Row) -> &str {
    row.session.labels.get(select::NAME_LABEL).map_or("\u{10ffff}", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when the letter at the end of a key that means nothing is taken for one.
    #[test]
    fn keys_come_whole_and_several_at_once() {
        assert_eq!(Key::of(b"\x1b[A\x1b[6~sq"), [Key::Up, Key::PageDown, Key::Sort, Key::Quit]);
        assert_eq!(Key::of(b"\x1b[15~x\x1bOs\x1b[1;5q\x1b"), []);
        assert_eq!(Key::of(b"\x03"), [Key::Quit]);
    }

    #[test]
    fn the_mark_stays_among_the_rows_and_in_sight() {
        let mut screen = Screen::new(Sort::Age);
        screen.settle(100, 10);
        screen.press(Key::Last);
        screen.settle(100, 10);
        assert_eq!((screen.marked, screen.first), (99, 90));
        screen.press(Key::PageUp);
        screen.press(Key::Up);
        screen.settle(100, 10);
        assert_eq!((screen.marked, screen.first), (88, 88));
        screen.settle(3, 10);
        assert_eq!((screen.marked, screen.first), (2, 0));
        screen.settle(0, 10);
        assert_eq!((screen.marked, screen.first), (0, 0));
    }
}
