//! `atoll volume trash` and `atoll trash`.

use atoll_client::ClientConfig;
use atoll_wire::{AdminReply, AdminRequest, TrashInfo};
use serde_json::json;

use crate::arguments::TrashCommand;
use crate::{Result, admin, print, unexpected};

const HOUR_SECONDS: u64 = 3600;
const DAY_SECONDS: u64 = 24 * HOUR_SECONDS;
/// What comes in one hour is destroyed together.
const RETENTION_SECONDS_MIN: u64 = HOUR_SECONDS;
const RETENTION_SECONDS_MAX: u64 = 3660 * DAY_SECONDS;

/// A number of days or hours, in seconds.
pub fn retention(text: &str) -> Result<u64> {
    let unit = match text.chars().last() {
        Some('h') => HOUR_SECONDS,
        Some('d') => DAY_SECONDS,
        _ => return Err("give it in days or hours, as 7d or 12h".into()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| "give it in days or hours, as 7d or 12h")?;
    let seconds = count.saturating_mul(unit);
    if (RETENTION_SECONDS_MIN..=RETENTION_SECONDS_MAX).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("it is kept for 1 hour to 10 years".into())
    }
}

fn shown(seconds: u64) -> String {
    if seconds.is_multiple_of(DAY_SECONDS) {
        format!("{}d", seconds / DAY_SECONDS)
    } else {
        format!("{}h", seconds / HOUR_SECONDS)
    }
}

/// Set a retention, or none, or show what there is.
pub async fn set(
    config: &ClientConfig,
    name: String,
    retention: Option<u64>,
    is_off: bool,
    as_json: bool,
) -> Result<()> {
    let change = if is_off { Some(None) } else { retention.map(Some) };
    let request = AdminRequest::VolumeTrash { name: name.clone(), change };
    let AdminReply::Trash(TrashInfo { retention_seconds, files, bytes }) = admin(config, request).await? else {
        return Err(unexpected());
    };
    if as_json {
        let all = json!({"volume": name, "retention_seconds": retention_seconds, "files": files, "bytes": bytes});
        print(&all);
    } else {
        let kept = match retention_seconds {
            Some(seconds) => format!("files are kept for {} after their last name went", shown(seconds)),
            None => "files are destroyed when their last name goes".to_owned(),
        };
        println!("volume {name}: {kept}; in the trash are {files} files, {bytes} bytes");
    }
    Ok(())
}

pub async fn run(config: &ClientConfig, command: TrashCommand, as_json: bool) -> Result<()> {
    let TrashCommand::Empty { volume } = command;
    let AdminReply::Trash(TrashInfo { files, bytes, .. }) =
        admin(config, AdminRequest::TrashEmpty { volume: volume.clone() }).await?
    else {
        return Err(unexpected());
    };
    if as_json {
        print(&json!({"volume": volume, "files": files, "bytes": bytes}));
    } else {
        println!("{files} files destroyed, {bytes} bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_is_read_in_days_and_hours() {
        assert_eq!(retention("7d"), Ok(7 * DAY_SECONDS));
        assert_eq!(retention("1h"), Ok(HOUR_SECONDS));
        assert_eq!(shown(7 * DAY_SECONDS), "7d");
        assert_eq!(shown(36 * HOUR_SECONDS), "36h");
        for bad in ["", "7", "d", "0d", "-1d", "4000d", "7 d", "99999999999999999999d", "7é"] {
            assert!(retention(bad).is_err(), "{bad}");
        }
    }
}
