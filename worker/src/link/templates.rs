//! The coordinator's templates as this worker sees them: which it can serve, and why not the others.
//!
//! A list that came with a Welcome is looked at before the worker says that it is ready, so that the first
//! report that says so also says for what. Later looks (a canary was run, a backend changed) go on beside.

use std::sync::{Mutex, PoisonError};

use berth_proto::{domain::TemplateSpec, v1};
use tracing::warn;

use crate::backends::{Backends, Review};

/// What the coordinator may ask for, and what of it can be served.
#[derive(Default)]
pub struct Templates {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// As the last Welcome gave them; `None` before the first.
    offered: Option<Vec<v1::TemplateSpec>>,
    known: Vec<TemplateSpec>,
    /// Those that make no sense here, and why.
    senseless: Vec<v1::TemplateProblem>,
    /// Counts the looks: only the newest one's result is kept.
    look: u64,
    /// The newest result, if it is of this list.
    review: Option<Review>,
}

impl Templates {
    /// A Welcome's list. One that is not the last one's has to be looked at anew.
    pub fn offer(&self, offered: Vec<v1::TemplateSpec>) {
        let mut state = self.lock();
        if state.offered.as_ref() == Some(&offered) {
            return;
        }
        *state = State { look: state.look, ..State::default() };
        for wire in &offered {
            match TemplateSpec::try_from(wire.clone()) {
                Ok(template) => state.known.push(template),
                Err(error) => {
                    warn!(template = wire.name, %error, "a template makes no sense here");
                    let problem = v1::TemplateProblem { name: wire.name.clone(), reason: error.to_string() };
                    state.senseless.push(problem);
                }
            }
        }
        state.offered = Some(offered);
    }

    /// Looks at each of them.
    pub async fn review(&self, backends: &Backends) {
        let (look, known) = {
            let mut state = self.lock();
            if state.offered.is_none() {
                return;
            }
            state.look += 1;
            (state.look, state.known.clone())
        };
        let review = backends.review(&known).await;
        let mut state = self.lock();
        if state.look == look {
            state.review = Some(review);
        }
    }

    /// Whether the coordinator's list has been looked at.
    pub fn reviewed(&self) -> bool {
        self.lock().review.is_some()
    }

    /// Names of those that can be served, and what is wrong with the others.
    pub fn report(&self) -> (Vec<String>, Vec<v1::TemplateProblem>) {
        let state = self.lock();
        let Review { served, problems } = state.review.clone().unwrap_or_default();
        (served, problems.into_iter().chain(state.senseless.iter().cloned()).collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
