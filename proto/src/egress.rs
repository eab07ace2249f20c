//! What a session may reach: a preset and a list of rules, and how hosts are named in both rules and requests.
//!
//! A host has one spelling here. What a request names and what a rule names are both brought to it, so that no other
//! spelling of the same host slips past a rule: lower case, no dot at the end, an IPv4 address as four decimal numbers
//! and never inside an IPv6 one. What has no such spelling is refused, and never handed to a resolver, which would take
//! `0x7f.1` for an address.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// What a rule without a port allows.
pub const USUAL_PORTS: [u16; 2] = [80, 443];
/// The longest name that DNS knows, and the longest part of it.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// What a session may reach. The default: nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Egress {
    pub preset: Preset,
    pub allow: Vec<Rule>,
}

impl Egress {
    /// Nothing at all.
    pub fn is_none(&self) -> bool {
        self.preset == Preset::None && self.allow.is_empty()
    }

    /// The rule that allows this, if one does.
    pub fn rule_for(&self, host: &Host, port: u16) -> Option<&Rule> {
        self.allow.iter().find(|rule| rule.covers(host, port))
    }
}

/// What is allowed beside the rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Preset {
    #[default]
    None,
    /// The package index that the worker's own pip is set up for.
    Packages,
    /// That, and any public address.
    Full,
}

impl Preset {
    pub fn as_str(self) -> &'static str {
        match self {
            Preset::None => "none",
            Preset::Packages => "packages",
            Preset::Full => "full",
        }
    }
}

impl FromStr for Preset {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Preset::None, Preset::Packages, Preset::Full].into_iter().find(|p| p.as_str() == text).ok_or(())
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A host in its one spelling.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Host {
    Name(String),
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = &'static str;

    /// As in a URL: a name, an IPv4 address, or an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(inside) = text.strip_prefix('[') {
            let inside = inside.strip_suffix(']').ok_or("has no closing bracket")?;
            let address: Ipv6Addr = inside.parse().map_err(|_| "is no IPv6 address")?;
            return Ok(Self::Address(address.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() || name.len() > NAME_MAX {
            return Err("is no host name: it has 1 to 253 characters");
        }
        if !name.is_ascii() {
            return Err("is not ASCII: write an international name as xn--…");
        }
        if !name.split('.').all(is_label) {
            return Err("is no host name: letters, digits and hyphens between dots");
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        let hex = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
        if hex || last.bytes().all(|b| b.is_ascii_digit()) {
            let address: Ipv4Addr =
                name.parse().map_err(|_| "is no IPv4 address: four decimal numbers without leading zeros")?;
            return Ok(Self::Address(address.into()));
        }
        Ok(Self::Name(name))
    }
}

fn is_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// `host:port`, both given.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    pub host: Host,
    pub port: u16,
}

impl FromStr for Target {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = split_port(text)?;
        Ok(Self { host: host.parse()?, port: port.ok_or("names no port")? })
    }
}

impl Target {
    /// The same with a port for where none is named.
    pub fn parse_or(text: &str, port: u16) -> Result<Self, &'static str> {
        let (host, named) = split_port(text)?;
        Ok(Self { host: host.parse()?, port: named.unwrap_or(port) })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Takes `:port` off the end; a colon in brackets is none of it.
fn split_port(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    let from = text.rfind(']').map_or(0, |at| at + 1);
    let Some(at) = text[from..].find(':') else { return Ok((text, None)) };
    let (host, port) = (&text[..from + at], &text[from + at + 1..]);
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(port) if digits && port > 0 => Ok((host, Some(port))),
        _ => Err("has no port from 1 to 65535 behind its colon"),
    }
}

/// Part of what may be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub hosts: Hosts,
    /// `None`: [`USUAL_PORTS`].
    pub port: Option<u16>,
}

/// Which hosts a rule is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hosts {
    Name(String),
    /// What is below this domain, and not it itself.
    Below(String),
    /// Addresses whose first so many bits are these. Only for requests that name an address: a name that leads there
    /// is another matter, and would have to be looked up to know.
    Range(IpAddr, u8),
}

impl Rule {
    pub fn covers(&self, host: &Host, port: u16) -> bool {
        let port = self.port.map_or(USUAL_PORTS.contains(&port), |own| own == port);
        port && match (&self.hosts, host) {
            (Hosts::Name(own), Host::Name(name)) => own == name,
            (Hosts::Below(domain), Host::Name(name)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Hosts::Range(first, bits), Host::Address(address)) => masked(*address, *bits) == Some(*first),
            _ => false,
        }
    }
}

/// The address with all but its first bits cleared. `None`: it has not so many.
fn masked(address: IpAddr, bits: u8) -> Option<IpAddr> {
    let keep = |width: u32| width.checked_sub(u32::from(bits));
    Some(match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(keep(32)?).unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(keep(128)?).unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    })
}

impl FromStr for Rule {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // An IPv6 range needs its brackets only before a port.
        let bare = text.split_once('/').is_some_and(|(first, _)| first.parse::<Ipv6Addr>().is_ok());
        let (host, port) = if bare { (text, None) } else { split_port(text)? };
        let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let hosts = if let Some((first, bits)) = inside.split_once('/') {
            range(first, bits)?
        } else if let Some(domain) = host.strip_prefix("*.") {
            match domain.parse()? {
                Host::Name(domain) => Hosts::Below(domain),
                Host::Address(_) => return Err("is no domain"),
            }
        } else if host.contains('*') {
            return Err("has a `*` that is not all of its first part");
        } else {
            match host.parse()? {
                Host::Name(name) => Hosts::Name(name),
                Host::Address(address) => Hosts::Range(address, if address.is_ipv4() { 32 } else { 128 }),
            }
        };
        Ok(Self { hosts, port })
    }
}

fn range(first: &str, bits: &str) -> Result<Hosts, &'static str> {
    const NONE: &str = "is no address range: for example 192.0.2.0/24 or 2001:db8::/32";
    let address: IpAddr = first.parse().map_err(|_| NONE)?;
    if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err("is an IPv4 range inside IPv6: write it as IPv4");
    }
    if bits.is_empty() || !bits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NONE);
    }
    let bits: u8 = bits.parse().map_err(|_| NONE)?;
    Ok(Hosts::Range(masked(address, bits).ok_or(NONE)?, bits))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Name(name) => f.write_str(name)?,
            Hosts::Below(domain) => write!(f, "*.{domain}")?,
            Hosts::Range(IpAddr::V4(first), bits) => write!(f, "{first}/{bits}")?,
            Hosts::Range(IpAddr::V6(first), bits) => write!(f, "[{first}/{bits}]")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> Result<Host, &'static str> {
        text.parse()
    }

    fn name(text: &str) -> Host {
        Host::Name(text.to_owned())
    }

    fn address(text: &str) -> Host {
        Host::Address(text.parse().unwrap())
    }

    #[test]
    fn a_host_has_one_spelling() {
        assert_eq!(host("EXAMPLE.org."), Ok(name("example.org")));
        assert_eq!(host("xn--bcher-kva.example"), Ok(name("xn--bcher-kva.example")));
        assert_eq!(host("10.0.0.1"), Ok(address("10.0.0.1")));
        assert_eq!(host("10.0.0.1."), Ok(address("10.0.0.1")));
        assert_eq!(host("[::FFFF:10.0.0.1]"), Ok(address("10.0.0.1")));
        assert_eq!(host("[2001:DB8:0::1]"), Ok(address("2001:db8::1")));
        assert_eq!(host("1.2.3.4.example"), Ok(name("1.2.3.4.example")));
    }

    /// Red when the check of the last part is taken out: most of these are then names, which a resolver takes for
    /// loopback.
    #[test]
    fn no_other_spelling_of_an_address_is_a_name() {
        let spellings = [
            "0177.0.0.1",
            "0x7f.0.0.1",
            "127.0.0.0x1",
            "2130706433",
            "0x7f000001",
            "127.1",
            "127.0.1",
            "017700000001",
            "127.0.0.01",
            "127.0.0.256",
            "1.2.3.4.5",
            "0x",
            "0",
            "127.0.0.1..",
        ];
        for text in spellings {
            assert!(host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = "a.".repeat(127) + "example";
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a b",
            "a/b",
            "user@host",
            "a:b",
            "::1",
            "[::1",
            "::1]",
            "[fe80::1%eth0]",
            "[]",
            "[1.2.3.4]",
            "bücher.example",
            "ａ.example",
            "a\0b",
            "a\r\nb",
            "-a.example",
            "a-.example",
            "*.a",
            &long,
            &longer,
        ] {
            assert!(host(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_rule_covers_what_it_says_and_no_more() {
        let covers = |rule: &str, target: &str| {
            let target: Target = target.parse().unwrap();
            rule.parse::<Rule>().unwrap().covers(&target.host, target.port)
        };
        assert!(covers("a.example", "A.example.:443") && covers("a.example", "a.example:80"));
        assert!(!covers("a.example", "a.example:22") && !covers("a.example", "b.a.example:443"));
        assert!(covers("a.example:22", "a.example:22") && !covers("a.example:22", "a.example:443"));
        assert!(covers("*.example.org", "a.b.example.org:443"));
        for other in ["example.org:443", "badexample.org:443", "example.org.evil:443", "a.example.org:8080"] {
            assert!(!covers("*.example.org", other), "{other}");
        }
        assert!(covers("192.0.2.77/24:5432", "192.0.2.1:5432"));
        assert!(!covers("192.0.2.0/24:5432", "192.0.3.1:5432"));
        assert!(covers("0.0.0.0/0", "8.8.8.8:443") && !covers("0.0.0.0/0", "[2001:db8::1]:443"));
        assert!(
            covers("[2001:db8::/32]:1", "[2001:db8:1::1]:1") && covers("2001:db8::/32", "[2001:db8::1]:80")
        );
        assert!(covers("192.0.2.1", "[::ffff:192.0.2.1]:443"), "the same address");
        assert!(!covers("10.0.0.0/8", "ten.example:443"), "a name is not looked up for a range");
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            "*",
            "*.",
            "a.*.example",
            "*a.example",
            "a.example:",
            "a.example:0",
            "a.example:65536",
            "a.example:+1",
            "https://a.example",
            "a.example/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0/8",
            "2001:db8::/129",
            "::ffff:10.0.0.0/104",
            "*.10.0.0.1",
            "a:1:2",
            "[2001:db8::]/32",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_so_that_it_is_read_alike(text in "\\PC{0,40}|[a-z0-9.*:/\\[\\]-]{1,30}") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse::<Host>(), Ok(host));
            }
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
            }
        }

        #[test]
        fn a_range_covers_its_addresses_whatever_it_is_written_with(bits in 0u8..=32, a: u32, b: u32) {
            let rule: Rule = format!("{}/{bits}", Ipv4Addr::from(a)).parse().unwrap();
            let shift = 32 - u32::from(bits);
            let same = a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0);
            prop_assert_eq!(rule.covers(&Host::Address(Ipv4Addr::from(b).into()), 443), same);
        }
    }
}
