//! The package index that this worker's own pip is set up for, and what a session needs so that its pip uses it: the
//! preset `packages`.
//!
//! Read as pip does: configuration files from the most general to the most special, then `PIP_…` variables. Without
//! any it is pip's own default, PyPI. Credentials in an index's URL are the worker's, and are left out of what a session
//! is told.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use berth_proto::{domain::Labels, egress::Target};

const PYPI: &str = "https://pypi.org/simple";
/// Where PyPI's own pages say that the files are. Other indexes have them beside their pages.
const PYPI_FILES: &str = "files.pythonhosted.org:443";
/// Where distributions keep the certificates that they trust.
const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What `packages` allows, and what tasks are told.
#[derive(Clone, Debug, Default)]
pub struct Packages {
    pub targets: HashSet<Target>,
    pub env: Labels,
    /// What this worker trusts.
    pub ca: Option<PathBuf>,
}

/// As this process's environment and this machine's files have it, and `more` beside.
pub fn packages(more: &[Target]) -> Packages {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let file = |path: &Path| std::fs::read_to_string(path).ok();
    let mut packages = read(env, file);
    packages.targets.extend(more.iter().cloned());
    packages.ca =
        packages.ca.or_else(|| CA_BUNDLES.map(PathBuf::from).into_iter().find(|path| path.is_file()));
    packages
}

fn read(env: impl Fn(&str) -> Option<String>, file: impl Fn(&Path) -> Option<String>) -> Packages {
    let mut settings = Settings::default();
    for path in files(&env) {
        if let Some(text) = file(&path) {
            settings.add(&text);
        }
    }
    let set = |name: &str| {
        env(&format!("PIP_{}", name.to_uppercase().replace('-', "_"))).or_else(|| settings.get(name))
    };
    let words = |name: &str| -> Vec<String> {
        set(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let mut packages = Packages::default();
    let off = set("no-index").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "no" | "off"));
    let index = if off { Vec::new() } else { vec![set("index-url").unwrap_or_else(|| PYPI.to_owned())] };
    let extra = if off { Vec::new() } else { words("extra-index-url") };
    for (name, urls) in
        [("PIP_INDEX_URL", index), ("PIP_EXTRA_INDEX_URL", extra), ("PIP_FIND_LINKS", words("find-links"))]
    {
        let urls: Vec<(String, Target)> = urls.iter().filter_map(|url| place(url)).collect();
        if !urls.is_empty() {
            let told: Vec<&str> = urls.iter().map(|(url, _)| url.as_str()).collect();
            packages.env.insert(name.to_owned(), told.join(" "));
        }
        packages.targets.extend(urls.into_iter().map(|(_, target)| target));
    }
    if packages.targets.iter().any(|target| target.to_string() == "pypi.org:443") {
        packages.targets.extend(PYPI_FILES.parse::<Target>());
    }
    if let Some(hosts) = set("trusted-host") {
        packages
            .env
            .insert("PIP_TRUSTED_HOST".to_owned(), hosts.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    packages.env.insert("PIP_DISABLE_PIP_VERSION_CHECK".to_owned(), "1".to_owned());
    packages.ca = set("cert").or_else(|| env("SSL_CERT_FILE")).map(PathBuf::from);
    packages
}

/// Later ones go before.
fn files(env: &impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let named = env("PIP_CONFIG_FILE");
    if named.as_deref() == Some("/dev/null") {
        return Vec::new();
    }
    let mut files = vec![PathBuf::from("/etc/xdg/pip/pip.conf"), PathBuf::from("/etc/pip.conf")];
    if let Some(home) = env("HOME").map(PathBuf::from) {
        files.push(home.join(".pip/pip.conf"));
        let config = env("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
        files.push(config.join("pip/pip.conf"));
    }
    files.extend(named.map(PathBuf::from));
    files
}

/// What configuration files say: `install` goes before `global`, and other commands are not ours.
#[derive(Default)]
struct Settings {
    global: BTreeMap<String, String>,
    install: BTreeMap<String, String>,
}

impl Settings {
    fn get(&self, name: &str) -> Option<String> {
        self.install.get(name).or_else(|| self.global.get(name)).cloned()
    }

    /// One file, of the kind that Python's configparser reads.
    fn add(&mut self, text: &str) {
        let mut section: Option<&mut BTreeMap<String, String>> = None;
        let mut last: Option<String> = None;
        for line in text.lines() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                last = None;
                section = match name.trim() {
                    "global" => Some(&mut self.global),
                    "install" => Some(&mut self.install),
                    _ => None,
                };
                continue;
            }
            let Some(section) = section.as_deref_mut() else { continue };
            // An indented line goes on with the value before it.
            if let Some(value) =
                last.as_ref().filter(|_| line.starts_with([' ', '\t'])).and_then(|n| section.get_mut(n))
            {
                value.push('\n');
                value.push_str(trimmed);
            } else if let Some((name, value)) = trimmed.split_once(['=', ':']) {
                let name = name.trim().to_lowercase().replace('_', "-");
                section.insert(name.clone(), value.trim().to_owned());
                last = Some(name);
            }
        }
    }
}

/// A URL without its credentials, and where it leads. `None`: to no server.
fn place(url: &str) -> Option<(String, Target)> {
    let (scheme, rest) = url.split_once("://")?;
    let port = match scheme.to_ascii_lowercase().as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Some((format!("{scheme}://{host}{path}"), Target::parse_or(host, port).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(env: &[(&str, &str)], files: &[(&str, &str)]) -> Packages {
        let value = |list: &[(&str, &str)], name: &str| {
            list.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        read(|name| value(env, name), |path| value(files, path.to_str().unwrap()))
    }

    fn targets(packages: &Packages) -> Vec<String> {
        let mut targets: Vec<_> = packages.targets.iter().map(ToString::to_string).collect();
        targets.sort();
        targets
    }

    #[test]
    fn without_a_word_it_is_pypi() {
        let packages = of(&[], &[("/etc/pip.conf", "[global]\ncert = /ca.pem\n")]);
        assert_eq!(targets(&packages), ["files.pythonhosted.org:443", "pypi.org:443"]);
        assert_eq!(packages.env["PIP_INDEX_URL"], PYPI);
        assert_eq!(packages.ca, Some(PathBuf::from("/ca.pem")));
    }

    #[test]
    fn the_more_special_goes_first() {
        let general = "# ours\n[global]\nindex-url = https://one.example/simple\nextra_index_url =\n  https://x.example/\n  \
            http://y.example:8080/s\n[list]\nindex-url = https://no.example/\n";
        let special = "[install]\nindex-url: https://two.example/simple\ntrusted-host = y.example\n";
        let packages =
            of(&[("HOME", "/h")], &[("/etc/pip.conf", general), ("/h/.config/pip/pip.conf", special)]);
        assert_eq!(targets(&packages), ["two.example:443", "x.example:443", "y.example:8080"]);
        assert_eq!(packages.env["PIP_EXTRA_INDEX_URL"], "https://x.example/ http://y.example:8080/s");
        assert_eq!(packages.env["PIP_TRUSTED_HOST"], "y.example");
        let packages = of(&[("PIP_INDEX_URL", "https://three.example/")], &[("/etc/pip.conf", general)]);
        assert!(targets(&packages).contains(&"three.example:443".to_owned()));
        let packages = of(&[("PIP_CONFIG_FILE", "/dev/null")], &[("/etc/pip.conf", general)]);
        assert_eq!(packages.env["PIP_INDEX_URL"], PYPI);
    }

    /// Red when a URL is told as it stands there.
    #[test]
    fn the_workers_credentials_are_not_a_sessions() {
        let packages = of(&[("PIP_INDEX_URL", "https://user:secret@one.example/simple")], &[]);
        assert_eq!(packages.env["PIP_INDEX_URL"], "https://one.example/simple");
        assert!(!format!("{packages:?}").contains("secret"));
    }

    #[test]
    fn what_leads_to_no_server_allows_nothing() {
        let packages = of(
            &[("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", "/opt/wheels file:///x https://l.example/w")],
            &[],
        );
        assert_eq!(targets(&packages), ["l.example:443"]);
        assert_eq!(packages.env["PIP_FIND_LINKS"], "https://l.example/w");
        assert!(!packages.env.contains_key("PIP_INDEX_URL"));
    }
}
