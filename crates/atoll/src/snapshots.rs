//! `atoll snapshot`.

use atoll_client::ClientConfig;
use atoll_wire::{AdminReply, AdminRequest, SnapshotInfo};
use chrono::{DateTime, Utc};
use serde_json::json;

use crate::arguments::SnapshotCommand;
use crate::{Result, admin, print, unexpected};

pub async fn run(config: &ClientConfig, command: SnapshotCommand, as_json: bool) -> Result<()> {
    match command {
        SnapshotCommand::Create { volume, name } => {
            let name = match name {
                Some(name) => name,
                None => name_of_now(),
            };
            admin(config, AdminRequest::SnapshotCreate { volume: volume.clone(), name: name.clone() }).await?;
            if as_json {
                print(&json!({"volume": volume, "name": name}));
            } else {
                println!("{volume}@{name}");
            }
        }
        SnapshotCommand::List { volume } => {
            let reply = admin(config, AdminRequest::SnapshotList { volume: volume.clone() }).await?;
            let AdminReply::Snapshots(snapshots) = reply else {
                return Err(unexpected());
            };
            let as_object = |s: &SnapshotInfo| json!({"volume": volume, "name": s.name, "created": s.created});
            if as_json {
                print(&snapshots.iter().map(as_object).collect());
            } else {
                for snapshot in &snapshots {
                    let created = DateTime::from_timestamp(snapshot.created as i64, 0).unwrap_or_default();
                    println!("{volume}@{} made {}", snapshot.name, time(created));
                }
            }
        }
        SnapshotCommand::Delete { volume, name } => {
            admin(config, AdminRequest::SnapshotDelete { volume, name }).await?;
        }
        SnapshotCommand::Restore { volume, name } => {
            admin(config, AdminRequest::SnapshotRestore { volume, name }).await?;
        }
    }
    Ok(())
}

/// What a snapshot is called that has no other name.
pub fn name_of_now() -> String {
    time(Utc::now())
}

/// A time as it can stand in a name: 2026-01-31T23.59.59Z.
fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H.%M.%SZ").to_string()
}
