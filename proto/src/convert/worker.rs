//! What goes between the coordinator and its workers: templates, placements, capacities.

use super::{duration, duration_out, env, full_limits, optional_limit, required, session_id, time, time_out};
use crate::{
    domain::{Capacity, Egress, Placement, RestoreFrom, TaskDefaultsPatch, TemplateSpec},
    error::Error,
    ids::Epoch,
    v1,
};

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl TryFrom<v1::TemplateSpec> for TemplateSpec {
    type Error = Error;
    fn try_from(wire: v1::TemplateSpec) -> Result<Self, Error> {
        Ok(Self {
            name: wire.name,
            root: non_empty(wire.root),
            image: non_empty(wire.image),
            backend: wire.backend.parse()?,
            user: wire.user,
        })
    }
}

impl From<TemplateSpec> for v1::TemplateSpec {
    fn from(spec: TemplateSpec) -> Self {
        Self {
            name: spec.name,
            root: spec.root.unwrap_or_default(),
            image: spec.image.unwrap_or_default(),
            backend: spec.backend.to_string(),
            user: spec.user,
        }
    }
}

impl TryFrom<v1::PlaceSession> for Placement {
    type Error = Error;
    fn try_from(wire: v1::PlaceSession) -> Result<Self, Error> {
        let defaults = TaskDefaultsPatch::try_from(wire.task_defaults.unwrap_or_default())?;
        Ok(Self {
            session: session_id(&wire.session_id)?,
            epoch: Epoch(wire.epoch),
            template: required("template", wire.template)?.try_into()?,
            limits: full_limits(required("limits", wire.limits)?)?,
            env: env("env", wire.env)?,
            created_at: time("created_at", required("created_at", wire.created_at)?)?,
            expires_at: wire.expires_at.map(|t| time("expires_at", t)).transpose()?,
            expires_in: wire.expires_in.map(|left| duration("expires_in", left)).transpose()?,
            idle_timeout: optional_limit("idle_timeout", wire.idle_timeout)?.flatten(),
            task_defaults: defaults,
            start_timeout: duration("start_timeout", required("start_timeout", wire.start_timeout)?)?,
            restore: wire.restore.map(RestoreFrom::try_from).transpose()?,
            fenced: wire.fenced,
            checkpoint_on_drain: wire.checkpoint_on_drain,
            egress: wire.egress.map(Egress::try_from).transpose()?.unwrap_or_default(),
        })
    }
}

impl From<Placement> for v1::PlaceSession {
    fn from(placement: Placement) -> Self {
        Self {
            session_id: placement.session.to_string(),
            epoch: placement.epoch.0,
            template: Some(placement.template.into()),
            limits: Some(placement.limits.into()),
            env: placement.env.into_iter().collect(),
            created_at: Some(time_out(placement.created_at)),
            expires_at: placement.expires_at.map(time_out),
            expires_in: placement.expires_in.map(duration_out),
            idle_timeout: placement.idle_timeout.map(duration_out),
            task_defaults: Some(placement.task_defaults.into()),
            start_timeout: Some(duration_out(placement.start_timeout)),
            restore: placement.restore.map(Into::into),
            fenced: placement.fenced,
            checkpoint_on_drain: placement.checkpoint_on_drain,
            egress: Some(placement.egress.into()),
        }
    }
}

impl TryFrom<v1::RestoreFrom> for RestoreFrom {
    type Error = Error;
    fn try_from(wire: v1::RestoreFrom) -> Result<Self, Error> {
        let root = wire.root.as_ref().try_into();
        let root = root.map_err(|_| Error::invalid("restore.root", "a digest has 32 bytes"))?;
        Ok(Self { checkpoint: wire.checkpoint_id, root })
    }
}

impl From<RestoreFrom> for v1::RestoreFrom {
    fn from(from: RestoreFrom) -> Self {
        Self { checkpoint_id: from.checkpoint, root: from.root.to_vec().into() }
    }
}

impl From<v1::Capacity> for Capacity {
    fn from(wire: v1::Capacity) -> Self {
        Self {
            cpu_millis: wire.cpu_millis,
            memory_bytes: wire.memory_bytes,
            disk_bytes: wire.disk_bytes,
            max_sessions: wire.max_sessions,
        }
    }
}

impl From<Capacity> for v1::Capacity {
    fn from(capacity: Capacity) -> Self {
        Self {
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            disk_bytes: capacity.disk_bytes,
            max_sessions: capacity.max_sessions,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{
        domain::{Backend, BackendChoice, Labels, Limits, Preset},
        ids::SessionId,
    };

    #[test]
    fn a_placement_survives_the_wire() {
        let placement = Placement {
            session: SessionId::new(),
            epoch: Epoch(4),
            template: TemplateSpec {
                name: "base".into(),
                root: None,
                image: Some("i".into()),
                backend: BackendChoice::Only(Backend::Docker),
                user: "user".into(),
            },
            limits: Limits { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30, pids: 64 },
            env: Labels::from([("A".to_owned(), "1".to_owned())]),
            created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
            expires_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(65)),
            expires_in: Some(Duration::from_secs(60)),
            idle_timeout: Some(Duration::from_secs(9)),
            task_defaults: TaskDefaultsPatch { timeout: Some(None), ..Default::default() },
            start_timeout: Duration::from_secs(30),
            restore: Some(RestoreFrom { checkpoint: "c".into(), root: [7; 32] }),
            fenced: true,
            checkpoint_on_drain: true,
            egress: Egress {
                preset: Preset::Packages,
                allow: vec!["*.example.org:8443".parse().unwrap(), "[2001:db8::/32]:1".parse().unwrap()],
            },
        };
        assert_eq!(Placement::try_from(v1::PlaceSession::from(placement.clone())).unwrap(), placement);
    }
}
