//! Where the pieces of checkpoints lie: a local directory, or any store that speaks S3.
//!
//! A piece is written under its own hash, so that writing it twice does no harm and none can be changed. What is read
//! is checked by whoever asked for it: this store may lie, and a disk may rot.

use std::{path::PathBuf, sync::Arc, time::Duration};

use berth_checkpoint::Digest;
use berth_proto::{Error, Reason};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, aws::AmazonS3Builder,
    local::LocalFileSystem, path::Path,
};

use tokio::time::Instant;

use crate::metrics::Metrics;

/// One request to the store, its answer included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// All tries of one call together.
const RETRY_TIMEOUT: Duration = Duration::from_secs(90);
/// Below the prefix; the first two digits of the hash are a directory.
const PIECES: &str = "pieces";
/// Holds the id of the catalog that describes the store.
const OWNER: &str = "owner";

/// Where, as the operator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory of this machine.
    Directory(PathBuf),
    /// `s3://BUCKET/PREFIX`. Endpoint, region and credentials are taken from the usual `AWS_*` variables.
    S3 { bucket: String, prefix: String },
}

impl std::str::FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err("s3:// needs a bucket: s3://BUCKET or s3://BUCKET/PREFIX".to_owned());
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() });
        }
        if text.contains("://") {
            return Err("a directory or s3://BUCKET/PREFIX".to_owned());
        }
        if text.is_empty() { Err("is empty".to_owned()) } else { Ok(Self::Directory(PathBuf::from(text))) }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// Whose a blob store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    Ours,
    /// It has another catalog's mark, or pieces and no mark.
    Anothers,
}

/// The store.
#[derive(Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// Where it is a directory of this machine.
    local: Option<PathBuf>,
    metrics: Arc<Metrics>,
}

impl Blobs {
    /// Opens it. Nothing is asked of an S3 store yet: see [`Blobs::probe`].
    pub fn open(location: &Location) -> Result<Self, Error> {
        let refused = |error: &dyn std::fmt::Display| {
            Error::unavailable(Reason::StoreFailed, format!("the blob store {location}: {error}"))
        };
        match location {
            Location::Directory(path) => {
                private_dir(path).map_err(|e| refused(&e))?;
                let store = LocalFileSystem::new_with_prefix(path).map_err(|e| refused(&e))?.with_fsync(true);
                Ok(Self::over(Arc::new(store), String::new(), Some(path.clone())))
            }
            Location::S3 { bucket, prefix } => {
                // One TLS library for the process; a second call finds it there.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let client = ClientOptions::new().with_timeout(REQUEST_TIMEOUT);
                let retry = RetryConfig { retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
                let store = AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(client.with_allow_http(allow_http()))
                    .with_retry(retry)
                    .build()
                    .map_err(|e| refused(&e))?;
                Ok(Self::over(Arc::new(store), prefix.clone(), None))
            }
        }
    }

    /// A store in memory, for tests and simulations.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(object_store::memory::InMemory::new()), String::new(), None)
    }

    fn over(store: Arc<dyn ObjectStore>, prefix: String, local: Option<PathBuf>) -> Self {
        Self { store, prefix, local, metrics: Arc::default() }
    }

    /// The same, counting there.
    #[must_use]
    pub fn counted(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let done = work.await;
        self.metrics.blob(operation, begun.elapsed(), done.is_ok());
        done
    }

    fn base(&self) -> Path {
        Path::from(format!("{}/{PIECES}", self.prefix))
    }

    fn path(&self, digest: Digest) -> Path {
        let hex = digest.hex();
        Path::from(format!("{}/{PIECES}/{}/{hex}", self.prefix, &hex[..2]))
    }

    /// Makes the store this catalog's, or finds that it is. What a catalog does not know it removes, so two must not
    /// share a store, and a new one must not take over what an older one described.
    pub async fn claim(&self, catalog: &str) -> Result<Claim, Error> {
        let path = Path::from(format!("{}/{OWNER}", self.prefix));
        match self.store.get(&path).await {
            Ok(found) => {
                let owner = found.bytes().await.map_err(failed)?;
                let ours = owner == catalog.as_bytes();
                Ok(if ours { Claim::Ours } else { Claim::Anothers })
            }
            Err(object_store::Error::NotFound { .. }) => {
                if self.older_than(Duration::ZERO).try_next().await?.is_some() {
                    return Ok(Claim::Anothers);
                }
                self.put_private(&path, PutPayload::from(catalog.to_owned())).await?;
                Ok(Claim::Ours)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Stores a sealed piece.
    pub async fn put(&self, digest: Digest, sealed: Bytes) -> Result<(), Error> {
        self.timed("put", self.put_private(&self.path(digest), PutPayload::from(sealed))).await
    }

    /// Stores something for its owner alone. (The directory around all of it is closed already; this is for who opens
    /// that, or copies it.)
    async fn put_private(&self, path: &Path, payload: PutPayload) -> Result<(), Error> {
        self.store.put(path, payload).await.map_err(failed)?;
        let Some(root) = self.local.clone() else { return Ok(()) };
        let names: Vec<String> = path.parts().map(|part| part.as_ref().to_owned()).collect();
        let close = move || close_to_others(root, &names);
        let closed = berth_proto::world::blocking(close).await.and_then(|closed| closed);
        closed.map_err(|error| {
            Error::unavailable(Reason::StoreFailed, "the blob store could not be closed to others")
                .cause(error)
        })
    }

    /// Reads a sealed piece.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, Error> {
        let read = async {
            let found = self.store.get(&self.path(digest)).await.map_err(|error| gone(digest, error))?;
            found.bytes().await.map_err(failed)
        };
        self.timed("get", read).await
    }

    /// Removes a piece. One that is not there is no error.
    pub async fn delete(&self, digest: Digest) -> Result<(), Error> {
        let remove = async {
            match self.store.delete(&self.path(digest)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(failed(error)),
            }
        };
        self.timed("delete", remove).await
    }

    /// Removes files older than `age` that a process left which was killed while it stored a piece. The store puts them
    /// beside the pieces, with a `#` and a number at the end of the name, and shows them in no list. How many.
    pub async fn remove_half_written(&self, age: Duration) -> Result<usize, Error> {
        let Some(root) = self.local.clone() else { return Ok(0) };
        let before = berth_proto::world::now() - age;
        let removed =
            berth_proto::world::blocking(move || remove_half_written(&root.join(PIECES), before)).await;
        removed.and_then(|removed| removed).map_err(|error| {
            Error::unavailable(Reason::StoreFailed, "the blob store could not be looked through").cause(error)
        })
    }

    /// All pieces that are older than `age`.
    pub fn older_than(&self, age: Duration) -> BoxStream<'static, Result<Digest, Error>> {
        let before = berth_proto::world::now() - age;
        let all = self.store.list(Some(&self.base()));
        all.map_err(failed)
            .try_filter_map(move |found| {
                let digest = found.location.filename().and_then(Digest::from_hex);
                let old = std::time::SystemTime::from(found.last_modified) < before;
                std::future::ready(Ok(digest.filter(|_| old)))
            })
            .boxed()
    }
}

/// Unless somebody said so, nobody's files go over a network unencrypted.
fn allow_http() -> bool {
    std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
}

/// Directories 0700 and the file at the end 0600.
fn close_to_others(mut at: PathBuf, names: &[String]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for (n, name) in names.iter().enumerate() {
        at.push(name);
        let mode = if n + 1 == names.len() { 0o600 } else { 0o700 };
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn remove_half_written(pieces: &std::path::Path, before: std::time::SystemTime) -> std::io::Result<usize> {
    if !pieces.exists() {
        return Ok(0);
    }
    let mut removed = 0;
    for dir in std::fs::read_dir(pieces)?.flatten().filter(|dir| dir.path().is_dir()) {
        for file in std::fs::read_dir(dir.path())?.flatten() {
            let half = file.file_name().to_str().is_some_and(|name| name.contains('#'));
            if half && file.metadata()?.modified()? < before {
                std::fs::remove_file(file.path())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

fn private_dir(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn failed(error: object_store::Error) -> Error {
    Error::unavailable(Reason::StoreFailed, "the blob store failed").cause(error)
}

/// The path of it is nobody's business but the operator's.
fn gone(digest: Digest, error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => {
            let text = format!(
                "the blob store has lost piece {digest:?}; an older or a newer checkpoint may be whole"
            );
            Error::new(berth_proto::Code::DataLoss, Reason::CheckpointFailed, text).cause(error)
        }
        error => failed(error),
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[test]
    fn locations_are_read_strictly() {
        let of = |text: &str| text.parse::<Location>();
        assert_eq!(of("/var/blobs"), Ok(Location::Directory("/var/blobs".into())));
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!(of("s3://b"), Ok(s3("b", "")));
        assert_eq!(of("s3://b/a/c/"), Ok(s3("b", "a/c")));
        assert_eq!(of("s3://b/a/c/").unwrap().to_string(), "s3://b/a/c");
        for bad in ["", "s3://", "s3:///x", "gs://b", "https://x/y"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    async fn keeps_pieces(blobs: Blobs) {
        for (catalog, claim) in [("a", Claim::Ours), ("a", Claim::Ours), ("b", Claim::Anothers)] {
            assert_eq!(blobs.claim(catalog).await.unwrap(), claim);
        }
        let data = berth_checkpoint::seal(b"some bytes").unwrap();
        let digest = Digest::of(b"some bytes");
        assert_eq!(blobs.get(digest).await.unwrap_err().code(), berth_proto::Code::DataLoss);
        for _ in 0..2 {
            blobs.put(digest, data.clone()).await.unwrap();
        }
        assert_eq!(blobs.get(digest).await.unwrap(), data);
        let all: Vec<Digest> = blobs.older_than(Duration::ZERO).try_collect().await.unwrap();
        assert_eq!(all, [digest]);
        let old: Vec<Digest> = blobs.older_than(Duration::from_secs(60)).try_collect().await.unwrap();
        assert!(old.is_empty());
        for _ in 0..2 {
            blobs.delete(digest).await.unwrap();
        }
        assert!(blobs.get(digest).await.is_err());
    }

    #[tokio::test]
    async fn a_directory_keeps_pieces_and_keeps_them_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blobs");
        keeps_pieces(Blobs::open(&Location::Directory(path.clone())).unwrap()).await;
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&path), mode(&path.join("pieces")), mode(&path.join("owner"))),
            (0o700, 0o700, 0o600)
        );
        keeps_pieces(Blobs::in_memory()).await;
    }

    /// Red when names with a `#` are left alone, or all files are removed.
    #[tokio::test]
    async fn what_a_killed_process_had_half_written_goes_once_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&Location::Directory(dir.path().to_owned())).unwrap();
        assert_eq!(blobs.remove_half_written(Duration::ZERO).await.unwrap(), 0, "nothing was ever stored");
        let digest = Digest::of(b"some bytes");
        blobs.put(digest, berth_checkpoint::seal(b"some bytes").unwrap()).await.unwrap();
        let hex = digest.hex();
        let half = dir.path().join(PIECES).join(&hex[..2]).join(format!("{hex}#1"));
        std::fs::write(&half, b"some").unwrap();
        assert_eq!(
            blobs.remove_half_written(Duration::from_secs(60)).await.unwrap(),
            0,
            "it may be under way"
        );
        assert_eq!(blobs.remove_half_written(Duration::ZERO).await.unwrap(), 1);
        assert!(!half.exists() && blobs.get(digest).await.is_ok());
    }
}
