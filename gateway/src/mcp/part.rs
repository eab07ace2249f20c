//! A part of something that is bytes, as an answer has it: text where it is some, else base64, and where to read on.

use super::{arguments::Encoding, text};

/// What was read, to be told.
pub struct Part {
    /// text, or base64.
    pub encoding: &'static str,
    pub contents: String,
    /// Bytes of it.
    pub length: u64,
    /// `None`: it ends here.
    pub next_offset: Option<u64>,
    /// The same to read.
    pub text: String,
}

impl Part {
    /// `data`: what there is from `offset` on, of something that has `size` bytes.
    pub fn of(mut data: Vec<u8>, offset: u64, size: u64, wanted: Encoding) -> Self {
        let mut next = offset + data.len() as u64;
        if next < size {
            // A character whose other half is yet to come is read next time.
            let whole = text::whole_characters(&data);
            if wanted == Encoding::Text && whole > 0 && text::exact(&data[..whole]).is_some() {
                data.truncate(whole);
                next = offset + whole as u64;
            }
        }
        let as_text = (wanted == Encoding::Text).then(|| text::exact(&data)).flatten();
        let (encoding, contents) = match as_text {
            Some(text) => ("text", text.to_owned()),
            None => ("base64", text::base64(&data)),
        };
        // It may grow while it is read.
        let next_offset = (next < size).then_some(next);
        let mut text = match as_text {
            Some(text) => text::readable(text.as_bytes()),
            None => format!("(base64 of {} bytes)\n{contents}", data.len()),
        };
        if let Some(next) = next_offset {
            let left = size - next;
            text.push_str(&format!("\n[… {left} of {size} bytes follow: read on with offset {next} …]"));
        }
        Self { encoding, contents, length: data.len() as u64, next_offset, text }
    }
}
