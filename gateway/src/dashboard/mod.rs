//! The dashboard: a page at `/` that shows the fleet and what runs on it.
//!
//! What is served here is a handful of files that are part of the program, the same for everybody: they need no token and
//! hold nothing. All that the page shows it asks for below `/v1`, as any other client does, with a token that its user gives
//! it; so it shows and does what that token may, and nothing more.
//!
//! What sandboxes say of themselves is hostile, and the page shows much of it: names, labels, output. So the page puts all
//! of it in as text, and a policy that the browser holds ([`POLICY`]) lets nothing run that is not one of these files,
//! whatever slipped in.

use std::{fmt::Write, sync::LazyLock};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};

use crate::http::{Body, Received, empty, plain, text};

/// Nothing is loaded, run, framed, called or sent anywhere but from here.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// One of the page's files.
pub struct File {
    path: &'static str,
    media_type: &'static str,
    content: &'static [u8],
}

macro_rules! file {
    ($path:literal, $media_type:literal, $name:literal) => {
        File { path: $path, media_type: $media_type, content: include_bytes!(concat!("files/", $name)) }
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! script {
    ($name:literal) => {
        File {
            path: concat!("/dashboard/", $name),
            media_type: SCRIPT,
            content: include_bytes!(concat!("files/", $name)),
        }
    };
}

static FILES: [File; 12] = [
    file!("/", "text/html; charset=utf-8", "index.html"),
    file!("/dashboard/style.css", "text/css; charset=utf-8", "style.css"),
    file!("/dashboard/icon.svg", "image/svg+xml", "icon.svg"),
    script!("app.js"),
    script!("api.js"),
    script!("store.js"),
    script!("dom.js"),
    script!("text.js"),
    script!("parts.js"),
    script!("lists.js"),
    script!("details.js"),
    script!("output.js"),
];

/// Of each file: changes when it does.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| FILES.iter().map(|file| tag(file.content)).collect());

fn tag(content: &[u8]) -> String {
    let sum = ring::digest::digest(&ring::digest::SHA256, content);
    let digits = sum.as_ref()[..16].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    format!("\"{digits}\"")
}

/// The file at a path, if there is one.
pub fn find(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

/// Hands it out.
pub fn answer(file: &'static File, request: &Request<Received>) -> Response<Body> {
    let is_get = request.method() == Method::GET;
    if !is_get && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "use GET");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let index = FILES.iter().position(|known| known.path == file.path).unwrap_or_default();
    let tag = &TAGS[index];
    let known = text(request.headers(), header::IF_NONE_MATCH.as_str())
        .is_some_and(|tags| tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag));
    let mut response = match known {
        true => empty(StatusCode::NOT_MODIFIED),
        false => {
            let content = if is_get { Bytes::from_static(file.content) } else { Bytes::new() };
            let mut response =
                Response::new(Full::new(content).map_err(|never| match never {}).boxed_unsync());
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(file.content.len()));
            response
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, file.media_type),
        // Asked about each time, by its tag: a new Berth shows its own page at once.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for name in ["cross-origin-opener-policy", "cross-origin-resource-policy"] {
        headers.insert(name, HeaderValue::from_static("same-origin"));
    }
    if let Ok(tag) = HeaderValue::try_from(tag.as_str()) {
        headers.insert(header::ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &str) -> &'static str {
        std::str::from_utf8(find(path).unwrap().content).unwrap()
    }

    /// Red when a script is imported that is not served, or a file is served that nothing asks for.
    #[test]
    fn each_file_is_asked_for_and_there() {
        let all: String = FILES.iter().map(|file| content(file.path)).collect();
        for file in FILES.iter().filter(|file| file.path != "/") {
            let name = file.path.trim_start_matches("/dashboard/");
            let asked = all.contains(&format!("\"./{name}\"")) || all.contains(&format!("\"{}\"", file.path));
            assert!(asked, "nothing asks for {name}");
        }
        for rest in all.split("from \"./").skip(1) {
            let name = rest.split('"').next().unwrap();
            assert!(find(&format!("/dashboard/{name}")).is_some(), "{name} is not there");
        }
    }

    /// Red when a way in is used by which text becomes markup or code, or when another origin is named.
    #[test]
    fn nothing_makes_markup_or_code_of_text() {
        for file in &FILES {
            let text = content(file.path);
            for bad in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function"]
            {
                assert!(!text.contains(bad), "{}: {bad}", file.path);
            }
            let foreign = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!foreign.contains("//cdn") && !foreign.contains("https://"), "{}", file.path);
            assert!(text.lines().count() < 420, "{} has grown too long", file.path);
        }
        let page = content("/");
        assert!(!page.contains("<script>") && !page.contains("style=") && !page.contains(" on"), "{page}");
    }

    #[test]
    fn a_tag_is_of_the_content() {
        assert_ne!(tag(b"a"), tag(b"b"));
        assert_eq!(tag(b"a").len(), 34);
    }
}
