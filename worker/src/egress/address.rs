//! Which addresses are nobody's to reach: all but the public internet. Looked at where a connection is made, on the
//! very address that it is made to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

type V4 = ([u8; 4], u32, &'static str);

/// The IANA special-purpose registry, and multicast.
const DENIED_V4: [V4; 16] = [
    ([0, 0, 0, 0], 8, "this network"),
    ([10, 0, 0, 0], 8, "a private network"),
    ([100, 64, 0, 0], 10, "a provider's own network"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([169, 254, 0, 0], 16, "link-local"),
    ([172, 16, 0, 0], 12, "a private network"),
    ([192, 0, 0, 0], 24, "reserved"),
    ([192, 0, 2, 0], 24, "for documentation"),
    ([192, 88, 99, 0], 24, "reserved"),
    ([192, 168, 0, 0], 16, "a private network"),
    ([198, 18, 0, 0], 15, "for benchmarks"),
    ([198, 51, 100, 0], 24, "for documentation"),
    ([203, 0, 113, 0], 24, "for documentation"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved"),
    ([255, 255, 255, 255], 32, "broadcast"),
];

type V6 = ([u16; 2], u32, &'static str);

/// Of 2000::/3, which is all that is public of IPv6: what is not, or leads to an IPv4 address.
const DENIED_V6: [V6; 4] = [
    ([0x2001, 0x0000], 23, "reserved, or a tunnel"),
    ([0x2001, 0x0db8], 32, "for documentation"),
    ([0x2002, 0x0000], 16, "a tunnel to IPv4 (6to4)"),
    ([0x3fff, 0x0000], 20, "for documentation"),
];

/// Why an address is denied, if it is.
pub fn denied(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(v4) => denied_v4(v4),
        IpAddr::V6(v6) => denied_v6(v6),
    }
}

fn denied_v4(address: Ipv4Addr) -> Option<&'static str> {
    let inside = |(first, bits, _): &&V4| {
        let differ = u32::from(address) ^ u32::from(Ipv4Addr::from(*first));
        differ.checked_shr(32 - bits).unwrap_or(0) == 0
    };
    DENIED_V4.iter().find(inside).map(|(.., why)| *why)
}

fn denied_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [a, b, ..] = address.segments();
    if a & 0xe000 != 0x2000 {
        return Some(match a {
            0 if address.is_loopback() => "loopback",
            0x0064 => "an IPv4 address in IPv6 (NAT64)",
            0xfc00..=0xfdff => "a private network",
            0xfe80..=0xfebf => "link-local",
            0xff00.. => "multicast",
            _ => "not public",
        });
    }
    let high = |[a, b]: [u16; 2]| (u32::from(a) << 16) | u32::from(b);
    let inside = |(first, bits, _): &&V6| (high([a, b]) ^ high(*first)) >> (32 - bits) == 0;
    DENIED_V6.iter().find(inside).map(|(.., why)| *why)
}

/// Whether it is an address of this machine, public or not: what listens here is nobody's to reach from inside. The
/// kernel is asked which source it would take (nothing is sent): for an address of its own that is the same.
pub fn is_own(address: IpAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let asked = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(address, 9))?;
        socket.local_addr()
    });
    asked.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Option<&'static str> {
        denied(text.parse().unwrap())
    }

    /// ABUSE's list, each range at both of its ends. Red for each line of the tables that is taken out.
    #[test]
    fn what_is_not_public_is_denied() {
        let ends = [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.0",
            "127.255.255.255",
            "169.254.0.0",
            "169.254.169.254",
            "169.254.255.255",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.0",
            "192.0.0.255",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.0",
            "192.168.255.255",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.80",
            "224.0.0.0",
            "239.255.255.255",
            "240.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "fc00::",
            "fd00:ec2::254",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b::a00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::808:808",
            "2002:a00:1::",
            "2002:808:808::",
            "2001::1",
            "2001:db8::1",
            "2001:10::1",
            "3fff::1",
            "100::1",
            "4000::1",
            "5f00::1",
        ];
        for text in ends {
            assert!(of(text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_public_is_not() {
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2001:200::1",
            "2003::1",
            "2a00::1",
        ];
        for text in public {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn this_machine_is_known() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_own("192.0.2.1".parse().unwrap()));
    }

    proptest! {
        /// Whatever IPv4 address is denied is denied inside IPv6 too, in each of the forms that lead to it.
        #[test]
        fn no_form_of_an_ipv4_address_slips_through(bits: u32, below: u64) {
            let v4 = Ipv4Addr::from(bits);
            prop_assert_eq!(denied(v4.to_ipv6_mapped().into()), denied(v4.into()));
            let [a, b] = [(bits >> 16) as u16, bits as u16];
            let [c, d] = [(below >> 16) as u16, below as u16];
            for v6 in [
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b),
                Ipv6Addr::new(0x64, 0xff9b, 1, c, d, 0, a, b),
                Ipv6Addr::new(0x2002, a, b, c, d, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, c, d, 0, 0, !a, !b),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, a, b),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, a, b),
            ] {
                prop_assert!(denied(v6.into()).is_some(), "{}", v6);
            }
        }
    }
}
