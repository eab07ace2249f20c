//! `AuditService`: what was done, by whom. For operators alone.

use berth_proto::{
    Error, Reason,
    convert::{self, bounds, time_out},
    v1::{self, audit_service_server::AuditService},
};
use tonic::{Request, Response, Status};

use super::Context;
use crate::{
    audit::{Filter, Record},
    store::StoreError,
};

pub struct Auditing {
    context: Context,
}

impl Auditing {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl AuditService for Auditing {
    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let request = request.into_inner();
        let size = convert::page_size(request.page_size, bounds::PAGE_DEFAULT)?;
        let filter = filter(request)?;
        let mut found = self.context.audit.list(&filter, size + 1).await.map_err(unread)?;
        let more = found.len() > size;
        found.truncate(size);
        let last = found.last().filter(|_| more).map(|(sequence, _)| sequence.to_string());
        let records = found.into_iter().map(out).collect();
        Ok(Response::new(v1::ListAuditResponse { records, next_page_token: last.unwrap_or_default() }))
    }

    async fn verify_audit(
        &self,
        _: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let seen = self.context.audit.verify().await.map_err(unread)?;
        Ok(Response::new(v1::VerifyAuditResponse {
            records: seen.records,
            first: seen.first,
            last: seen.last,
            sum: seen.sum.iter().map(|b| format!("{b:02x}")).collect(),
            broken_at: seen.broken_at,
        }))
    }
}

fn filter(wire: v1::ListAuditRequest) -> Result<Filter, Error> {
    let before = match wire.page_token.as_str() {
        "" => None,
        token => Some(token.parse::<u64>().map_err(|_| convert::bad_page_token())?),
    };
    Ok(Filter {
        since: wire.since.map(|at| convert::time("since", at)).transpose()?,
        until: wire.until.map(|at| convert::time("until", at)).transpose()?,
        who: wire.who,
        tenant: wire.tenant,
        what: wire.what,
        session: wire.session_id,
        task: wire.task_id,
        refused: wire.refused,
        before,
    })
}

fn out((sequence, record): (u64, Record)) -> v1::AuditRecord {
    v1::AuditRecord {
        sequence,
        at: Some(time_out(record.at)),
        who: record.who,
        tenant: record.tenant,
        what: record.what,
        session_id: record.session,
        task_id: record.task,
        outcome: record.outcome,
        details: record.details.into_iter().collect(),
    }
}

fn unread(error: StoreError) -> Error {
    Error::unavailable(Reason::StoreFailed, "the audit record could not be read or written")
        .hint("look at the disk under the coordinator's state directory")
        .cause(error)
}
