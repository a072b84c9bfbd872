use super::super::wire::{Reply, garbled};
use super::Replication;
use crate::error::Result;

/// The manifest of an earlier backup on its way to the server, which makes an increment of it then
/// (`UploadManifest` in `walsender.c`, PostgreSQL 17 and later). A connection whose upload was dropped half-way
/// cannot be used again.
pub struct ManifestUpload<'a> {
    replication: &'a mut Replication,
}

impl Replication {
    /// Begins to give the server a manifest: `UPLOAD_MANIFEST`.
    ///
    /// # Errors
    /// What the server says, one before version 17 that it knows no such command.
    pub async fn upload_manifest(&mut self) -> Result<ManifestUpload<'_>> {
        self.wire.send("UPLOAD_MANIFEST").await?;
        match self.wire.expect().await? {
            Reply::CopyIn => Ok(ManifestUpload { replication: self }),
            _ => Err(garbled()),
        }
    }
}

impl ManifestUpload<'_> {
    /// Adds bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.replication.wire.send_data(bytes).await
    }

    /// Ends it.
    ///
    /// # Errors
    /// What the server says where it is no manifest of a backup of this cluster.
    pub async fn finish(self) -> Result<()> {
        let wire = &mut self.replication.wire;
        wire.send_copy_done().await?;
        loop {
            match wire.expect().await? {
                Reply::Complete(_) => {}
                Reply::Ready => return Ok(()),
                _ => return Err(garbled()),
            }
        }
    }
}
