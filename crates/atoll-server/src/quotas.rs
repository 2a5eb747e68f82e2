//! Quotas of directories, for people.

use atoll_types::InodeId;
use atoll_volume::Quota;
use atoll_volume::fsck::Progress;
use atoll_wire::{QuotaInfo, QuotaLimits};

use crate::registry::{Registry, bound};

/// Quotas in one reply, and the longest path of each: together they fit in a frame.
const LISTED_MAX: usize = 128;
const PATH_BYTES_MAX: usize = 4096;

impl Registry {
    pub async fn set_directory_quota(
        &self,
        volume: &str,
        directory: InodeId,
        limits: Option<QuotaLimits>,
        watch: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<(), String> {
        let open = self.get_volume(volume).await?;
        let done = match limits {
            Some(QuotaLimits { bytes, inodes }) => {
                let quota = Quota { bytes: bytes.unwrap_or(u64::MAX), inodes: inodes.unwrap_or(u64::MAX) };
                open.set_directory_quota(directory, quota, watch).await
            }
            None => open.remove_directory_quota(directory, watch).await,
        };
        done.map_err(|error| error.to_string())
    }

    /// Those behind a number.
    pub async fn directory_quotas(&self, volume: &str, after: InodeId) -> Result<Vec<QuotaInfo>, String> {
        let open = self.get(volume).await?;
        let behind = open.directory_quotas().into_iter().filter(|(directory, _)| *directory > after);
        let quotas: Vec<_> = behind.take(LISTED_MAX).collect();
        let directories: Vec<InodeId> = quotas.iter().map(|(directory, _)| *directory).collect();
        let paths = open.directory_paths(&directories).await;
        let mut paths = paths.map_err(|errno| format!("volume `{volume}`: {errno}"))?;
        let described = quotas.into_iter().map(|(directory, quota)| QuotaInfo {
            directory,
            path: paths.remove(&directory).filter(|path| path.len() <= PATH_BYTES_MAX),
            state: quota.state.name().to_owned(),
            limits: QuotaLimits { bytes: bound(quota.limits.bytes), inodes: bound(quota.limits.inodes) },
            bytes: quota.used.bytes,
            inodes: quota.used.inodes,
        });
        Ok(described.collect())
    }
}
