//! What is to be done so that a file's object is as the file is, and what is true afterwards.
//!
//! Invariant: where an object may be that a file of ours was written or copied to, either the file's record has that key, or a gone object is
//! recorded there that names the file. It is durable before the object is begun ([`Core::begin_object`]), whatever is renamed or removed meanwhile
//! leaves it, and it ends when an answer is noted ([`Core::published`]) or when somebody has looked and nothing can come any more. So
//! after a crash, or when an answer was lost, nobody shows that object, and its generation tells that it is ours ([`Core::found_there`]).

use std::collections::BTreeMap;

use atoll_blob::Location;
use atoll_link::names::Prefix;
use atoll_link::{Condition, ObjectInfo, ObjectKey, Version};
use atoll_types::{Attributes, ByteRange, Errno, FileKind, InodeId, Name};
use bytes::Bytes;

use super::{Core, Found, Step, Stop};
use crate::extents::{Changes, Extent, ExtentMap};
use crate::links::record::{BaseObject, Dirty, Gone, Linked, Was};
use crate::links::under_way::Subject;
use crate::rebase;

/// What a file was when its object was begun.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub attributes: Attributes,
    /// Of a regular file.
    pub map: ExtentMap,
    /// Of a symlink.
    pub target: Bytes,
    /// Bytes that were written to it since it was an object before.
    pub written: u64,
}

/// What an unpublished inode needs.
#[derive(Debug)]
pub(crate) enum Job {
    /// Nothing any more.
    Settled,
    /// Something else must be done before.
    Wait(&'static str),
    /// The object that it is to replace still holds the bytes of this other file.
    WaitFor(InodeId),
    Directory,
    /// Its object is to go, and its bytes are still there alone.
    Localise {
        link: InodeId,
        base: BaseObject,
        map: ExtentMap,
    },
    Write {
        link: InodeId,
        key: ObjectKey,
        name: Name,
        base: Option<BaseObject>,
        content: Content,
        condition: Condition,
    },
    /// Its bytes are those of `base`; other attributes, if `content` is there.
    Copy {
        link: InodeId,
        key: ObjectKey,
        base: BaseObject,
        content: Option<Content>,
        condition: Condition,
    },
}

/// How what a moved directory holds comes to its place.
#[derive(Debug)]
pub(crate) struct Move {
    pub link: InodeId,
    /// How its keys begin now.
    pub from: Prefix,
    pub to: Prefix,
    /// Its bytes come into the volume: it cannot go there, and others wait for its old place.
    pub away: bool,
}

impl Job {
    /// The object that it changes.
    pub fn object(&self) -> Option<Subject> {
        match self {
            Job::Write { link, key, .. } | Job::Copy { link, key, .. } => Some(Subject::Object(*link, key.clone())),
            _ => None,
        }
    }
}

impl Core {
    pub fn content(&mut self, inode: InodeId) -> Step<Content> {
        let attributes = self.attributes(inode)?;
        let record = self.record(inode)?;
        let (kind, target) = (record.kind(), record.target.clone());
        let map = if kind == FileKind::Regular { self.extents(inode)?.clone() } else { ExtentMap::new() };
        Ok(Content { attributes, map, target, written: self.links.written(inode) })
    }

    pub fn plan_publication(&mut self, inode: InodeId) -> Step<Job> {
        let record = match self.record(inode) {
            Err(Stop::Error(_)) => return Ok(Job::Settled),
            other => other?,
        };
        let (kind, links) = (record.kind(), record.links);
        let Some(linked) = record.linked.as_deref().cloned() else { return Ok(Job::Settled) };
        if links == 0 || !self.links.roots.contains_key(&linked.link) {
            return Ok(Job::Settled);
        }
        if kind == FileKind::Directory {
            return Ok(Job::Directory);
        }
        let link = linked.link;
        let key = self.key_of(inode)?;
        let (Some(key), Some((parent, name))) = (key, &linked.home) else {
            return match linked.object {
                Some(base) if kind == FileKind::Regular => {
                    Ok(Job::Localise { link, base, map: self.extents(inode)?.clone() })
                }
                _ => Ok(Job::Settled),
            };
        };
        let name = Name::new(name.clone())?;
        let is_own = linked.object.as_ref().is_some_and(|object| object.key == key);
        if !self.has_place(*parent)? || self.links.is_being_left(link, &key) {
            return Ok(Job::Wait("a directory that was there before is still being moved"));
        }
        if is_own && linked.dirty == Dirty::No {
            // It came back to where its object is.
            if self.links.is_held_by(link, &key, inode) {
                self.drop_gone(link, &key);
            }
            return Ok(Job::Settled);
        }
        let condition = match self.links.gone.get(&(link, key.clone())) {
            Some(gone) if gone.holder.is_some_and(|holder| holder != inode) => {
                return Ok(Job::WaitFor(gone.holder.unwrap_or(inode)));
            }
            Some(Gone { was: Was::Object(version), .. }) => Condition::Is(version.clone()),
            // Should there be one of ours, it is known by its generation, and replaced.
            _ => match &linked.object {
                Some(object) if is_own => Condition::Is(object.version.clone()),
                _ => Condition::Absent,
            },
        };
        match (linked.dirty, linked.object) {
            (Dirty::No, Some(base)) => Ok(Job::Copy { link, key, base, content: None, condition }),
            (Dirty::Attributes, Some(base)) => {
                let content = Some(self.content(inode)?);
                Ok(Job::Copy { link, key, base, content, condition })
            }
            (_, base) => Ok(Job::Write { link, key, name, base, content: self.content(inode)?, condition }),
        }
    }

    /// An object is about to be written at the key: from now on it is known that there may be one, whatever becomes of the file and of the
    /// directories above it. Answers with what must be durable before, if that is not known already.
    pub fn begin_object(&mut self, inode: InodeId, key: &ObjectKey) -> Step<Option<u64>> {
        let Some(linked) = self.linked(inode)? else { return Ok(None) };
        if linked.object.as_ref().is_some_and(|object| object.key == *key) {
            return Ok(None);
        }
        let link = linked.link;
        let known = self.links.gone.get(&(link, key.clone()));
        if !known.is_some_and(|gone| gone.of.contains(&inode)) {
            let (was, holder) = known.map_or((Was::Attempt, None), |gone| (gone.was.clone(), gone.holder));
            self.put_gone(link, key.clone(), Gone { was, of: vec![inode], holder });
            self.order();
        }
        Ok(Some(self.ordered()))
    }

    /// The object at `key` is what the file was as `content`; without, what its own object was.
    pub fn published(
        &mut self,
        inode: InodeId,
        link: InodeId,
        key: &ObjectKey,
        version: &Version,
        content: Option<&Content>,
    ) -> Step<()> {
        let orphaned = |core: &mut Core, holder| {
            core.put_gone(link, key.clone(), Gone { was: Was::Object(version.clone()), of: vec![inode], holder });
            core.links.touch(link, key);
            core.order();
        };
        let record = match self.record(inode) {
            // It lost its last name meanwhile, and nobody has it open.
            Err(Stop::Error(_)) => {
                orphaned(self, None);
                return Ok(());
            }
            other => other?,
        };
        let (kind, size, has_name) = (record.kind(), record.size, record.links > 0);
        let Some(linked) = record.linked.as_deref().cloned() else { return Ok(()) };
        let written = match content {
            Some(content) if kind == FileKind::Symlink => content.target.len() as u64,
            Some(content) => content.attributes.size,
            None => linked.object.as_ref().map_or(size, |object| object.size),
        };
        let is_home = match &linked.home {
            Some((parent, _)) => self.key_of(inode)?.as_ref() == Some(key) && self.has_place(*parent)?,
            None => false,
        };
        let attributes = self.attributes(inode)?;
        if let (Some(content), Some(waiting)) = (content, self.links.unpublished.get_mut(&inode)) {
            waiting.written = waiting.written.saturating_sub(content.written);
        }
        let mut dirty = linked.dirty;
        let mut stored = None;
        if let Some(content) = content {
            let same_attributes = is_described_alike(&attributes, &content.attributes);
            let rest = if same_attributes { Dirty::No } else { Dirty::Attributes };
            match (linked.dirty, kind) {
                (Dirty::Bytes, FileKind::Regular) => {
                    let now = self.extents(inode)?.clone();
                    let is_same = attributes.size == content.attributes.size && now.iter().eq(content.map.iter());
                    stored = Some((now, is_same));
                    dirty = if is_same { rest } else { Dirty::Bytes };
                }
                (Dirty::Bytes, _) => dirty = rest,
                _ => dirty = dirty.min(rest),
            }
        }
        if let Some((now, is_same)) = stored
            && let Some(content) = content
        {
            let mut changes = Changes::default();
            let map = if is_same {
                let mut old = now;
                old.truncate(0, &mut changes);
                rebase::whole(written)
            } else {
                // What refers to the old object now did so when it was published.
                rebase::rebase(&content.map, written, &now, &mut changes).ok_or(Errno::EIO)?
            };
            if let Some(cached) = self.inodes.get_mut(&inode) {
                cached.extents = Some(map);
            }
            self.apply_changes(inode, changes);
        }
        if linked.object.as_ref().is_some_and(|object| object.key != *key) {
            self.leave_base(inode, &linked);
        }
        self.drop_gone(link, key);
        self.links.touch(link, key);
        let object = BaseObject { key: key.clone(), version: version.clone(), size: written, archived: false };
        self.change_linked(inode, |linked| {
            linked.object = Some(object);
            linked.dirty = dirty;
            linked.is_described = true;
        });
        if !is_home || self.links.is_being_left(link, key) {
            // It was moved meanwhile, or lost its name; or it came back to a place that others are still to leave.
            orphaned(self, Some(inode));
            if has_name {
                self.unpublish(inode);
            }
        } else if dirty == Dirty::No {
            self.publish_settled(inode);
        }
        self.order();
        Ok(())
    }

    /// Its object is another one from now on, or none: the old one is to go.
    fn leave_base(&mut self, inode: InodeId, linked: &Linked) {
        let Some(old) = &linked.object else { return };
        let known = self.links.gone.get(&(linked.link, old.key.clone()));
        let was = known.map_or_else(|| Was::Object(old.version.clone()), |gone| gone.was.clone());
        let holder = known.and_then(|gone| gone.holder).filter(|holder| *holder != inode);
        self.put_gone(linked.link, old.key.clone(), Gone { was, of: vec![inode], holder });
    }

    /// What is at the key is to be replaced, and is this version: ours, by a publication of which nobody was told, or one that ours is to win over.
    pub fn found_there(&mut self, inode: InodeId, link: InodeId, key: &ObjectKey, info: &ObjectInfo) -> Step<()> {
        let linked = self.linked(inode)?;
        let is_own = linked.is_some_and(|linked| linked.object.as_ref().is_some_and(|object| object.key == *key));
        let known = self.links.gone.get(&(link, key.clone()));
        if known.is_some() || !is_own {
            let (was, holder) = (Was::Object(info.version.clone()), known.and_then(|gone| gone.holder));
            self.put_gone(link, key.clone(), Gone { was, of: vec![inode], holder });
        }
        if is_own {
            let object =
                BaseObject { key: key.clone(), version: info.version.clone(), size: info.size, archived: false };
            self.change_linked(inode, |linked| linked.object = Some(object));
        }
        self.links.touch(link, key);
        self.order();
        Ok(())
    }

    /// The object at the key went by somebody else's doing: ours is written anew.
    pub fn forget_base(&mut self, inode: InodeId, link: InodeId, key: &ObjectKey) -> Step<()> {
        self.record(inode)?;
        if let Some(gone) = self.links.gone.get(&(link, key.clone())).cloned() {
            let holder = gone.holder.filter(|holder| *holder != inode);
            self.put_gone(link, key.clone(), Gone { was: Was::Attempt, holder, ..gone });
        }
        self.change_linked(inode, |linked| {
            if linked.object.as_ref().is_some_and(|object| object.key == *key) {
                linked.object = None;
            }
        });
        self.order();
        Ok(())
    }

    /// Bytes of its object lie in the volume from now on, at these places.
    pub fn localised(&mut self, inode: InodeId, base: &BaseObject, places: &BTreeMap<u64, Location>) -> Step<()> {
        let now = self.extents(inode)?.clone();
        let linked = self.linked(inode)?.cloned();
        let Some(linked) = linked.filter(|linked| linked.object.as_ref() == Some(base)) else { return Ok(()) };
        let mut fresh = Vec::new();
        for (offset, extent) in now.iter() {
            if let Some(range) = rebase::base_range(extent) {
                let pieces = covering(places, range).ok_or(Errno::EAGAIN)?;
                fresh.push((offset, pieces));
            }
        }
        self.bytes_changed(inode);
        let mut changes = Changes::default();
        let map = self.extents(inode)?;
        for (mut offset, pieces) in fresh {
            for extent in pieces {
                map.insert(offset, extent, &mut changes);
                offset += u64::from(extent.length);
            }
        }
        self.apply_changes(inode, changes);
        self.leave_base(inode, &linked);
        self.unpublish(inode);
        self.change_linked(inode, |linked| {
            linked.object = None;
            linked.dirty = Dirty::Bytes;
        });
        if linked.home.is_none() {
            self.publish_settled(inode);
        }
        self.order();
        Ok(())
    }

    /// Whether the inode has a name.
    pub fn is_there(&mut self, inode: InodeId) -> Step<bool> {
        Ok(self.record(inode)?.links > 0)
    }

    /// Whether this is still the file's object: while it is copied, its bytes may come into the volume for others that wait, and it goes.
    pub fn has_base(&mut self, inode: InodeId, base: &BaseObject) -> Step<bool> {
        Ok(self.linked(inode)?.is_some_and(|linked| linked.object.as_ref() == Some(base)))
    }

    /// What was found of that object is true of the file, if it is still its object.
    pub fn if_based(
        &mut self,
        inode: InodeId,
        base: &BaseObject,
        then: impl FnOnce(&mut Core) -> Step<()>,
    ) -> Step<()> {
        if self.has_base(inode, base)? { then(self) } else { Ok(()) }
    }

    /// The bucket's object takes the name back; the file that had it goes.
    pub fn yield_to(&mut self, inode: InodeId, found: Option<&Found>) -> Step<()> {
        let Some((parent, name)) = self.linked(inode)?.and_then(|linked| linked.home.clone()) else { return Ok(()) };
        let name = Name::new(name)?;
        self.forget_found(parent, &name)?;
        self.adopt(parent, &name, found).map(drop)
    }

    /// An unpublished file's object stays hidden where it is, when its directory does not stand for that place any more.
    pub fn hold_object(&mut self, inode: InodeId) -> Step<()> {
        let key = self.key_of(inode)?;
        let Some(linked) = self.linked(inode)?.cloned() else { return Ok(()) };
        if let Some(object) = linked.object
            && key.as_ref() != Some(&object.key)
            && !self.links.is_gone(linked.link, &object.key)
        {
            let gone = Gone { was: Was::Object(object.version), of: vec![inode], holder: Some(inode) };
            self.put_gone(linked.link, object.key, gone);
            self.order();
        }
        Ok(())
    }

    /// What is to be done about a moved directory. `None` when nothing is. `stuck`: if others are in its way, it is to make room for them.
    /// `within`: of something that is moved, thus perhaps in part already.
    pub fn plan_move(&mut self, directory: InodeId, stuck: bool, within: bool) -> Step<Option<Move>> {
        let Some(linked) = self.linked(directory)?.cloned() else { return Ok(None) };
        let Some(to) = self.prefix_of(directory)? else { return Err(Errno::ENAMETOOLONG.into()) };
        let away = self.is_kept_out(directory, &linked, &to)?;
        if away && !(stuck && linked.prefix.is_some()) {
            return Err(Errno::EBUSY.into());
        }
        match linked.prefix {
            Some(from) if from != to || self.links.is_unpublished(directory) || within => {
                Ok(Some(Move { link: linked.link, from, to, away }))
            }
            Some(_) => {
                self.publish_settled(directory);
                Ok(None)
            }
            None => {
                self.change_linked(directory, |linked| linked.prefix = Some(to));
                self.publish_settled(directory);
                self.order();
                Ok(None)
            }
        }
    }

    /// Whether a directory cannot have its place yet.
    fn is_kept_out(&mut self, directory: InodeId, linked: &Linked, to: &Prefix) -> Step<bool> {
        let has_room = match &linked.home {
            Some((above, _)) => self.has_place(*above)?,
            None => true,
        };
        Ok(!has_room || self.links.is_being_left_by_another(linked.link, &to.key, directory))
    }

    /// Nothing below a moved directory is in the bucket any more: what is there goes, and it gets a place when there is one.
    pub fn moved_away(&mut self, directory: InodeId, from: &Prefix) -> Step<()> {
        let Some(linked) = self.linked(directory)?.cloned() else { return Ok(()) };
        let Some(to) = self.prefix_of(directory)? else { return Ok(()) };
        // Otherwise some of it may be where it belongs already.
        if linked.prefix.as_ref() == Some(from) && self.is_kept_out(directory, &linked, &to)? {
            self.change_linked(directory, |linked| linked.prefix = None);
            self.unpublish(directory);
            self.drop_places(linked.link, directory);
            self.links.touch(linked.link, &from.key);
            self.order();
        }
        Ok(())
    }

    /// What an open file without a name reads of its object, should that be replaced: `None` when it need not be kept.
    pub fn plan_release(&mut self, holder: InodeId) -> Step<Option<(InodeId, BaseObject, ExtentMap)>> {
        let record = match self.record(holder) {
            Err(Stop::Error(_)) => return Ok(None),
            other => other?,
        };
        let (links, kind) = (record.links, record.kind());
        let Some(linked) = record.linked.as_deref().cloned() else { return Ok(None) };
        match linked.object {
            Some(object) if links == 0 && kind == FileKind::Regular => {
                Ok(Some((linked.link, object, self.extents(holder)?.clone())))
            }
            _ => Ok(None),
        }
    }

    /// Everything below a moved directory lies where it is to be. False when it was moved again meanwhile.
    pub fn moved_prefix(&mut self, directory: InodeId, from: &Prefix, to: &Prefix) -> Step<bool> {
        let Some(linked) = self.linked(directory)?.cloned() else { return Ok(true) };
        if linked.prefix.as_ref() != Some(from) {
            return Ok(true);
        }
        self.change_linked(directory, |linked| linked.prefix = Some(to.clone()));
        let is_there = self.prefix_of(directory)?.as_ref() == Some(to);
        if is_there {
            self.drop_places(linked.link, directory);
        }
        self.links.touch(linked.link, &from.key);
        self.links.touch(linked.link, &to.key);
        if is_there {
            self.publish_settled(directory);
        } else {
            self.put_gone(
                linked.link,
                to.key.clone(),
                Gone { was: Was::Directory, of: vec![directory], holder: Some(directory) },
            );
        }
        self.order();
        Ok(is_there)
    }
}

/// Stored pieces that hold these bytes of an object. `None`: not all of them are there.
fn covering(places: &BTreeMap<u64, Location>, range: ByteRange) -> Option<Vec<Extent>> {
    let mut pieces = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let (&start, &location) = places.range(..=at).next_back()?;
        let end = (start + u64::from(location.length)).min(range.end);
        if end <= at {
            return None;
        }
        pieces.push(Extent { length: (end - at) as u32, skip: (at - start) as u32, location });
        at = end;
    }
    Some(pieces)
}

/// Whether what is written of attributes beside an object's bytes is the same.
fn is_described_alike(one: &Attributes, other: &Attributes) -> bool {
    (one.mode, one.uid, one.gid, one.modified) == (other.mode, other.uid, other.gid, other.modified)
}
