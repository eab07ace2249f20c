//! Sessions' files in a volume of the engine, for a worker whose mounts the engine does not see: one in a container, or in
//! a mount namespace of its own.
//!
//! The volume is the session's ext4 image, on a loop device that the worker sets up, by the engine's `local` driver. The
//! container has all of it mounted at [`DISK`], where no task can come, and its two directories bound to where they are
//! used. Those binds name paths inside the volume on the host: the engine makes such a path where it is missing, and the
//! runtime resolves it once all volumes are mounted. So the order of mounts is of no account, and a volume that can't be
//! mounted is a container that does not start. (Rejected: a volume for each of the two, which would be two limits; the
//! engine's `subpath`, which 20.10 has not.)
//!
//! The device's number says nothing once it is cleared, so a volume is never used for a second container.

use std::collections::HashMap;

use berth_proto::{
    Error,
    agent_config::{BERTH_DIR, HOME, WORKSPACE},
};
use bollard::{
    Docker,
    models::{Mount, MountType, VolumeCreateRequest},
    query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptions},
};
use tokio::time::{Instant, sleep};

use super::{
    POLL,
    engine::{CHANGE, CallError, LOOK, call},
    spec::{LABEL_INSTANCE, LABEL_SESSION},
};
use crate::workspace::{image, loops::Attached, store::IN_IMAGE};

/// Its name in the agent's directory, which no task can enter.
pub const DISK: &str = "disk";

/// A volume that no container has yet. The device stays for as long as this does, then for as long as it is mounted.
pub struct Volume {
    name: String,
    /// Where the engine mounts it on the host.
    mountpoint: String,
    _device: Attached,
}

impl Volume {
    /// Makes a volume of this name and these labels of what is on a loop device. There is none of this name.
    pub async fn make(
        docker: &Docker,
        name: &str,
        labels: &[(&str, String)],
        device: Attached,
    ) -> Result<Self, Error> {
        let options = [
            ("type", "ext4".to_owned()),
            ("device", device.path().display().to_string()),
            ("o", format!("nosuid,nodev,noatime,{}", image::OPTIONS)),
        ];
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            driver: Some("local".into()),
            driver_opts: Some(options.map(owned).into()),
            labels: Some(labels.iter().cloned().map(owned).collect()),
            ..VolumeCreateRequest::default()
        };
        let made = call("make a volume", CHANGE, docker.create_volume(request)).await?;
        Ok(Self { name: made.name, mountpoint: made.mountpoint, _device: device })
    }

    /// The volume itself, as the container has it.
    pub fn mount(&self) -> Mount {
        Mount {
            typ: Some(MountType::VOLUME),
            source: Some(self.name.clone()),
            target: Some(format!("{BERTH_DIR}/{DISK}")),
            ..Mount::default()
        }
    }

    /// Its directories where tasks use them, as `HostConfig.Binds` has it.
    pub fn binds(&self) -> Vec<String> {
        let [workspace, home] = IN_IMAGE;
        [(workspace, WORKSPACE), (home, HOME)]
            .map(|(name, inside)| format!("{}/{name}:{inside}", self.mountpoint))
            .to_vec()
    }
}

/// Removes the volumes with these labels. Their containers are gone.
pub async fn remove(docker: &Docker, labels: &[(&str, String)]) -> Result<(), CallError> {
    for volume in list(docker, labels).await? {
        let deadline = Instant::now() + CHANGE;
        loop {
            let remove = docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>);
            match call("remove a volume", CHANGE, remove).await {
                Ok(()) | Err(CallError::NotFound) => break,
                // A container's end is not wholly through.
                Err(CallError::Conflict(_)) if Instant::now() < deadline => sleep(POLL).await,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// The sessions of an instance that have a volume.
pub async fn sessions(docker: &Docker, instance: &str) -> Result<Vec<String>, CallError> {
    let found = list(docker, &[(LABEL_INSTANCE, instance.to_owned())]).await?;
    Ok(found.into_iter().filter_map(|mut volume| volume.labels.remove(LABEL_SESSION)).collect())
}

async fn list(docker: &Docker, labels: &[(&str, String)]) -> Result<Vec<bollard::models::Volume>, CallError> {
    let labels = labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    let filters = HashMap::from([("label".to_owned(), labels)]);
    let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
    let found = call("list volumes", LOOK, docker.list_volumes(Some(options))).await?;
    Ok(found.volumes.unwrap_or_default())
}
