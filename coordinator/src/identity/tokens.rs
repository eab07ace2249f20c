//! All tokens in memory, by id and by hash.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use berth_proto::TokenId;
use tokio_util::sync::CancellationToken;

use super::Token;
use crate::auth::{Digest, same};

/// See the module.
#[derive(Default)]
pub struct Tokens {
    /// Ids grow with time.
    all: BTreeMap<TokenId, Arc<Token>>,
    by_digest: HashMap<Digest, (TokenId, CancellationToken)>,
}

impl Tokens {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Token>> {
        self.all.values()
    }

    pub fn get(&self, id: &TokenId) -> Option<Arc<Token>> {
        self.all.get(id).cloned()
    }

    /// The token of this hash, and what is cancelled when it is revoked.
    pub fn of_digest(&self, digest: &Digest) -> Option<(Arc<Token>, CancellationToken)> {
        let (id, over) = self.by_digest.get(digest)?;
        let token = self.all.get(id).filter(|token| same(&token.digest, digest))?;
        Some((token.clone(), over.clone()))
    }

    /// Adds a token, or changes it. One that is revoked now ends what is under way with it.
    pub fn put(&mut self, token: Arc<Token>) {
        let (_, over) =
            self.by_digest.entry(token.digest).or_insert_with(|| (token.id, CancellationToken::new()));
        if token.revoked_at.is_some() {
            over.cancel();
        }
        self.all.insert(token.id, token);
    }

    pub fn forget(&mut self, ids: &[TokenId]) {
        for id in ids {
            if let Some(token) = self.all.remove(id) {
                self.by_digest.remove(&token.digest);
            }
        }
    }
}

impl FromIterator<Token> for Tokens {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        let mut all = Self::default();
        tokens.into_iter().for_each(|token| all.put(Arc::new(token)));
        all
    }
}
