//! The two tokens that a coordinator begins with, made on first start: `admin` for clients and
//! operators, `join` for workers. All others are made through the API ([`crate::identity`]).
//!
//! Invariants: there is no default and no empty token; a token is in a file of mode 0600
//! below a directory of mode 0700 and nowhere else of ours, what we compare are SHA-256
//! hashes, all bytes of them whatever the first ones are; a token never reaches a log.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// Hash of some bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// Compares in a time that doesn't depend on where the difference is.
pub fn same(a: &Digest, b: &Digest) -> bool {
    let mut difference = 0u8;
    for (a, b) in a.iter().zip(b) {
        difference |= a ^ b;
    }
    std::hint::black_box(difference) == 0
}

/// 32 random bytes as 64 hex digits, from the operating system's generator.
pub fn random_hex() -> String {
    let bytes: [u8; 32] = berth_proto::world::random_bytes();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The tokens of this coordinator and where they are kept.
#[derive(Clone)]
pub struct Credentials {
    pub admin_token: String,
    pub join_token: String,
    pub admin_path: PathBuf,
    pub join_path: PathBuf,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("admin_path", &self.admin_path).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the tokens below `state_dir`, making those that are missing.
    pub fn load_or_make(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("credentials");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let (admin_path, join_path) = (dir.join("admin.token"), dir.join("join.token"));
        Ok(Self { admin_token: token(&admin_path)?, join_token: token(&join_path)?, admin_path, join_path })
    }
}

fn token(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let token = text.trim().to_owned();
            let hex = token.strip_prefix("berth_").unwrap_or_default();
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} holds no token (berth_ and 64 hex digits)", path.display()),
                ));
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            Ok(token)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = format!("berth_{}", random_hex());
            // Written beside and renamed: a crash leaves no half token.
            let fresh = path.with_extension("new");
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(format!("{token}\n").as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            Ok(token)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Credentials::load_or_make(dir.path()).unwrap();
        let again = Credentials::load_or_make(dir.path()).unwrap();
        assert_eq!(first.admin_token, again.admin_token);
        assert_ne!(first.admin_token, first.join_token);
        assert_eq!(first.admin_token.len(), "berth_".len() + 64);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&first.admin_path), 0o600);
        assert_eq!(mode(first.admin_path.parent().unwrap()), 0o700);
        fs::write(&first.join_path, "").unwrap();
        assert_eq!(Credentials::load_or_make(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
