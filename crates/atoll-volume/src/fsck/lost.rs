//! `/lost+found`: names for inodes that have none.

use atoll_store::{Batch, Read};
use atoll_types::{Caller, FileKind, InodeId, Mode, Name, Timestamp};

use super::names::put;
use super::{Result, VolumeError};
use crate::format::{self, Counters, Dentry, InodeRecord};

async fn record(view: &dyn Read, inode: InodeId) -> Result<InodeRecord> {
    let bytes = view.get(&format::inode_key(inode)).await?;
    InodeRecord::decode(&bytes.ok_or_else(|| VolumeError::Corrupt(format!("inode {inode} is gone")))?)
}

/// Adds a name; both records are changed to fit.
fn add(batch: &mut Batch, parent: (InodeId, &mut InodeRecord), name: &Name, child: (InodeId, &mut InodeRecord)) {
    let ((parent, above), (inode, below)) = (parent, child);
    let dentry = Dentry { inode, kind: below.kind(), cookie: above.next_cookie };
    batch.writes.extend(put(parent, name, &dentry));
    above.next_cookie += 1;
    above.size += name.as_bytes().len() as u64;
    if below.kind() == FileKind::Directory {
        above.links += 1;
        below.parent = parent;
    } else {
        below.links = 1;
    }
}

/// Write names for `inodes`, whose records are right otherwise.
pub(super) async fn name(view: &dyn Read, inodes: &[InodeId], batch: &mut Batch) -> Result<()> {
    if inodes.is_empty() {
        return Ok(());
    }
    let here = |text: String| Name::new(text.into_bytes()).map_err(|_| VolumeError::Corrupt("a name".into()));
    let mut root = record(view, InodeId::ROOT).await?;
    // A name that is taken by something else is passed by.
    let mut folder = None;
    for number in 0.. {
        let name = here(if number == 0 { "lost+found".into() } else { format!("lost+found.{number}") })?;
        match view.get(&format::dentry_key(InodeId::ROOT, &name)).await? {
            None => {
                let counters = view.get(&format::counters_key()).await?.unwrap_or_default();
                let mut counters = Counters::decode(&counters)?;
                let inode = InodeId(counters.next_inode);
                counters.next_inode += 1;
                counters.inodes += 1;
                batch.put(format::counters_key(), counters.encode());
                let mut made = crate::core::root(&Caller::default(), Timestamp::now());
                made.mode = Mode::new(FileKind::Directory, 0o700);
                add(batch, (InodeId::ROOT, &mut root), &name, (inode, &mut made));
                batch.put(format::inode_key(InodeId::ROOT), root.encode());
                folder = Some((inode, made));
                break;
            }
            Some(value) => {
                let dentry = Dentry::decode(&value)?;
                if dentry.kind == FileKind::Directory && !inodes.contains(&dentry.inode) {
                    folder = Some((dentry.inode, record(view, dentry.inode).await?));
                    break;
                }
            }
        }
    }
    let Some((folder, mut kept)) = folder else { return Ok(()) };
    for &inode in inodes {
        let mut lost = record(view, inode).await?;
        let mut name = here(format!("#{inode}"))?;
        while view.get(&format::dentry_key(folder, &name)).await?.is_some() {
            name = here(format!("{}+", String::from_utf8_lossy(name.as_bytes())))?;
        }
        add(batch, (folder, &mut kept), &name, (inode, &mut lost));
        batch.put(format::inode_key(inode), lost.encode());
        batch.delete(format::orphan_key(inode));
    }
    batch.put(format::inode_key(folder), kept.encode());
    Ok(())
}
