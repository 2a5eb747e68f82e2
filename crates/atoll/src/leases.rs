//! Who keeps what of an inode, and ending the session of one that should not.

use atoll_client::ClientConfig;
use atoll_types::SessionId;
use atoll_wire::{AdminReply, AdminRequest, LeaseInfo};
use serde_json::json;

use crate::files::{self, Remote};
use crate::{Result, admin, print};

/// Print who holds leases on VOLUME:/path.
pub async fn show(config: ClientConfig, text: &str, as_json: bool) -> Result<()> {
    let Some((volume, _)) = files::split(text) else {
        return Err(format!("`{text}`: --leases takes VOLUME:/path, for example work:/greeting"));
    };
    let inode = Remote::with(config.clone(), text, async |remote| Ok(remote.walk(&remote.path).await?.inode)).await?;
    let request = AdminRequest::Leases { volume: volume.to_owned(), inode };
    let AdminReply::Leases(holders) = admin(&config, request).await? else {
        return Err("the server answered something else: use the same release on both sides".into());
    };
    if as_json {
        let holders: Vec<_> = holders.iter().map(as_value).collect();
        print(&json!({"path": text, "inode": inode.to_string(), "holders": holders}));
        return Ok(());
    }
    println!("{text}: inode {inode}, {} holders", holders.len());
    for holder in &holders {
        println!("{}", line(holder));
    }
    Ok(())
}

fn as_value(holder: &LeaseInfo) -> serde_json::Value {
    json!({"session": holder.session.to_string(), "rights": holder.rights, "recalling": holder.recalling,
           "seconds": holder.seconds})
}

fn line(holder: &LeaseInfo) -> String {
    let LeaseInfo { session, rights, recalling, seconds } = holder;
    let recalled = if recalling == "-" { String::new() } else { format!(", {recalling} recalled") };
    format!("session {session}: {rights} for {seconds} s{recalled}")
}

/// End a session.
pub async fn revoke(config: &ClientConfig, session: SessionId) -> Result<()> {
    admin(config, AdminRequest::LeaseRevoke { session }).await.map(|_| ())
}
