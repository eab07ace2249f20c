//! Names to addresses: first the operator's own, then the machine's resolver. Only names that a rule allows come here.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use berth_proto::{egress::Host, world};
use tokio::sync::Semaphore;

/// The resolver blocks a thread until it is done, whoever still waits for it. So many at a time.
const AT_ONCE: usize = 16;
const WITHIN: Duration = Duration::from_secs(10);

pub struct Resolver {
    own: HashMap<String, Vec<IpAddr>>,
    places: Arc<Semaphore>,
    #[cfg(test)]
    asked: std::sync::atomic::AtomicUsize,
}

impl Resolver {
    pub fn new(hosts: &[(String, IpAddr)]) -> Self {
        let mut own: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for (name, address) in hosts {
            own.entry(name.clone()).or_default().push(address.to_canonical());
        }
        Self {
            own,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            #[cfg(test)]
            asked: std::sync::atomic::AtomicUsize::new(0),
        }
    }

    /// How often it was asked for a name.
    #[cfg(test)]
    pub fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// In the order in which to try them. Never empty.
    pub async fn addresses(&self, host: &Host) -> io::Result<Vec<IpAddr>> {
        let name = match host {
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name.clone(),
        };
        #[cfg(test)]
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if let Some(own) = self.own.get(&name) {
            return Ok(own.clone());
        }
        let asked = async {
            let place = self.places.clone().acquire_owned().await.map_err(io::Error::other)?;
            world::blocking(move || {
                let _place = place;
                (name.as_str(), 0).to_socket_addrs().map(|found| found.collect::<Vec<_>>())
            })
            .await?
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it was not answered in time");
        let found = tokio::time::timeout(WITHIN, asked).await.map_err(late)??;
        let mut addresses: Vec<IpAddr> = found.iter().map(|found| found.ip().to_canonical()).collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_operators_names_go_first_and_addresses_are_not_looked_up() {
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let hosts =
            [("localhost".to_owned(), at("192.0.2.7")), ("localhost".to_owned(), at("::ffff:10.0.0.1"))];
        let resolver = Resolver::new(&hosts);
        let of = async |text: &str| resolver.addresses(&text.parse().unwrap()).await.unwrap();
        assert_eq!(of("LocalHost.").await, [at("192.0.2.7"), at("10.0.0.1")]);
        assert_eq!(of("[::ffff:127.0.0.1]").await, [at("127.0.0.1")]);
        let plain = Resolver::new(&[]);
        assert!(
            plain.addresses(&"localhost".parse().unwrap()).await.unwrap().iter().all(IpAddr::is_loopback)
        );
    }
}
