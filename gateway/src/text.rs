//! Bytes and foreign text, made safe to show.
//!
//! What a program writes may hold anything: bytes that are no UTF-8, and control characters, by which text moves a
//! terminal's cursor, hides itself or sets its title. JSON carries them; whoever prints the text obeys them. So text for
//! reading has `\x1b` where there was an escape. Exact bytes are had as base64.

use base64::{Engine, prelude::BASE64_STANDARD};

/// As text to read: bytes that are no UTF-8 become U+FFFD, control characters (but tab, line feed and carriage return)
/// become `\xNN`, those that turn the direction of writing `\u{NNNN}`.
pub fn readable(bytes: &[u8]) -> String {
    let lossy = String::from_utf8_lossy(bytes);
    let mut text = String::with_capacity(lossy.len());
    for c in lossy.chars() {
        match c {
            '\t' | '\n' | '\r' => text.push(c),
            c if c.is_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                text.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
            }
            c => text.push(c),
        }
    }
    text
}

/// At most `limit` bytes of it, readable, with `…` where it was cut.
pub fn clipped(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return readable(text.as_bytes());
    }
    let end = (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", readable(&text.as_bytes()[..end]))
}

/// The text that these bytes are, exactly, if they are text: UTF-8 without a zero byte.
pub fn exact(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// The length of `bytes` without a character at its end that is only half there.
pub fn whole_characters(bytes: &[u8]) -> usize {
    // No character has more than four bytes, so what lacks some has at most three.
    let cut = |at: &usize| {
        std::str::from_utf8(&bytes[*at..]).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
    };
    (bytes.len().saturating_sub(3)..bytes.len()).find(cut).unwrap_or(bytes.len())
}

/// Bytes of a character, at most.
pub const LONGEST_CHARACTER: usize = 4;

/// How many of these bytes are at most `limit`, without half a character at the end; but the first character is whole
/// whatever the limit is, or nobody who asks for less would ever get on.
pub fn fitting(bytes: &[u8], limit: usize) -> usize {
    let first = (1..=bytes.len().min(LONGEST_CHARACTER)).find(|at| whole_characters(&bytes[..*at]) == *at);
    match bytes.len() <= limit {
        true => bytes.len(),
        false => whole_characters(&bytes[..limit]).max(first.unwrap_or(limit)),
    }
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

pub fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    // Line breaks are usual in it.
    let packed: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    BASE64_STANDARD.decode(packed).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a control character gets through.
    #[test]
    fn text_to_read_moves_no_cursor() {
        assert_eq!(readable(b"a\x1b[2Jb\x00\x7f\tc\r\n"), "a\\x1b[2Jb\\x00\\x7f\tc\r\n");
        assert_eq!(readable("\u{9b}1m\u{202e}x".as_bytes()), "\\x9b1m\\u{202e}x");
        assert_eq!(readable(b"ok \xff\xfe"), "ok \u{fffd}\u{fffd}");
        assert_eq!(clipped("äöü", 3), "ä…");
    }

    #[test]
    fn only_a_half_character_at_the_end_is_left_for_later() {
        let euro = "a€".as_bytes();
        assert_eq!(whole_characters(euro), 4);
        assert_eq!(whole_characters(&euro[..3]), 1);
        assert_eq!(whole_characters(&euro[..2]), 1);
        assert_eq!(whole_characters(b"\xffa"), 2, "what never was text is cut nowhere");
        assert_eq!(whole_characters(b"\xff\xff\xff\xff\xe2"), 4);
    }

    /// Red when a limit below a character's size gives nothing, or more than that character.
    #[test]
    fn a_limit_is_held_but_for_the_first_character() {
        let text = "€a€".as_bytes();
        for (limit, gives) in [(1, 3), (2, 3), (3, 3), (4, 4), (5, 4), (6, 4), (7, 7), (100, 7)] {
            assert_eq!(fitting(text, limit), gives, "{limit}");
        }
        assert_eq!(fitting(b"\xff\xffa", 1), 1, "what is no text is cut anywhere");
        assert_eq!(fitting("😀x".as_bytes(), 1), 4);
        assert_eq!(fitting(b"", 1), 0);
    }

    #[test]
    fn base64_may_have_line_breaks() {
        assert_eq!(from_base64("aGVs\nbG8=").unwrap(), b"hello");
        assert!(from_base64("a!").is_err());
    }
}
