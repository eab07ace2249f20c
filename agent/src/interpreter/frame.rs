//! Frames: what the agent and a context's bridge say to each other. The bridge is as hostile as the code that it runs, so
//! nothing here is larger than its bound, nothing is kept of a frame that is not whole, and whoever breaks the protocol is
//! told apart from one that waits.
//!
//! Length (4 bytes, big-endian), kind (1 byte), parts with a length before each. Rejected: JSON, which has no bytes (a plot
//! would be in base 64 on the way), and which a reader that does not trust it can be made to blow up.

use berth_proto::{
    domain::Labels,
    v1::{ExecutionError, Kernel, MimeBundle, MimeData},
};
use bytes::{Buf, Bytes, BytesMut};

/// Bytes of one frame. A bundle of it must fit into a message.
pub const FRAME_MAX: usize = (3 << 20) + (64 << 10);
/// Forms of one thing.
const FORMS_MAX: usize = 64;
/// Bytes of a mime type, a version, an id.
const NAME_MAX: usize = 256;
/// Bytes of each text of an error.
const ERROR_MAX: usize = 128 << 10;

/// What a bridge says.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// It takes code.
    Ready {
        kernel: Kernel,
        version: String,
    },
    /// It does not go on: what is wrong, for programs and for people.
    Failed {
        what: String,
        why: String,
    },
    Text {
        stderr: bool,
        data: Bytes,
    },
    Display(MimeBundle),
    Value(MimeBundle),
    Error(ExecutionError),
    /// An execution ended, and so many interrupts have come until then.
    Finished {
        number: u64,
        ok: bool,
        interrupts: u64,
    },
    /// So many interrupts have come.
    Interrupts(u64),
}

/// The bridge broke the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(&'static str);

/// Bytes from a bridge, on their way to be frames.
#[derive(Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// More bytes have come.
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole frame.
    pub fn read(&mut self) -> Result<Option<Said>, Broken> {
        let Some(head) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length == 0 || length > FRAME_MAX {
            return Err(Broken("a frame has a length that none may have"));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        let body = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // What a large frame took is given back.
            self.buffer = BytesMut::new();
        }
        said(body).map(Some)
    }
}

fn said(mut body: Bytes) -> Result<Said, Broken> {
    let kind = body.get_u8();
    let mut parts = Parts { rest: body };
    let said = match kind {
        b'R' => {
            let kernel = match &parts.take()?[..] {
                b"ipykernel" => Kernel::Ipykernel,
                b"builtin" => Kernel::Builtin,
                _ => return Err(Broken("it names a kernel that there is not")),
            };
            Said::Ready { kernel, version: parts.name()? }
        }
        b'X' => Said::Failed { what: parts.name()?, why: parts.text(ERROR_MAX)? },
        b'T' => Said::Text { stderr: &parts.take()?[..] == b"2", data: parts.take()? },
        b'D' => Said::Display(parts.bundle()?),
        b'V' => Said::Value(parts.bundle()?),
        b'E' => Said::Error(ExecutionError {
            name: parts.text(ERROR_MAX)?,
            value: parts.text(ERROR_MAX)?,
            traceback: parts.text(ERROR_MAX)?,
        }),
        b'F' => Said::Finished {
            number: parts.number()?,
            ok: &parts.take()?[..] == b"ok",
            interrupts: parts.number()?,
        },
        b'S' => Said::Interrupts(parts.number()?),
        _ => return Err(Broken("it sent a frame of a kind that there is not")),
    };
    if parts.rest.is_empty() { Ok(said) } else { Err(Broken("a frame has parts too many")) }
}

/// The parts of a frame, one after the other. They share its buffer.
struct Parts {
    rest: Bytes,
}

impl Parts {
    fn take(&mut self) -> Result<Bytes, Broken> {
        let short = Broken("a frame is shorter than its parts");
        let Some(head) = self.rest.first_chunk::<4>() else { return Err(short) };
        let length = u32::from_be_bytes(*head) as usize;
        if self.rest.len() - 4 < length {
            return Err(short);
        }
        self.rest.advance(4);
        Ok(self.rest.split_to(length))
    }

    /// As text, with U+FFFD for what is none. (That may take three bytes for one.)
    fn text(&mut self, most: usize) -> Result<String, Broken> {
        let part = self.take()?;
        if part.len() > most {
            return Err(Broken("a text is longer than it may be"));
        }
        Ok(String::from_utf8_lossy(&part).into_owned())
    }

    fn name(&mut self) -> Result<String, Broken> {
        self.text(NAME_MAX)
    }

    fn number(&mut self) -> Result<u64, Broken> {
        self.name()?.parse().map_err(|_| Broken("a number is none"))
    }

    fn bundle(&mut self) -> Result<MimeBundle, Broken> {
        let display_id = self.name()?;
        let update = !self.take()?.is_empty();
        let names = self.text(FORMS_MAX * NAME_MAX)?;
        let left_out = names.split(',').filter(|name| !name.is_empty()).take(FORMS_MAX).map(str::to_owned);
        let mut bundle = MimeBundle { display_id, update, left_out: left_out.collect(), data: Vec::new() };
        while !self.rest.is_empty() {
            if bundle.data.len() == FORMS_MAX {
                return Err(Broken("one thing has too many forms"));
            }
            // Copied: a part of a few bytes would else keep the buffer of a whole frame, and whatever came before it.
            let (r#type, data) = (self.name()?, Bytes::copy_from_slice(&self.take()?));
            bundle.data.push(MimeData { r#type, data });
        }
        Ok(bundle)
    }
}

/// A frame to a bridge: run this, with these variables. Interrupts beyond the first `interrupts` are meant for it.
pub fn execute(number: u64, interrupts: u64, code: &str, env: &Labels) -> Bytes {
    let (number, interrupts) = (number.to_string(), interrupts.to_string());
    let variables = env.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
    let parts: Vec<&[u8]> = [number.as_str(), interrupts.as_str(), code]
        .into_iter()
        .chain(variables)
        .map(str::as_bytes)
        .collect();
    let mut frame = BytesMut::new();
    let length = 1 + parts.iter().map(|part| 4 + part.len()).sum::<usize>();
    frame.extend_from_slice(&(length as u32).to_be_bytes());
    frame.extend_from_slice(b"E");
    for part in parts {
        frame.extend_from_slice(&(part.len() as u32).to_be_bytes());
        frame.extend_from_slice(part);
    }
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut body = vec![kind];
        for part in parts {
            body.extend_from_slice(&(part.len() as u32).to_be_bytes());
            body.extend_from_slice(part);
        }
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&body);
        frame
    }

    fn read(bytes: &[u8]) -> Result<Vec<Said>, Broken> {
        let mut frames = Frames::default();
        frames.push(bytes);
        let mut all = Vec::new();
        while let Some(said) = frames.read()? {
            all.push(said);
        }
        Ok(all)
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let mut bytes = frame(b'R', &[b"builtin", b"3.11.2"]);
        bytes.extend(frame(b'T', &[b"2", b"\xff\0"]));
        bytes.extend(frame(b'V', &[b"", b"", b"text/html,", b"image/png", b"\x89PNG"]));
        bytes.extend(frame(b'F', &[b"7", b"ok", b"1"]));
        let whole = read(&bytes).unwrap();
        let mut frames = Frames::default();
        let mut by_byte = Vec::new();
        for byte in &bytes {
            frames.push(std::slice::from_ref(byte));
            by_byte.extend(frames.read().unwrap());
        }
        assert_eq!(by_byte, whole);
        assert_eq!(whole[0], Said::Ready { kernel: Kernel::Builtin, version: "3.11.2".into() });
        assert_eq!(whole[1], Said::Text { stderr: true, data: Bytes::from_static(b"\xff\0") });
        let Said::Value(bundle) = &whole[2] else { panic!("{whole:?}") };
        assert_eq!(bundle.left_out, ["text/html"]);
        assert_eq!(&bundle.data[0].data[..], b"\x89PNG");
        assert_eq!(whole[3], Said::Finished { number: 7, ok: true, interrupts: 1 });
    }

    /// Red when a part shares the buffer that its frame came in: what is kept of many small ones would be many large buffers.
    #[test]
    fn what_is_kept_of_a_frame_does_not_keep_the_frame() {
        let mut bytes = frame(b'T', &[b"1", &vec![b'x'; 1 << 20]]);
        bytes.extend(frame(b'D', &[b"", b"", b"", b"text/plain", b"1"]));
        let said = read(&bytes).unwrap();
        let Said::Display(bundle) = &said[1] else { panic!("{said:?}") };
        assert!(bundle.data[0].data.is_unique());
    }

    /// Red when one of the bounds is taken out.
    #[test]
    fn a_liar_is_told_apart() {
        let huge = ((FRAME_MAX + 1) as u32).to_be_bytes();
        let many: Vec<&[u8]> =
            [&b""[..], b"", b""].into_iter().chain([&b"a"[..]; 2 * FORMS_MAX + 2]).collect();
        let long = vec![b'x'; NAME_MAX + 1];
        for bad in [
            huge.to_vec(),
            0u32.to_be_bytes().to_vec(),
            frame(b'?', &[]),
            frame(b'R', &[b"own", b""]),
            frame(b'R', &[b"builtin", &long]),
            frame(b'F', &[b"-1", b"ok", b"0"]),
            frame(b'F', &[b"1", b"ok"]),
            frame(b'S', &[b"1", b"2"]),
            frame(b'D', &many),
            frame(b'E', &[&vec![b'x'; ERROR_MAX + 1], b"", b""]),
            // A part that says that it is longer than its frame.
            [&7u32.to_be_bytes()[..], b"S", &u32::MAX.to_be_bytes(), b"12"].concat(),
        ] {
            assert!(read(&bad).is_err(), "{:?}", &bad[..bad.len().min(32)]);
        }
    }
}
