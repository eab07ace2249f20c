//! Backends, session states and end reasons: closed sets, of which the wire may bring anything.

use crate::{
    domain::{Backend, BackendChoice, EndReason, SessionState},
    error::Error,
    v1,
};

impl std::str::FromStr for BackendChoice {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "auto" || text.is_empty() {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Only)
    }
}

impl std::str::FromStr for Backend {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|b| b.as_str() == text).ok_or_else(|| {
            Error::invalid("backend", format!("{text:?} is not one")).hint("auto, native, docker or fake")
        })
    }
}

impl From<SessionState> for v1::SessionState {
    fn from(state: SessionState) -> Self {
        match state {
            SessionState::Pending => Self::Pending,
            SessionState::Placed => Self::Placed,
            SessionState::Ready => Self::Ready,
            SessionState::Paused => Self::Paused,
            SessionState::Parked => Self::Parked,
            SessionState::Ending => Self::Ending,
            SessionState::Ended => Self::Ended,
        }
    }
}

/// A state from the wire; unknown numbers are refused.
pub fn session_state(field: &str, value: i32) -> Result<SessionState, Error> {
    Ok(match v1::SessionState::try_from(value) {
        Ok(v1::SessionState::Pending) => SessionState::Pending,
        Ok(v1::SessionState::Placed) => SessionState::Placed,
        Ok(v1::SessionState::Ready) => SessionState::Ready,
        Ok(v1::SessionState::Paused) => SessionState::Paused,
        Ok(v1::SessionState::Parked) => SessionState::Parked,
        Ok(v1::SessionState::Ending) => SessionState::Ending,
        Ok(v1::SessionState::Ended) => SessionState::Ended,
        Ok(v1::SessionState::Unspecified) | Err(_) => {
            return Err(Error::invalid(field, format!("{value} is no session state"))
                .hint("see SessionState in berth/v1/session.proto; UNSPECIFIED is none"));
        }
    })
}

impl From<EndReason> for v1::EndReason {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Deleted => Self::Deleted,
            EndReason::TtlExpired => Self::TtlExpired,
            EndReason::Idle => Self::Idle,
            EndReason::NoPlace => Self::NoPlace,
            EndReason::WorkerLost => Self::WorkerLost,
            EndReason::SandboxFailed => Self::SandboxFailed,
            EndReason::Drained => Self::Drained,
            EndReason::Abandoned => Self::Abandoned,
            EndReason::Parked => Self::Parked,
        }
    }
}

/// An end reason from the wire. `None`: not ended.
pub fn end_reason(value: i32) -> Option<EndReason> {
    Some(match v1::EndReason::try_from(value).ok()? {
        v1::EndReason::Unspecified => return None,
        v1::EndReason::Deleted => EndReason::Deleted,
        v1::EndReason::TtlExpired => EndReason::TtlExpired,
        v1::EndReason::Idle => EndReason::Idle,
        v1::EndReason::NoPlace => EndReason::NoPlace,
        v1::EndReason::WorkerLost => EndReason::WorkerLost,
        v1::EndReason::SandboxFailed => EndReason::SandboxFailed,
        v1::EndReason::Drained => EndReason::Drained,
        v1::EndReason::Abandoned => EndReason::Abandoned,
        v1::EndReason::Parked => EndReason::Parked,
    })
}
