//! What opens a sandbox, sealed so that only the gateway can read or make it: the session, and the token of Berth with
//! which calls to it are made. So the gateway keeps no table of who may what, and what was made with a token that is revoked
//! opens nothing any more.
//!
//! It is sealed with AES-GCM. The nonce is a keyed hash of what is sealed: the same sandbox and token have the same seal
//! always. Each kind has keys of its own, so that one is never good for another.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use berth_client::SessionId;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};

/// Of a seal that is looked at.
const LONGEST: usize = 1024;

/// What a seal opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub session: SessionId,
    /// Of Berth: whose calls these are.
    pub token: String,
}

/// What a seal is for.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// All of a sandbox: its processes and files.
    Sandbox,
    /// What listens on its ports.
    Traffic,
    /// The same, for everybody: it stands in a label of the session, and is shown by nobody.
    Public,
}

impl Kind {
    /// So that it is known for what it is wherever it turns up.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Sandbox => "berth_sandbox_",
            Self::Traffic => "berth_traffic_",
            Self::Public => "berth_public_",
        }
    }

    /// Of its keys' names. The first kind was there before there were others.
    fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "",
            Self::Traffic => " traffic",
            Self::Public => " public",
        }
    }
}

/// The seal of one kind.
pub struct Seal {
    kind: Kind,
    key: LessSafeKey,
    nonce: hmac::Key,
}

impl Seal {
    /// `secret`: what nobody else knows, and what stays the same for as long as seals shall be good.
    pub fn new(secret: &[u8], kind: Kind) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived =
            |what: &str| hmac::sign(&root, format!("berth gateway e2b 1 {what}{}", kind.name()).as_bytes());
        let key = UnboundKey::new(&AES_256_GCM, derived("seal").as_ref()).expect("32 bytes are a key");
        let nonce = hmac::Key::new(hmac::HMAC_SHA256, derived("nonce").as_ref());
        Self { kind, key: LessSafeKey::new(key), nonce }
    }

    /// The seal of a sandbox for who has this token.
    pub fn close(&self, session: SessionId, token: &str) -> String {
        let mut sealed = format!("{session}{token}").into_bytes();
        let nonce = nonce(hmac::sign(&self.nonce, &sealed).as_ref());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
            .expect("so few bytes can be sealed");
        format!("{}{}", self.kind.prefix(), URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat()))
    }

    /// What it opens, if it is one of ours and of this kind.
    pub fn open(&self, text: &str) -> Option<Grant> {
        let text = text.strip_prefix(self.kind.prefix()).filter(|text| text.len() <= LONGEST)?;
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (head, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::assume_unique_for_key(nonce(head));
        let plain = self.key.open_in_place(nonce, Aad::empty(), sealed).ok()?;
        let (session, token) = std::str::from_utf8(plain).ok()?.split_at_checked(32)?;
        Some(Grant { session: session.parse().ok()?, token: token.to_owned() })
    }
}

fn nonce(bytes: &[u8]) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&bytes[..NONCE_LEN]);
    nonce
}

#[cfg(test)]
mod tests {
    use berth_proto::convert::bounds;

    use super::*;

    const KINDS: [Kind; 3] = [Kind::Sandbox, Kind::Traffic, Kind::Public];

    /// Red when what opens ports opens files, or what stands in a label that many see opens anything by itself.
    #[test]
    fn what_is_of_one_kind_opens_no_other() {
        let session = SessionId::new();
        for made in KINDS {
            let text = Seal::new(b"secret", made).close(session, "berth_client_00");
            for asked in KINDS {
                let renamed = text.replace(made.prefix(), asked.prefix());
                let opened = Seal::new(b"secret", asked).open(&renamed).is_some();
                assert_eq!(opened, made as u8 == asked as u8, "{made:?} as {asked:?}");
            }
        }
    }

    #[test]
    fn one_fits_into_a_label() {
        let token = format!("berth_worker_{}", "0".repeat(64));
        assert!(Seal::new(b"secret", Kind::Public).close(SessionId::new(), &token).len() <= bounds::LABEL);
    }
}
