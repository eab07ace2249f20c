//! What a context's bridge says to the agent: code that nobody trusts can say anything there.

use berth_agent::interpreter::frame::{Broken, FRAME_MAX, Frames, Said};

use crate::input::Input;

/// Reads all frames of some bytes that come in pieces of these sizes, in turn.
fn read(bytes: &[u8], sizes: &[usize]) -> (Vec<Said>, Option<Broken>) {
    let (mut frames, mut all, mut rest) = (Frames::default(), Vec::new(), bytes);
    for size in sizes.iter().cycle() {
        let (piece, more) = rest.split_at(rest.len().min((*size).max(1)));
        frames.push(piece);
        loop {
            match frames.read() {
                Ok(Some(said)) => all.push(said),
                Ok(None) => break,
                Err(broken) => return (all, Some(broken)),
            }
        }
        rest = more;
        if rest.is_empty() {
            break;
        }
    }
    (all, None)
}

/// Frames are the same however their bytes are cut, and hold no more than came; so does what goes to a message.
pub fn frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let sizes = [usize::from(input.byte()), usize::from(input.byte())];
    let bytes = input.rest();
    let whole = read(bytes, &[usize::MAX]);
    assert_eq!(read(bytes, &sizes), whole);
    assert_eq!(read(bytes, &[1]), whole);
    let mut held = 0;
    for said in &whole.0 {
        held += match said {
            Said::Text { data, .. } => data.len(),
            Said::Display(bundle) | Said::Value(bundle) => {
                assert!(bundle.data.len() <= 64 && bundle.left_out.len() <= 64);
                // U+FFFD takes three bytes for one.
                assert!(bundle.data.iter().all(|form| form.r#type.len() <= 3 * 256));
                assert!(
                    prost::Message::encoded_len(bundle) < FRAME_MAX + (256 << 10),
                    "it fits into a message"
                );
                bundle.data.iter().map(|form| form.data.len()).sum()
            }
            _ => 0,
        };
    }
    assert!(held <= bytes.len(), "more than came");
}
