//! What this worker shows to the coordinator: its own credential, once it has one, else the token that it registers with.
//!
//! A worker that registers with a token that is good for so many workers is given a credential for its worker id alone. It
//! is kept in the state directory (mode 0600), with the hash of what it was got with. So a worker that was given *another*
//! token registers anew with that when its credential is refused, and one that was not stays out: else whoever revokes a
//! worker's credential would see it come back by itself.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_checkpoint::Digest;
use berth_proto::Reason;

use crate::{config::StartError, workspace::write_atomic};

/// Name of the file in the state directory.
const FILE: &str = "credential";

/// See the module.
pub struct Credential {
    path: PathBuf,
    join_token: String,
    own: Mutex<Own>,
}

#[derive(Default)]
struct Own {
    /// Empty: there is none.
    value: String,
    /// Hash of what it was got with.
    got_with: String,
    /// It was refused, and there is something else to try.
    put_aside: bool,
}

/// Whether this state directory holds a worker's own credential: then it needs no token to register with.
pub fn is_in(state_dir: &Path) -> bool {
    state_dir.join(FILE).exists()
}

fn hash(token: &str) -> String {
    Digest::of(token.as_bytes()).hex()
}

impl Credential {
    pub fn load(state_dir: &Path, join_token: &str) -> Result<Self, StartError> {
        let path = state_dir.join(FILE);
        let own = match std::fs::read_to_string(&path) {
            Ok(text) => {
                let mut lines = text.lines().map(|line| line.trim().to_owned());
                let (value, got_with) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
                Own { value, got_with, put_aside: false }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Own::default(),
            Err(source) => return Err(StartError::State { path, source }),
        };
        Ok(Self { path, join_token: join_token.to_owned(), own: Mutex::new(own) })
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to show with the next call.
    pub fn shown(&self) -> String {
        let own = self.own();
        if own.value.is_empty() || own.put_aside { self.join_token.clone() } else { own.value.clone() }
    }

    /// The coordinator has given us this one. In use from now on, even where it can't be written down.
    pub fn keep(&self, value: &str) -> io::Result<()> {
        let got_with = hash(&self.join_token);
        let text = format!("{value}\n{got_with}\n");
        *self.own() = Own { value: value.to_owned(), got_with, put_aside: false };
        write_atomic(&self.path, text.as_bytes())?;
        // The coordinator hears that we keep it only when no power cut can take it back.
        File::open(&self.path)?.sync_all()?;
        self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }

    /// The coordinator has refused what was shown, for this reason. What that was, for people.
    pub fn refused(&self, reason: Option<Reason>) -> &'static str {
        let mut own = self.own();
        if own.value.is_empty() || own.put_aside {
            return "the join token";
        }
        let over = matches!(reason, Some(Reason::TokenRevoked | Reason::TokenExpired));
        let unknown = reason == Some(Reason::TokenInvalid);
        let another = own.got_with != hash(&self.join_token);
        own.put_aside = !self.join_token.is_empty() && (unknown || (over && another));
        "this worker's own credential"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_credential_is_kept_and_only_another_token_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let load = |join: &str| Credential::load(dir.path(), join).unwrap();
        let first = load("join-1");
        assert!(!is_in(dir.path()));
        assert_eq!(first.shown(), "join-1");
        first.keep("own").unwrap();
        assert_eq!(first.shown(), "own");
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Revoked: the token that it was got with does not bring the worker back.
        for join in ["join-1", ""] {
            let again = load(join);
            assert_eq!(again.shown(), "own");
            assert_eq!(again.refused(Some(Reason::TokenRevoked)), "this worker's own credential");
            assert_eq!(again.shown(), "own");
        }
        // Another one does, and so does the same where the coordinator knows nothing of the credential.
        for (join, reason) in [("join-2", Reason::TokenRevoked), ("join-1", Reason::TokenInvalid)] {
            let again = load(join);
            again.refused(Some(reason));
            assert_eq!(again.shown(), join);
            assert_eq!(again.refused(Some(reason)), "the join token");
        }
    }
}
