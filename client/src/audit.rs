//! For operators: what was done, by whom.

use std::{collections::BTreeMap, time::SystemTime};

use berth_proto::{
    convert::time_out,
    transport::MESSAGE_LIMIT,
    v1::{self, audit_service_client::AuditServiceClient},
};
use serde::Serialize;
use tonic::transport::Channel;

use crate::{Client, Error, connect::Policy, model::json};

/// Records asked for at a time.
const PAGE: u32 = 1000;

fn service(channel: Channel) -> AuditServiceClient<Channel> {
    AuditServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditRecord {
    /// Grows by one with each record.
    pub sequence: u64,
    #[serde(serialize_with = "json::opt_time")]
    pub at: Option<SystemTime>,
    /// The id of a token, `admin.token`, `join.token`, `-` for Berth itself, or nothing for a call without a good token.
    pub who: String,
    pub tenant: String,
    /// `Service/Method`, `task ended`, `session ended`, `egress`, `lost`.
    pub what: String,
    pub session: String,
    pub task: String,
    /// `OK`, a refusal's code and reason, a task's outcome, or why a session ended.
    pub outcome: String,
    pub details: BTreeMap<String, String>,
}

/// What looking through all of them came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditCheck {
    pub records: u64,
    pub first: u64,
    pub last: u64,
    /// Of the last record, in hex.
    pub sum: String,
    /// The first record that is not as it was written.
    pub broken_at: Option<u64>,
}

/// Which records. All that is set must hold.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct AuditFilter {
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
    pub who: Option<String>,
    pub tenant: Option<String>,
    /// What it begins with.
    pub what: Option<String>,
    pub session: Option<String>,
    pub task: Option<String>,
    /// Only calls that were refused or failed.
    pub refused: bool,
}

impl Client {
    /// The newest `most` records that fit, newest first.
    pub async fn audit(&self, filter: AuditFilter, most: usize) -> Result<Vec<AuditRecord>, Error> {
        let mut request = v1::ListAuditRequest {
            since: filter.since.map(time_out),
            until: filter.until.map(time_out),
            who: filter.who.unwrap_or_default(),
            tenant: filter.tenant.unwrap_or_default(),
            what: filter.what.unwrap_or_default(),
            session_id: filter.session.unwrap_or_default(),
            task_id: filter.task.unwrap_or_default(),
            refused: filter.refused,
            ..Default::default()
        };
        let mut found = Vec::new();
        while found.len() < most {
            request.page_size = u32::try_from(most - found.len()).unwrap_or(PAGE).min(PAGE);
            let page = self
                .call(Policy::REPEATABLE, request.clone(), |channel, request| async {
                    service(channel).list_audit(request).await
                })
                .await?;
            found.extend(page.records.into_iter().map(AuditRecord::from));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        Ok(found)
    }

    /// Whether the record is as it was written.
    pub async fn verify_audit(&self) -> Result<AuditCheck, Error> {
        let seen = self
            .call(Policy::REPEATABLE, v1::VerifyAuditRequest {}, |channel, request| async {
                service(channel).verify_audit(request).await
            })
            .await?;
        Ok(AuditCheck {
            records: seen.records,
            first: seen.first,
            last: seen.last,
            sum: seen.sum,
            broken_at: seen.broken_at,
        })
    }
}

impl From<v1::AuditRecord> for AuditRecord {
    fn from(wire: v1::AuditRecord) -> Self {
        Self {
            sequence: wire.sequence,
            at: wire.at.and_then(|at| SystemTime::try_from(at).ok()),
            who: wire.who,
            tenant: wire.tenant,
            what: wire.what,
            session: wire.session_id,
            task: wire.task_id,
            outcome: wire.outcome,
            details: wire.details.into_iter().collect(),
        }
    }
}
