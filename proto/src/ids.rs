//! Typed identifiers. A bare `String` does not get past the conversion.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::{
    error::{Error, Reason},
    world,
};

macro_rules! uuid_id {
    ($name:ident, $what:literal, $reason:expr) => {
        #[doc = concat!("Id of a ", $what, ": a UUIDv7, shown as 32 lower-case hex digits.")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id, unique, and later than those made before.
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(world::uuid_v7())
            }

            /// Its last 16 digits.
            pub fn low_bits(self) -> u64 {
                self.0.as_u128() as u64
            }

            /// For simulations and tests that inject their ids.
            pub const fn from_u128(value: u128) -> Self {
                Self(Uuid::from_u128(value))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                let valid = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if !valid {
                    // An id that can't exist is an id that is not found: callers treat both alike.
                    let shown: String = text.chars().take(64).collect();
                    return Err(Error::not_found($reason, format!(concat!("no ", $what, " has the id {:?}"), shown))
                        .hint(concat!("a ", $what, " id is 32 lower-case hex digits")));
                }
                Ok(Self(Uuid::parse_str(text).expect("32 hex digits are a UUID")))
            }
        }
    };
}

uuid_id!(SessionId, "session", Reason::SessionNotFound);
uuid_id!(TaskId, "task", Reason::TaskNotFound);
uuid_id!(ContextId, "context", Reason::ContextNotFound);
uuid_id!(TokenId, "token", Reason::TokenNotFound);

/// Name of a worker: 1 to 63 of `a-z 0-9 - . _`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct WorkerId(String);

impl WorkerId {
    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An id for a worker that was given none: unique, stored by it on first start.
    pub fn generate() -> Self {
        Self(format!("w-{:012x}", world::random_u64() >> 16))
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for WorkerId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let ok = (1..=63).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(
                "worker_id",
                "must be 1 to 63 of a-z 0-9 - . _ and begin with a letter or digit",
            )
            .hint("set WORKER_ID (or --worker-id) to such a name, or leave it out: then one is made"))
        }
    }
}

/// Fencing token of a placement. Grows with each placement of a session; 0 is "never placed".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Grows each time a worker process registers under an id. The newest wins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
