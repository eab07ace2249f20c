//! Sessions as a client asks for them.

use super::{bounds, duration, duration_out, env, labels, optional_limit, request_id};
use crate::{
    domain::{CheckpointPolicy, CreateSession, Egress, LimitsPatch, OnWorkerLoss, TaskDefaultsPatch},
    error::Error,
    v1,
};

impl TryFrom<v1::CreateSessionRequest> for CreateSession {
    type Error = Error;
    fn try_from(wire: v1::CreateSessionRequest) -> Result<Self, Error> {
        if !(-bounds::PRIORITY..=bounds::PRIORITY).contains(&wire.priority) {
            let words = format!("{} is not within -{1} to {1}", wire.priority, bounds::PRIORITY);
            return Err(Error::invalid("priority", words).hint("0 is usual; higher goes first"));
        }
        Ok(Self {
            request_id: request_id(wire.request_id)?,
            template: if wire.template.is_empty() { "base".to_owned() } else { wire.template },
            limits: wire.limits.map(LimitsPatch::try_from).transpose()?.unwrap_or_default(),
            env: env("env", wire.env)?,
            labels: labels("labels", wire.labels)?,
            ttl: optional_limit("ttl", wire.ttl)?,
            idle_timeout: optional_limit("idle_timeout", wire.idle_timeout)?,
            worker_selector: labels("worker_selector", wire.worker_selector)?,
            priority: wire.priority,
            patient: wire.wait_for_place.is_some(),
            wait_for_place: match wire.wait_for_place {
                None => bounds::WAIT_FOR_PLACE,
                Some(value) => duration("wait_for_place", value)?,
            },
            task_defaults: wire
                .task_defaults
                .map(TaskDefaultsPatch::try_from)
                .transpose()?
                .unwrap_or_default(),
            on_worker_loss: on_worker_loss(wire.on_worker_loss)?,
            checkpoints: wire.checkpoints.map(CheckpointPolicy::try_from).transpose()?.unwrap_or_default(),
            egress: wire.egress.map(Egress::try_from).transpose()?,
        })
    }
}

fn on_worker_loss(wire: i32) -> Result<OnWorkerLoss, Error> {
    match v1::OnWorkerLoss::try_from(wire) {
        Ok(v1::OnWorkerLoss::Unspecified | v1::OnWorkerLoss::End) => Ok(OnWorkerLoss::End),
        Ok(v1::OnWorkerLoss::Restore) => Ok(OnWorkerLoss::Restore),
        Err(_) => {
            Err(Error::invalid("on_worker_loss", format!("{wire} is not known")).hint("END or RESTORE"))
        }
    }
}

impl From<OnWorkerLoss> for v1::OnWorkerLoss {
    fn from(on_loss: OnWorkerLoss) -> Self {
        match on_loss {
            OnWorkerLoss::End => Self::End,
            OnWorkerLoss::Restore => Self::Restore,
        }
    }
}

impl TryFrom<v1::CheckpointPolicy> for CheckpointPolicy {
    type Error = Error;
    fn try_from(wire: v1::CheckpointPolicy) -> Result<Self, Error> {
        let usual = Self::default();
        let interval = wire.interval.map(|every| duration("checkpoints.interval", every)).transpose()?;
        if interval.is_some_and(|every| every < bounds::CHECKPOINT_INTERVAL_MIN) {
            return Err(
                Error::invalid("checkpoints.interval", "is less than a second").hint("leave it out for none")
            );
        }
        if wire.keep > bounds::CHECKPOINTS_KEPT {
            return Err(Error::invalid(
                "checkpoints.keep",
                format!("is more than {}", bounds::CHECKPOINTS_KEPT),
            ));
        }
        let keep_for = wire.keep_for.map(|keep| duration("checkpoints.keep_for", keep)).transpose()?;
        if keep_for.is_some_and(|keep| keep.is_zero()) {
            return Err(Error::invalid("checkpoints.keep_for", "is zero").hint("leave it out for a week"));
        }
        Ok(Self {
            interval,
            on_drain: wire.on_drain,
            before_delete: wire.before_delete,
            keep: if wire.keep == 0 { usual.keep } else { wire.keep },
            keep_for: keep_for.unwrap_or(usual.keep_for),
        })
    }
}

impl From<CheckpointPolicy> for v1::CheckpointPolicy {
    fn from(policy: CheckpointPolicy) -> Self {
        Self {
            interval: policy.interval.map(duration_out),
            on_drain: policy.on_drain,
            before_delete: policy.before_delete,
            keep: policy.keep,
            keep_for: Some(duration_out(policy.keep_for)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_out_of_bounds_is_refused_whatever_its_sign() {
        for priority in [i32::MIN, -101, 101, i32::MAX] {
            let wire = v1::CreateSessionRequest { priority, ..Default::default() };
            let error = CreateSession::try_from(wire).expect_err("must be refused");
            assert!(error.to_string().starts_with(&format!("priority: {priority} is not within")), "{error}");
        }
        let wire = v1::CreateSessionRequest { priority: -100, ..Default::default() };
        assert_eq!(CreateSession::try_from(wire).unwrap().priority, -100);
    }

    #[test]
    fn who_says_how_long_it_waits_is_patient() {
        let patient = |wait_for_place| {
            let wire = v1::CreateSessionRequest { wait_for_place, ..Default::default() };
            CreateSession::try_from(wire).unwrap().patient
        };
        assert!(!patient(None) && patient(Some(prost_types::Duration { seconds: 30, nanos: 0 })));
    }
}
