//! The one place where a decision on egress is told: in this worker's log, and to the coordinator as far as the link
//! takes it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use berth_proto::{
    convert::{duration_out, time_out},
    egress::Target,
    v1, world,
};

use super::Who;
use crate::{link::outbox::Outbox, metrics::Metrics};

/// What was decided of one request.
#[derive(Debug)]
pub struct Decision<'a> {
    pub allowed: bool,
    /// `None`: what was asked for could not be understood.
    pub target: Option<&'a Target>,
    pub address: Option<IpAddr>,
    pub why: &'a str,
}

/// What a connection carried, in bytes of each side, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Went {
    pub sent: u64,
    pub received: u64,
    pub lasted: Duration,
}

/// Where decisions go.
pub struct Audit {
    outbox: Arc<Outbox>,
    metrics: Arc<Metrics>,
}

impl Audit {
    pub(crate) fn new(outbox: Arc<Outbox>, metrics: Arc<Metrics>) -> Self {
        Self { outbox, metrics }
    }

    pub fn decided(&self, who: Who, decision: Decision<'_>) {
        let Decision { allowed, target, address, why } = decision;
        self.metrics.egress(allowed);
        let host = target.map(|target| target.host.to_string()).unwrap_or_default();
        let port = target.map_or(0, |target| target.port);
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(target: "audit", { session.id = %who.session, epoch = who.epoch.0, allowed, host, port, address, why }, "egress");
        self.outbox.egress(v1::EgressDecision {
            session_id: who.session.to_string(),
            epoch: who.epoch.0,
            at: Some(time_out(world::now())),
            allowed,
            host,
            port: port.into(),
            address,
            why: why.to_owned(),
            carried: None,
        });
    }

    /// What was allowed is over.
    pub fn ended(&self, who: Who, target: Option<&Target>, address: IpAddr, went: Went) {
        let Went { sent, received, lasted } = went;
        self.metrics.carried(sent, received);
        let host = target.map(|target| target.host.to_string()).unwrap_or_default();
        let port = target.map_or(0, |target| target.port);
        let address = address.to_string();
        tracing::info!(target: "audit", { session.id = %who.session, epoch = who.epoch.0, host, port, address, sent, received,
            seconds = lasted.as_secs_f64() }, "egress ended");
        self.outbox.egress(v1::EgressDecision {
            session_id: who.session.to_string(),
            epoch: who.epoch.0,
            at: Some(time_out(world::now())),
            allowed: true,
            host,
            port: port.into(),
            address,
            why: String::new(),
            carried: Some(v1::EgressCarried { sent, received, lasted: Some(duration_out(lasted)) }),
        });
    }
}
