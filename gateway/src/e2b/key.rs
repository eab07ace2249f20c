//! API keys as E2B's SDKs want them: `e2b_` and hex digits (older ones check that). A key is the bytes of a token of Berth
//! in hex, so it needs no table, and is as good as its token and as long.

/// A key that stands for this token.
pub fn key(token: &str) -> String {
    let hex: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("e2b_{hex}")
}

/// The token that a key stands for. A token of Berth is taken as it is: newer SDKs send anything.
pub fn token(key: &str) -> Option<String> {
    let key = key.trim();
    if key.starts_with("berth_") {
        return Some(key.to_owned());
    }
    let hex = key.strip_prefix("e2b_").filter(|hex| !hex.is_empty() && hex.len() % 2 == 0)?;
    let digit = |byte: u8| (byte as char).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
    let bytes: Option<Vec<u8>> = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok())
        .collect();
    String::from_utf8(bytes?).ok().filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_token() {
        let made = key("berth_client_0a9f");
        assert!(made[4..].bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{made}");
        assert_eq!(token(&made).as_deref(), Some("berth_client_0a9f"));
        assert_eq!(token("berth_client_0a9f").as_deref(), Some("berth_client_0a9f"));
    }

    #[test]
    fn what_is_no_key_is_no_token() {
        for bad in
            ["", "e2b_", "e2b_0", "e2b_zz", "e2b_AB", "e2b_00", "e2b_ff", "Bearer x", "e2b_0a0d", "e2b_é"]
        {
            assert_eq!(token(bad), None, "{bad}");
        }
    }
}
