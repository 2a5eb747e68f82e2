//! The volumes of a server: made, opened on first use, closed on stop.
//!
//! Under the data folder each volume has `volumes/NAME/` with `volume.json`,
//! its log and its staging; under the store `volumes/NAME/` with an owner
//! record, `keys.json` if it is encrypted, `meta` and `segments`. The owner record is written under the
//! condition that none is there, so one name is made once. `volume.json` in the
//! data folder is written last: when a crash comes between the two, the next
//! `create` by the same data folder finds its own owner record, clears what is
//! there and starts over.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_keys::{Keyring, ServerKeys};
use atoll_object::{ObjectRoot, probe};
use atoll_store::{Sealing, SlateConfig, SlateStore};
use atoll_types::{Caller, Epoch};
use atoll_volume::{Compression, Durability, Quota, Volume, VolumeConfig, VolumeSettings};
use atoll_wire::clock::Clock;
use futures_util::StreamExt;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path as ObjectPath};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::buckets::Buckets;
use crate::durable;
use crate::keys::CIPHER;
use crate::names;
use crate::ownership::{Ownership, TAKEOVER_WAIT, Watched};
use crate::queues::Queues;
use crate::sessions::Sessions;

/// Metadata of one volume in memory before it is written out, in bytes.
const MEMTABLE_BYTES: usize = 32 << 20;

/// How often metadata objects that are not needed any more are looked for; each stays for twice as long.
const METADATA_GARBAGE_INTERVAL: Duration = Duration::from_secs(300);

/// Of the records in the data folder, which is closed to others as a whole.
const FILE_MODE: u32 = 0o666;

/// How long operations wait, after a start, for sessions of the last server that do not come back: their term, and
/// some more for clocks that differ.
const GRACE: Duration = Duration::from_millis(atoll_wire::TERM_MS + atoll_wire::UNNOTICED_MS + 100);

/// How long a volume that closes waits for its object store.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Registry {
    folder: PathBuf,
    pub(crate) root: ObjectRoot,
    cache_bytes_max: u64,
    store_patience: Duration,
    /// What keys of volumes are wrapped with.
    pub(crate) keys: Arc<ServerKeys>,
    /// Of links.
    pub(crate) buckets: Arc<Buckets>,
    pub(crate) queues: Queues,
    /// This data folder's name in owner records.
    pub(crate) owner: String,
    /// Each volume by itself, so that one that opens slowly keeps no other waiting.
    open: parking_lot::Mutex<HashMap<String, Slot>>,
    /// Held while a volume is deleted, or another one told that it has a clone.
    pub(crate) parting: Mutex<()>,
    pub(crate) sessions: Arc<Sessions>,
    clock: Clock,
    /// Of volumes with durability `object` that have sessions: only those can be taken over.
    ownerships: parking_lot::Mutex<HashMap<String, Weak<Ownership>>>,
}

pub(crate) type Slot = Arc<Mutex<Option<Volume>>>;

/// What both the data folder and the store know of a volume.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    id: String,
    durability: String,
    /// The data folder that made it.
    pub(crate) owner: String,
    /// The volume as whose copy it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// Its keys lie in the store, as `keys.json`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) encrypted: bool,
    /// Taken over from another server, which may not know of it yet. In the data folder only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    taken_over: bool,
}

type Result<T> = std::result::Result<T, String>;

pub(crate) fn durability_named(name: &str) -> Result<Durability> {
    match name {
        "local" => Ok(Durability::Local),
        "object" => Ok(Durability::Object),
        "quorum" => Err("durability `quorum` is reserved and not there yet: use `local` or `object`".into()),
        other => Err(format!("no durability mode `{other}`: use `local` or `object`")),
    }
}

pub(crate) fn compression_named(name: &str) -> Result<Compression> {
    match name {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        "zstd" => Ok(Compression::Zstd),
        other => Err(format!("no compression `{other}`: use `lz4`, `zstd` or `none`")),
    }
}

impl Record {
    pub fn durability(&self) -> Result<Durability> {
        durability_named(&self.durability)
    }

    pub fn id(&self) -> Result<u128> {
        u128::from_str_radix(&self.id, 16).map_err(|_| "damaged volume.json: no identity".to_owned())
    }
}

/// A bound, for people.
pub(crate) fn bound(most: u64) -> Option<u64> {
    (most != u64::MAX).then_some(most)
}

impl Registry {
    pub fn open(
        folder: PathBuf,
        root: ObjectRoot,
        cache_bytes_max: u64,
        store_patience: Duration,
        keys: ServerKeys,
        buckets: Buckets,
        sessions: Arc<Sessions>,
    ) -> Result<Self> {
        let path = folder.join("owner");
        let fail = |error: std::io::Error| format!("{}: {error}", path.display());
        let owner = match std::fs::read_to_string(&path) {
            Ok(owner) => owner,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let owner =
                    format!("{:032x}", u128::from_be_bytes(crate::random().map_err(|error| error.to_string())?));
                durable::write(&path, owner.as_bytes(), FILE_MODE).map_err(fail)?;
                owner
            }
            Err(error) => return Err(fail(error)),
        };
        Ok(Registry {
            folder,
            root,
            cache_bytes_max,
            store_patience,
            keys: Arc::new(keys),
            buckets: Arc::new(buckets),
            queues: Queues::default(),
            owner,
            open: parking_lot::Mutex::default(),
            parting: Mutex::default(),
            sessions,
            clock: Clock::default(),
            ownerships: parking_lot::Mutex::default(),
        })
    }

    /// The same, with other clocks than the machine's.
    pub fn with_clock(self, clock: Clock) -> Self {
        Registry { clock, ..self }
    }

    /// Let go of open snapshots of the volume that no session uses.
    pub(crate) fn let_go_of_snapshots(&self, name: &str) {
        let is_unused = |open: &str| {
            let (volume, snapshot) = names::parts(open);
            volume == name && snapshot.is_some() && self.sessions.count(Some(open)) == 0
        };
        self.open.lock().retain(|open, _| !is_unused(open));
    }

    pub(crate) fn slot(&self, name: &str) -> Slot {
        self.open.lock().entry(name.to_owned()).or_default().clone()
    }

    /// The volume, if it is open and nobody is opening or closing it.
    fn peek(&self, name: &str) -> Option<Volume> {
        let slot = self.open.lock().get(name)?.clone();
        slot.try_lock().ok()?.clone()
    }

    /// Do something with each open volume whose name `is_wanted`, also when somebody is just about to open or close it. `None` of one
    /// for which that took longer than `patience`.
    pub(crate) async fn with_each<T>(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        patience: Duration,
        run: impl Fn(&Volume) -> T,
    ) -> Vec<Option<T>> {
        let slots: Vec<_> = {
            let open = self.open.lock();
            let live = |name: &str| names::parts(name).1.is_none() && is_wanted(name);
            open.iter().filter(|(name, _)| live(name)).map(|(_, slot)| slot.clone()).collect()
        };
        let each = slots.iter().map(|slot| async {
            let open = tokio::time::timeout(patience, slot.lock()).await;
            open.map(|open| open.as_ref().map(&run))
        });
        let done = futures_util::future::join_all(each).await;
        done.into_iter().filter_map(|done| done.map_or(Some(None), |of_open| of_open.map(Some))).collect()
    }

    pub fn store_url(&self) -> &str {
        &self.root.url
    }

    fn local(&self, name: &str) -> PathBuf {
        self.folder.join("volumes").join(name)
    }

    pub(crate) fn remote(&self, name: &str) -> ObjectRoot {
        self.root.child(&place_of_volume(name))
    }

    pub(crate) fn record(&self, name: &str) -> Result<Record> {
        names::check("volume", name)?;
        let missing = |_| format!("no volume `{name}` here: `atoll volume list` shows what there is");
        let bytes = std::fs::read(self.local(name).join("volume.json")).map_err(missing)?;
        serde_json::from_slice(&bytes).map_err(|error| format!("volume `{name}`: damaged volume.json: {error}"))
    }

    pub async fn create(&self, name: &str, durability: &str, compression: &str, encrypt: bool) -> Result<()> {
        names::check("volume", name)?;
        let durability = durability_named(durability)?;
        let compression = compression_named(compression)?;
        let slot = self.slot(name);
        let mut open = slot.lock().await;
        if self.record(name).is_ok() {
            return Err(format!("volume `{name}` exists already"));
        }
        probe(&self.root).await.map_err(|error| error.to_string())?;
        let settings = VolumeSettings { compression, ..VolumeSettings::new(durability, new_id()?) };
        let record = self.claim_new(name, durability, settings.id, encrypt).await?;
        let store = self.open_store(name, &record).await?;
        // The root directory belongs to whoever runs the server.
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let owner = Caller { uid, gid, pid: 0 };
        atoll_volume::format(&*store, &settings, &owner).await.map_err(|error| error.to_string())?;
        let volume = self.open_volume(name, durability, store).await?;
        // Last: a volume without this file was never made.
        self.keep_record(name, &record)?;
        self.start_links(&volume);
        *open = Some(volume);
        Ok(())
    }

    /// Take a name in the store for a new volume that shares nothing with others, with its keys.
    pub(crate) async fn claim_new(
        &self,
        name: &str,
        durability: Durability,
        id: u128,
        encrypt: bool,
    ) -> Result<Record> {
        // Before anything is left of an attempt.
        let keys = match encrypt {
            true => Some(self.wrap(Keyring::random().map_err(|error| error.to_string())?, id).await?),
            false => None,
        };
        let record = self.claim(name, durability, id, None, encrypt).await?;
        if let Some(keys) = keys {
            self.keep_keys(name, keys).await?;
        }
        Ok(record)
    }

    /// Take a name in the store for a new volume. Nothing of an attempt that was cut off is left.
    pub(crate) async fn claim(
        &self,
        name: &str,
        durability: Durability,
        id: u128,
        parent: Option<&str>,
        encrypted: bool,
    ) -> Result<Record> {
        let record = Record {
            id: format!("{id:032x}"),
            durability: durability.name().into(),
            owner: self.owner.clone(),
            parent: parent.map(str::to_owned),
            encrypted,
            taken_over: false,
        };
        let json = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
        let remote = self.remote(name);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = ObjectPath::from("volume.json");
        match remote.store.put_opts(&path, PutPayload::from(json.clone()), options).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => self.start_over(name, &json).await?,
            Err(error) => return Err(format!("cannot write to {}: {error}", self.root.url)),
        }
        remove_folder(&self.local(name))?;
        std::fs::create_dir_all(self.local(name)).map_err(|error| error.to_string())?;
        Ok(record)
    }

    /// From here on the volume is there.
    pub(crate) fn keep_record(&self, name: &str, record: &Record) -> Result<()> {
        let json = serde_json::to_vec(record).map_err(|error| error.to_string())?;
        durable::write(&self.local(name).join("volume.json"), &json, FILE_MODE).map_err(|error| error.to_string())
    }

    /// Take over a volume in the store that another data folder made, which is lost or no longer used.
    ///
    /// The server of the other folder, if there is one, is fenced when the volume is opened here.
    pub async fn attach(&self, name: &str) -> Result<()> {
        names::check("volume", name)?;
        let slot = self.slot(name);
        let mut open = slot.lock().await;
        let remote = self.remote(name);
        let path = ObjectPath::from("volume.json");
        let found = match remote.store.get(&path).await {
            Err(object_store::Error::NotFound { .. }) => {
                return Err(format!("no volume `{name}` in {}", self.root.url));
            }
            found => found.map_err(|error| format!("{}: {error}", remote.url))?,
        };
        let bytes = found.bytes().await.map_err(|error| format!("{}: {error}", remote.url))?;
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|error| format!("{}/volume.json: {error}", remote.url))?;
        if record.durability()? != Durability::Object {
            return Err(format!(
                "volume `{name}` has durability `{}`: its newest changes are in the data folder that made it, use that one",
                record.durability
            ));
        }
        if self.record(name).is_ok() && record.owner == self.owner {
            return Err(format!("volume `{name}` is here already"));
        }
        // Nothing is changed for a server without the right key.
        self.keyring(name, &record).await?;
        let record = Record { owner: self.owner.clone(), ..record };
        let json = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
        let owned = remote.store.put(&path, PutPayload::from(json.clone())).await;
        owned.map_err(|error| format!("cannot write to {}: {error}", remote.url))?;
        std::fs::create_dir_all(self.local(name)).map_err(|error| error.to_string())?;
        // Of a time when it was this server's before.
        if let Some(volume) = open.take() {
            self.sessions.abandon(name);
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, volume.close()).await;
        }
        self.ownerships.lock().remove(name);
        // Last: without this file the next attempt does all of it again.
        self.keep_record(name, &Record { taken_over: true, ..record })
    }

    /// What the store knows of a volume; nothing when that cannot be read.
    pub(crate) async fn remote_record(&self, name: &str) -> Result<Option<Record>> {
        let remote = self.remote(name);
        let found = match remote.store.get(&ObjectPath::from("volume.json")).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.map_err(|error| format!("{}: {error}", remote.url))?,
        };
        let bytes = found.bytes().await.map_err(|error| format!("{}: {error}", remote.url))?;
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Remove what lies in the store of a volume that is not open, but not its claim on the name.
    async fn clear(&self, name: &str, parent: Option<&str>) -> Result<()> {
        let removed = SlateStore::remove(&self.root, &place_of_metadata(name)).await;
        removed.map_err(|error| format!("volume `{name}`: {error}"))?;
        remove_objects(&self.remote(name), |at| *at != ObjectPath::from("volume.json")).await?;
        match parent {
            Some(parent) => self.let_go_of_clone(parent, name).await,
            None => Ok(()),
        }
    }

    /// A clone that a crash kept from being made.
    pub(crate) async fn forget_half_made(&self, name: &str, parent: &str) -> Result<()> {
        let slot = self.slot(name);
        let _alone = slot.lock().await;
        if self.record(name).is_ok() {
            return Ok(());
        }
        tracing::warn!(volume = name, "its creation was cut off");
        self.clear(name, Some(parent)).await?;
        remove_objects(&self.remote(name), |_| true).await
    }

    /// Clear what a crash left of creating this volume, if that was ours, and claim the name anew.
    async fn start_over(&self, name: &str, record: &[u8]) -> Result<()> {
        let remote = self.remote(name);
        let fail = |error: object_store::Error| format!("{}: {error}", remote.url);
        let path = ObjectPath::from("volume.json");
        let Some(found) = self.remote_record(name).await?.filter(|record| record.owner == self.owner) else {
            return Err(format!("volume `{name}` exists already in {}, made by another server", self.root.url));
        };
        tracing::warn!(volume = name, "its creation was cut off: starting over");
        self.clear(name, found.parent.as_deref()).await?;
        remote.store.put(&path, PutPayload::from(record.to_vec())).await.map_err(fail)?;
        Ok(())
    }

    pub(crate) fn store_config(&self, name: &str, durability: Durability, keys: Option<Arc<Keyring>>) -> SlateConfig {
        SlateConfig {
            root: self.root.clone(),
            place: place_of_metadata(name),
            log: (durability == Durability::Local).then(|| self.local(name).join("log")),
            memtable_bytes: MEMTABLE_BYTES,
            garbage_interval: METADATA_GARBAGE_INTERVAL,
            sealing: keys.map(|keys| Sealing { keys, name_in_key: atoll_volume::format::name_in_key }),
        }
    }

    pub(crate) async fn open_store(&self, name: &str, record: &Record) -> Result<Arc<SlateStore>> {
        self.open_store_behind(name, record, Epoch(0)).await
    }

    /// The same, in an epoch behind `before`.
    pub(crate) async fn open_store_behind(
        &self,
        name: &str,
        record: &Record,
        before: Epoch,
    ) -> Result<Arc<SlateStore>> {
        let local = self.local(name);
        std::fs::create_dir_all(&local).map_err(|error| format!("cannot write {}: {error}", local.display()))?;
        let remote = self.remote(name);
        // SlateDB asks again and again; this request does not, and can say what is wrong.
        let found = remote.store.get(&ObjectPath::from("volume.json")).await;
        let found = found.map_err(|error| format!("volume `{name}`: cannot read {}: {error}", remote.url))?;
        if record.durability()? == Durability::Object {
            let bytes = found.bytes().await.map_err(|error| format!("{}: {error}", remote.url))?;
            let owner = serde_json::from_slice::<Record>(&bytes).map(|found| found.owner);
            if owner.is_ok_and(|owner| owner != self.owner) {
                return Err(format!(
                    "volume `{name}` was taken over by another server: `atoll volume attach {name}` brings it back here"
                ));
            }
        }
        let keys = self.keyring(name, record).await?;
        let store = SlateStore::open_behind(self.store_config(name, record.durability()?, keys), before)
            .await
            .map_err(|error| format!("volume `{name}`: {error}"))?;
        if record.taken_over {
            // Nothing of the last owner is committed any more. It may still answer from memory.
            tokio::time::sleep(TAKEOVER_WAIT).await;
            self.keep_record(name, &Record { taken_over: false, ..record.clone() })?;
        }
        Ok(Arc::new(store))
    }

    /// Whether a volume that is open is still this server's. `None` of one that cannot be taken over.
    pub(crate) fn ownership(&self, name: &str) -> Result<Option<Arc<Ownership>>> {
        let (volume, snapshot) = names::parts(name);
        if snapshot.is_some() || self.record(volume)?.durability()? != Durability::Object {
            return Ok(None);
        }
        let mut ownerships = self.ownerships.lock();
        if let Some(known) = ownerships.get(name).and_then(Weak::upgrade).filter(|known| !known.is_lost()) {
            return Ok(Some(known));
        }
        let watched = Watched {
            name: name.to_owned(),
            owner: self.owner.clone(),
            remote: self.remote(name),
            slot: self.slot(name),
            sessions: self.sessions.clone(),
        };
        let ownership = watched.watch(self.clock.clone());
        ownerships.insert(name.to_owned(), Arc::downgrade(&ownership));
        Ok(Some(ownership))
    }

    /// Where the segments lie that a volume has from those of which it is a clone.
    pub(crate) fn ancestors(&self, settings: VolumeSettings) -> Vec<atoll_blob::Ancestor> {
        ancestors_below(&self.root, settings)
    }

    pub(crate) async fn open_volume(
        &self,
        name: &str,
        durability: Durability,
        store: Arc<SlateStore>,
    ) -> Result<Volume> {
        self.open_volume_below(&self.root, name, durability, store).await
    }

    /// The same, with what it has of other volumes below another root.
    pub(crate) async fn open_volume_below(
        &self,
        others: &ObjectRoot,
        name: &str,
        durability: Durability,
        store: Arc<SlateStore>,
    ) -> Result<Volume> {
        let segments = self.remote(name).child("segments");
        let staging = match (&segments.folder, durability) {
            (Some(folder), _) => Staging::Objects(folder.clone()),
            (None, Durability::Local) => Staging::Folder(self.local(name).join("staging")),
            (None, Durability::Object) => Staging::Memory,
        };
        let mut config = BlobConfig::new(segments.store, ObjectPath::default(), staging);
        let settings = atoll_volume::settings(&*store).await.map_err(|error| format!("volume `{name}`: {error}"))?;
        config.compression = settings.compression;
        config.keys = store.keys();
        config.ancestors = ancestors_below(others, settings);
        config.cache_bytes_max = self.cache_bytes_max;
        config.store_patience = self.store_patience;
        let opening = |epoch, recovered| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(config, epoch, recovered))
        };
        let bounds = VolumeConfig { store_patience: self.store_patience, ..VolumeConfig::default() };
        let volume = Volume::open(store, opening, bounds).await;
        volume.map_err(|error| format!("volume `{name}`: {error}"))
    }

    /// The open volume, or the snapshot of one, opened now if need be.
    pub async fn get(&self, name: &str) -> Result<Volume> {
        match names::parts(name) {
            (name, None) => self.get_volume(name).await,
            (volume, Some(snapshot)) => self.get_snapshot(volume, snapshot).await,
        }
    }

    pub(crate) async fn get_volume(&self, name: &str) -> Result<Volume> {
        let record = self.record(name)?;
        let slot = self.slot(name);
        let mut open = slot.lock().await;
        if let Some(volume) = &*open {
            return Ok(volume.clone());
        }
        let store = self.open_store(name, &record).await?;
        let volume = self.open_volume(name, record.durability()?, store).await?;
        volume.begin_grace(volume.restored_sessions().iter().map(|(session, _)| *session), GRACE);
        self.sessions.restore(name, &volume, self.ownership(name)?);
        self.start_links(&volume);
        *open = Some(volume.clone());
        Ok(volume)
    }

    /// Every open volume that nobody is opening or closing, by name. Snapshots are none.
    pub(crate) fn open_volumes(&self) -> Vec<(String, Volume)> {
        let names = self.open.lock().keys().filter(|name| names::parts(name).1.is_none()).cloned().collect::<Vec<_>>();
        names.into_iter().filter_map(|name| self.peek(&name).map(|volume| (name, volume))).collect()
    }

    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.join("volumes")) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| self.record(name).is_ok()).collect();
        names.sort();
        names
    }

    pub async fn info(&self, name: &str, sessions: u64) -> Result<atoll_wire::VolumeInfo> {
        let record = self.record(names::parts(name).0)?;
        let volume = self.peek(name);
        let report = volume.as_ref().map(Volume::report);
        let quota = volume.as_ref().map_or(Quota::NONE, Volume::quota);
        let links = match &volume {
            Some(volume) => volume.links().await,
            None => Vec::new(),
        };
        // What else is known is shown when the store does not answer.
        let keys = if record.encrypted { self.key_record(names::parts(name).0).await.ok() } else { None };
        Ok(atoll_wire::VolumeInfo {
            name: name.to_owned(),
            durability: record.durability,
            store: self.remote(names::parts(name).0).url,
            open: report.is_some(),
            quota_bytes: bound(quota.bytes),
            quota_inodes: bound(quota.inodes),
            compression: volume.map(|volume| volume.settings().compression.name().to_owned()),
            encryption: record.encrypted.then(|| CIPHER.to_owned()),
            wrapping_key: keys.map(|(keys, _)| keys.wrapping_key().to_string()),
            clone_of: record.parent,
            inodes: report.map_or(0, |r| r.inodes),
            bytes: report.map_or(0, |r| r.bytes_live),
            links: links.len() as u64,
            unpublished: links.iter().map(|link| (link.unpublished + link.deleting) as u64).sum(),
            sessions,
        })
    }

    /// Figures of every open volume, by name.
    pub async fn reports(&self) -> Vec<(String, Vec<(&'static str, u64)>)> {
        let report = |(name, volume): (String, Volume)| {
            let (v, b) = (volume.report(), volume.blob().statistics());
            let (l, held) = volume.lease_counts();
            let figures = vec![
                ("inodes", v.inodes),
                ("inodes_cached", v.inodes_cached as u64),
                ("bytes_live", v.bytes_live),
                ("bytes_dead", v.bytes_dead),
                ("bytes_compacted", v.bytes_compacted),
                ("quota_roots", v.quota_roots as u64),
                ("trash_files", v.trash.files),
                ("trash_bytes", v.trash.bytes),
                ("opens", v.opens as u64),
                ("locks", v.locks as u64),
                ("snapshots_open", v.snapshots_open as u64),
                ("changes_ordered", v.ordered),
                ("changes_durable", v.durable),
                ("dirty_bytes", b.dirty_bytes),
                ("staged_bytes", b.staged_bytes),
                ("cached_bytes", b.cached_bytes),
                ("segments_pending", b.segments_pending),
                ("appended_bytes", b.appended_bytes),
                ("stored_bytes", b.stored_bytes),
                ("cache_hits", b.cache_hits),
                ("cache_misses", b.cache_misses),
                ("get_requests", b.get_requests),
                ("get_bytes", b.get_bytes),
                ("uploads", b.uploads),
                ("upload_bytes", b.upload_bytes),
                ("upload_errors", b.upload_errors),
                ("staging_errors", b.staging_errors),
                ("corrupt_pieces", b.corrupt_pieces),
                ("append_waits", b.waits),
                ("leases_held", held as u64),
                ("lease_grants", l.grants),
                ("lease_grants_refused", l.refused),
                ("lease_recalls", l.recalls),
                ("lease_recalls_answered", l.acknowledged),
                ("lease_recall_milliseconds", l.recall_ms),
                ("lease_contended", l.contended),
                ("sessions_fenced", l.fenced),
            ];
            (name, figures)
        };
        self.open_volumes().into_iter().map(report).collect()
    }

    /// Remove a volume that nobody uses, with everything it holds.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let record = self.record(name)?;
        let _parting = self.parting.lock().await;
        self.check_without_clones(name).await?;
        let slot = self.slot(name);
        let mut open = slot.lock().await;
        self.close_unused(name, &mut open, "it is deleted").await?;
        self.ownerships.lock().remove(name);
        // The owner record goes last: until then a second `delete` can finish the work.
        let remote = self.remote(name);
        self.clear(name, record.parent.as_deref()).await?;
        let local = self.local(name);
        // Without this file the volume is gone for this server; a crash from here on leaves a folder that
        // the next `create` of the name clears.
        std::fs::remove_file(local.join("volume.json")).map_err(|error| error.to_string())?;
        remove_objects(&remote, |_| true).await?;
        remove_folder(&local)
    }

    /// Close all volumes; everything is durable afterwards.
    pub async fn close(&self) -> Result<()> {
        let mut failed = Vec::new();
        let slots: Vec<(String, Slot)> = self.open.lock().drain().collect();
        for (name, slot) in slots {
            let volume = slot.lock().await.take();
            let Some(volume) = volume else { continue };
            match tokio::time::timeout(CLOSE_TIMEOUT, volume.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed.push(format!("volume `{name}`: {error}")),
                Err(_) => failed.push(format!(
                    "volume `{name}`: {} did not take everything in {CLOSE_TIMEOUT:?}; what is durable on the local \
                     disk goes there after the next start",
                    self.root.url
                )),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }
}

/// Where a volume lies below a store's root.
fn place_of_volume(name: &str) -> String {
    format!("volumes/{name}")
}

fn ancestors_below(root: &ObjectRoot, settings: VolumeSettings) -> Vec<atoll_blob::Ancestor> {
    let place = |ancestor: atoll_volume::Ancestor| {
        let segments = root.child(&place_of_volume(&ancestor.volume)).child("segments");
        atoll_blob::Ancestor {
            newest: ancestor.newest,
            objects: segments.store,
            prefix: ObjectPath::default(),
            folder: segments.folder,
        }
    };
    settings.ancestors.into_iter().map(place).collect()
}

/// Where the metadata of a volume lies below the store's root.
pub(crate) fn place_of_metadata(name: &str) -> String {
    format!("{}/meta", place_of_volume(name))
}

pub(crate) fn new_id() -> Result<u128> {
    Ok(u128::from_be_bytes(crate::random().map_err(|error| error.to_string())?))
}

fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}

async fn remove_objects(root: &ObjectRoot, which: impl Fn(&ObjectPath) -> bool) -> Result<()> {
    let fail = |error: object_store::Error| format!("{}: {error}", root.url);
    let mut objects = root.store.list(None);
    while let Some(object) = objects.next().await {
        let location = object.map_err(fail)?.location;
        if which(&location) {
            root.store.delete(&location).await.map_err(fail)?;
        }
    }
    Ok(())
}
