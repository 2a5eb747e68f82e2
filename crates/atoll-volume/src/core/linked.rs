//! Linked directories: which inodes are objects, which of them are not as their objects are, and which objects no name stands for.
//!
//! Invariant: an object of which the volume knows is the object of exactly one inode, or it is *gone*: some change here means it is
//! to be deleted or replaced, and until that is done nothing shows it. What is `unpublished` or gone is the volume's truth;
//! everything else is the bucket's, and an answer of the bucket may change it ([`Core::adopt`]) unless one of ours has changed the bucket
//! since it was asked ([`Links::touched_since`]).
//!
//! No names are granted in a linked directory: who looks one up asks each time, since the bucket has the last word. What a file is then, its
//! attributes and bytes, may be kept ([`Core::keepable`]): an object that was replaced is another file.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_lease::Rights;
use atoll_link::names::{Prefix, directory_prefix, object_key};
use atoll_link::{LinkSettings, ObjectKey, Publish};
use atoll_types::{Errno, FileKind, InodeId, Name, SessionId};
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

use super::adopted::Adopted;
use super::doubt::Doubts;
use super::uploads::Uploads;
use super::{Core, Step};
use crate::extents::ExtentMap;
use crate::format::{self, Dentry, InodeRecord};
use crate::links::record::{BaseObject, Dirty, Gone, Linked, Was};
use crate::links::under_way::UnderWay;
use crate::rebase;

/// Most files that are remembered to have begun an object at one key.
const ATTEMPTS_KEPT: usize = 64;

/// Since when an inode is not as its object is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub link: InodeId,
    pub changed: Instant,
    /// Bytes that were written to it since it was an object, as far as that is known.
    pub written: u64,
}

/// Links of a volume, as far as they are in memory.
#[derive(Default)]
pub(crate) struct Links {
    pub roots: BTreeMap<InodeId, LinkSettings>,
    pub unpublished: BTreeMap<InodeId, Waiting>,
    pub gone: BTreeMap<(InodeId, ObjectKey), Gone>,
    /// Where unpublished files are to be written: what is gone there is replaced, and not deleted before.
    replaced: FxHashMap<(InodeId, ObjectKey), InodeId>,
    replacing: FxHashMap<InodeId, (InodeId, ObjectKey)>,
    pub under_way: UnderWay,
    /// Who has changed a file's bytes and has it open still.
    writers: FxHashMap<InodeId, FxHashSet<SessionId>>,
    /// Questions to the bucket that are not answered, by when they were asked.
    asked: BTreeMap<u64, u32>,
    now: u64,
    /// When a change of ours to an object last ended, as long as an older question is not answered.
    touched: BTreeMap<(InodeId, ObjectKey), u64>,
    pub doubts: Doubts,
    pub adopted: Adopted,
    pub uploads: Uploads,
    /// There is something to be published or deleted.
    pub work: Arc<Notify>,
}

impl Links {
    /// A question is asked; [`Links::answered`] ends it.
    pub fn ask(&mut self) -> u64 {
        self.now += 1;
        *self.asked.entry(self.now).or_default() += 1;
        self.now
    }

    /// Of the last question.
    pub fn moment(&self) -> u64 {
        self.now
    }

    pub fn answered(&mut self, asked: u64) {
        if let Some(count) = self.asked.get_mut(&asked) {
            *count -= 1;
            if *count == 0 {
                self.asked.remove(&asked);
            }
        }
        match self.asked.first_key_value() {
            None => self.touched.clear(),
            Some((&oldest, _)) if oldest > asked => self.touched.retain(|_, at| *at >= oldest),
            Some(_) => {}
        }
    }

    /// The bucket has another object at the key now, by our doing.
    pub fn touch(&mut self, link: InodeId, key: &ObjectKey) {
        if self.recheck(link).is_some() {
            self.doubts.doubt(link, key, self.now);
        }
        if !self.asked.is_empty() {
            self.touched.insert((link, key.clone()), self.now);
        }
    }

    /// How long answers are believed in a link that hears hints; `None` in others.
    pub fn recheck(&self, link: InodeId) -> Option<Duration> {
        let seconds = self.roots.get(&link)?.freshness.recheck_seconds()?;
        Some(Duration::from_secs(seconds.into()))
    }

    /// Whether an answer to a question of then may be older than a change of ours.
    pub fn touched_since(&self, link: InodeId, key: &ObjectKey, asked: u64) -> bool {
        self.touched.get(&(link, key.clone())).is_some_and(|at| *at >= asked)
    }

    /// Whether what an answer to a question of then shows at the key is ours to show, or not to.
    pub fn is_ours(&self, link: InodeId, key: &ObjectKey, asked: u64) -> bool {
        self.is_gone(link, key) || self.touched_since(link, key, asked)
    }

    /// The same, of something below a prefix: an answer that shows the prefix may have seen nothing else.
    pub fn is_any_ours(&self, link: InodeId, below: &ObjectKey, asked: u64) -> bool {
        let from = (link, below.clone());
        let is_below = |(of, key): &(InodeId, ObjectKey)| *of == link && key.as_str().starts_with(below.as_str());
        let is_gone = self.gone.range(&from..).next().is_some_and(|(at, _)| is_below(at));
        let mut touched = self.touched.range(&from..).take_while(|(at, _)| is_below(at));
        is_gone || touched.any(|(_, at)| *at >= asked)
    }

    /// Whether nothing shows the object, or what lies below.
    pub fn is_gone(&self, link: InodeId, key: &ObjectKey) -> bool {
        self.gone.contains_key(&(link, key.clone()))
    }

    /// Whether it is gone, and the inode still needs it.
    pub fn is_held_by(&self, link: InodeId, key: &ObjectKey, inode: InodeId) -> bool {
        self.gone.get(&(link, key.clone())).is_some_and(|gone| gone.holder == Some(inode))
    }

    /// Gone directories that the key lies below, or is.
    fn gone_above(&self, link: InodeId, key: &ObjectKey) -> impl Iterator<Item = &Gone> {
        let text = key.as_str();
        text.char_indices().filter(|(_, byte)| *byte == '/').filter_map(move |(at, _)| {
            let above = ObjectKey::new(&text[..=at])?;
            self.gone.get(&(link, above)).filter(|gone| gone.is_directory())
        })
    }

    /// Whether something is still being moved away from there.
    pub fn is_being_left(&self, link: InodeId, key: &ObjectKey) -> bool {
        self.gone_above(link, key).next().is_some()
    }

    /// The same, by another directory than this one.
    pub fn is_being_left_by_another(&self, link: InodeId, key: &ObjectKey, directory: InodeId) -> bool {
        self.gone_above(link, key).any(|gone| gone.holder != Some(directory))
    }

    /// Whether a file is to be written where the gone object is.
    pub fn is_replaced(&self, link: InodeId, key: &ObjectKey) -> bool {
        self.replaced.contains_key(&(link, key.clone()))
    }

    fn replace(&mut self, inode: InodeId, link: InodeId, key: &ObjectKey) {
        self.replace_no_more(inode);
        self.replaced.insert((link, key.clone()), inode);
        self.replacing.insert(inode, (link, key.clone()));
    }

    fn replace_no_more(&mut self, inode: InodeId) {
        if let Some(key) = self.replacing.remove(&inode)
            && self.replaced.get(&key) == Some(&inode)
        {
            self.replaced.remove(&key);
        }
    }

    /// An earlier authority had not published this one.
    pub fn left(&mut self, inode: InodeId) {
        self.unpublished.insert(inode, Waiting { link: InodeId::NONE, changed: Instant::now(), written: 0 });
    }

    /// Bytes were written to a file, which is known to be unpublished if it is linked.
    pub fn wrote(&mut self, inode: InodeId, bytes: u64) {
        if let Some(waiting) = self.unpublished.get_mut(&inode) {
            waiting.written += bytes;
        }
    }

    /// See [`LinkSettings::budget`].
    pub fn budget(&self, link: InodeId) -> Option<u64> {
        self.roots.get(&link).and_then(|settings| settings.budget)
    }

    /// See [`Waiting::written`].
    pub fn written(&self, inode: InodeId) -> u64 {
        self.unpublished.get(&inode).map_or(0, |waiting| waiting.written)
    }

    pub fn is_unpublished(&self, inode: InodeId) -> bool {
        self.unpublished.contains_key(&inode)
    }

    /// Whether somebody who has changed the file has it open.
    pub fn is_being_written(&self, inode: InodeId) -> bool {
        self.writers.contains_key(&inode)
    }
}

impl Core {
    pub fn linked(&mut self, inode: InodeId) -> Step<Option<&Linked>> {
        Ok(self.record(inode)?.linked.as_deref())
    }

    /// Whether it is in a link, as far as is known: what an operation works on is.
    pub(super) fn is_linked(&self, inode: InodeId) -> bool {
        self.inodes.get(&inode).is_some_and(|cached| cached.record.linked.is_some())
    }

    /// What a session may keep of an inode. Of a linked one: attributes and bytes of a file of which all is known. Nothing by which the next
    /// authority would not know it.
    pub(super) fn keepable(&self, inode: InodeId) -> Rights {
        let record = self.inodes.get(&inode).map(|cached| &cached.record);
        let Some((record, linked)) = record.and_then(|record| Some((record, record.linked.as_ref()?))) else {
            return Rights::ALL;
        };
        let is_known = linked.is_described && record.kind() == FileKind::Regular;
        if is_known && self.links.adopted.of_inode(inode).is_none() { Rights::INODE } else { Rights::NONE }
    }

    /// The link that an inode is in.
    pub(super) fn link_of(&mut self, inode: InodeId) -> Step<Option<InodeId>> {
        Ok(self.linked(inode)?.map(|linked| linked.link))
    }

    /// What a name moves or leads to must be in the same link, or in none, on both sides.
    pub(super) fn same_link(&mut self, one: InodeId, other: InodeId) -> Step<()> {
        if self.link_of(one)? == self.link_of(other)? { Ok(()) } else { Err(Errno::EXDEV.into()) }
    }

    /// A linked directory itself stays where it is.
    pub(super) fn not_a_link(&mut self, inode: InodeId) -> Step<()> {
        if self.links.roots.contains_key(&inode) { Err(Errno::EBUSY.into()) } else { Ok(()) }
    }

    /// Whether the bucket has a place for what the directory holds. As long as one above has none, nothing below comes to its place: so that one
    /// may be renamed, and nothing is left behind.
    pub fn has_place(&mut self, directory: InodeId) -> Step<bool> {
        let mut at = directory;
        loop {
            let Some(linked) = self.linked(at)?.filter(|linked| linked.prefix.is_some()) else { return Ok(false) };
            match &linked.home {
                Some((parent, _)) => at = *parent,
                None => return Ok(linked.link == at),
            }
        }
    }

    /// How keys begin of what is below the directory by its place in the tree. `None`: it has no such place.
    pub fn prefix_of(&mut self, directory: InodeId) -> Step<Option<Prefix>> {
        let mut names = Vec::new();
        let mut at = directory;
        let link = loop {
            let Some(linked) = self.linked(at)? else { return Ok(None) };
            if linked.link == at {
                break at;
            }
            let Some((parent, name)) = linked.home.clone() else { return Ok(None) };
            names.push(name);
            at = parent;
        };
        let Some(settings) = self.links.roots.get(&link) else { return Ok(None) };
        let mut prefix = prefix_of_link(link, settings);
        for name in names.iter().rev() {
            match directory_prefix(&prefix, name) {
                Ok(next) => prefix = next,
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(prefix))
    }

    /// The key that a file's object is to have. `None`: it can have none.
    pub fn key_of(&mut self, inode: InodeId) -> Step<Option<ObjectKey>> {
        let Some(linked) = self.linked(inode)? else { return Ok(None) };
        let Some((parent, name)) = linked.home.clone() else { return Ok(None) };
        let prefix = self.prefix_of(parent)?;
        Ok(prefix.and_then(|prefix| object_key(&prefix, &name).ok()))
    }

    /// Whether the inode's home lies below the directory, or is it.
    pub fn is_home_below(&mut self, inode: InodeId, directory: InodeId) -> Step<bool> {
        let mut at = inode;
        loop {
            if at == directory {
                return Ok(true);
            }
            match self.linked(at)?.and_then(|linked| linked.home.clone()) {
                Some((parent, _)) => at = parent,
                None => return Ok(false),
            }
        }
    }

    /// What the session has written of links with this policy, and has open.
    pub fn written_with_policy(&self, session: SessionId, policy: Publish) -> Vec<InodeId> {
        let is_wanted = |inode: &InodeId| {
            let waiting = self.links.unpublished.get(inode);
            let settings = waiting.and_then(|waiting| self.links.roots.get(&waiting.link));
            settings.is_some_and(|settings| settings.publish == policy)
        };
        let written = self.links.writers.iter().filter(|(_, sessions)| sessions.contains(&session));
        written.map(|(inode, _)| *inode).filter(is_wanted).collect()
    }

    /// The bytes of a file that are its object's as a whole.
    pub fn implied_extents(&mut self, inode: InodeId) -> Step<Option<ExtentMap>> {
        let linked = self.linked(inode)?.filter(|linked| linked.dirty != Dirty::Bytes);
        let size = linked.map(|linked| linked.object.as_ref().map_or(0, |object| object.size));
        Ok(size.map(rebase::whole))
    }

    // ---- what changes here

    fn write_gone(&mut self, link: InodeId, key: ObjectKey, gone: Option<Gone>) {
        self.write(format::gone_key(link, &key), gone.as_ref().map(format::encode_gone));
        match gone {
            Some(gone) => drop(self.links.gone.insert((link, key), gone)),
            None => {
                self.links.touch(link, &key);
                self.links.under_way.forget(link, &key);
                self.links.gone.remove(&(link, key));
            }
        }
        self.links.work.notify_one();
    }

    /// The object, or what is below, is not shown any more.
    pub fn put_gone(&mut self, link: InodeId, key: ObjectKey, mut gone: Gone) {
        if let Some(known) = self.links.gone.get(&(link, key.clone())) {
            let others = known.of.iter().filter(|inode| !gone.of.contains(inode)).take(ATTEMPTS_KEPT);
            let others: Vec<InodeId> = others.copied().collect();
            gone.of.extend(others);
        }
        self.write_gone(link, key, Some(gone));
    }

    /// It is gone no more: it is deleted, replaced or has a name again.
    pub fn drop_gone(&mut self, link: InodeId, key: &ObjectKey) {
        if self.links.is_gone(link, key) {
            self.write_gone(link, key.clone(), None);
        }
    }

    /// Its object is not as it is from now on.
    pub fn unpublish(&mut self, inode: InodeId) {
        let linked = self.inodes.get(&inode).and_then(|cached| cached.record.linked.as_ref());
        let Some(link) = linked.map(|linked| linked.link) else { return };
        if !self.links.is_unpublished(inode) {
            self.write(format::unpublished_key(inode), Some(Bytes::from_static(&[format::FORMAT_VERSION])));
        }
        let written = self.links.written(inode);
        self.links.unpublished.insert(inode, Waiting { link, changed: Instant::now(), written });
        self.links.work.notify_one();
    }

    /// Its object is as it is, or it has none and needs none.
    pub fn publish_settled(&mut self, inode: InodeId) {
        self.links.replace_no_more(inode);
        if self.links.unpublished.remove(&inode).is_some() {
            self.write(format::unpublished_key(inode), None);
        }
    }

    /// Nothing is written at the key, if it is still the file's: what is gone where it was to be written before is deleted.
    pub fn replaces_nothing(&mut self, inode: InodeId, key: &ObjectKey) -> Step<()> {
        if self.key_of(inode)?.as_ref() == Some(key) {
            self.links.replace_no_more(inode);
            self.links.work.notify_one();
        }
        Ok(())
    }

    pub fn change_linked(&mut self, inode: InodeId, change: impl FnOnce(&mut Linked)) {
        self.change(inode, |record| {
            if let Some(linked) = &mut record.linked {
                change(linked);
            }
        });
    }

    /// What a new inode is to know of the bucket. Changes nothing.
    pub(super) fn born_linked(
        &mut self,
        parent: InodeId,
        name: Option<&Name>,
        kind: FileKind,
    ) -> Step<Option<Box<Linked>>> {
        let Some(link) = self.link_of(parent)? else { return Ok(None) };
        let place = self.prefix_of(parent)?;
        let has_place = self.has_place(parent)?;
        let mut linked = Linked {
            link,
            home: name.map(|name| (parent, Bytes::copy_from_slice(name.as_bytes()))),
            object: None,
            prefix: None,
            dirty: Dirty::No,
            kept: true,
            is_described: true,
        };
        let (Some(place), Some(name)) = (place, name) else {
            linked.home = None;
            linked.dirty = if kind == FileKind::Regular { Dirty::Bytes } else { Dirty::No };
            return Ok(Some(Box::new(linked)));
        };
        match kind {
            FileKind::Directory => match directory_prefix(&place, name.as_bytes()) {
                Ok(prefix) if has_place && !self.links.is_being_left(link, &prefix.key) => linked.prefix = Some(prefix),
                Ok(_) => {}
                Err(_) => linked.home = None,
            },
            FileKind::Regular | FileKind::Symlink => {
                linked.dirty = Dirty::Bytes;
                if object_key(&place, name.as_bytes()).is_err() {
                    linked.home = None;
                }
            }
            _ => linked.home = None,
        }
        Ok(Some(Box::new(linked)))
    }

    /// A new inode is there.
    pub(super) fn entered_linked(&mut self, inode: InodeId) {
        let Some(cached) = self.inodes.get(&inode) else { return };
        let kind = cached.record.kind();
        let Some(linked) = cached.record.linked.as_ref().filter(|linked| linked.home.is_some()) else { return };
        let (link, has_no_place) = (linked.link, linked.prefix.is_none());
        match kind {
            FileKind::Regular | FileKind::Symlink => {
                self.unpublish(inode);
                if let Ok(Some(key)) = self.key_of(inode) {
                    self.links.replace(inode, link, &key);
                }
            }
            // It gets its place in the bucket when what was there is moved away.
            FileKind::Directory if has_no_place => self.unpublish(inode),
            _ => {}
        }
    }

    /// Load what [`Core::bytes_changed`] needs.
    pub(super) fn gather_bytes(&mut self, inode: InodeId) -> Step<()> {
        if self.linked(inode)?.is_some() && self.record(inode)?.kind() == FileKind::Regular {
            self.extents(inode)?;
        }
        Ok(())
    }

    /// Before a change of its bytes is applied to the store, and after it was to its extents.
    pub(super) fn bytes_changed(&mut self, inode: InodeId) {
        let Some(cached) = self.inodes.get(&inode) else { return };
        let Some(linked) = &cached.record.linked else { return };
        if linked.dirty != Dirty::Bytes {
            // Those of an object were not stored.
            let all: Vec<_> = cached.extents.iter().flat_map(|map| map.iter()).map(|(at, e)| (at, *e)).collect();
            for (offset, extent) in all {
                self.write(format::extent_key(inode, offset), Some(format::encode_extent(&extent)));
            }
            self.change_linked(inode, |linked| linked.dirty = Dirty::Bytes);
        }
        self.changed_linked(inode);
    }

    /// Its owner, mode or times changed.
    pub(super) fn attributes_changed(&mut self, inode: InodeId) {
        let Some(cached) = self.inodes.get(&inode) else { return };
        let is_file = matches!(cached.record.kind(), FileKind::Regular | FileKind::Symlink);
        if is_file && cached.record.linked.is_some() {
            self.change_linked(inode, |linked| linked.dirty = linked.dirty.max(Dirty::Attributes));
            self.changed_linked(inode);
        }
    }

    fn changed_linked(&mut self, inode: InodeId) {
        if self.inodes.get(&inode).is_some_and(|cached| {
            cached.record.links > 0 && cached.record.linked.as_ref().is_some_and(|linked| linked.home.is_some())
        }) {
            self.unpublish(inode);
        }
    }

    /// The session has made it, or changed its bytes, and may go on.
    pub fn note_writer(&mut self, session: SessionId, inode: InodeId) {
        let has_it_open = || self.session_opens.get(&session).is_some_and(|opens| opens.contains_key(&inode));
        if self.is_linked(inode) && has_it_open() {
            self.links.writers.entry(inode).or_default().insert(session);
        }
    }

    /// The session has it open no more.
    pub(super) fn closed_linked(&mut self, session: SessionId, inode: InodeId) {
        if let Some(sessions) = self.links.writers.get_mut(&inode) {
            sessions.remove(&session);
            if sessions.is_empty() {
                self.links.writers.remove(&inode);
            }
            self.links.work.notify_one();
        }
    }

    /// A name is gone that its object may have had.
    pub(super) fn lost_home(&mut self, parent: InodeId, name: &Name, inode: InodeId) {
        let Some(cached) = self.inodes.get(&inode) else { return };
        let others = cached.record.links > 1 && cached.record.kind() != FileKind::Directory;
        let Some(linked) = cached.record.linked.as_ref().filter(|linked| linked.is_home(parent, name)) else { return };
        let (link, object) = (linked.link, linked.object.clone());
        if let Some(BaseObject { key, version, .. }) = object {
            self.put_gone(link, key, Gone { was: Was::Object(version), of: vec![inode], holder: Some(inode) });
        }
        self.change_linked(inode, |linked| linked.home = None);
        // Its bytes are still those of the object, which is to go.
        if others {
            self.unpublish(inode)
        } else {
            self.publish_settled(inode)
        }
        // What was emptied here stays.
        self.change_linked(parent, |linked| linked.kept = true);
    }

    /// The inode is about to be freed: nothing holds its object any more.
    pub(super) fn free_linked(&mut self, inode: InodeId, record: &InodeRecord) {
        let Some(linked) = &record.linked else { return };
        self.links.writers.remove(&inode);
        self.publish_settled(inode);
        if let Some(object) = &linked.object {
            self.release_gone(linked.link, &object.key, inode);
        }
        // What it was moved from includes the one where it is listed.
        if let Some(prefix) = &linked.prefix
            && self.links.is_held_by(linked.link, &prefix.key, inode)
        {
            self.drop_places(linked.link, inode);
        }
    }

    /// A directory has nothing any more where it was moved from.
    pub(super) fn drop_places(&mut self, link: InodeId, directory: InodeId) {
        let held = self
            .links
            .gone
            .iter()
            .filter(|((of, _), gone)| *of == link && gone.is_directory() && gone.holder == Some(directory));
        let held: Vec<ObjectKey> = held.map(|((_, key), _)| key.clone()).collect();
        for key in held {
            self.drop_gone(link, &key);
        }
    }

    /// An inode needs the object no more.
    pub fn release_gone(&mut self, link: InodeId, key: &ObjectKey, holder: InodeId) {
        if let Some(gone) = self.links.gone.get(&(link, key.clone()))
            && gone.holder == Some(holder)
        {
            let gone = Gone { holder: None, ..gone.clone() };
            self.put_gone(link, key.clone(), gone);
        }
    }

    /// A name of it moved to another directory or name of the same link.
    pub(super) fn moved_home(&mut self, old: (InodeId, &Name), new: (InodeId, &Name), to: NewHome, name: Dentry) {
        let inode = name.inode;
        let Some(cached) = self.inodes.get(&inode) else { return };
        let (kind, links) = (cached.record.kind(), cached.record.links);
        let Some(linked) = cached.record.linked.clone() else { return };
        // A linked directory's keys do not depend on its own name.
        if linked.link == inode {
            return;
        }
        if !linked.is_home(old.0, old.1) && (links > 1 && kind != FileKind::Directory) {
            return;
        }
        let link = linked.link;
        let home = (new.0, Bytes::copy_from_slice(new.1.as_bytes()));
        self.change_linked(old.0, |linked| linked.kept = true);
        match to {
            NewHome::Directory { to, has_place } => {
                let is_mapped = to.is_some();
                self.change_linked(inode, |linked| {
                    linked.home = is_mapped.then_some(home);
                    linked.kept = true;
                });
                if let Some(to) = &to
                    && self.links.is_held_by(link, &to.key, inode)
                {
                    self.drop_gone(link, &to.key);
                }
                let Some(from) = linked.prefix else {
                    // It gets its place later: it is perhaps only being left, too, by what this one is exchanged with.
                    self.unpublish(inode);
                    return;
                };
                if Some(&from) == to.as_ref() && has_place && !self.links.is_being_left(link, &from.key) {
                    self.publish_settled(inode);
                    return;
                }
                self.put_gone(link, from.key, Gone { was: Was::Directory, of: vec![inode], holder: Some(inode) });
                self.unpublish(inode);
            }
            NewHome::File { to, has_place } => {
                let is_file = matches!(kind, FileKind::Regular | FileKind::Symlink);
                let is_mapped = to.is_some() && is_file;
                self.change_linked(inode, |linked| linked.home = is_mapped.then_some(home));
                if let Some(to) = &to
                    && linked.object.as_ref().is_none_or(|object| object.key != *to)
                {
                    self.links.replace(inode, link, to);
                }
                match (linked.object, to) {
                    // Unless what is moved away from there would show it, too.
                    (Some(object), Some(to))
                        if object.key == to && has_place && !self.links.is_being_left(link, &to) =>
                    {
                        self.drop_gone(link, &to);
                        if linked.dirty == Dirty::No {
                            self.publish_settled(inode);
                        }
                    }
                    (Some(object), _) => {
                        let gone = Gone { was: Was::Object(object.version), of: vec![inode], holder: Some(inode) };
                        self.put_gone(link, object.key, gone);
                        self.unpublish(inode);
                    }
                    (None, Some(_)) if is_file => self.unpublish(inode),
                    (None, _) => self.publish_settled(inode),
                }
            }
        }
    }

    /// Whether objects below a directory are being moved since it was.
    pub fn is_moving(&mut self, directory: InodeId) -> Step<bool> {
        let is_unpublished = self.links.is_unpublished(directory);
        let linked = self.linked(directory)?;
        Ok(is_unpublished && linked.is_some_and(|linked| linked.home.is_some() && linked.prefix.is_some()))
    }

    /// Where the object of a name belongs that is about to move. Changes nothing.
    pub(super) fn gather_move(&mut self, name: Dentry, new_parent: InodeId, new_name: &Name) -> Step<NewHome> {
        self.record(name.inode)?;
        let place = self.prefix_of(new_parent)?;
        let has_place = self.has_place(new_parent)?;
        Ok(match name.kind {
            FileKind::Directory => {
                if self.is_moving(name.inode)? {
                    // What is moved of it already lies where it was to be until now.
                    return Err(Errno::EBUSY.into());
                }
                let to = place.and_then(|place| directory_prefix(&place, new_name.as_bytes()).ok());
                NewHome::Directory { to, has_place }
            }
            _ => {
                let to = place.and_then(|place| object_key(&place, new_name.as_bytes()).ok());
                NewHome::File { to, has_place }
            }
        })
    }

    /// A file without a name got one.
    pub(super) fn first_home(&mut self, inode: InodeId, parent: InodeId, name: &Name, to: NewHome) {
        if let NewHome::File { to: Some(_), .. } = to
            && self.is_linked(inode)
        {
            let home = (parent, Bytes::copy_from_slice(name.as_bytes()));
            self.change_linked(inode, |linked| linked.home = Some(home));
            self.unpublish(inode);
        }
    }

    /// An earlier authority left it so; it is known by [`Links::left`] already.
    pub fn install_unpublished(&mut self, inode: InodeId) -> Step<()> {
        let Some(link) = self.link_of(inode)? else { return Ok(()) };
        if let Some(key) = self.key_of(inode)? {
            self.links.replace(inode, link, &key);
        }
        if let Some(waiting) = self.links.unpublished.get_mut(&inode) {
            waiting.link = link;
        }
        self.links.work.notify_one();
        Ok(())
    }

    /// An empty directory becomes a link. Nobody holds anything on it.
    pub fn begin_link(&mut self, root: InodeId, settings: &LinkSettings) -> Step<()> {
        if self.linked(root)?.is_some() {
            return Err(Errno::EBUSY.into());
        }
        self.directory(root)?;
        if self.record(root)?.size > 0 {
            return Err(Errno::ENOTEMPTY.into());
        }
        let prefix = prefix_of_link(root, settings);
        let linked = Linked {
            link: root,
            home: None,
            object: None,
            prefix: Some(prefix),
            dirty: Dirty::No,
            kept: true,
            is_described: true,
        };
        self.change(root, |record| record.linked = Some(Box::new(linked)));
        if let Some(cached) = self.inodes.get_mut(&root) {
            cached.directory = None;
        }
        self.write(format::link_key(root), Some(format::encode_link(settings)));
        self.links.roots.insert(root, settings.clone());
        self.order();
        Ok(())
    }

    /// The directory is linked no more; nothing is below it.
    pub fn end_link(&mut self, root: InodeId) -> Step<()> {
        self.must_be_empty(root)?;
        self.change(root, |record| record.linked = None);
        let gone: Vec<ObjectKey> =
            self.links.gone.keys().filter(|(link, _)| *link == root).map(|(_, k)| k.clone()).collect();
        for key in gone {
            self.drop_gone(root, &key);
        }
        for upload in self.links.uploads.of(root) {
            self.drop_upload(root, &upload);
        }
        self.write(format::link_key(root), None);
        self.links.roots.remove(&root);
        self.links.doubts.forget(root);
        self.order();
        Ok(())
    }

    /// Forget what a name stands for; its object, if it has one, stays.
    pub fn forget_found(&mut self, parent: InodeId, name: &Name) -> Step<()> {
        let Some(dentry) = self.dentry(parent, name)? else { return Ok(()) };
        if dentry.kind == FileKind::Directory {
            self.must_be_empty(dentry.inode)?;
        }
        self.must_be_free(dentry.inode)?;
        self.gather_drop(dentry)?;
        self.publish_settled(dentry.inode);
        self.vanish(parent, name, dentry);
        Ok(())
    }
}

/// How all keys of a link begin.
fn prefix_of_link(root: InodeId, settings: &LinkSettings) -> Prefix {
    let begin = settings.prefix.clone();
    if root == InodeId::ROOT { Prefix::volume_root(begin) } else { Prefix::new(begin) }
}

/// Where the object of a moved name belongs; `None`: it can have none. `has_place`: its directory has one.
pub(super) enum NewHome {
    File { to: Option<ObjectKey>, has_place: bool },
    Directory { to: Option<Prefix>, has_place: bool },
}
