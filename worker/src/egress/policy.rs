//! Whether a session may reach a target: its own policy, and what the operator of this worker says. Pure.

use std::{collections::HashSet, net::IpAddr};

use berth_proto::{
    domain::{Egress, Preset},
    egress::{Host, Target},
};

use super::address;

pub const NO_FULL: &str = "full egress is not enabled on this worker (BERTH_EGRESS_FULL)";

/// What the operator says.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub full: bool,
    pub exempt: HashSet<Target>,
    /// The package index, and where its files are.
    pub packages: HashSet<Target>,
}

/// A target that may be reached, as far as its name goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// What allows it, for the audit.
    pub why: String,
    /// Its addresses are not looked at.
    pub exempt: bool,
    /// It is allowed for its name, so what is said there has to be meant for that name.
    pub by_name: bool,
}

/// What allows it, or why nothing does.
pub fn decide(egress: &Egress, rules: &Rules, target: &Target) -> Result<Allowed, &'static str> {
    let packages = egress.preset != Preset::None && rules.packages.contains(target);
    let rule = egress.rule_for(&target.host, target.port);
    let by_name = matches!(target.host, Host::Name(_));
    if let Some(rule) = rule {
        let exempt = packages || rules.exempt.contains(target);
        return Ok(Allowed { why: format!("allowed by {rule}"), exempt, by_name });
    }
    if packages {
        return Ok(Allowed { why: "the package index".to_owned(), exempt: true, by_name });
    }
    match egress.preset {
        Preset::Full if rules.full => Ok(Allowed { why: "full".to_owned(), exempt: false, by_name: false }),
        Preset::Full => Err(NO_FULL),
        Preset::None | Preset::Packages => Err("no rule of the session allows it"),
    }
}

/// Why an address of an allowed target is not to be reached, if so.
pub fn refuses(allowed: &Allowed, address: IpAddr) -> Option<String> {
    if allowed.exempt {
        return None;
    }
    let why = address::denied(address).or_else(|| address::is_own(address).then_some("this worker's own"))?;
    Some(format!("{address} is {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(preset: Preset, allow: &[&str]) -> Egress {
        Egress { preset, allow: allow.iter().map(|rule| rule.parse().unwrap()).collect() }
    }

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn rules(full: bool) -> Rules {
        Rules {
            full,
            exempt: [target("db.internal:5432")].into(),
            packages: [target("index.example:443")].into(),
        }
    }

    #[test]
    fn nothing_is_allowed_that_nothing_names() {
        for preset in [Preset::None, Preset::Packages] {
            assert!(decide(&egress(preset, &["a.example"]), &rules(true), &target("b.example:443")).is_err());
        }
        let index = target("index.example:443");
        assert!(decide(&egress(Preset::None, &[]), &rules(true), &index).is_err());
        assert!(decide(&egress(Preset::Packages, &[]), &rules(false), &index).unwrap().exempt);
        assert!(decide(&egress(Preset::Packages, &[]), &rules(false), &target("index.example:80")).is_err());
    }

    #[test]
    fn full_is_the_operators_to_give() {
        let full = egress(Preset::Full, &[]);
        assert_eq!(decide(&full, &rules(false), &target("a.example:443")), Err(NO_FULL));
        let allowed = decide(&full, &rules(true), &target("a.example:22")).unwrap();
        assert!(!allowed.exempt && !allowed.by_name);
        assert!(!decide(&full, &rules(true), &target("db.internal:5432")).unwrap().exempt, "it is not named");
    }

    /// Red when an exemption is taken for a permission, or for more than its port.
    #[test]
    fn an_exemption_is_for_one_port_of_one_host_and_allows_nothing() {
        let none = egress(Preset::None, &["other.internal"]);
        assert!(decide(&none, &rules(false), &target("db.internal:5432")).is_err());
        let named = egress(Preset::None, &["*.internal:5432", "*.internal:80", "10.0.0.0/8"]);
        let of = |text: &str| decide(&named, &rules(false), &target(text)).unwrap();
        let (database, web) = (of("db.internal:5432"), of("db.internal:80"));
        let private: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(refuses(&database, private), None);
        assert!(refuses(&web, private).unwrap().contains("private"));
        // A session's own rule for the range is none.
        assert!(refuses(&of("10.1.2.3:443"), private).is_some());
    }
}
