//! The image of a sandbox: whether it is here, and what of it would get in the way. Never
//! pulled and never built: what runs on a machine is its operator's decision.

use std::path::{Component, Path, PathBuf};

use berth_proto::{Error, Reason, agent_config::BERTH_DIR, domain::TemplateSpec, secret};
use bollard::Docker;

use super::engine::{CallError, LOOK, call};

/// What a start needs to know of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The content's id: what was looked at is what runs, even if the tag moves meanwhile.
    pub id: String,
    /// Names of the variables that it sets.
    pub env: Vec<String>,
    /// Paths that it declares as volumes.
    pub volumes: Vec<String>,
}

/// The image that a template runs on.
///
/// # Errors
/// FAILED_PRECONDITION for a template that is not for this backend.
pub fn reference<'a>(template: &'a TemplateSpec, default: &'a str) -> Result<&'a str, Error> {
    if template.root.is_some() {
        return Err(Error::precondition(
            Reason::BackendUnavailable,
            format!("template {} has a root directory, which the docker backend can't use", template.name),
        )
        .hint("give the template an image, or use the native backend"));
    }
    Ok(template.image.as_deref().unwrap_or(default))
}

/// Looks at an image of this engine.
///
/// # Errors
/// FAILED_PRECONDITION with the command to type when it is not there.
pub async fn find(docker: &Docker, reference: &str, default: &str) -> Result<Image, Error> {
    let seen = match call("look at the image", LOOK, docker.inspect_image(reference)).await {
        Err(CallError::NotFound) => return Err(absent(reference, default)),
        other => other?,
    };
    let config = seen.config.unwrap_or_default();
    let volumes = config.volumes.unwrap_or_default();
    if let Some(ours) = volumes.iter().find(|path| is_ours(path)) {
        return Err(Error::precondition(
            Reason::BackendUnavailable,
            format!("the image {reference} declares the volume {ours}, which is no place of an image's"),
        )
        .hint("build it without that VOLUME"));
    }
    let name = |pair: String| pair.split('=').next().unwrap_or_default().to_owned();
    Ok(Image {
        id: seen.id.ok_or_else(|| absent(reference, default))?,
        env: config.env.unwrap_or_default().into_iter().map(name).filter(|n| !n.is_empty()).collect(),
        volumes,
    })
}

/// Whether a volume would lie over, or within, what a sandbox is made of.
fn is_ours(volume: &str) -> bool {
    let volume: PathBuf = Path::new("/").join(volume).components().collect();
    // Of these, also what is above them.
    let above = [BERTH_DIR, secret::DIR].iter().any(|ours| Path::new(ours).starts_with(&volume));
    let below = [BERTH_DIR, secret::DIR, "/proc", "/sys", "/dev"].iter().any(|ours| volume.starts_with(ours));
    let climbs = volume.components().any(|part| part == Component::ParentDir);
    climbs || below || (above && volume != Path::new("/run"))
}

/// What to say, and to type, when an image is not there.
pub fn absent(reference: &str, default: &str) -> Error {
    let hint = if reference == default {
        "make sandbox-image".to_owned()
    } else {
        format!("docker pull {reference}, or docker load: Berth does not fetch images by itself")
    };
    Error::precondition(
        Reason::BackendUnavailable,
        format!("the sandbox image {reference} is not on this worker's engine"),
    )
    .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_volume_lies_over_what_a_sandbox_is_made_of() {
        for volume in
            ["/.berth", "/.berth/spool", "/", "/proc/sys", "/dev", "//run//secrets/", "/a/../.berth"]
        {
            assert!(is_ours(volume), "{volume}");
        }
        for volume in ["/data", "/var/lib/x", "/run", "/.berthing", "/procs"] {
            assert!(!is_ours(volume), "{volume}");
        }
    }
}
