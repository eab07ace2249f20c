//! What `berth doctor` says of certificates: whether they are valid, for how long, for whom, and who may use their keys.

use std::path::{Path, PathBuf};

use berth_client::ConnectOptions;
use berth_net::{Facts, Files, Pair, issue::days_left};

use super::{Finding, Verdict};
use crate::commands::tls::{SOON_DAYS, certificates, key_problem};

/// Those of a directory, where there is one. `meant`: it was named, so that it must be of use.
pub fn directory(files: &Files, meant: bool, options: Option<&ConnectOptions>) -> Vec<Finding> {
    let seen = certificates(files);
    if seen.is_empty() {
        let verdict = if meant { Verdict::Problem } else { Verdict::Note };
        let text = format!("no certificates in {}", files.dir().display());
        return vec![
            Finding::new("tls", verdict, text)
                .hint("`berth tls init` makes them; beyond loopback nothing listens without"),
        ];
    }
    let mut findings: Vec<Finding> = seen
        .iter()
        .map(|(pair, facts)| match facts {
            Ok(facts) => certificate(pair, facts),
            Err(error) => Finding::new("tls", Verdict::Problem, error.to_string()).hint(error.hint()),
        })
        .collect();
    let named =
        seen.iter().find(|(pair, _)| *pair == files.coordinator()).and_then(|(_, facts)| facts.as_ref().ok());
    if let (Some(facts), Some(options)) = (named, options) {
        findings.extend(name(facts, &options.address));
    }
    findings
}

/// A CA that was named by itself.
pub fn ca(path: &Path) -> Finding {
    match berth_net::facts_of(path) {
        Ok(facts) => certificate(&Pair { certificate: path.to_owned(), key: PathBuf::new() }, &facts),
        Err(error) => Finding::new("tls", Verdict::Problem, error.to_string()).hint(error.hint()),
    }
}

fn certificate(pair: &Pair, facts: &Facts) -> Finding {
    let path = pair.certificate.display();
    if let Some(problem) = key_problem(pair) {
        return Finding::new("tls", Verdict::Problem, problem)
            .hint(format!("chmod 600 {}", pair.key.display()));
    }
    // A CA is not renewed: all that it issued would have to be replaced, and every copy of ca.pem.
    let renew = if facts.is_ca {
        "a CA is replaced by a new one: see docs/security.md"
    } else {
        "on the CA's machine: `berth tls renew`"
    };
    match days_left(facts.until) {
        None => Finding::new("tls", Verdict::Problem, format!("{path} has expired")).hint(renew),
        Some(_) if !facts.valid_at(berth_proto::world::now()) => {
            Finding::new("tls", Verdict::Problem, format!("{path} is not valid yet"))
                .hint("compare this machine's clock with that of the CA's")
        }
        Some(days) if days < SOON_DAYS => {
            Finding::new("tls", Verdict::Note, format!("{path} expires in {days} days")).hint(renew)
        }
        Some(days) => {
            Finding::new("tls", Verdict::Ok, format!("{path}, {}, {days} days left", facts.subject))
        }
    }
}

/// Whether the coordinator's certificate is for the address that is dialled.
fn name(facts: &Facts, address: &str) -> Option<Finding> {
    let authority = address.strip_prefix("https://")?.trim_end_matches('/');
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if facts.names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
        return None;
    }
    let text = format!("the coordinator's certificate is for {}, and not for {host}", facts.names.join(", "));
    Some(
        Finding::new("tls", Verdict::Problem, text)
            .hint(format!("on the CA's machine: `berth tls renew --host {host}`")),
    )
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use berth_net::issue::{Authority, Validity};

    use super::*;

    /// Red when one of the looks is left out: each change makes one certificate bad in one way.
    #[test]
    fn what_is_wrong_with_certificates_is_said_with_a_hint() {
        let dir = std::env::temp_dir().join(format!("berth-doctor-{}", berth_client::TaskId::new()));
        let files = Files::new(&dir);
        let authority = Authority::make(&files).unwrap();
        let days = |days: u64| Validity::lasting(Duration::from_secs(days * 86400 + 60));
        let worst = |address: &str| {
            let found = directory(&files, true, Some(&ConnectOptions::new(address)));
            let bad: Vec<Finding> = found.into_iter().filter(|f| f.verdict != Verdict::Ok).collect();
            assert!(bad.iter().all(|finding| finding.hint.is_some()), "{bad:?}");
            bad.into_iter().map(|finding| (finding.verdict, finding.text)).collect::<Vec<_>>()
        };
        authority.coordinator(&["berth.example".into()], days(300)).unwrap();
        assert_eq!(worst("https://BERTH.example:1"), []);
        assert_eq!(worst("berth.other:1"), [], "without TLS no name is compared");
        let [(Verdict::Problem, text)] = &worst("https://other.example:1")[..] else { panic!("names") };
        assert!(text.contains("not for other.example"), "{text}");

        authority.coordinator(&[], days(13)).unwrap();
        let [(Verdict::Note, text)] = &worst("https://localhost:1")[..] else { panic!("soon") };
        assert!(text.ends_with("expires in 13 days"), "{text}");

        let past = Validity { until: berth_proto::world::now() - Duration::from_secs(60), ..days(1) };
        authority.coordinator(&[], past).unwrap();
        let [(Verdict::Problem, text)] = &worst("https://localhost:1")[..] else { panic!("expired") };
        assert!(text.ends_with("has expired"), "{text}");

        authority.coordinator(&[], days(300)).unwrap();
        fs::set_permissions(files.coordinator().key, fs::Permissions::from_mode(0o640)).unwrap();
        let [(Verdict::Problem, text)] = &worst("https://localhost:1")[..] else { panic!("open key") };
        assert!(text.starts_with("others may use"), "{text}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
