//! Results as the SDKs know them: one field for each form that they have a name for, the rest under `extra`.

use base64::{Engine, engine::general_purpose::STANDARD};
use berth_client::model::MimeBundle;
use serde_json::{Map, Value, json};

/// How the bytes of a form are written in JSON.
#[derive(Clone, Copy)]
enum Written {
    Text,
    Base64,
    Json,
}

/// What the SDKs have a name for. The last two are what E2B's own images draw from tables and plots; Berth's images don't, but
/// somebody's may.
const FIELDS: [(&str, &str, Written); 12] = [
    ("text/plain", "text", Written::Text),
    ("text/html", "html", Written::Text),
    ("text/markdown", "markdown", Written::Text),
    ("image/svg+xml", "svg", Written::Text),
    ("image/png", "png", Written::Base64),
    ("image/jpeg", "jpeg", Written::Base64),
    ("application/pdf", "pdf", Written::Base64),
    ("text/latex", "latex", Written::Text),
    ("application/json", "json", Written::Json),
    ("application/javascript", "javascript", Written::Text),
    ("e2b/data", "data", Written::Json),
    ("e2b/chart", "chart", Written::Json),
];

/// A result's line. `main`: it is the value of the last expression, and was not shown on the way.
pub fn result(bundle: &MimeBundle, main: bool) -> Value {
    let mut told =
        Map::from_iter([("type".to_owned(), json!("result")), ("is_main_result".to_owned(), json!(main))]);
    let mut extra = Map::new();
    for (mime, data) in &bundle.data {
        match FIELDS.iter().find(|(known, ..)| known == mime) {
            Some((_, name, written)) => told.insert((*name).to_owned(), value(*written, data)),
            None => extra.insert(mime.clone(), value(other(mime), data)),
        };
    }
    if let Some(Value::String(text)) = told.get_mut("text") {
        unquote(text);
    }
    told.insert("extra".to_owned(), Value::Object(extra));
    Value::Object(told)
}

/// As the bridge in a sandbox has it: what is neither text nor JSON by its name came in base 64.
fn other(mime: &str) -> Written {
    if mime.ends_with("json") {
        Written::Json
    } else if mime.starts_with("text/") || mime.ends_with("+xml") || mime.ends_with("javascript") {
        Written::Text
    } else {
        Written::Base64
    }
}

fn value(written: Written, data: &[u8]) -> Value {
    let text = || Value::String(String::from_utf8_lossy(data).into_owned());
    match written {
        Written::Text => text(),
        Written::Base64 => Value::String(STANDARD.encode(data)),
        // It is what a sandbox says, so it may be none.
        Written::Json => serde_json::from_slice(data).unwrap_or_else(|_| text()),
    }
}

/// E2B's own server takes the quotes off a string: `'a'` is told as `a`.
fn unquote(text: &mut String) {
    if let Some(inner) = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        *text = inner.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn bundle(forms: &[(&str, &'static [u8])]) -> MimeBundle {
        let data = forms.iter().map(|(mime, data)| ((*mime).to_owned(), Bytes::from_static(data))).collect();
        MimeBundle { data, ..MimeBundle::default() }
    }

    /// Red when a form gets under another name, or is not written as the SDKs read it.
    #[test]
    fn each_form_has_its_field() {
        let all = bundle(&[
            ("text/plain", b"'it''s'"),
            ("text/html", b"<b>"),
            ("text/markdown", b"# m"),
            ("image/svg+xml", b"<svg/>"),
            ("image/png", b"\x89PNG"),
            ("image/jpeg", b"\xff\xd8"),
            ("application/pdf", b"%PDF"),
            ("text/latex", b"$x$"),
            ("application/json", b"{\"a\": [1]}"),
            ("application/javascript", b"f()"),
            ("e2b/data", b"{\"n\": 1}"),
            ("e2b/chart", b"{\"type\": \"bar\"}"),
            ("application/vnd.plotly.v1+json", b"{\"p\": 1}"),
            ("application/json2", b"no"),
            ("text/x-own", b"\xff"),
        ]);
        assert_eq!(
            result(&all, true),
            json!({
                "type": "result", "is_main_result": true, "text": "it''s", "html": "<b>", "markdown": "# m",
                "svg": "<svg/>", "png": "iVBORw==", "jpeg": "/9g=", "pdf": "JVBERg==", "latex": "$x$",
                "json": {"a": [1]}, "javascript": "f()", "data": {"n": 1}, "chart": {"type": "bar"},
                "extra": {"application/vnd.plotly.v1+json": {"p": 1}, "application/json2": "bm8=", "text/x-own": "\u{fffd}"},
            })
        );
        let lies = bundle(&[("application/json", b"{"), ("text/plain", b"'")]);
        let told = result(&lies, false);
        assert_eq!(
            (&told["json"], &told["text"], &told["is_main_result"]),
            (&json!("{"), &json!("'"), &json!(false))
        );
    }

    /// JSON that is as deep as can be: a parser without a bound would end the gateway.
    #[test]
    fn deep_json_is_text() {
        let deep: &'static [u8] = vec![b'['; 1 << 20].leak();
        assert!(result(&bundle(&[("application/json", deep)]), true)["json"].is_string());
    }
}
