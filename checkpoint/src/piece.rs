//! Pieces: where they are cut, how they are named, and how they travel.

use std::{fmt, io::Read};

use bytes::Bytes;
use fastcdc::v2020::StreamCDC;

use crate::Bad;

/// Sizes of pieces. Small enough that a change of 1 MiB in a large workspace costs about that; large enough that
/// 10 GiB are no more than some forty thousand of them.
const PIECE_MIN: usize = 64 << 10;
const PIECE_MEAN: usize = 256 << 10;
/// No piece is larger. Below the message limit, also when it can't be compressed.
pub const PIECE_MAX: usize = 1 << 20;
/// zstd's own default; above it the time grows faster than the gain.
const LEVEL: i32 = 3;

/// The name of a piece: BLAKE3 of its uncompressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// From the wire.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, Bad> {
        bytes.try_into().map(Self).map_err(|_| Bad::Digest)
    }

    /// For the wire.
    pub fn to_wire(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// 64 lower-case hex digits.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// From [`Digest::hex`].
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex()[..16])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// One piece, as it was cut.
pub struct Cut {
    pub digest: Digest,
    /// Of the source.
    pub offset: u64,
    pub data: Vec<u8>,
}

/// Cuts what a reader gives.
pub struct Cutter<R: Read>(StreamCDC<R>);

impl<R: Read> Cutter<R> {
    pub fn new(source: R) -> Self {
        Self(StreamCDC::new(source, PIECE_MIN, PIECE_MEAN, PIECE_MAX))
    }
}

impl<R: Read> Iterator for Cutter<R> {
    type Item = std::io::Result<Cut>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = self.0.next()?;
        Some(chunk.map_err(std::io::Error::from).map(|chunk| Cut {
            digest: Digest::of(&chunk.data),
            offset: chunk.offset,
            data: chunk.data,
        }))
    }
}

/// Compresses a piece for its way and its rest.
pub fn seal(data: &[u8]) -> std::io::Result<Bytes> {
    zstd::bulk::compress(data, LEVEL).map(Bytes::from)
}

/// Uncompresses a piece and checks that it is the one that was asked for.
///
/// # Errors
/// [`Bad::Piece`] if it is another, is larger than any piece, or is no zstd frame.
pub fn open(digest: Digest, sealed: &[u8]) -> Result<Vec<u8>, Bad> {
    let data = zstd::bulk::decompress(sealed, PIECE_MAX).map_err(|_| Bad::Piece(digest))?;
    if Digest::of(&data) == digest { Ok(data) } else { Err(Bad::Piece(digest)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that don't repeat: a counter through the hash.
    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        blake3::Hasher::new_keyed(&key).finalize_xof().fill(&mut out);
        out
    }

    fn cut(data: &[u8]) -> Vec<Cut> {
        Cutter::new(data).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn pieces_are_the_whole_in_order() {
        let data = noise(1, 5 << 20);
        let pieces = cut(&data);
        let mut at = 0;
        for piece in &pieces {
            assert_eq!(piece.offset, at as u64);
            assert_eq!(piece.data, data[at..at + piece.data.len()]);
            assert!(piece.data.len() <= PIECE_MAX);
            at += piece.data.len();
        }
        assert_eq!(at, data.len());
        assert!(cut(&[]).is_empty());
    }

    /// The promise that makes checkpoints incremental. With cuts at fixed places an insertion would change all behind it.
    #[test]
    fn a_change_costs_about_its_size() {
        let old = noise(2, 100 << 20);
        let mut new = old.clone();
        let change = noise(3, 1 << 20);
        new.splice((40 << 20)..(40 << 20) + 1234, change);
        let have: std::collections::BTreeSet<Digest> = cut(&old).iter().map(|p| p.digest).collect();
        let cost: usize = cut(&new).iter().filter(|p| !have.contains(&p.digest)).map(|p| p.data.len()).sum();
        assert!((1 << 20..3 << 20).contains(&cost), "{cost}");
    }

    #[test]
    fn a_sealed_piece_opens_only_as_itself() {
        let data = noise(4, 300_000);
        let digest = Digest::of(&data);
        let sealed = seal(&data).unwrap();
        assert_eq!(open(digest, &sealed).unwrap(), data);
        assert!(matches!(open(Digest::of(b"another"), &sealed), Err(Bad::Piece(_))));
        let mut torn = sealed.to_vec();
        torn[1000] ^= 1;
        assert!(open(digest, &torn).is_err());
        assert!(open(digest, &sealed[..1000]).is_err());
        // A bomb: small on the way, too large at its end.
        let bomb = seal(&vec![0; 64 << 20]).unwrap();
        assert!(bomb.len() < 100_000 && open(digest, &bomb).is_err());
        assert_eq!(Digest::from_hex(&digest.hex()), Some(digest));
    }
}
