//! Listings of linked directories, in the bucket's order, a page at a time: a directory may hold more than memory does.
//!
//! A page of the bucket's listing says everything of a run of keys. Names of that run are brought in line with it
//! ([`Volume::reconcile`]), and then listed, with those that are in the volume alone at the places that their keys will have.

use std::collections::{BTreeMap, HashMap, HashSet};

use atoll_link::names::{Prefix, Shown, beside, directory_prefix, object_key, position, shown};
use atoll_link::{Listed, ObjectKey, Page};
use atoll_store::Scan;
use atoll_types::operation::DirectoryEntry;
use atoll_types::{Errno, FileKind, InodeId, Name, Outcome, SessionId};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::Instant;

use super::pages::Run;
use crate::core::{self, Core, Found, Need, Step, Stop};
use crate::format::{self, Dentry};
use crate::volume::Volume;

/// Most keys that are asked for at a time: what S3 gives.
pub(super) const PAGE_KEYS: usize = 1000;
/// Records that are loaded side by side.
const LOADS: usize = 32;
/// Names that are brought in line while the volume's lock is held.
const TOGETHER: usize = 100;
/// Directories that were emptied in the bucket, one in another, that are looked into.
const DEPTH_MAX: usize = 128;

/// Names of a run of keys.
pub(super) struct Reconciled {
    /// By their places.
    pub names: BTreeMap<Bytes, Name>,
    /// Behind the run; `None`: the run goes to the end.
    pub next: Option<Bytes>,
    /// What places begin with.
    order: Prefix,
    /// The directory's own object.
    pub marker: Option<Listed>,
}

/// A linked directory as a listing needs it.
struct Place {
    link: InodeId,
    /// Where the bucket has what it holds; `None`: not yet, or no more.
    prefix: Option<Prefix>,
    /// By which what it holds is ordered.
    order: Prefix,
}

impl Core {
    fn place(&mut self, directory: InodeId) -> Step<Option<Place>> {
        let Some(linked) = self.linked(directory)? else { return Ok(None) };
        let (link, prefix) = (linked.link, linked.prefix.clone());
        if !self.links.roots.contains_key(&link) {
            return Ok(None);
        }
        let order = match &prefix {
            Some(prefix) => prefix.clone(),
            None => Prefix::new(ObjectKey::new("").ok_or(Errno::EIO)?),
        };
        Ok(Some(Place { link, prefix, order }))
    }
}

impl Volume {
    /// Whether it is a linked directory, or one below.
    pub(crate) async fn is_linked(&self, inode: InodeId) -> Result<bool, Errno> {
        if !self.inner.links.is_used() {
            return Ok(false);
        }
        self.alone(|core| Ok(core.linked(inode)?.is_some())).await
    }

    /// A part of a linked directory's listing.
    pub(crate) async fn list_linked(
        &self,
        session: SessionId,
        directory: InodeId,
        after: u64,
        most: usize,
        with_attributes: bool,
    ) -> Result<Outcome, Errno> {
        let pages = &self.inner.links.pages;
        let mut run = match pages.take(directory, after) {
            Some(run) => run,
            None => {
                let from = if after == 0 { None } else { Some(self.place_of(directory, after).await?) };
                self.list_run(directory, from).await?
            }
        };
        let mut behind = after;
        loop {
            let left: Vec<(Bytes, Name)> = run.behind(behind).map(|(at, name)| (at.clone(), name.clone())).collect();
            let mut left = left.into_iter();
            let mut entries = Vec::new();
            while entries.len() < most
                && let Some((at, name)) = left.next()
            {
                if let Some(entry) = self.listed(session, directory, &name, with_attributes).await? {
                    run.given.insert(entry.cookie, at);
                    entries.push(entry);
                }
            }
            let is_cut = left.next().is_some();
            if entries.is_empty()
                && !is_cut
                && let Some(next) = run.next
            {
                (run, behind) = (self.list_run(directory, Some(next)).await?, 0);
                continue;
            }
            let end = run.next.is_none() && !is_cut;
            if let Some(entry) = entries.last()
                && let Some(at) = run.given.get(&entry.cookie)
            {
                pages.ended(directory, entry.cookie, at.clone());
            }
            pages.keep(directory, run);
            return Ok(Outcome::Listing { entries, end });
        }
    }

    /// What the bucket's next page says of a directory, from a place within it on.
    async fn list_run(&self, directory: InodeId, from: Option<Bytes>) -> Result<Run, Errno> {
        let listed = Instant::now();
        let from = match from {
            Some(at) => {
                let place = self.alone(|core| core.place(directory)).await?.ok_or(Errno::ENOTDIR)?;
                Some([place.order.key.as_str().as_bytes(), &at[..]].concat().into())
            }
            None => None,
        };
        let page = self.reconcile(directory, from, PAGE_KEYS).await?.ok_or(Errno::ENOTDIR)?;
        let within = |at: &Bytes| within(&page.order, at);
        Ok(Run {
            names: page.names.into_iter().map(|(at, name)| (within(&at), name)).collect(),
            next: page.next.as_ref().map(within),
            listed,
            given: HashMap::new(),
        })
    }

    async fn listed(
        &self,
        session: SessionId,
        directory: InodeId,
        name: &Name,
        with_attributes: bool,
    ) -> Result<Option<DirectoryEntry>, Errno> {
        self.alone(|core| {
            let Some(dentry) = core.named_entry(directory, name)? else { return Ok(None) };
            let mut entry = core::entry(name.clone(), dentry.inode, dentry.kind, dentry.cookie);
            if with_attributes && core.is_quiet(session, dentry.inode) {
                entry.attributes = Some(core.attributes(dentry.inode)?);
            }
            Ok(Some(entry))
        })
        .await
    }

    /// Where the entry with this cookie stands, or stood, within the directory.
    async fn place_of(&self, directory: InodeId, cookie: u64) -> Result<Bytes, Errno> {
        if let Some(at) = self.inner.links.pages.place(directory, cookie) {
            return Ok(at);
        }
        let place = self.alone(|core| core.place(directory)).await?.ok_or(Errno::ENOTDIR)?;
        let found = self.newest_value(format::cookie_key(directory, cookie)).await?.ok_or(Errno::ESTALE)?;
        let (_, kind, name) = format::decode_cookie(&found).map_err(|error| error.errno())?;
        Ok(within(&place.order, &position(&place.order, name.as_bytes(), kind == FileKind::Directory)))
    }

    /// Bring the names of a run of keys in line with the bucket. `None`: it is not linked.
    pub(super) async fn reconcile(
        &self,
        directory: InodeId,
        from: Option<Bytes>,
        most: usize,
    ) -> Result<Option<Reconciled>, Errno> {
        self.reconcile_within(directory, from, most, 0).await
    }

    async fn reconcile_within(
        &self,
        directory: InodeId,
        from: Option<Bytes>,
        most: usize,
        depth: usize,
    ) -> Result<Option<Reconciled>, Errno> {
        let Some(place) = self.alone(|core| core.place(directory)).await? else { return Ok(None) };
        let question = self.question();
        let page = match &place.prefix {
            Some(prefix) => {
                let bucket = self.bucket(place.link).map_err(|error| self.told(place.link, error))?;
                let after = from.as_ref().map(key_before);
                let page = bucket.list(&prefix.key, after.as_ref(), true, most.max(2)).await;
                page.map_err(|error| self.told(place.link, error))?
            }
            None => Page { entries: Vec::new(), end: true },
        };
        let end =
            (!page.end).then(|| page.entries.last().map(|last| Bytes::copy_from_slice(last.key().as_str().as_bytes())));
        let end = end.flatten();
        let is_inside =
            |at: &Bytes| from.as_ref().is_none_or(|from| at > from) && end.as_ref().is_none_or(|end| at <= end);

        // What the bucket shows.
        let mut shows: Vec<(Name, Found)> = Vec::new();
        let mut marker = None;
        let mut directories: HashSet<Name> = HashSet::new();
        if let Some(prefix) = &place.prefix {
            for listed in page.entries {
                let (name, found) = match (shown(prefix, &listed), &listed) {
                    (Ok(Shown::Marker), _) => {
                        marker = Some(listed);
                        continue;
                    }
                    (Ok(Shown::Directory(name)), _) => match directory_prefix(prefix, name.as_bytes()) {
                        Ok(below) if directories.insert(name.clone()) => (name, Found::Directory(below)),
                        _ => continue,
                    },
                    (Ok(Shown::File(name)), Listed::Object(key, info)) => {
                        (name, Found::Object { key: key.clone(), info: info.clone(), target: None })
                    }
                    (Ok(_), _) => continue,
                    (Err(reason), _) => {
                        tracing::debug!(key = %listed.key(), %reason, "this key has no name");
                        continue;
                    }
                };
                shows.push((name, found));
            }
        }

        let known = self.known_between(directory, &place.order, from.as_ref(), end.as_ref()).await?;
        for (name, found) in &mut shows {
            let is_file = matches!(found, Found::Object { .. });
            let has_directory = directories.contains(name)
                || known.get(name).is_some_and(|dentry| dentry.kind == FileKind::Directory)
                || (is_file && self.is_directory(directory, name).await?);
            if is_file
                && has_directory
                && let Ok(other) = beside(name)
            {
                *name = other;
            }
        }
        let needs = known.values().map(|dentry| Need::Inode(dentry.inode));
        // What cannot be loaded is told by the step that needs it.
        stream::iter(needs).for_each_concurrent(LOADS, |need| async { _ = self.load(need).await }).await;

        let witnesses = self.witnesses(&place, &shows, &known, question.asked).await?;
        let mut names: BTreeMap<Bytes, Name> = BTreeMap::new();
        for together in shows.chunks(TOGETHER) {
            self.alone(|core| {
                for (name, found) in together {
                    if core.is_directory_of_ours(directory, &place, name, found, &witnesses, question.asked)? {
                        continue;
                    }
                    core.take_over(directory, &place, name, Some(found), question.asked)?;
                    if let Found::Object { info, .. } = found {
                        core.confirm(directory, name, &info.version, question.moment())?;
                    }
                }
                Ok(())
            })
            .await?;
        }
        let stays: HashSet<&Name> = shows.iter().map(|(name, _)| name).collect();
        for (name, dentry) in &known {
            let at = position(&place.order, name.as_bytes(), dentry.kind == FileKind::Directory);
            if !is_inside(&at) {
                continue;
            }
            names.insert(at, name.clone());
            if !stays.contains(name) && place.prefix.is_some() {
                let is_empty = self.alone(|core| core.take_over(directory, &place, name, None, question.asked)).await?;
                if !is_empty && depth < DEPTH_MAX {
                    // What it held is gone, too, unless it is the volume's.
                    self.empty_directory(dentry.inode, depth + 1).await?;
                    self.alone(|core| core.take_over(directory, &place, name, None, question.asked)).await?;
                }
            }
        }
        for (name, found) in shows {
            let at = position(&place.order, name.as_bytes(), matches!(found, Found::Directory(_)));
            names.insert(at, name);
        }
        self.inner.shared.work.notify_one();
        Ok(Some(Reconciled { names, next: end, order: place.order, marker }))
    }

    /// Of directories that the volume does not know: keys that tell that they are there, where all that the listing has seen of them may be what
    /// is being deleted.
    async fn witnesses(
        &self,
        place: &Place,
        shows: &[(Name, Found)],
        known: &HashMap<Name, Dentry>,
        asked: u64,
    ) -> Result<HashMap<Name, ObjectKey>, Errno> {
        let mut witnesses = HashMap::new();
        for (name, found) in shows {
            let Found::Directory(below) = found else { continue };
            let is_any_ours = || self.inner.shared.core.lock().links.is_any_ours(place.link, &below.key, asked);
            if known.contains_key(name) || !is_any_ours() {
                continue;
            }
            let bucket = self.bucket(place.link).map_err(|error| self.told(place.link, error))?;
            let found = self.find_below(&bucket, place.link, Some(below), asked).await;
            if let Some(key) = found.map_err(|error| self.told(place.link, error))? {
                witnesses.insert(name.clone(), key);
            }
        }
        Ok(witnesses)
    }

    /// Bring all of a directory in line that the bucket shows nothing of.
    async fn empty_directory(&self, directory: InodeId, depth: usize) -> Result<(), Errno> {
        let mut from = None;
        loop {
            let page = Box::pin(self.reconcile_within(directory, from, PAGE_KEYS, depth)).await?;
            match page.and_then(|page| page.next) {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn is_directory(&self, parent: InodeId, name: &Name) -> Result<bool, Errno> {
        let found = self.alone(|core| core.lookup_dentry(parent, name)).await?;
        Ok(found.is_some_and(|(_, kind)| kind == FileKind::Directory))
    }

    /// Names that the volume knows of and that may stand between these places.
    async fn known_between(
        &self,
        directory: InodeId,
        order: &Prefix,
        from: Option<&Bytes>,
        to: Option<&Bytes>,
    ) -> Result<HashMap<Name, Dentry>, Errno> {
        let mut known = HashMap::new();
        let relative = |at: &Bytes| within(order, at).to_vec();
        let (start, end) = format::dentries_of(directory);
        let at = |name: &[u8]| [&start[..], name].concat();
        let first = from.map_or_else(|| start.to_vec(), |from| at(&relative(from)));
        let last = to.map_or_else(|| end.to_vec(), |to| [&at(&relative(to))[..], &[0xff]].concat());
        self.known_in(Bytes::from(first), Bytes::from(last).min(end.clone()), &mut known).await?;
        // Names that stand for something else are ordered by that.
        self.known_in(at(b"%@").into(), at(b"%A").into(), &mut known).await?;
        if let Some(from) = from {
            // A directory follows what its name is the beginning of, when that goes on with less than a `/`.
            let from = relative(from);
            for length in 1..=from.len() {
                let Ok(name) = Name::new(Bytes::copy_from_slice(&from[..length])) else { continue };
                if let Some(value) = self.newest_value(format::dentry_key(directory, &name)).await? {
                    known.insert(name, Dentry::decode(&value).map_err(|error| error.errno())?);
                }
            }
        }
        Ok(known)
    }

    async fn known_in(&self, start: Bytes, end: Bytes, known: &mut HashMap<Name, Dentry>) -> Result<(), Errno> {
        if start >= end {
            return Ok(());
        }
        let failed = |error: crate::error::VolumeError| {
            tracing::error!(%error, "cannot list a directory");
            error.errno()
        };
        let range = (start, end);
        let overlay = self.inner.shared.core.lock().overlay_range(&range);
        let mut entries = Vec::new();
        let mut next = Some(range.0.clone());
        while let Some(start) = next {
            let scan = Scan { start, end: range.1.clone(), entries_max: 4096 };
            let page = self.patiently(self.inner.shared.store.scan(scan)).await.map_err(failed)?;
            entries.extend(page.entries);
            next = page.next;
        }
        for (key, value) in core::merge(atoll_store::Page { entries, next: None }, overlay, &range.1) {
            let name = Name::new(format::key_rest(&key))?;
            known.insert(name, Dentry::decode(&value).map_err(failed)?);
        }
        Ok(())
    }
}

/// What follows the directory's prefix.
fn within(order: &Prefix, at: &Bytes) -> Bytes {
    Bytes::copy_from_slice(at.strip_prefix(order.key.as_str().as_bytes()).unwrap_or_default())
}

/// A key behind which everything is that stands behind the place.
fn key_before(at: &Bytes) -> ObjectKey {
    let mut length = at.len().min(ObjectKey::BYTES_MAX);
    loop {
        if let Some(key) = std::str::from_utf8(&at[..length]).ok().and_then(ObjectKey::new) {
            return key;
        }
        length -= 1;
    }
}

impl Core {
    pub(super) fn named_entry(&mut self, parent: InodeId, name: &Name) -> Step<Option<Dentry>> {
        match self.dentry(parent, name) {
            Err(Stop::Error(_)) => Ok(None),
            other => other,
        }
    }

    /// Whether a directory is shown, and not known, of which the bucket has only what is being deleted, as far as anybody can tell.
    fn is_directory_of_ours(
        &mut self,
        directory: InodeId,
        place: &Place,
        name: &Name,
        found: &Found,
        witnesses: &HashMap<Name, ObjectKey>,
        asked: u64,
    ) -> Step<bool> {
        let Found::Directory(below) = found else { return Ok(false) };
        if self.dentry(directory, name)?.is_some() {
            return Ok(false);
        }
        Ok(match witnesses.get(name) {
            Some(key) => self.links.is_ours(place.link, key, asked),
            None => self.links.is_any_ours(place.link, &below.key, asked),
        })
    }

    /// Take over what the bucket says of a name, unless the volume knows better. False when a directory that holds names would have
    /// to go.
    fn take_over(
        &mut self,
        directory: InodeId,
        place: &Place,
        name: &Name,
        found: Option<&Found>,
        asked: u64,
    ) -> Step<bool> {
        let Some(now) = self.place(directory)? else { return Ok(true) };
        if now.prefix != place.prefix || !self.may_adopt(directory, name)? {
            return Ok(true);
        }
        let Some(prefix) = &place.prefix else { return Ok(true) };
        let keys = [
            object_key(prefix, name.as_bytes()).ok(),
            directory_prefix(prefix, name.as_bytes()).ok().map(|below| below.key),
        ];
        for key in keys.iter().flatten() {
            let is_ours = self.links.touched_since(place.link, key, asked) || self.links.is_gone(place.link, key);
            let is_about = match found {
                Some(Found::Object { key: object, .. }) => object == key,
                Some(Found::Directory(below)) => below.key == *key,
                None => true,
            };
            if is_ours && is_about {
                return Ok(true);
            }
        }
        if found.is_none() && !self.is_listed_by(directory, name, prefix)? {
            return Ok(true);
        }
        self.adopt(directory, name, found)
    }

    /// Whether the bucket lists what the name stands for below this prefix: what was moved may lie elsewhere already.
    fn is_listed_by(&mut self, parent: InodeId, name: &Name, prefix: &Prefix) -> Step<bool> {
        let Some((inode, _)) = self.lookup_dentry(parent, name)? else { return Ok(false) };
        let Some(linked) = self.linked(inode)? else { return Ok(false) };
        let is_below = |key: &ObjectKey| key.as_str().starts_with(prefix.key.as_str());
        Ok(match (&linked.object, &linked.prefix) {
            (_, Some(below)) => is_below(&below.key),
            (Some(object), None) => is_below(&object.key),
            (None, None) => false,
        })
    }
}
