//! What kind of content a file has, as far as its name tells, and images by what is in them.

use berth_proto::media::UNKNOWN;
pub use berth_proto::media::of_name;

/// Of content that turned out to be text.
pub fn text(of_name: &'static str) -> &'static str {
    if of_name == UNKNOWN { "text/plain" } else { of_name }
}

/// Of content that turned out to be none.
pub fn blob(of_name: &'static str) -> &'static str {
    if of_name.starts_with("text/") { UNKNOWN } else { of_name }
}

/// The kind of an image, by its name and its content: `None` where they don't agree, or it is none that clients show.
pub fn image(path: &str, data: &[u8]) -> Option<&'static str> {
    let kind = of_name(path);
    let fits = match kind {
        "image/png" => data.starts_with(b"\x89PNG\r\n\x1a\n"),
        "image/jpeg" => data.starts_with(b"\xff\xd8\xff"),
        "image/svg+xml" => {
            let head = &data[..data.len().min(4096)];
            std::str::from_utf8(data).is_ok()
                && head.trim_ascii_start().starts_with(b"<")
                && head.windows(4).any(|piece| piece == b"<svg")
        }
        _ => false,
    };
    fits.then_some(kind)
}

/// Whether its name says that it is an image of a kind that clients show.
pub fn is_image_name(path: &str) -> bool {
    matches!(of_name(path), "image/png" | "image/jpeg" | "image/svg+xml")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a name alone makes an image.
    #[test]
    fn an_image_is_one_by_name_and_content() {
        let png = b"\x89PNG\r\n\x1a\nrest";
        assert_eq!(image("a/b.PNG", png), Some("image/png"));
        assert_eq!(image("b.jpeg", b"\xff\xd8\xff\xe0"), Some("image/jpeg"));
        assert_eq!(image("b.svg", b"<?xml version='1.0'?>\n<svg xmlns='x'/>"), Some("image/svg+xml"));
        for (name, data) in [
            ("b.png", &b"text"[..]),
            ("b.txt", png),
            ("png", png),
            ("b.svg", b"<html>"),
            ("b.svg", b"\xff<svg"),
            ("b.png", b""),
        ] {
            assert_eq!(image(name, data), None, "{name}");
        }
        assert_eq!(of_name("dir.d/README"), UNKNOWN);
        assert_eq!(
            (text(UNKNOWN), blob("text/csv"), blob("image/png")),
            ("text/plain", UNKNOWN, "image/png")
        );
    }
}
