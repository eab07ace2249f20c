//! What a recovery has cost a session, told with its tasks.
//!
//! Where a session goes on after its machine was lost, only what was in the checkpoint is known: tasks that had ended by
//! then, with the last of their output. Of the others the coordinator's own record is left, if it had heard of them at
//! all. Whoever asks for one is told so, and never just that there is no such task.

use berth_proto::{
    Error, Reason,
    convert::time_out,
    domain::Outcome,
    error::{detail_of, reason_of},
    v1,
};
use tonic::Status;

use crate::fleet::{Kept, Recovery, Session};

const RAN: &str = "its worker was lost while it ran: what it did is not known";

/// A task of which only the record is left: none of its output is kept any more, and if the session was recovered since,
/// that is said too.
pub fn record(mut task: v1::Task, session: &Session) -> v1::Task {
    for stream in [&mut task.stdout, &mut task.stderr].into_iter().flatten() {
        stream.first_kept = stream.length;
    }
    let Some(end) = &mut task.end else { return task };
    let lost = end.outcome == Some(Outcome::WorkerLost.into());
    let mut words: Vec<String> = Vec::new();
    match end.message.as_str() {
        "" if lost => words.push(RAN.to_owned()),
        "" => {}
        message => words.push(message.to_owned()),
    }
    if let Some(Recovery { kept, .. }) = &session.recovered {
        words.push(format!(
            "only its record is left: the session was {}, and what happened between then and the recovery is lost",
            to(kept)
        ));
    }
    end.message = words.join("; ");
    task
}

/// The answer of where the session is now, with what the recovery has to do with it.
pub fn refusal(status: Status, session: &Session) -> Status {
    let Some(Recovery { kept, .. }) = &session.recovered else { return status };
    let error = match reason_of(&status) {
        Some(Reason::TaskNotFound) => Error::not_found(
            Reason::TaskNotFound,
            format!(
                "{}; the session was {}, and tasks that were started between then and the recovery are lost with all \
                 that they did",
                status.message(),
                to(kept)
            ),
        )
        .hint("`berth tasks SESSION` lists those that are known; start it again if that does no harm"),
        Some(Reason::SessionRecovered) => {
            let message = format!(
                "the session was {} since this task was first asked for: whether it had started is not known, and it is \
                 not started again",
                to(kept)
            );
            let error = Error::precondition(Reason::SessionRecovered, message);
            match detail_of(&status, "epoch") {
                Some(epoch) => error.with("epoch", epoch),
                None => error,
            }
        }
        _ => return status,
    };
    error.with("recovered_to", time_text(kept)).with("recovered_from", &kept.from.checkpoint).into()
}

fn to(kept: &Kept) -> String {
    format!("recovered to {} from checkpoint {}", time_text(kept), kept.from.checkpoint)
}

/// To the second: it is for people.
fn time_text(kept: &Kept) -> String {
    prost_types::Timestamp { nanos: 0, ..time_out(kept.at) }.to_string()
}
