//! Values as people write them: sizes, durations, cores, `NAME=VALUE`. Each says what it
//! wants when it gets something else.

use std::{net::IpAddr, time::Duration};

use berth_proto::egress::{Host, Preset, Rule, Target};

/// `512M`, `1.5G`, `64KiB`, `1024`: powers of two, in bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let problem = || format!("{text:?} is no size: write for example 512M, 1.5G or a number of bytes");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(problem()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(problem);
    }
    let fraction: f64 = number.parse().map_err(|_| problem())?;
    let bytes = fraction * (1u64 << shift) as f64;
    if !bytes.is_finite() || bytes > (1u64 << 60) as f64 || shift == 0 {
        return Err(problem());
    }
    Ok(bytes.round() as u64)
}

/// `30s`, `10m`, `1h 30m`, or a number of seconds. `0` means none.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is no duration"));
    }
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is no duration: write for example 30s, 10m, 1h30m, or seconds"))
}

/// The same for a time that can't be zero.
pub fn some_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("no time at all: leave it out for the default".to_owned()),
        time => Ok(time),
    }
}

/// `1.5` cores, or `1500m`, as thousandths of a core.
pub fn cores(text: &str) -> Result<u32, String> {
    let problem = || format!("{text:?} is no number of cores: write for example 0.5, 2, or 500m");
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse::<u32>().map_err(|_| problem())?,
        None => {
            let cores: f64 = text.parse().map_err(|_| problem())?;
            if !(0.0..=100_000.0).contains(&cores) {
                return Err(problem());
            }
            (cores * 1000.0).round() as u32
        }
    };
    if millis == 0 { Err(problem()) } else { Ok(millis) }
}

/// `NAME=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

/// `NAME=VALUE`, or `NAME` for the value that it has in this environment.
pub fn variable(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return pair(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!("{text:?} is not set here: write {text}=VALUE")),
    }
}

/// `80x24`.
pub fn pty_size(text: &str) -> Result<berth_client::PtySize, String> {
    let side = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0);
    let sides = text.split_once('x').and_then(|(cols, rows)| Some((side(cols)?, side(rows)?)));
    let (cols, rows) = sides.ok_or_else(|| format!("{text:?} is no size: write for example 80x24"))?;
    Ok(berth_client::PtySize { cols, rows })
}

/// A Linux signal: `TERM`, `SIGTERM` or `15`.
pub fn signal(text: &str) -> Result<i32, String> {
    let problem = || format!("{text:?} is no signal: write for example TERM, SIGKILL or 15");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(problem()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse::<nix::sys::signal::Signal>().map(|signal| signal as i32).map_err(|_| problem())
}

/// The name of a signal, or its number.
pub fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number)
        .map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// What a session may reach in general.
pub fn preset(text: &str) -> Result<Preset, String> {
    text.parse().map_err(|()| "it is none of none, packages, full".to_owned())
}

/// A host, or several, that a session may reach.
pub fn rule(text: &str) -> Result<Rule, String> {
    text.parse().map_err(|problem| format!("it {problem}"))
}

/// `host:port`.
pub fn target(text: &str) -> Result<Target, String> {
    text.parse().map_err(|problem| format!("it {problem}"))
}

/// `name=address`.
pub fn known_host(text: &str) -> Result<(String, IpAddr), String> {
    let wrong = || "it is not of the form NAME=ADDRESS".to_owned();
    let (name, address) = text.split_once('=').ok_or_else(wrong)?;
    let address = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
    match name.parse() {
        Ok(Host::Name(name)) => Ok((name, address)),
        Ok(Host::Address(_)) => Err(format!("{name:?} is an address and no name")),
        Err(problem) => Err(format!("{name:?} {problem}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("1.5G", 3 << 29),
            ("2 G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5", "1.5.5G", "12X", "1e3", "99999999999T", "NaN", "9999999.9T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "-1", "x", "5 parsecs", "NaN", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores_are_thousandths() {
        assert_eq!(cores("1.5"), Ok(1500));
        assert_eq!(cores("2"), Ok(2000));
        assert_eq!(cores("250m"), Ok(250));
        for text in ["", "0", "-1", "x", "NaN", "1e9", "0.0001"] {
            assert!(cores(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pairs() {
        assert_eq!(pair("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(pair("A="), Ok(("A".into(), String::new())));
        assert!(pair("A").is_err() && pair("=b").is_err());
        assert!(variable("SURELY_NOT_SET_ANYWHERE").is_err());
    }

    #[test]
    fn signals() {
        for text in ["15", "TERM", "SIGTERM", "term", "sigterm"] {
            assert_eq!(signal(text), Ok(15), "{text}");
        }
        for text in ["0", "65", "NOPE", ""] {
            assert!(signal(text).is_err(), "{text}");
        }
        assert_eq!(signal_name(9), "SIGKILL");
        assert_eq!(signal_name(40), "signal 40");
    }

    #[test]
    fn pty_sizes() {
        assert_eq!(pty_size("80x24"), Ok(berth_client::PtySize { cols: 80, rows: 24 }));
        assert!(pty_size("80").is_err() && pty_size("0x1").is_err() && pty_size("1x99999").is_err());
    }
}
