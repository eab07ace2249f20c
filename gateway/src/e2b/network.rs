//! What a sandbox may reach, as E2B's clients ask for it, in Berth's words.
//!
//! E2B's sandboxes reach the internet unless they are told not to; Berth's reach what their template says, which is nothing
//! unless an operator said otherwise. Older SDKs send `allow_internet_access: true` with every create, so that is no wish:
//! it leaves the template's policy as it is. `false` is one, and so is a list of what may be reached: nothing else is then.

use berth_client::{Egress, domain::Preset, model::TemplateInfo};
use berth_proto::v1;
use serde::Deserialize;
use serde_json::Value;

use super::problem::Problem;

/// Everything, in both families of addresses.
const ALL: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// As a create or an update has it.
#[derive(Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default)]
pub struct Network {
    allow_out: Option<Vec<String>>,
    deny_out: Option<Vec<String>>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    allow_public_traffic: Option<bool>,
    egress_proxy: Option<Value>,
    mask_request_host: Option<String>,
    dns_servers: Option<Vec<String>>,
    https_ports: Option<Vec<u16>>,
    rules: Option<Value>,
}

impl Network {
    /// Whether its ports are to be open to everybody. `None`: as they are, which at first is that they are not.
    pub fn public(&self) -> Option<bool> {
        self.allow_public_traffic
    }

    /// Whether only ports are spoken of.
    pub fn says_nothing_of_egress(&self) -> bool {
        self.allow_out.is_none() && self.deny_out.is_none() && self.allow_internet_access.is_none()
    }

    fn unserved(&self) -> Option<&'static str> {
        let list = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let set = |value: &Option<Value>| {
            value
                .as_ref()
                .is_some_and(|value| !value.is_null() && value.as_object().is_none_or(|map| !map.is_empty()))
        };
        [
            ("egressProxy", set(&self.egress_proxy)),
            ("rules", set(&self.rules)),
            ("maskRequestHost", self.mask_request_host.is_some()),
            ("dnsServers", list(&self.dns_servers)),
            ("httpsPorts", self.https_ports.as_ref().is_some_and(|ports| !ports.is_empty())),
        ]
        .into_iter()
        .find_map(|(name, asked)| asked.then_some(name))
    }
}

/// The policy that is asked for. `None`: the template's.
pub fn egress(internet: Option<bool>, network: Option<&Network>) -> Result<Option<Egress>, Problem> {
    let nothing = Network::default();
    let network = network.unwrap_or(&nothing);
    if let Some(name) = network.unserved() {
        return Err(Problem::unserved(format!("network: {name} is not served")));
    }
    let deny = network.deny_out.as_deref().unwrap_or_default();
    if let Some(other) = deny.iter().find(|deny| !ALL.contains(&deny.as_str())) {
        return Err(Problem::unserved(format!(
            "network: {other:?} can't be denied alone (hint: deny 0.0.0.0/0, and name what is allowed)"
        )));
    }
    let allow = network.allow_out.as_deref().unwrap_or_default();
    let everything = allow.iter().any(|allow| ALL.contains(&allow.as_str()));
    let internet = internet.or(network.allow_internet_access).unwrap_or(true);
    if internet && deny.is_empty() && (allow.is_empty() || everything) {
        return Ok(None);
    }
    let preset = if everything && internet { Preset::Full } else { Preset::None };
    let rules = allow.iter().filter(|allow| !ALL.contains(&allow.as_str())).cloned().collect();
    let policy = v1::Egress { preset: preset.as_str().to_owned(), allow: rules };
    Egress::try_from(policy).map(Some).map_err(|error| Problem::invalid(format!("network: {error}")))
}

/// What a sandbox of a template reaches that is asked for without a word of it.
pub fn of_template(template: &TemplateInfo) -> Result<Egress, Problem> {
    let policy = v1::Egress { preset: template.egress.clone(), allow: template.egress_allow.clone() };
    Egress::try_from(policy).map_err(|error| Problem::unavailable(format!("the template's egress: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(internet: Option<bool>, network: Value) -> Result<Option<(&'static str, Vec<String>)>, Problem> {
        let network: Network = serde_json::from_value(network).unwrap();
        let egress = egress(internet, Some(&network))?;
        Ok(egress
            .map(|policy| (policy.preset.as_str(), policy.allow.iter().map(ToString::to_string).collect())))
    }

    #[test]
    fn what_is_asked_for_is_never_widened() {
        assert_eq!(asked(None, json!({})).unwrap(), None);
        assert_eq!(asked(Some(true), json!({})).unwrap(), None);
        assert_eq!(asked(Some(false), json!({})).unwrap(), Some(("none", vec![])));
        let named = Some(("none", vec!["example.org".to_owned(), "192.0.2.0/24".to_owned()]));
        let list = json!(["example.org", "192.0.2.0/24"]);
        assert_eq!(asked(Some(true), json!({"allowOut": list, "denyOut": ["0.0.0.0/0"]})).unwrap(), named);
        assert_eq!(asked(None, json!({"allowOut": list})).unwrap(), named);
        assert_eq!(asked(None, json!({"denyOut": ["0.0.0.0/0"]})).unwrap(), Some(("none", vec![])));
        assert_eq!(asked(None, json!({"allow_internet_access": false})).unwrap(), Some(("none", vec![])));
    }

    #[test]
    fn what_is_not_served_is_refused_and_not_left_out() {
        for network in [
            json!({"denyOut": ["192.0.2.1"]}),
            json!({"egressProxy": {"address": "x"}}),
            json!({"dnsServers": ["192.0.2.1"]}),
        ] {
            assert!(asked(None, network.clone()).unwrap_err().is("unimplemented"), "{network}");
        }
        assert!(asked(None, json!({"allowOut": ["not a host!"]})).unwrap_err().is("invalid_argument"));
    }
}
