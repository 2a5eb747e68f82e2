//! Paths of the inodes in findings, for people.

use std::collections::{HashMap, HashSet};

use atoll_store::Read;
use atoll_types::{FileKind, InodeId, Name};

use super::{Cursor, Report, Result, shown};
use crate::format::{self, Dentry};

/// Deeper than any path that the system takes.
const DEPTH_MAX: usize = 4096;

/// One more reading of all names, when there is something to be named.
pub(super) async fn add(view: &dyn Read, report: &mut Report) -> Result<()> {
    let wanted: HashSet<InodeId> = report.findings.iter().filter_map(|finding| finding.inode).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut names: HashMap<InodeId, (InodeId, Name)> = HashMap::new();
    let mut dentries = Cursor::new(view, format::all_dentries());
    while let Some((key, value)) = dentries.next().await? {
        if let (Ok(parent), Ok(name), Ok(dentry)) =
            (format::key_number(&key), Name::new(format::key_rest(&key)), Dentry::decode(&value))
            && (dentry.kind == FileKind::Directory || wanted.contains(&dentry.inode))
        {
            names.insert(dentry.inode, (InodeId(parent), name));
        }
    }
    for finding in &mut report.findings {
        finding.path = finding.inode.and_then(|inode| path(&names, inode));
    }
    Ok(())
}

fn path(names: &HashMap<InodeId, (InodeId, Name)>, inode: InodeId) -> Option<String> {
    let mut parts = Vec::new();
    let mut at = inode;
    while at != InodeId::ROOT {
        if at == InodeId::TRASH {
            parts.push(".trash".into());
            break;
        }
        let (parent, name) = names.get(&at)?;
        parts.push(shown(name));
        at = *parent;
        if parts.len() > DEPTH_MAX {
            return None;
        }
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}
