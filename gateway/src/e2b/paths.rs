//! Paths and users as E2B means them: relative to the home of `user`, where commands begin too. (Berth's own calls are
//! relative to /workspace, which a path here reaches by its whole name.)

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, header};

use super::problem::Problem;

pub const HOME: &str = "/home/user";
const USER: &str = "user";

/// Where a path leads, from the root.
pub fn absolute(path: &str) -> Result<String, Problem> {
    let below_home = |rest: &str| match rest.trim_start_matches('/') {
        "" => HOME.to_owned(),
        rest => format!("{HOME}/{rest}"),
    };
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(below_home(rest)),
        Some(_) => Err(Problem::invalid(format!("{path:?}: there is no home but that of {USER}"))),
        None => Ok(below_home(path.trim_start_matches("./"))),
    }
}

/// Name and parent of a path from the root.
pub fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None => ("/", path),
    }
}

/// As whom a call is made. Only the user of a sandbox's tasks is served.
pub fn user(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
        return Ok(());
    };
    let Some((scheme, encoded)) = value.split_once(' ') else { return Ok(()) };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(());
    }
    let decoded = STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let wrong = || Problem::unauthenticated("the Authorization header is no user's name in base64");
    let name = decoded.as_deref().and_then(|pair| pair.split(':').next()).ok_or_else(wrong)?;
    named(name)
}

/// The same for a name in a URL. Empty: the usual one.
pub fn named(name: &str) -> Result<(), Problem> {
    match name {
        "" | USER => Ok(()),
        "root" => Err(Problem::denied(
            "user \"root\" is not served: everything in a sandbox of Berth runs as an ordinary user without capabilities \
             (hint: leave `user` out; pip and npm install into the user's home)",
        )),
        other => {
            Err(Problem::unauthenticated(format!("invalid username: {other:?} (hint: leave `user` out)")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_home() {
        let to = |path| absolute(path).unwrap();
        assert_eq!(
            [to("a/b"), to("./a"), to("~"), to("~/a"), to(""), to(".")],
            ["/home/user/a/b", "/home/user/a", "/home/user", "/home/user/a", "/home/user", "/home/user/."]
        );
        assert_eq!(to("/etc/passwd"), "/etc/passwd");
        assert!(absolute("~root/x").is_err());
    }

    #[test]
    fn a_path_has_a_parent_and_a_name() {
        assert_eq!(split("/a/b/"), ("/a", "b"));
        assert_eq!(split("/a"), ("/", "a"));
        assert_eq!(split("/"), ("/", ""));
    }

    #[test]
    fn only_the_user_is_served() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            user(&headers)
        };
        assert!(user(&HeaderMap::new()).is_ok() && of("Basic dXNlcjo=").is_ok());
        assert!(of("Basic cm9vdDo=").unwrap_err().is("permission_denied"));
        assert!(of("Basic bm9ib2R5Og==").unwrap_err().is("unauthenticated"));
        assert!(of("Basic !").unwrap_err().is("unauthenticated"));
    }
}
