//! A backup of the coordinator's databases, as it comes.

use berth_proto::{
    transport::MESSAGE_LIMIT,
    v1::{self, admin_service_client::AdminServiceClient, backup_chunk::Part},
};
use bytes::Bytes;
use tonic::Streaming;

use crate::{Client, Error};

/// A part of a backup.
#[derive(Clone, Debug)]
pub enum BackupPart {
    /// A file begins.
    File { name: String, size: u64 },
    /// The next of its bytes.
    Data(Bytes),
    /// It ends: the SHA-256 of all of its bytes.
    End { sha256: Bytes },
}

/// A backup under way. The caller checks sizes and sums: only it knows what it has written.
pub struct Backup {
    client: Client,
    inner: Streaming<v1::BackupChunk>,
}

impl Client {
    /// A consistent copy of the coordinator's databases, to be restored from.
    pub async fn backup(&self) -> Result<Backup, Error> {
        let inner = self
            .open(v1::BackupRequest {}, |channel, request| async {
                let mut service = AdminServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
                service.backup(request).await
            })
            .await?;
        Ok(Backup { client: self.clone(), inner })
    }
}

impl Backup {
    /// The next part. `None`: it is complete.
    pub async fn next(&mut self) -> Result<Option<BackupPart>, Error> {
        loop {
            let chunk = self.inner.message().await.map_err(|status| self.client.error(status))?;
            let Some(chunk) = chunk else { return Ok(None) };
            return Ok(Some(match chunk.part {
                Some(Part::File(file)) => BackupPart::File { name: file.name, size: file.size },
                Some(Part::Data(data)) => BackupPart::Data(data),
                Some(Part::Sha256(sha256)) => BackupPart::End { sha256 },
                None => continue,
            }));
        }
    }
}
