//! The coordinator that clients of this machine would use, and what its workers say of themselves.

use std::{collections::BTreeMap, time::Duration};

use berth_client::{
    Client, Error,
    model::{CoordinatorInfo, WorkerInfo},
};

use super::{Finding, Verdict, from_error};
use crate::commands::Global;

/// The coordinator has this long to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// How a worker's word on its backend tells what of it is weaker than it should be.
const WEAKER: &str = "weaker: ";

/// Not needed for `berth up`, which brings its own: but an address that was set is meant.
pub(super) async fn look(global: &Global) -> Vec<Finding> {
    let what = "coordinator";
    let options = match global.connect_options() {
        Ok(options) => options,
        Err(failure) => {
            let unknown = Finding::new(what, Verdict::Unknown, &failure.message);
            return vec![unknown.hint(failure.hints.join("; "))];
        }
    };
    let address = options.address.clone();
    let chosen = global.address.is_some() || std::env::var_os(crate::env::COORDINATOR_ADDR).is_some();
    let bad = if chosen { Verdict::Problem } else { Verdict::Note };
    let asked = async {
        let client = Client::connect(options).await?;
        let info = client.info().await?;
        // A tenant's token may not see them, and then there is nothing to say of them.
        Ok::<(CoordinatorInfo, Vec<WorkerInfo>), Error>((info, client.workers().await.unwrap_or_default()))
    };
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(Ok((info, workers))) => {
            let text = format!("{address}, version {}, {} workers alive", info.version, info.workers_alive);
            let mut findings = vec![Finding::new(what, Verdict::Ok, text)];
            findings.extend(weaker(&workers));
            findings
        }
        Ok(Err(error)) if error.is_not_connected() && !chosen => {
            vec![Finding::new(what, Verdict::Note, format!("none runs at {address} yet"))]
        }
        Ok(Err(error)) => vec![from_error(what, bad, &error)],
        Err(_) => vec![
            Finding::new(what, bad, format!("{address} does not answer"))
                .hint("see its log; `berth status` shows whether the `berth up` of this machine runs"),
        ],
    }
}

/// What of the workers' chosen backends is weaker than it should be: each once, with those of whom it is said.
fn weaker(workers: &[WorkerInfo]) -> Vec<Finding> {
    let mut told: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for worker in workers {
        let message = worker.chosen_backend().map(|backend| backend.message.as_str()).unwrap_or_default();
        // They come last.
        for part in message.split(WEAKER).skip(1) {
            told.entry(part.trim_end_matches(", ")).or_default().push(&worker.id);
        }
    }
    let finding = |(part, workers): (&str, Vec<&str>)| {
        let finding =
            Finding::new("workers", Verdict::Note, format!("{}: {WEAKER}{part}", workers.join(", ")));
        finding.hint(format!("`berth workers {}`; what holds what is in docs/security.md", workers[0]))
    };
    told.into_iter().map(finding).collect()
}
