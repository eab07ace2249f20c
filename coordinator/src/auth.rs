//! Who may call. Two tokens to begin with, made on first start: `admin` for clients and
//! operators, `join` for workers. (Tenants, more scopes and TLS come with their own issue;
//! they change [`Credentials`] and [`Keyring`], not the services.)
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

use berth_proto::{Code, Error, Reason};
use sha2::{Digest as _, Sha256};

use crate::tenant::Tenant;

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

/// What a call may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Sessions, tasks, files, and the fleet.
    Admin,
    /// To attach as a worker.
    Join,
}

/// Who makes a call, as its token says. Nothing in the call itself can change it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    pub scope: Scope,
    /// Whose sessions it makes. There is one client token yet, and so one tenant.
    pub tenant: Tenant,
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

/// The hashes that calls are checked against.
#[derive(Clone)]
pub struct Keyring {
    admin: Digest,
    join: Digest,
}

impl Keyring {
    pub fn new(credentials: &Credentials) -> Self {
        Self {
            admin: digest(credentials.admin_token.as_bytes()),
            join: digest(credentials.join_token.as_bytes()),
        }
    }

    /// Checks the `authorization` header of a call that needs `scope`. Whose it is.
    pub fn check(&self, header: Option<&[u8]>, scope: Scope) -> Result<Caller, Error> {
        let which = match scope {
            Scope::Admin => "admin.token",
            Scope::Join => "join.token",
        };
        let hint = format!("send `authorization: Bearer <token>`; it is in <state>/credentials/{which}");
        let Some(header) = header else {
            return Err(Error::new(Code::Unauthenticated, Reason::TokenMissing, "the call carries no token")
                .hint(hint));
        };
        let token = header.split_at_checked(7).filter(|(kind, _)| kind.eq_ignore_ascii_case(b"bearer "));
        let presented = digest(token.map_or(&[][..], |(_, token)| token.trim_ascii()));
        let held = match (same(&presented, &self.admin), same(&presented, &self.join)) {
            (true, _) => Scope::Admin,
            (_, true) => Scope::Join,
            (false, false) => {
                return Err(Error::new(
                    Code::Unauthenticated,
                    Reason::TokenInvalid,
                    "the token is not known here",
                )
                .hint(hint));
            }
        };
        if held != scope {
            return Err(Error::new(
                Code::PermissionDenied,
                Reason::TokenScope,
                "the token is good, but not for this call",
            )
            .hint(hint));
        }
        Ok(Caller { scope: held, tenant: Tenant::default() })
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

    #[test]
    fn a_token_opens_its_own_scope_only() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::load_or_make(dir.path()).unwrap();
        let keyring = Keyring::new(&credentials);
        let check = |token: &str, scope| keyring.check(Some(format!("Bearer {token}").as_bytes()), scope);
        let caller = check(&credentials.admin_token, Scope::Admin).unwrap();
        assert_eq!((caller.scope, caller.tenant.as_str()), (Scope::Admin, "default"));
        assert!(check(&credentials.join_token, Scope::Join).is_ok());
        assert_eq!(check(&credentials.join_token, Scope::Admin).unwrap_err().reason(), Reason::TokenScope);
        assert_eq!(check("berth_", Scope::Admin).unwrap_err().reason(), Reason::TokenInvalid);
        assert_eq!(check("", Scope::Admin).unwrap_err().reason(), Reason::TokenInvalid);
        assert_eq!(keyring.check(Some(b"x"), Scope::Admin).unwrap_err().reason(), Reason::TokenInvalid);
        assert_eq!(keyring.check(None, Scope::Join).unwrap_err().reason(), Reason::TokenMissing);
    }
}
