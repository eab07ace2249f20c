//! What SQLite does not tell of its log: whether anything was left out when it was read.
//!
//! SQLite reads the log up to the first frame whose checksum is wrong, and takes what comes before as all there is. That
//! is right for a torn tail: a power cut in the middle of a commit that nobody was told of. It is wrong for a log that
//! has rotted in the middle: there, commits that were told of, and epochs with them, would be gone without a word. The
//! two differ in what comes after the break. Every commit is on the disk before the next one is written, so frames of a
//! commit after the commit that is broken prove that the broken one was whole once.
//!
//! The format is at <https://sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const MAGIC: u32 = 0x377f_0682;

/// What is in a log.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Log {
    /// SQLite reads all of it.
    Whole,
    /// So many bytes at the end belong to a commit that was under way.
    TornTail(u64),
    /// What was committed can't be read.
    Broken,
}

/// Looks at a log. One that is not there is whole.
pub fn look(path: &Path) -> io::Result<Log> {
    match File::open(path) {
        Ok(file) => look_at(BufReader::with_capacity(1 << 16, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Log::Whole),
        Err(error) => Err(error),
    }
}

fn look_at(mut from: impl Read) -> io::Result<Log> {
    let mut header = Vec::new();
    from.by_ref().take(HEADER as u64).read_to_end(&mut header)?;
    if header.len() < HEADER {
        // The header is written whole, and before all else.
        return Ok(if header.is_empty() { Log::Whole } else { Log::TornTail(header.len() as u64) });
    }
    let Some(mut reader) = Reader::new(&header) else {
        let mut more = [0];
        // A frame only follows a header that is on the disk.
        return Ok(if from.read(&mut more)? == 0 { Log::TornTail(HEADER as u64) } else { Log::Broken });
    };
    let mut frame = Vec::with_capacity(reader.frame_size);
    loop {
        frame.clear();
        from.by_ref().take(reader.frame_size as u64).read_to_end(&mut frame)?;
        if frame.len() < reader.frame_size {
            reader.torn += frame.len() as u64;
            return Ok(reader.found());
        }
        reader.frame(&frame);
    }
}

struct Reader {
    big_endian: bool,
    frame_size: usize,
    salts: [u8; 8],
    sums: (u32, u32),
    /// A frame could not be read.
    broken: bool,
    /// Bytes of this log's own behind the break.
    torn: u64,
    /// A commit has ended behind the break.
    commit_ended: bool,
    /// And another has begun after it.
    proof: bool,
}

impl Reader {
    fn new(header: &[u8]) -> Option<Self> {
        let magic = word(header, 0);
        let big_endian = magic == MAGIC | 1;
        let page = match word(header, 8) {
            1 => 65536,
            size => size as usize,
        };
        let sums = sums(big_endian, (0, 0), &header[..24]);
        let sane = magic & !1 == MAGIC && page.is_power_of_two() && (512..=65536).contains(&page);
        (sane && sums == (word(header, 24), word(header, 28))).then(|| Self {
            big_endian,
            frame_size: FRAME_HEADER + page,
            salts: header[16..24].try_into().expect("eight bytes"),
            sums,
            broken: false,
            torn: 0,
            commit_ended: false,
            proof: false,
        })
    }

    fn frame(&mut self, frame: &[u8]) {
        // Frames with other salts are of an earlier round, which is in the database.
        let ours = frame[8..16] == self.salts;
        if !self.broken {
            let next = sums(self.big_endian, self.sums, &frame[..8]);
            let next = sums(self.big_endian, next, &frame[FRAME_HEADER..]);
            let sound = ours && word(frame, 0) != 0 && next == (word(frame, 16), word(frame, 20));
            if sound {
                self.sums = next;
                return;
            }
            self.broken = true;
        }
        if ours {
            self.torn += self.frame_size as u64;
            self.proof |= self.commit_ended;
            // The size of the database after a commit; zero in the frames before its last.
            self.commit_ended |= word(frame, 4) != 0;
        }
    }

    fn found(&self) -> Log {
        match self {
            Self { proof: true, .. } => Log::Broken,
            Self { torn: 0, .. } => Log::Whole,
            Self { torn, .. } => Log::TornTail(*torn),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn sums(big_endian: bool, (mut a, mut b): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let word = |part: &[u8]| {
        let part: [u8; 4] = part.try_into().expect("four bytes");
        if big_endian { u32::from_be_bytes(part) } else { u32::from_le_bytes(part) }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}
