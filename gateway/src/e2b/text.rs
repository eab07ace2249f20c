//! How times and queries are written.

use std::time::{Duration, SystemTime};

pub use crate::http::query::{pairs as query, percent_decoded, value};

/// As RFC 3339 has it.
pub fn time(at: SystemTime) -> String {
    humantime::format_rfc3339(at).to_string()
}

/// A time of RFC 3339, to the second: Python writes an offset from UTC where others write `Z`.
pub fn parsed_time(text: &str) -> Option<SystemTime> {
    let (local, rest) = text.split_at_checked(19)?;
    let at = humantime::parse_rfc3339_weak(local).ok()?;
    let zone = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.split_at_checked(1) {
        None | Some(("Z" | "z", "")) => return Some(at),
        Some((sign @ ("+" | "-"), offset)) => {
            let (hours, minutes) = offset.split_once(':')?;
            let seconds = hours.parse::<u64>().ok()? * 3600 + minutes.parse::<u64>().ok()? * 60;
            (sign == "+", Duration::from_secs(seconds))
        }
        Some(_) => return None,
    };
    match offset {
        (true, east) => at.checked_sub(east),
        (false, west) => at.checked_add(west),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_offset() {
        let noon = parsed_time("2026-01-01T12:00:00Z").unwrap();
        assert_eq!(parsed_time("2026-01-01T14:00:00.123456+02:00"), Some(noon));
        assert_eq!(parsed_time("2026-01-01T11:00:00-01:00"), Some(noon));
        assert_eq!(time(noon), "2026-01-01T12:00:00Z");
        for bad in ["", "now", "2026-01-01", "2026-01-01T12:00:00+", "2026-01-01T12:00:00x"] {
            assert_eq!(parsed_time(bad), None, "{bad}");
        }
    }
}
