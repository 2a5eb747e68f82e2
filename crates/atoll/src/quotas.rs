//! `atoll volume quota` and `atoll volume quotas`.

use atoll_client::ClientConfig;
use atoll_types::InodeId;
use atoll_wire::{AdminReply, AdminRequest, QuotaInfo, QuotaLimits};
use serde_json::json;

use crate::checking::watched;
use crate::files::{self, Remote};
use crate::{Result, admin, print, unexpected};

/// Whether a path is that of the whole volume.
pub fn is_root(path: &str) -> bool {
    path.split('/').all(str::is_empty)
}

async fn directory(config: &ClientConfig, target: &str) -> Result<InodeId> {
    Remote::with(config.clone(), target, async |remote| Ok(remote.walk(&remote.path).await?.inode)).await
}

/// Bound what VOLUME or VOLUME:/path may hold; `None` is no bound.
pub async fn set(config: &ClientConfig, target: &str, limits: Option<QuotaLimits>) -> Result<()> {
    let (volume, path) = files::source(target)?;
    if is_root(path) {
        let QuotaLimits { bytes, inodes } = limits.unwrap_or(QuotaLimits { bytes: None, inodes: None });
        return admin(config, AdminRequest::VolumeQuota { name: volume.to_owned(), bytes, inodes }).await.map(drop);
    }
    let directory = directory(config, target).await?;
    let request = AdminRequest::DirectoryQuota { volume: volume.to_owned(), directory, limits };
    watched(config, request).await.map(drop).map_err(|error| format!("{target}: {error}"))
}

/// The quotas of a volume and its directories, or of one directory.
pub async fn list(config: &ClientConfig, target: &str, as_json: bool) -> Result<()> {
    let (volume, path) = files::source(target)?;
    let mut found = Vec::new();
    let mut after = InodeId::NONE;
    loop {
        let request = AdminRequest::DirectoryQuotas { volume: volume.to_owned(), after };
        let AdminReply::Quotas(quotas) = admin(config, request).await? else {
            return Err(unexpected());
        };
        let Some(last) = quotas.last() else { break };
        after = last.directory;
        found.extend(quotas);
    }
    if is_root(path) {
        found.insert(0, of_volume(config, volume).await?);
    } else {
        let directory = directory(config, target).await?;
        found.retain(|quota| quota.directory == directory);
        if found.is_empty() {
            return Err(format!("{target} has no quota: `atoll volume quotas {volume}` shows what there is"));
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    if as_json {
        print(&found.iter().map(as_value).collect());
    } else {
        found.iter().for_each(|quota| println!("{}", line(quota)));
    }
    Ok(())
}

async fn of_volume(config: &ClientConfig, volume: &str) -> Result<QuotaInfo> {
    let reply = admin(config, AdminRequest::VolumeInfo { name: volume.to_owned() }).await?;
    let AdminReply::Volumes(volumes) = reply else { return Err(unexpected()) };
    let info = volumes.first().ok_or("the server answered nothing")?;
    Ok(QuotaInfo {
        directory: InodeId::ROOT,
        path: Some("/".into()),
        state: "kept".into(),
        limits: QuotaLimits { bytes: info.quota_bytes, inodes: info.quota_inodes },
        bytes: info.bytes,
        inodes: info.inodes,
    })
}

fn as_value(quota: &QuotaInfo) -> serde_json::Value {
    json!({"path": quota.path, "inode": quota.directory.to_string(), "state": quota.state,
           "bytes": quota.bytes, "quota_bytes": quota.limits.bytes,
           "inodes": quota.inodes, "quota_inodes": quota.limits.inodes})
}

fn line(quota: &QuotaInfo) -> String {
    let of = |most: Option<u64>| most.map(|most| format!(" of {most}")).unwrap_or_default();
    let path = quota.path.clone().unwrap_or_else(|| format!("(removed directory {})", quota.directory));
    let state = if quota.state == "kept" { String::new() } else { format!(", {}", quota.state) };
    let (bytes, inodes) = (of(quota.limits.bytes), of(quota.limits.inodes));
    format!("{path}: {}{bytes} bytes, {}{inodes} inodes{state}", quota.bytes, quota.inodes)
}
