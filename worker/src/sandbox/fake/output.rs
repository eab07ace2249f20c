//! One output stream of a fake task: the newest bytes, addressed by their offset from the first.

use bytes::{Bytes, BytesMut};

/// What a stream keeps.
pub(super) struct Output {
    kept: BytesMut,
    /// Offset of the first kept byte.
    first: u64,
    limit: usize,
}

impl Output {
    pub fn new(limit: u64) -> Self {
        Self { kept: BytesMut::new(), first: 0, limit: usize::try_from(limit).unwrap_or(usize::MAX) }
    }

    pub fn append(&mut self, data: &[u8]) {
        self.kept.extend_from_slice(data);
        let over = self.kept.len().saturating_sub(self.limit);
        if over > 0 {
            let _ = self.kept.split_to(over);
            self.first += over as u64;
        }
    }

    pub fn first_kept(&self) -> u64 {
        self.first
    }

    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.first + self.kept.len() as u64
    }

    /// At most `max` bytes from `offset` on. `Err`: the first byte that is still kept.
    pub fn read(&self, offset: u64, max: usize) -> Result<Bytes, u64> {
        let Some(start) = offset.checked_sub(self.first) else { return Err(self.first) };
        let start = usize::try_from(start).unwrap_or(usize::MAX).min(self.kept.len());
        let end = start.saturating_add(max).min(self.kept.len());
        Ok(Bytes::copy_from_slice(&self.kept[start..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_stay_absolute_when_the_oldest_bytes_go() {
        let mut output = Output::new(4);
        output.append(b"abc");
        output.append(b"def");
        assert_eq!((output.first_kept(), output.length()), (2, 6));
        assert_eq!(output.read(1, 9), Err(2));
        assert_eq!(output.read(2, 3).unwrap(), &b"cde"[..]);
        assert_eq!(output.read(6, 3).unwrap(), &b""[..]);
    }
}
