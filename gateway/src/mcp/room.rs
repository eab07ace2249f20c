//! How large an answer may be, whatever it tells.
//!
//! Over HTTP an answer is one event of a stream, and the official Python SDK takes none above 1 MiB: it ends the call, and
//! nobody hears why. Other clients have bounds of that order, over standard input and output too. So what may be larger is told as
//! far as there is room ([`fitting`]), with the way to the rest; and nothing that is larger all the same is sent ([`bound`]).

use std::io::{self, Write};

use rmcp::model::{CallToolResult, ContentBlock};
use serde::Serialize;

use super::{problem::Problem, tool::Answer};

/// Bytes of an answer in JSON. What the protocol puts around it has room up to 1 MiB.
pub const MOST: usize = 1_000_000;
/// What is around an answer's data and text.
const AROUND: usize = 1000;

/// Bytes of it in JSON.
pub fn size(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

/// Whether it can be sent with `beside` bytes of other content.
pub fn has<R: Serialize>(answer: &Answer<R>, beside: usize) -> bool {
    needed(answer, beside) <= MOST
}

fn needed<R: Serialize>(answer: &Answer<R>, beside: usize) -> usize {
    size(&answer.data).saturating_add(size(&answer.text)).saturating_add(beside + AROUND)
}

/// The answer of what is told of at most `most` bytes or entries, or of as many as there is room for.
pub fn fitting<R: Serialize>(most: usize, beside: usize, tell: impl Fn(usize) -> Answer<R>) -> Answer<R> {
    let mut limit = most;
    loop {
        let answer = tell(limit);
        if limit <= 1 || has(&answer, beside) {
            return answer;
        }
        limit = less(limit, needed(&answer, beside));
    }
}

/// A limit that may do where with `limit` it were `needed`. It gets to one, and soon.
pub fn less(limit: usize, needed: usize) -> usize {
    let share = limit as u128 * MOST as u128 / needed.max(1) as u128;
    share.min(limit as u128 * 9 / 10).max(1) as usize
}

/// What is sent: the answer, if there is room for it; else without what is beside its text, or what to do about it.
pub fn bound(mut result: CallToolResult) -> CallToolResult {
    if size(&result) <= MOST {
        return result;
    }
    if result.content.len() > 1 {
        result.content.truncate(1);
        result.content.push(ContentBlock::text("[images and links are left out: there is no room for them]"));
    }
    match size(&result) {
        ..=MOST => result,
        bytes => too_large(bytes).into_result(),
    }
}

/// It is not sent.
pub fn too_large(bytes: usize) -> Problem {
    Problem::new(
        format!("the answer would have {bytes} bytes, more than {MOST}"),
        "ask for less: a part of it, or fewer entries",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, copies: usize) -> CallToolResult {
        CallToolResult::success(vec![ContentBlock::text(text); copies])
    }

    /// Red when an answer is larger than it may be, or smaller than it could be; or when text is counted as it is, and not as JSON
    /// has it.
    #[test]
    fn an_answer_has_as_much_as_there_is_room_for() {
        for piece in ["a", "\"", "\n", "\u{1}", "€"] {
            let all = piece.repeat(1 << 20);
            let answer = fitting(1 << 20, 0, |limit| {
                let data: String = all.chars().take(limit).collect();
                Answer { text: data.clone(), data }
            });
            let sent = size(&answer.data) + size(&answer.text);
            assert!(sent <= MOST && sent > MOST * 8 / 10, "{piece:?}: {sent}");
        }
        let few = fitting(3, 0, |limit| Answer { data: limit, text: String::new() });
        assert_eq!(few.data, 3, "what fits is whole");
        let none = fitting(1 << 20, MOST, |limit| Answer { data: limit, text: String::new() });
        assert_eq!(none.data, 1, "it ends where nothing helps");
    }

    /// Red when what does not fit is sent, or what fits is not.
    #[test]
    fn what_is_too_large_is_not_sent() {
        let fits = told(&"x".repeat(MOST - 200), 1);
        assert_eq!(size(&bound(fits.clone())), size(&fits));
        let beside = serde_json::to_value(bound(told(&"x".repeat(MOST / 2), 3))).unwrap();
        assert_eq!(beside["content"].as_array().unwrap().len(), 2);
        assert_ne!(beside["isError"], true, "{}", beside["content"][1]);
        let large = serde_json::to_value(bound(told(&"\n".repeat(MOST), 1))).unwrap();
        assert_eq!(large["isError"], true);
        assert!(large["content"][0]["text"].as_str().unwrap().contains("ask for less"));
    }
}
