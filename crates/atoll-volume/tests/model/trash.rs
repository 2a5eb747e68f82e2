//! The trash, as docs/trash.md has it: hidden directories that are nodes like any other, and what comes into them.
//!
//! The number of an hour's directory and the hour are the volume's, as long as the clock has shown that hour.

use std::collections::{BTreeMap, BTreeSet};
use std::str::from_utf8;

use atoll_types::operation::RenameMode;
use atoll_types::{Errno, FileKind, InodeId, Name, Operation, Outcome, SessionId, Timestamp, limits};
use atoll_volume::{Retention, TrashReport, VolumeError};
use chrono::DateTime;

use super::driver::{Check, Driver, LOOKING, NOBODY, expect};
use super::generator::{Generator, Step};
use super::reference::{Answer, Body, Node, Reference, Result, Time};

const RETENTION: Retention = Retention(7 * 24 * HOUR);
const HOUR: u64 = 3600;
/// In the root; it stands for the trash, once there is one, unless the root has an entry of this name.
pub const NAME: &[u8] = b".trash";

#[derive(Default)]
pub struct Trash {
    pub retention: Option<Retention>,
    /// The directory in which the volume keeps what is removed now, if it says one.
    pub hour: Option<(Name, InodeId)>,
    /// How often something came into it.
    pub tally: BTreeMap<String, u64>,
}

#[derive(Clone, Debug)]
pub enum TrashStep {
    SetRetention(Option<Retention>),
    Empty,
    /// What is due at this time is destroyed.
    Look(Timestamp),
    /// What `atoll trash restore` asks for.
    Restore(Operation),
    /// A name is lost, and the authority ends so many milliseconds later, without a word.
    Crash(Operation, u64),
}

fn hour(time: Timestamp) -> Name {
    let time = DateTime::from_timestamp(time.seconds, 0).expect("a time of these years");
    Name::new(time.format("%Y-%m-%d-%H").to_string()).expect("a good name")
}

/// `PARENT-INODE-NAME`, as much as fits without a part of a character.
fn kept_name(parent: InodeId, inode: InodeId, name: &Name) -> Name {
    let numbers = format!("{}-{}-", parent.0, inode.0);
    let room = limits::NAME_BYTES_MAX - numbers.len();
    let name = match from_utf8(name.as_bytes()) {
        Ok(text) => &text.as_bytes()[..text.floor_char_boundary(room)],
        Err(_) => &name.as_bytes()[..name.as_bytes().len().min(room)],
    };
    Name::new([numbers.as_bytes(), name].concat()).expect("a name that fits")
}

/// The directory that it was in, and its name there.
fn told(kept: &Name) -> Option<(InodeId, Name)> {
    let mut parts = kept.as_bytes().splitn(3, |byte| *byte == b'-');
    let parent = from_utf8(parts.next()?).ok()?.parse().ok()?;
    let name = parts.nth(1)?.to_vec();
    Some((InodeId(parent), Name::new(name).ok()?))
}

/// The places of an operation's names.
fn names(operation: &Operation) -> Vec<(InodeId, &Name)> {
    use Operation as O;
    match operation {
        O::Lookup { parent, name }
        | O::Create { parent, name, .. }
        | O::MakeNode { parent, name, .. }
        | O::MakeDirectory { parent, name, .. }
        | O::MakeSymlink { parent, name, .. }
        | O::Link { parent, name, .. }
        | O::Unlink { parent, name }
        | O::RemoveDirectory { parent, name } => vec![(*parent, name)],
        O::Rename { parent, name, new_parent, new_name, .. } => vec![(*parent, name), (*new_parent, new_name)],
        _ => Vec::new(),
    }
}

impl Reference {
    /// The trash, or a directory of an hour.
    pub fn is_of_trash(&self, inode: InodeId) -> bool {
        let body = self.nodes.get(&inode).map(|node| &node.body);
        inode == InodeId::TRASH || matches!(body, Some(Body::Directory(found)) if found.parent == InodeId::TRASH)
    }

    fn entries(&self, directory: InodeId) -> Vec<(Name, InodeId)> {
        match self.nodes.get(&directory).map(|node| &node.body) {
            Some(Body::Directory(found)) => found.names.iter().map(|(n, entry)| (n.clone(), entry.inode)).collect(),
            _ => Vec::new(),
        }
    }

    /// The hour's directory, the name there and the inode of everything that is kept.
    fn kept(&self) -> Vec<(InodeId, Name, InodeId)> {
        let of_hour = |(_, hour)| self.entries(hour).into_iter().map(move |(name, inode)| (hour, name, inode));
        self.entries(InodeId::TRASH).into_iter().flat_map(of_hour).collect()
    }

    pub fn trash_report(&self) -> TrashReport {
        let kept = self.kept();
        let bytes = kept.iter().map(|(.., inode)| self.nodes[inode].allocated()).sum();
        TrashReport { files: kept.len() as u64, bytes }
    }

    /// An answer that is not that of other names: the trash is found by its name, and nothing else gets it while there is
    /// one, or may be.
    pub fn by_hidden_name(&self, operation: &Operation) -> Option<Result<Answer>> {
        let is_taken = self.entries(InodeId::ROOT).iter().any(|(name, _)| name.as_bytes() == NAME);
        let is_hidden = |(parent, name): (InodeId, &Name)| parent == InodeId::ROOT && name.as_bytes() == NAME;
        if is_taken || !names(operation).into_iter().any(is_hidden) {
            return None;
        }
        let is_there = self.nodes.contains_key(&InodeId::TRASH);
        match operation {
            Operation::Lookup { .. } => is_there.then_some(Ok(Answer::Entry(InodeId::TRASH))),
            _ => (is_there || self.trash.retention.is_some()).then_some(Err(Errno::EPERM)),
        }
    }

    /// It has lost this name. If that was the last one of a file, it is kept.
    pub fn lose(&mut self, inode: InodeId, parent: InodeId, name: &Name) -> Result<()> {
        let node = &self.nodes[&inode];
        let is_file = matches!(node.kind, FileKind::Regular | FileKind::Symlink);
        if self.trash.retention.is_none() || !is_file || node.links > 1 || self.is_of_trash(parent) {
            self.drop_link(inode);
            return Ok(());
        }
        let open = if node.opens.is_empty() { "" } else { ", open" };
        let charged = if node.quota_root == InodeId::NONE { "" } else { ", charged" };
        *self.trash.tally.entry(format!("kept {:?}{open}{charged}", node.kind)).or_default() += 1;

        let (hour_name, hour) = self.trash.hour.clone().ok_or(Errno::EPROTO)?;
        if !self.nodes.contains_key(&InodeId::TRASH) {
            self.make_hidden(InodeId::TRASH, InodeId::ROOT);
        }
        match self.entries(InodeId::TRASH).into_iter().find(|(name, _)| *name == hour_name) {
            Some((_, known)) if known != hour => return Err(Errno::EPROTO),
            Some(_) => {}
            None => {
                self.make_hidden(hour, InodeId::TRASH);
                self.add_name(InodeId::TRASH, &hour_name, hour);
            }
        }
        self.add_name(hour, &kept_name(parent, inode, name), inode);
        let node = self.touch(inode);
        node.changed = Time::Moved;
        node.quota_root = InodeId::NONE;
        Ok(())
    }

    fn make_hidden(&mut self, inode: InodeId, parent: InodeId) {
        assert!(!self.nodes.contains_key(&inode) && !self.gone.contains(&inode), "{inode:?} is used again");
        self.nodes.insert(inode, Node::directory_of_root(0o700, parent, Time::Moved));
        self.touched.insert(inode);
    }

    /// False while the root has an entry of the trash's name.
    fn set_retention(&mut self, retention: Option<Retention>) -> bool {
        let is_taken = self.entries(InodeId::ROOT).iter().any(|(name, _)| name.as_bytes() == NAME);
        if retention.is_some() && is_taken {
            return false;
        }
        self.trash.retention = retention;
        true
    }

    /// Destroy what was kept in hours that began like this: answers how much it was.
    fn empty(&mut self, is_due: impl Fn(Timestamp) -> bool) -> usize {
        self.touched.clear();
        let mut destroyed = 0;
        for (hour_name, hour) in self.entries(InodeId::TRASH) {
            if !is_due(self.nodes[&hour].created.known()) {
                continue;
            }
            for (name, inode) in self.entries(hour) {
                self.remove_name(hour, &name);
                self.drop_link(inode);
                destroyed += 1;
            }
            self.remove_name(InodeId::TRASH, &hour_name);
            self.drop_link(hour);
        }
        self.settle_quotas();
        destroyed
    }

    fn is_due(&self, now: Timestamp) -> impl Fn(Timestamp) -> bool + use<> {
        let retention = self.trash.retention;
        move |created| {
            retention.is_some_and(|Retention(kept)| created.seconds + HOUR as i64 + kept as i64 <= now.seconds)
        }
    }
}

impl Generator {
    pub fn trash_step(&mut self, model: &Reference) -> Step {
        let is_on = model.trash.retention.is_some();
        let step = match self.random.below(20) {
            0..=9 if !is_on => TrashStep::SetRetention(Some(RETENTION)),
            0..=1 => TrashStep::SetRetention(None),
            2 => TrashStep::SetRetention(Some(Retention(2 * RETENTION.0))),
            3 => TrashStep::Empty,
            4 => TrashStep::Look(self.due(model)),
            5..=6 => TrashStep::Crash(self.losing(model), self.random.below(3)),
            _ => match self.restore(model) {
                Some(restore) => TrashStep::Restore(restore),
                None => return Step::Yield,
            },
        };
        Step::Trash(step)
    }

    /// Mostly when the first hour is just due, or just not.
    fn due(&mut self, model: &Reference) -> Timestamp {
        let hour = model.entries(InodeId::TRASH).first().map(|(_, hour)| model.nodes[hour].created.known());
        let kept = model.trash.retention.unwrap_or(RETENTION).0;
        let due = hour.unwrap_or(Timestamp::now()).seconds + (kept + HOUR) as i64;
        Timestamp { seconds: due - self.random.pick(&[0, 0, 1]), nanos: 0 }
    }

    /// To where the name says that it was.
    fn restore(&mut self, model: &Reference) -> Option<Operation> {
        let kept = model.kept();
        if kept.is_empty() {
            return None;
        }
        let (parent, name, _) = kept[self.random.below(kept.len() as u64) as usize].clone();
        let (new_parent, new_name) = told(&name)?;
        Some(Operation::Rename { parent, name, new_parent, new_name, mode: RenameMode::NoReplace })
    }

    fn losing(&mut self, model: &Reference) -> Operation {
        let (new_parent, new_name) = self.entry(model, |node| node.kind == FileKind::Regular);
        if self.random.chance(50) {
            return Operation::Unlink { parent: new_parent, name: new_name };
        }
        let (parent, name) = self.entry(model, |node| node.kind != FileKind::Directory);
        Operation::Rename { parent, name, new_parent, new_name, mode: RenameMode::Replace }
    }
}

impl Driver {
    pub fn trash_step(&mut self, step: &TrashStep) -> Check {
        let started = Timestamp::now();
        match step {
            TrashStep::SetRetention(retention) => {
                let set = match self.runtime.block_on(self.volume().set_retention(*retention)) {
                    Ok(()) => true,
                    Err(VolumeError::TrashNamed) => false,
                    Err(error) => return Err(error.to_string()),
                };
                self.note(if set { "retention set" } else { "retention refused" }, 1);
                expect("a retention is set", set, self.model.set_retention(*retention))?;
            }
            TrashStep::Empty => {
                let emptied = self.runtime.block_on(self.volume().empty_trash()).map_err(|error| error.to_string())?;
                expect("what was in the trash", emptied, self.model.trash_report())?;
                self.note("files emptied", emptied.files);
                self.model.empty(|_| true);
            }
            TrashStep::Look(now) => {
                let looked = self.runtime.block_on(self.volume().look_at_trash(*now));
                let destroyed = looked.map_err(|error| error.to_string())?;
                self.note("files due", destroyed as u64);
                let due = self.model.is_due(*now);
                expect("how much was due", destroyed, self.model.empty(due))?;
            }
            TrashStep::Restore(operation) => {
                let before = self.model.trash_report().files;
                self.execute(SessionId(1), NOBODY, operation)?;
                self.note("files restored", before - self.model.trash_report().files);
                return Ok(());
            }
            TrashStep::Crash(operation, pause_ms) => return self.crash_in(operation, *pause_ms),
        }
        self.settle(started)?;
        self.check_trash()
    }

    /// After a crash, an operation that takes a name has happened, or has not.
    fn crash_in(&mut self, operation: &Operation, pause_ms: u64) -> Check {
        self.look(Operation::Sync).map_err(|errno| format!("a sync failed: {errno}"))?;
        let started = Timestamp::now();
        let reply = self.look(operation.clone());
        self.runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(pause_ms)).await });
        self.begin_anew(true);
        let taken = names(operation).first().map(|(parent, name)| (*parent, (*name).clone())).expect("a name");
        let (parent, name) = taken;
        let is_gone = self.look(Operation::Lookup { parent, name }) == Err(Errno::ENOENT);
        // An answer is checked when there was nothing to be lost, too.
        if reply.is_err() || is_gone {
            self.model.trash.hour = self.hour_since(started);
            let (answer, _) = self.model.execute(LOOKING, &NOBODY, operation, None);
            self.model.restart();
            self.settle(started)?;
            self.compare(operation, reply.clone(), answer)?;
        } else {
            self.model.restart();
        }
        if reply.is_ok() {
            self.note(if is_gone { "crash after a loss" } else { "crash before a loss" }, 1);
        }
        self.check_trash()
    }

    /// The newest hour that has a directory, of those that began or lasted since then.
    pub fn hour_since(&self, started: Timestamp) -> Option<(Name, InodeId)> {
        [Timestamp::now(), started].into_iter().find_map(|time| {
            let lookup = Operation::Lookup { parent: InodeId::TRASH, name: hour(time) };
            let inode = self.look(lookup).ok()?.attributes()?.inode;
            Some((hour(time), inode))
        })
    }

    /// All names in the trash, hours without files included.
    pub fn check_trash(&self) -> Check {
        let list = |inode| -> Vec<(Name, InodeId)> {
            // Ahead: it moves no time of access.
            let list =
                Operation::ReadDirectory { inode, after: 0, entries_max: 4096, with_attributes: false, ahead: true };
            match self.look(list) {
                Ok(Outcome::Listing { entries, .. }) => entries.into_iter().map(|e| (e.name, e.inode)).collect(),
                _ => Vec::new(),
            }
        };
        let all = |list: &dyn Fn(InodeId) -> Vec<(Name, InodeId)>| -> BTreeSet<(InodeId, Name, InodeId)> {
            let hours = list(InodeId::TRASH);
            let files = hours.iter().flat_map(|(_, hour)| list(*hour).into_iter().map(|(n, inode)| (*hour, n, inode)));
            let files: Vec<_> = files.collect();
            hours.into_iter().map(|(name, hour)| (InodeId::TRASH, name, hour)).chain(files).collect()
        };
        expect("what is in the trash", all(&list), all(&|inode| self.model.entries(inode)))
    }

    /// What the volume says of its trash, and keeps of its retention.
    pub fn audit_trash(&self) -> Check {
        expect("retention", self.volume().retention(), self.model.trash.retention)?;
        let count = self.runtime.block_on(self.volume().count_trash()).map_err(|error| error.to_string())?;
        expect("files in the trash", count, self.model.trash_report())?;
        self.check_trash()
    }
}
