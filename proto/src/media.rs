//! What kind of content a file has, as far as its name tells.

/// What may be anything.
pub const UNKNOWN: &str = "application/octet-stream";

/// By the end of a name.
pub fn of_name(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some((_, end)) = name.rsplit_once('.') else { return UNKNOWN };
    match end.to_ascii_lowercase().as_str() {
        "txt" | "log" | "toml" | "ini" | "cfg" | "rs" | "go" | "c" | "h" | "cc" | "cpp" | "java" | "rb" => {
            "text/plain"
        }
        "md" => "text/markdown",
        "py" => "text/x-python",
        "sh" => "text/x-shellscript",
        "js" | "mjs" => "text/javascript",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "csv" => "text/csv",
        "yaml" | "yml" => "application/yaml",
        "json" => "application/json",
        "xml" => "application/xml",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        _ => UNKNOWN,
    }
}
