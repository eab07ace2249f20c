//! The lines of a session's files that match a pattern, as they are found.

use std::time::Duration;

use berth_proto::{
    convert::duration_out,
    v1::{self, search_event::Event},
};
use tokio::time::timeout;
use tonic::Streaming;

use crate::{
    Error,
    files::{Files, service},
    model::{SearchEnd, SearchMatch},
};

/// Servers send keepalives while they search; a stream silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(60);

/// What to search for, and where.
#[derive(Clone, Debug, Default)]
pub struct SearchOptions(v1::SearchRequest);

impl SearchOptions {
    pub fn new() -> Self {
        Self::default()
    }

    /// The pattern is text, and no expression.
    #[must_use]
    pub fn literal(mut self) -> Self {
        self.0.literal = true;
        self
    }

    /// Capital and small letters are the same.
    #[must_use]
    pub fn ignore_case(mut self, ignore: bool) -> Self {
        self.0.ignore_case = ignore;
        self
    }

    /// Only files whose path fits this glob, or another that was given: `*.py`, `src/**/*.{ts,tsx}`. At most 32.
    #[must_use]
    pub fn glob(mut self, glob: impl Into<String>) -> Self {
        self.0.globs.push(glob.into());
        self
    }

    /// Neither files that fit this glob, nor what is in directories that do. At most 32.
    #[must_use]
    pub fn exclude(mut self, glob: impl Into<String>) -> Self {
        self.0.exclude.push(glob.into());
        self
    }

    /// Lines before and after each match, at most 20.
    #[must_use]
    pub fn context(mut self, lines: u32) -> Self {
        self.0.context = lines;
        self
    }

    /// 1 to 10000. Without this, 1000.
    #[must_use]
    pub fn max_matches(mut self, most: u32) -> Self {
        self.0.max_matches = most;
        self
    }

    /// Larger files are passed over; at most 16 MiB. Without this, 4 MiB.
    #[must_use]
    pub fn max_file_bytes(mut self, most: u64) -> Self {
        self.0.max_file_bytes = most;
        self
    }

    /// At most 60 seconds, and without this as long.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.0.time_limit = Some(duration_out(limit));
        self
    }
}

/// What a search finds. Dropping it ends the search.
pub struct SearchStream {
    files: Files,
    inner: Streaming<v1::SearchEvent>,
    end: Option<SearchEnd>,
}

impl Files {
    /// Searches a directory with all that is below it, or one file, for lines that match a regular expression (of Rust's
    /// regex crate). Links are not followed.
    pub async fn search(
        &self,
        path: &str,
        pattern: &str,
        options: SearchOptions,
    ) -> Result<SearchStream, Error> {
        let request = v1::SearchRequest {
            session_id: self.session.id.to_string(),
            path: path.to_owned(),
            pattern: pattern.to_owned(),
            ..options.0
        };
        let open = self
            .session
            .client
            .open(request, |channel, request| async { service(channel).search(request).await });
        Ok(SearchStream { files: self.clone(), inner: open.await?, end: None })
    }
}

impl SearchStream {
    /// The next match, in the order of paths and lines. `None`: that was all that is told; [`SearchStream::end`] says how
    /// it ended. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<SearchMatch>, Error> {
        let client = &self.files.session.client;
        while self.end.is_none() {
            match timeout(SILENCE, self.inner.message()).await {
                Ok(Ok(Some(message))) => match message.event {
                    Some(Event::Match(found)) => return Ok(Some(found.into())),
                    Some(Event::End(end)) => self.end = Some(end.try_into()?),
                    Some(Event::Keepalive(_)) => {}
                    None => return Err(Error::strange("an empty event of a search")),
                },
                Ok(Ok(None)) => return Err(Error::strange("a search ended without a word")),
                Ok(Err(status)) => return Err(client.error(status)),
                Err(_) => return Err(Error::deadline(client.address(), SILENCE)),
            }
        }
        Ok(None)
    }

    /// How it ended, once it has.
    pub fn end(&self) -> Option<SearchEnd> {
        self.end
    }

    /// All that is left of it, and how it ended.
    pub async fn collect(mut self) -> Result<(Vec<SearchMatch>, SearchEnd), Error> {
        let mut found = Vec::new();
        while let Some(one) = self.next().await? {
            found.push(one);
        }
        let end = self.end.ok_or_else(|| Error::strange("a search ended without a word"))?;
        Ok((found, end))
    }
}

impl std::fmt::Debug for SearchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SearchStream").field("end", &self.end).finish_non_exhaustive()
    }
}
