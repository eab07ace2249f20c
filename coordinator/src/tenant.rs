//! Whose a session is. Places are shared out between tenants, so nobody may choose one for himself: it comes with the
//! token of the call, and not with its words. (The tokens in the coordinator's credential files are of the tenant
//! `default`.)
//!
//! And who may see it. Every look-up of something that is a tenant's takes a [`Sight`], down to the fleet, the view and the
//! catalog of checkpoints: what is another's is not found there, and so no handler can forget to look. (Rejected: a check in
//! each handler behind a look-up that finds everything. It holds until the first new handler.)

use std::{fmt, str::FromStr, sync::Arc};

use berth_proto::Error;

/// Bytes of a tenant's name.
const LONGEST: usize = 63;

/// A tenant's name: 1 to 63 of `a-z`, `0-9` and `-`, beginning with a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(Arc<str>);

impl Tenant {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A request id as it is kept: two tenants may draw the same. A tenant's name has no slash, so none can be written that
    /// is another's.
    pub fn scoped(&self, request_id: &str) -> String {
        format!("{self}/{request_id}")
    }
}

/// Whose things a look-up finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sight {
    /// Everybody's: an operator's, and the coordinator's own when it minds its business.
    All,
    /// One tenant's.
    Of(Tenant),
}

impl Sight {
    /// Whether what is this tenant's is found.
    pub fn covers(&self, tenant: &Tenant) -> bool {
        match self {
            Self::All => true,
            Self::Of(own) => own == tenant,
        }
    }
}

/// The tenant of the tokens in the credential files.
impl Default for Tenant {
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl FromStr for Tenant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > LONGEST || text.starts_with('-') || !text.bytes().all(fits) {
            let text = format!("must be 1 to {LONGEST} of a-z, 0-9 and -, and not begin with -");
            return Err(Error::invalid("tenant", text));
        }
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tenants_are_plain() {
        for good in ["default", "a", "team-7", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Tenant>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "A", "ä", "a b", "a/b", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<Tenant>().is_err(), "{bad:?}");
        }
    }
}
