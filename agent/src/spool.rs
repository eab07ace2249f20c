//! One output stream of one task, kept for readers who come and go: addressed by
//! absolute byte offsets, bounded by retention, outside the task's reach.
//!
//! The first [`MEMORY`] bytes stay in memory, so that the many tasks that print little
//! cost no file. Then everything goes to segment files, and the oldest segments are
//! removed as retention is passed. A full disk loses output, loudly, and never stops the task.
//!
//! One writer (the pump), any number of readers. Readers are told of growth by the
//! task's watch channel and read at their own pace: a slow one holds up nobody.
//! Rejected: a broadcast of chunks (a slow reader either blocks it or silently loses).

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes of a stream that stay in memory. Above it, all of it is on disk.
pub const MEMORY: usize = 16 << 10;
/// Bytes of all streams together that may stay in memory.
pub const MEMORY_ALL: u64 = 8 << 20;
const SEGMENT_MAX: u64 = 4 << 20;
const SEGMENT_MIN: u64 = 8 << 10;

/// What all spools of a session share.
#[derive(Debug)]
pub struct Budget {
    /// Bytes of all of them on disk: then the oldest done tasks' go.
    cap: u64,
    memory: AtomicU64,
    disk: AtomicU64,
    over: Notify,
}

impl Budget {
    pub fn new(cap: u64) -> Self {
        Self { cap, memory: AtomicU64::new(0), disk: AtomicU64::new(0), over: Notify::new() }
    }

    /// Bytes on disk above the cap.
    pub fn excess(&self) -> u64 {
        self.disk.load(Ordering::Relaxed).saturating_sub(self.cap)
    }

    /// Waits until something was written over the cap.
    pub async fn over(&self) {
        self.over.notified().await;
    }

    fn wrote(&self, bytes: u64) {
        self.disk.fetch_add(bytes, Ordering::Relaxed);
        if self.excess() > 0 {
            self.over.notify_one();
        }
    }
}

#[derive(Debug)]
struct Segment {
    start: u64,
    length: u64,
}

#[derive(Default, Debug)]
struct State {
    /// End of what went to disk.
    disk_end: u64,
    first_kept: u64,
    /// Everything so far, until it goes to disk.
    memory: Option<Vec<u8>>,
    segments: VecDeque<Segment>,
}

impl State {
    fn length(&self) -> u64 {
        self.memory.as_ref().map_or(self.disk_end, |memory| memory.len() as u64)
    }
}

/// One stream of one task.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    name: &'static str,
    retention: u64,
    segment: u64,
    state: Mutex<State>,
    /// The last segment, open. Held by the one writer only.
    writer: Mutex<Option<File>>,
    budget: Arc<Budget>,
}

/// What there is at an offset.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    Data(Bytes),
    /// The offset is the end, for now.
    AtEnd,
    /// It was there and is gone. The first byte that is kept.
    Lost(u64),
    /// It was never there. The length.
    Beyond(u64),
}

impl Spool {
    /// An empty stream. `dir` is the task's own, made when it is needed.
    pub fn new(dir: PathBuf, name: &'static str, retention: u64, budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            dir,
            name,
            retention,
            segment: (retention / 8).clamp(SEGMENT_MIN, SEGMENT_MAX),
            state: Mutex::new(State { memory: Some(Vec::new()), ..Default::default() }),
            writer: Mutex::new(None),
            budget,
        })
    }

    /// A stream that ended at `length` in an earlier sandbox, of which only the last bytes came along. Blocking.
    pub fn restored(
        dir: PathBuf,
        name: &'static str,
        length: u64,
        tail: &[u8],
        budget: Arc<Budget>,
    ) -> Arc<Self> {
        let first_kept = length.saturating_sub(tail.len() as u64);
        let tail = &tail[tail.len() - (length - first_kept) as usize..];
        let spool = Self::new(dir, name, u64::MAX, budget);
        *spool.state() = State { disk_end: first_kept, first_kept, ..State::default() };
        spool.write_all(&mut spool.writer(), tail);
        spool
    }

    fn writer(&self) -> MutexGuard<'_, Option<File>> {
        self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Bytes written so far, and the first that is kept.
    pub fn bounds(&self) -> (u64, u64) {
        let state = self.state();
        (state.length(), state.first_kept)
    }

    fn path(&self, start: u64) -> PathBuf {
        self.dir.join(format!("{}.{start:020}", self.name))
    }

    /// Adds to the end. Returns when readers can see it.
    pub async fn append(self: &Arc<Self>, data: Vec<u8>) {
        if self.keep_in_memory(&data) {
            return;
        }
        let spool = self.clone();
        // Only a full blocking pool that is shut down makes this fail.
        let _ = tokio::task::spawn_blocking(move || spool.append_to_disk(&data)).await;
    }

    fn keep_in_memory(&self, data: &[u8]) -> bool {
        let mut state = self.state();
        let Some(memory) = &mut state.memory else { return false };
        let room = self.budget.memory.load(Ordering::Relaxed) + data.len() as u64 <= MEMORY_ALL;
        if memory.len() + data.len() > MEMORY || !room {
            return false;
        }
        memory.extend_from_slice(data);
        self.budget.memory.fetch_add(data.len() as u64, Ordering::Relaxed);
        true
    }

    fn append_to_disk(&self, data: &[u8]) {
        let mut writer = self.writer();
        // Readers find it in memory until all of it is on disk.
        let spill = self.state().memory.clone();
        if let Some(memory) = spill {
            self.write_all(&mut writer, &memory);
            self.state().memory = None;
            self.budget.memory.fetch_sub(memory.len() as u64, Ordering::Relaxed);
        }
        self.write_all(&mut writer, data);
    }

    fn write_all(&self, writer: &mut Option<File>, mut data: &[u8]) {
        while !data.is_empty() {
            match self.write_some(writer, data) {
                Ok(written) => data = &data[written..],
                Err(error) => {
                    tracing::warn!(%error, stream = self.name, "output could not be kept");
                    *writer = None;
                    self.lose(data.len() as u64);
                    return;
                }
            }
        }
    }

    /// Writes up to the end of a segment; makes the next one when there is none.
    fn write_some(&self, writer: &mut Option<File>, data: &[u8]) -> io::Result<usize> {
        let (start, filled, end) = {
            let state = self.state();
            match state.segments.back() {
                Some(last) if writer.is_some() && last.length < self.segment => {
                    (last.start, last.length, state.disk_end)
                }
                _ => (state.disk_end, 0, state.disk_end),
            }
        };
        if filled == 0 && start == end {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(self.path(start))?;
            *writer = Some(file);
            self.state().segments.push_back(Segment { start, length: 0 });
        }
        let file = writer.as_ref().ok_or_else(|| io::Error::other("no segment is open"))?;
        let take = data.len().min((self.segment - filled) as usize);
        file.write_all_at(&data[..take], filled)?;
        self.budget.wrote(take as u64);
        let dropped = {
            let mut state = self.state();
            state.disk_end += take as u64;
            if let Some(last) = state.segments.back_mut() {
                last.length += take as u64;
            }
            self.trim(&mut state, self.retention)
        };
        self.unlink(&dropped);
        Ok(take)
    }

    /// Takes the oldest segments off until at most `keep` bytes are left. Never the last one.
    fn trim(&self, state: &mut State, keep: u64) -> Vec<Segment> {
        let mut dropped = Vec::new();
        while state.segments.len() > 1 && state.disk_end - state.first_kept > keep {
            dropped.extend(state.segments.pop_front());
            state.first_kept = state.segments.front().map_or(state.disk_end, |first| first.start);
        }
        dropped
    }

    fn unlink(&self, segments: &[Segment]) {
        for segment in segments {
            self.budget.disk.fetch_sub(segment.length, Ordering::Relaxed);
            if let Err(error) = fs::remove_file(self.path(segment.start))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "a spool segment stays");
            }
        }
    }

    /// The disk took nothing: what was kept and `more` bytes are gone. Offsets stay true.
    fn lose(&self, more: u64) {
        let dropped: Vec<Segment> = {
            let mut state = self.state();
            state.disk_end += more;
            state.first_kept = state.disk_end;
            state.segments.drain(..).collect()
        };
        self.unlink(&dropped);
    }

    /// Up to `max` bytes from `offset`.
    pub async fn read(self: &Arc<Self>, offset: u64, max: usize) -> io::Result<Read> {
        loop {
            let (start, take) = {
                let state = self.state();
                if let Some(found) = self.look(&state, offset, max) {
                    return Ok(found);
                }
                let at = state.segments.partition_point(|segment| segment.start <= offset) - 1;
                let segment = &state.segments[at];
                (segment.start, (segment.start + segment.length - offset).min(max as u64) as usize)
            };
            let path = self.path(start);
            let read = move || {
                let mut data = vec![0; take];
                File::open(path)?.read_exact_at(&mut data, offset - start)?;
                Ok(Bytes::from(data))
            };
            let result: io::Result<Bytes> =
                tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(io::Error::other(e)));
            match result {
                Ok(data) => return Ok(Read::Data(data)),
                // Removed since we looked: look again.
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.bounds().1 > offset => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What can be said without the disk. `None`: it is there.
    fn look(&self, state: &State, offset: u64, max: usize) -> Option<Read> {
        if offset < state.first_kept {
            return Some(Read::Lost(state.first_kept));
        }
        if let Some(memory) = &state.memory {
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            return Some(match memory.len() {
                length if at > length => Read::Beyond(length as u64),
                length if at == length => Read::AtEnd,
                length => Read::Data(Bytes::copy_from_slice(&memory[at..length.min(at.saturating_add(max))])),
            });
        }
        match offset.cmp(&state.disk_end) {
            std::cmp::Ordering::Greater => Some(Read::Beyond(state.disk_end)),
            std::cmp::Ordering::Equal => Some(Read::AtEnd),
            std::cmp::Ordering::Less => None,
        }
    }

    /// Keeps at most `keep` bytes, because the session's spools are over their cap.
    pub fn shrink(&self, keep: u64) {
        let dropped = self.trim(&mut self.state(), keep);
        self.unlink(&dropped);
    }

    /// Forgets everything. Blocking; only when nothing writes any more.
    pub fn purge(&self) {
        *self.writer() = None;
        let (dropped, memory) = {
            let mut state = self.state();
            state.disk_end = state.length();
            let memory = state.memory.take().map_or(0, |m| m.len() as u64);
            state.first_kept = state.disk_end;
            (state.segments.drain(..).collect::<Vec<_>>(), memory)
        };
        self.budget.memory.fetch_sub(memory, Ordering::Relaxed);
        self.unlink(&dropped);
        // Fails while the other stream has files; then its own purge does it.
        let _ = fs::remove_dir(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("berth-spool-{}", berth_proto::TaskId::new()));
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        fn spool(&self, retention: u64) -> Arc<Spool> {
            Spool::new(self.0.join("task"), "stdout", retention, Arc::new(Budget::new(512 << 20)))
        }

        fn files(&self) -> usize {
            fs::read_dir(self.0.join("task")).map_or(0, Iterator::count)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Byte `i` of every test's stream.
    fn byte(i: u64) -> u8 {
        (i.wrapping_mul(2_654_435_761) >> 7) as u8
    }

    fn piece(from: u64, length: u64) -> Vec<u8> {
        (from..from + length).map(byte).collect()
    }

    async fn all(spool: &Arc<Spool>, mut at: u64, max: usize) -> (u64, Vec<u8>) {
        let (start, mut data) = (at, Vec::new());
        loop {
            match spool.read(at, max).await.unwrap() {
                Read::Data(bytes) => {
                    assert!(!bytes.is_empty() && bytes.len() <= max);
                    at += bytes.len() as u64;
                    data.extend_from_slice(&bytes);
                }
                Read::AtEnd => return (start, data),
                other => panic!("{other:?} at {at}"),
            }
        }
    }

    #[tokio::test]
    async fn little_output_needs_no_file() {
        let dir = Dir::new();
        let spool = dir.spool(64 << 10);
        spool.append(b"hello ".to_vec()).await;
        spool.append(b"world".to_vec()).await;
        assert_eq!(all(&spool, 0, 4).await.1, b"hello world");
        assert_eq!(all(&spool, 6, 100).await.1, b"world");
        assert_eq!(dir.files(), 0);
        assert_eq!(spool.read(12, 1).await.unwrap(), Read::Beyond(11));
    }

    /// Random sizes, offsets and retentions against the definition of the stream. Red when a segment is read from its
    /// beginning, or none is ever dropped.
    #[tokio::test]
    async fn any_offset_gives_the_bytes_that_were_written_there() {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for _ in 0..20 {
            let dir = Dir::new();
            let retention = (64 << 10) + random(200 << 10);
            let spool = dir.spool(retention);
            let mut length = 0;
            for _ in 0..40 {
                let more = random(20 << 10);
                spool.append(piece(length, more)).await;
                length += more;
                let (told, first_kept) = spool.bounds();
                assert_eq!(told, length);
                assert!(length - first_kept <= retention, "no more than retention is kept");
                let floor = retention - spool.segment;
                assert!(first_kept == 0 || length - first_kept >= floor.min(length), "and not much less");
                let offset = random(length + 1);
                match spool.read(offset, 1 + random(9000) as usize).await.unwrap() {
                    Read::Data(data) => assert_eq!(data, piece(offset, data.len() as u64)),
                    Read::AtEnd => assert_eq!(offset, length),
                    Read::Lost(first) => assert!(offset < first && first == first_kept),
                    Read::Beyond(_) => panic!("{offset} is within {length}"),
                }
            }
            let (_, first_kept) = spool.bounds();
            let (start, data) = all(&spool, first_kept, 7001).await;
            assert_eq!(data, piece(start, length - start));
            spool.purge();
            assert_eq!(dir.files(), 0);
            assert_eq!(spool.bounds(), (length, length));
            assert_eq!(spool.budget.disk.load(Ordering::Relaxed), 0);
            assert_eq!(spool.budget.memory.load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test]
    async fn a_restored_stream_keeps_its_offsets() {
        let dir = Dir::new();
        let of = |length, tail: &[u8]| {
            Spool::restored(dir.0.join("task"), "stdout", length, tail, Arc::new(Budget::new(512 << 20)))
        };
        let spool = of(1_000_000, &piece(1_000_000 - 5000, 5000));
        assert_eq!(spool.bounds(), (1_000_000, 995_000));
        assert_eq!(spool.read(7, 10).await.unwrap(), Read::Lost(995_000));
        assert_eq!(all(&spool, 995_000, 700).await.1, piece(995_000, 5000));
        // A tail that is longer than the stream is cut, and an empty stream has none.
        assert_eq!(of(3, b"abcdef").bounds(), (3, 0));
        assert_eq!(of(0, b"").bounds(), (0, 0));
    }

    /// Red when what is lost is not counted, not told, or thought to be kept.
    #[tokio::test]
    async fn a_disk_that_takes_nothing_loses_output_but_no_offset() {
        let dir = Dir::new();
        // A file where the directory should be.
        fs::write(dir.0.join("task"), "").unwrap();
        let spool = dir.spool(64 << 10);
        spool.append(piece(0, 40_000)).await;
        assert_eq!(spool.bounds(), (40_000, 40_000));
        assert_eq!(spool.read(0, 10).await.unwrap(), Read::Lost(40_000));
        assert_eq!(spool.read(40_000, 10).await.unwrap(), Read::AtEnd);
        fs::remove_file(dir.0.join("task")).unwrap();
        spool.append(piece(40_000, 500)).await;
        assert_eq!(all(&spool, 40_000, 100).await.1, piece(40_000, 500));
    }
}
