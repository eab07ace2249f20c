//! What a session may reach, as a client asks for it.

use super::bounds;
use crate::{
    egress::{Egress, Preset, Rule},
    error::Error,
    v1,
};

const RULES: &str = "host, *.domain or an address range, with :port behind it or for ports 80 and 443";

impl TryFrom<v1::Egress> for Egress {
    type Error = Error;
    fn try_from(wire: v1::Egress) -> Result<Self, Error> {
        if wire.allow.len() > bounds::EGRESS_RULES {
            let words = format!("{} rules are more than {}", wire.allow.len(), bounds::EGRESS_RULES);
            return Err(Error::invalid("egress.allow", words).hint("`*.domain` stands for all below it"));
        }
        let preset = match wire.preset.as_str() {
            "" => Preset::None,
            preset => preset.parse().map_err(|()| {
                Error::invalid("egress.preset", format!("{preset:?} is not known"))
                    .hint("none, packages or full")
            })?,
        };
        let allow = wire.allow.iter().map(|rule| {
            rule.parse::<Rule>()
                .map_err(|problem| Error::invalid("egress.allow", format!("{rule:?} {problem}")).hint(RULES))
        });
        Ok(Self { preset, allow: allow.collect::<Result<_, _>>()? })
    }
}

impl From<Egress> for v1::Egress {
    fn from(egress: Egress) -> Self {
        Self {
            preset: egress.preset.as_str().to_owned(),
            allow: egress.allow.iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(preset: &str, allow: &[&str]) -> Result<Egress, Error> {
        let allow = allow.iter().map(|rule| (*rule).to_owned()).collect();
        Egress::try_from(v1::Egress { preset: preset.to_owned(), allow })
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let error = of("all", &[]).unwrap_err();
        assert!(error.to_string().contains("egress.preset") && error.to_string().contains("all"), "{error}");
        let error = of("none", &["good.example", "*"]).unwrap_err();
        assert!(error.to_string().contains("egress.allow") && error.to_string().contains("\"*\""), "{error}");
        let many: Vec<String> = (0..65).map(|n| format!("h{n}.example")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(of("none", &many).is_err() && of("none", &many[1..]).is_ok());
    }

    #[test]
    fn a_policy_survives_the_wire() {
        let policy = of("packages", &["Example.ORG.", "*.a.example:8443", "192.0.2.9/24:5432"]).unwrap();
        assert_eq!(Egress::try_from(v1::Egress::from(policy.clone())).unwrap(), policy);
        assert_eq!(of("", &[]).unwrap(), Egress::default());
    }
}
