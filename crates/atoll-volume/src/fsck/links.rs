//! Records of links beside the inodes that they are of.

use std::collections::HashSet;

use atoll_types::{FileKind, InodeId};
use bytes::Bytes;

use super::{Check, Cursor, Problem, Remedy, Result};
use crate::format::{self, InodeRecord};

/// Links, by their directories.
#[derive(Default)]
pub(super) struct Links {
    roots: HashSet<InodeId>,
    /// Of them, linked directories that are there.
    found: HashSet<InodeId>,
}

impl Check<'_> {
    pub(super) async fn learn_links(&mut self) -> Result<()> {
        let view = self.subject.view;
        let mut links = Cursor::new(view, format::all_links());
        while let Some((key, value)) = links.next().await? {
            match (format::key_number(&key), format::decode_link(&value)) {
                (Ok(root), Ok(_)) if key == format::link_key(InodeId(root)) => {
                    self.links.roots.insert(InodeId(root));
                }
                _ => self.report.delete(Problem::Malformed, None, format!("the record of a link: {key:?}"), key),
            }
        }
        let mut gone = Cursor::new(view, format::all_gone());
        while let Some((key, value)) = gone.next().await? {
            let is_right = format::gone_object(&key).is_ok() && format::decode_gone(&value).is_ok();
            self.record_of_link("an object that is gone", key, is_right);
        }
        let mut uploads = Cursor::new(view, format::all_uploads());
        while let Some((key, value)) = uploads.next().await? {
            let is_right = format::upload_id(&key).is_ok() && format::decode_upload(&value).is_ok();
            self.record_of_link("an upload", key, is_right);
        }
        Ok(())
    }

    fn record_of_link(&mut self, what: &str, key: Bytes, is_right: bool) {
        match format::key_number(&key) {
            Ok(root) if is_right => {
                if !self.links.roots.contains(&InodeId(root)) {
                    let text = format!("the record of {what}, of a link that is not there: {key:?}");
                    self.report.delete(Problem::LinkRecord, None, text, key);
                }
            }
            _ => self.report.delete(Problem::Malformed, None, format!("the record of {what}: {key:?}"), key),
        }
    }

    /// One that can be read, and whether it is marked to be published.
    pub(super) fn linked(&mut self, inode: InodeId, record: &InodeRecord, mark: Option<Bytes>) {
        let link = record.linked.as_ref().map(|linked| linked.link);
        if let Some(mark) = mark.filter(|_| link.is_none()) {
            let text = format!("inode {inode} is to be published, and in no link");
            self.report.delete(Problem::LinkRecord, inode, text, mark);
        }
        if self.links.roots.contains(&inode) && link == Some(inode) && record.kind() == FileKind::Directory {
            self.links.found.insert(inode);
        }
        // What lost its last name is read on.
        if let Some(link) = link
            && record.links > 0
            && !self.links.roots.contains(&link)
        {
            let text = format!("inode {inode} is in link {link}, which is not there");
            self.report.find(Problem::LinkMissing, inode, text, Remedy::None);
        }
    }

    /// After all inodes.
    pub(super) fn links_without_directories(&mut self) {
        let mut lost: Vec<_> = self.links.roots.difference(&self.links.found).copied().collect();
        lost.sort();
        for root in lost {
            let text = format!("a link of inode {root}, which is no linked directory");
            self.report.delete(Problem::LinkRecord, root, text, format::link_key(root));
        }
    }
}
