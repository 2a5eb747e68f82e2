//! Quotas of directories: what every inode is charged to, and what the quota roots say about it.
//!
//! While a quota is being counted, or is leaving, what is below it may be charged to either of two quota roots.

use std::collections::{BTreeMap, HashMap};

use atoll_types::InodeId;
use atoll_types::limits::QUOTA_DEPTH_MAX;

use super::{Check, Cursor, Problem, Remedy, Result};
use crate::error::VolumeError;
use crate::format::{self, DirectoryQuota, InodeRecord, QuotaState, Usage};

#[derive(Default)]
pub(super) struct Quotas {
    known: BTreeMap<u64, DirectoryQuota>,
    /// What is charged to each, without what is charged to those that it holds.
    charged: HashMap<InodeId, Usage>,
    /// The quota roots that hold directories, as far as they were asked for; 0: none does.
    nearest: HashMap<u64, u64>,
}

impl Quotas {
    fn is_known(&self, root: InodeId) -> bool {
        root == InodeId::NONE || self.known.contains_key(&root.0)
    }

    /// Whether something that `right` holds most closely may say so of `root`.
    fn is_right(&self, root: InodeId, right: u64) -> bool {
        let is_moving = |quota: &&DirectoryQuota| quota.state != QuotaState::Kept;
        root.0 == right || self.known.get(&right).filter(is_moving).is_some_and(|quota| quota.parent == root)
    }

    /// Whether a quota root is inside of another one, or is that.
    fn holds(&self, above: u64, root: InodeId) -> bool {
        let next = |at: &u64| self.known.get(at).map(|quota| quota.parent.0);
        std::iter::successors(Some(root.0), next).take(QUOTA_DEPTH_MAX + 1).any(|at| at == above)
    }

    /// Charged to each, with those that it holds.
    fn totals(&self) -> HashMap<u64, Usage> {
        let mut totals: HashMap<u64, Usage> = HashMap::new();
        for (root, usage) in &self.charged {
            let mut at = root.0;
            for _ in 0..QUOTA_DEPTH_MAX {
                let Some(quota) = self.known.get(&at) else { break };
                let total = totals.entry(at).or_default();
                total.bytes = total.bytes.saturating_add(usage.bytes);
                total.inodes += usage.inodes;
                at = quota.parent.0;
            }
        }
        totals
    }
}

impl Check<'_> {
    pub(super) async fn learn_quotas(&mut self) -> Result<()> {
        let mut records = Cursor::new(self.subject.view, format::all_directory_quotas());
        while let Some((key, value)) = records.next().await? {
            let directory = InodeId(format::key_number(&key).unwrap_or(0));
            match DirectoryQuota::decode(&value) {
                Ok(quota) if directory > InodeId::ROOT && key == format::directory_quota_key(directory) => {
                    self.quotas.known.insert(directory.0, quota);
                }
                Err(error @ VolumeError::FutureFormat(_)) => return Err(error),
                _ => self.report.delete(Problem::Malformed, directory, format!("the quota of {directory}"), key),
            }
        }
        Ok(())
    }

    /// The quota root that is this directory or holds it most closely.
    fn nearest_root(&mut self, directory: u64) -> u64 {
        let (mut at, mut way) = (directory, Vec::new());
        let nearest = loop {
            if let Some(nearest) = self.quotas.nearest.get(&at) {
                break *nearest;
            }
            let Some(found) = self.inodes.directories.get(&at) else { break 0 };
            way.push(at);
            if self.quotas.known.contains_key(&at) {
                break at;
            }
            // In a loop of directories there is none.
            if found.named_in == 0 || way.len() > self.inodes.directories.len() {
                break 0;
            }
            at = found.named_in;
        };
        self.quotas.nearest.extend(way.into_iter().map(|passed| (passed, nearest)));
        nearest
    }

    /// Count an inode. Answers what it should be charged to when that is something else.
    pub(super) fn charge(&mut self, inode: InodeId, stored: &InodeRecord) -> Option<InodeId> {
        let usage = self.quotas.charged.entry(stored.quota_root).or_default();
        usage.bytes = usage.bytes.saturating_add(stored.allocated);
        usage.inodes += 1;
        let named_in = match self.inodes.directories.get(&inode.0) {
            Some(directory) => directory.named_in,
            None => self.inodes.other(inode.0).map_or(0, |other| other.named_in),
        };
        let is_directory = self.inodes.directories.contains_key(&inode.0);
        // Its names may lie elsewhere, or it has none.
        let is_free = (stored.strays && !is_directory) || named_in == 0;
        if inode != InodeId::ROOT && is_free {
            return (!self.quotas.is_known(stored.quota_root)).then_some(InodeId::NONE);
        }
        let right = self.nearest_root(if is_directory { inode.0 } else { named_in });
        (!self.quotas.is_right(stored.quota_root, right)).then_some(InodeId(right))
    }

    /// When every inode was counted.
    pub(super) fn quotas(&mut self) {
        let totals = self.quotas.totals();
        let all: Vec<(u64, DirectoryQuota)> = self.quotas.known.iter().map(|(root, quota)| (*root, *quota)).collect();
        for (directory, stored) in all {
            let inode = InodeId(directory);
            let key = format::directory_quota_key(inode);
            let found = self.inodes.directories.get(&directory).copied();
            let used = totals.get(&directory).copied().unwrap_or_default();
            if found.is_none() && used == Usage::default() {
                let text = format!("a quota of directory {inode}, which is not there");
                self.report.delete(Problem::QuotaRoot, inode, text, key);
                continue;
            }
            let mut right = stored;
            let named_in = found.map_or(0, |found| found.named_in);
            if named_in > 0 {
                let above = self.nearest_root(named_in);
                if !self.quotas.is_right(stored.parent, above) {
                    right.parent = InodeId(above);
                }
            } else if !self.quotas.is_known(stored.parent) || self.quotas.holds(directory, stored.parent) {
                right.parent = InodeId::NONE;
            }
            if right.parent != stored.parent {
                let text = format!("the quota of {inode} is inside of that of {}, not {}", stored.parent, right.parent);
                let writes = vec![(key.clone(), Some(right.encode()))];
                self.report.find(Problem::QuotaRoot, inode, text, Remedy::Writes(writes));
            }
            if stored.used != used {
                let Usage { bytes, inodes } = stored.used;
                let text = format!(
                    "the quota of {inode} has {bytes} bytes and {inodes} inodes charged to it instead of {} and {}",
                    used.bytes, used.inodes
                );
                right.used = used;
                self.report.find(Problem::QuotaUsage, inode, text, Remedy::Writes(vec![(key, Some(right.encode()))]));
            }
        }
    }
}
