//! What every store promises, checked on each of them; then what the local log
//! promises when its files are damaged, moved or shared.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_keys::Keyring;
use atoll_object::{ObjectOptions, ObjectRoot};
use atoll_store::{
    Batch, Limits, MemoryMedium, MemoryStore, Precondition, Read, Result, Scan, Sealing, SlateConfig, SlateStore,
    Store, StoreError,
};
use atoll_types::CommitSeq;
use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;
use tempfile::TempDir;

type Model = BTreeMap<Bytes, Bytes>;

/// Large enough that nothing is written out unless a test asks for it.
const MEMTABLE_BYTES: usize = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Memory,
    Local,
    Object,
    SealedLocal,
    SealedObject,
}

/// Those with a local log.
const LOGGED: [Kind; 2] = [Kind::Local, Kind::SealedLocal];

/// `name 1 X`: what follows the second space.
fn name_in_key(key: &[u8]) -> Option<usize> {
    (key.starts_with(b"name ") && key.len() > 7).then_some(7)
}

/// What outlives a store: the place where it is opened again.
struct Place {
    kind: Kind,
    memory: MemoryMedium,
    folder: TempDir,
    memtable_bytes: usize,
    garbage_interval: Duration,
    sealing: Option<Sealing>,
}

impl Place {
    fn new(kind: Kind) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let garbage_interval = Duration::from_secs(300);
        let sealing = matches!(kind, Kind::SealedLocal | Kind::SealedObject)
            .then(|| Sealing { keys: Arc::new(Keyring::random().unwrap()), name_in_key });
        let memory = MemoryMedium::new();
        Place { kind, memory, folder, memtable_bytes: MEMTABLE_BYTES, garbage_interval, sealing }
    }

    /// A file or folder of SlateDB.
    fn meta(&self, name: &str) -> PathBuf {
        self.folder.path().join("objects/store/meta").join(name)
    }

    fn root(&self) -> ObjectRoot {
        let url = format!("file://{}/objects", self.folder.path().display());
        atoll_object::open(&url, &ObjectOptions::default()).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    async fn open_slate(&self, log: Option<PathBuf>) -> Result<SlateStore> {
        let (memtable_bytes, garbage_interval) = (self.memtable_bytes, self.garbage_interval);
        SlateStore::open(SlateConfig {
            root: self.root(),
            place: "store".into(),
            log,
            memtable_bytes,
            garbage_interval,
            sealing: self.sealing.clone(),
        })
        .await
    }

    async fn try_open(&self) -> Result<Arc<dyn Store>> {
        Ok(match self.kind {
            Kind::Memory => Arc::new(MemoryStore::open(&self.memory)),
            Kind::Local | Kind::SealedLocal => Arc::new(self.open_slate(Some(self.log())).await?),
            Kind::Object | Kind::SealedObject => Arc::new(self.open_slate(None).await?),
        })
    }

    async fn open(&self) -> Arc<dyn Store> {
        self.try_open().await.unwrap()
    }

    /// Log files, oldest first.
    /// Without the zeros that follow the last record.
    fn log_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.log()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
        files.sort();
        for file in &files {
            let used = fs::read(file).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            OpenOptions::new().write(true).open(file).unwrap().set_len(used as u64).unwrap();
        }
        files
    }
}

fn key(number: usize) -> Bytes {
    Bytes::from(format!("key {number:06}"))
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Batch {
    let mut batch = Batch::default();
    batch.put(key, value);
    batch
}

async fn commit(store: &dyn Store, batch: Batch) -> CommitSeq {
    store.commit(batch).await.unwrap()
}

async fn commit_durably(store: &dyn Store, batch: Batch) -> CommitSeq {
    let seq = commit(store, batch).await;
    store.durable(seq).await.unwrap();
    seq
}

/// Commit `key(n) = n` for each number, one commit and one flush each.
async fn fill(store: &dyn Store, numbers: std::ops::Range<usize>) {
    for number in numbers {
        commit_durably(store, put(key(number), number.to_string())).await;
    }
}

/// All that can be read, by pages of three.
async fn content<R: Read + ?Sized>(store: &R) -> Model {
    let mut all = Model::new();
    let mut next = Some(Bytes::new());
    while let Some(start) = next {
        let page = store.scan(Scan { start, end: Bytes::from_static(&[0xff]), entries_max: 3 }).await.unwrap();
        assert!(page.entries.len() <= 3);
        all.extend(page.entries);
        next = page.next;
    }
    all
}

fn filled(numbers: std::ops::Range<usize>) -> Model {
    numbers.map(|number| (key(number), Bytes::from(number.to_string()))).collect()
}

async fn a_batch_is_applied_as_a_whole(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    commit(&*store, put("a", "old")).await;
    let mut batch = put("a", "first");
    batch.put("a", "last");
    batch.put("b", "1");
    batch.put("c", "1");
    batch.delete("c");
    batch.delete("missing");
    let seq = commit(&*store, batch).await;
    let expected = [("a", "last"), ("b", "1")];
    let expected: Model = expected.iter().map(|(k, v)| (Bytes::from(*k), Bytes::from(*v))).collect();
    assert_eq!(content(&*store).await, expected);
    let values = store.multi_get(&[Bytes::from("b"), Bytes::from("c"), Bytes::from("a")]).await.unwrap();
    assert_eq!(values, [Some(Bytes::from("1")), None, Some(Bytes::from("last"))]);
    store.durable(seq).await.unwrap();
    drop(store);
    assert_eq!(content(&*place.open().await).await, expected);
}

async fn one_failing_precondition_applies_nothing(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    let before = commit(&*store, put("a", "1")).await;
    let absent = |key: &'static str| Precondition::Absent { key: key.into() };
    let equals = |key: &'static str, value: &'static str| Precondition::Equals { key: key.into(), value: value.into() };
    for wrong in [absent("a"), equals("a", "2"), equals("missing", "1"), equals("missing", "")] {
        for preconditions in [vec![wrong.clone()], vec![absent("b"), equals("a", "1"), wrong.clone()]] {
            let mut batch = put("b", "1");
            batch.delete("a");
            batch.preconditions = preconditions;
            assert!(matches!(store.commit(batch).await, Err(StoreError::Precondition)), "{wrong:?}");
        }
    }
    let model: Model = [(Bytes::from("a"), Bytes::from("1"))].into();
    assert_eq!(content(&*store).await, model);
    let mut batch = put("b", "1");
    batch.preconditions = vec![absent("b"), equals("a", "1")];
    assert_eq!(commit_durably(&*store, batch).await.0, before.0 + 1, "a refused batch takes no number");
    drop(store);
    assert_eq!(content(&*place.open().await).await.len(), 2);
}

async fn only_one_of_many_wins_a_precondition(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    let tries = (0..32).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut batch = put("lock", number.to_string());
            batch.preconditions.push(Precondition::Absent { key: "lock".into() });
            store.commit(batch).await.is_ok()
        })
    });
    let won = futures_util::future::join_all(tries).await;
    assert_eq!(won.into_iter().filter(|won| *won.as_ref().unwrap()).count(), 1);
}

async fn a_snapshot_does_not_see_later_commits(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    fill(&*store, 0..5).await;
    let snapshot = store.snapshot().unwrap();
    let mut batch = put(key(0), "changed");
    batch.delete(key(1));
    batch.put(key(9), "new");
    commit_durably(&*store, batch).await;
    assert_eq!(content(&*snapshot).await, filled(0..5));
    assert_eq!(snapshot.get(&key(9)).await.unwrap(), None);
    assert_eq!(snapshot.multi_get(&[key(0), key(1)]).await.unwrap(), [Some("0".into()), Some("1".into())]);
    assert_eq!(store.get(&key(0)).await.unwrap(), Some("changed".into()));
    assert_eq!(store.get(&key(1)).await.unwrap(), None);
}

async fn a_checkpoint_stays_as_it_was_until_it_is_deleted(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    assert_eq!(store.checkpoints().await.unwrap(), []);
    // Also what nobody has waited for.
    fill(&*store, 0..20).await;
    store.checkpoint("first").await.unwrap();
    assert!(matches!(store.checkpoint("first").await, Err(StoreError::CheckpointExists(name)) if name == "first"));
    let mut changes = Batch::default();
    (0..10).for_each(|number| changes.delete(key(number)));
    changes.put(key(10), "changed");
    commit(&*store, changes).await;
    fill(&*store, 20..40).await;
    store.checkpoint("second").await.unwrap();
    let now = content(&*store).await;
    let names = |store: Arc<dyn Store>| async move {
        store.checkpoints().await.unwrap().into_iter().map(|found| found.name).collect::<Vec<_>>()
    };
    let first = store.at("first").await.unwrap();
    assert_eq!(content(&*first).await, filled(0..20));
    assert_eq!(first.get(&key(25)).await.unwrap(), None);
    assert_eq!(content(&*store.at("second").await.unwrap()).await, now);
    drop(first);
    store.close().await.unwrap();
    drop(store);

    let store = place.open().await;
    commit(&*store, put("later", "value")).await;
    assert_eq!(names(store.clone()).await, ["first", "second"]);
    assert_eq!(content(&*store.at("first").await.unwrap()).await, filled(0..20));
    store.copy_checkpoint("first", "copy").await.unwrap();
    assert!(matches!(store.copy_checkpoint("first", "second").await, Err(StoreError::CheckpointExists(_))));
    assert!(matches!(store.copy_checkpoint("nothing", "new").await, Err(StoreError::CheckpointMissing(_))));
    store.delete_checkpoint("first").await.unwrap();
    assert_eq!(content(&*store.at("copy").await.unwrap()).await, filled(0..20));
    store.delete_checkpoint("copy").await.unwrap();
    assert!(matches!(store.at("first").await.map(drop), Err(StoreError::CheckpointMissing(_))));
    assert!(matches!(store.delete_checkpoint("first").await, Err(StoreError::CheckpointMissing(_))));
    assert_eq!(names(store.clone()).await, ["second"]);
    assert_eq!(content(&*store.at("second").await.unwrap()).await, now);
    store.checkpoint("first").await.unwrap();
    assert_eq!(content(&*store.at("first").await.unwrap()).await, content(&*store).await);
}

async fn pages_of_a_scan_make_up_the_range(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    fill(&*store, 0..20).await;
    for (first, last) in [(0, 20), (3, 17), (5, 6), (7, 7), (9, 2), (18, 40)] {
        for entries_max in [1, 2, 3, 7, 100, usize::MAX] {
            let mut found = Model::new();
            let mut next = Some(key(first));
            while let Some(start) = next {
                let page = store.scan(Scan { start, end: key(last), entries_max }).await.unwrap();
                assert!(page.entries.len() <= entries_max);
                assert!(page.next.is_none() || page.entries.len() == entries_max, "a page ends early");
                assert!(page.entries.is_sorted());
                for (key, value) in page.entries {
                    assert_eq!(found.insert(key, value), None, "an entry is in two pages");
                }
                next = page.next;
            }
            assert_eq!(found, filled(first..last.min(20)), "{first}..{last} by {entries_max}");
        }
    }
}

async fn a_new_store_is_empty(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    assert_eq!(content(&*store).await, Model::new(), "a store's own keys do not show");
    assert_eq!(store.get(b"").await.unwrap(), None);
    assert_eq!(content(&*store.snapshot().unwrap()).await, Model::new());
    assert_eq!(store.get(b"\0applied").await.unwrap(), None);
    let own = store.commit(put(&b"\0applied"[..], "x")).await;
    assert!(matches!(own, Err(StoreError::Key(_))), "{own:?}");
    commit_durably(&*store, Batch::default()).await;
}

async fn waiters_share_flushes_and_what_they_waited_for_survives(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    let waiters = (0..100).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let seq = commit_durably(&*store, put(key(number), number.to_string())).await;
            assert!(store.durable_seq() >= seq);
            seq
        })
    });
    let mut seqs: Vec<u64> = Vec::new();
    for waiter in futures_util::future::join_all(waiters).await {
        seqs.push(waiter.unwrap().0);
    }
    seqs.sort();
    seqs.dedup();
    assert_eq!(seqs.len(), 100, "every commit has its own number");
    drop(store);
    assert_eq!(content(&*place.open().await).await, filled(0..100));
}

async fn one_ticket_covers_all_earlier_commits(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    let mut last = CommitSeq(0);
    for number in 0..50 {
        last = commit(&*store, put(key(number), number.to_string())).await;
    }
    store.durable(last).await.unwrap();
    drop(store);
    assert_eq!(content(&*place.open().await).await, filled(0..50));
}

async fn a_ticket_that_was_never_given_is_refused(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    let seq = commit(&*store, put("a", "1")).await;
    let answer = tokio::time::timeout(Duration::from_secs(20), store.durable(CommitSeq(seq.0 + 1))).await;
    assert!(answer.expect("must not wait for ever").is_err());
    store.durable(seq).await.unwrap();
}

async fn commits_nobody_waited_for_survive_as_a_prefix(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    fill(&*store, 0..10).await;
    for number in 10..20 {
        commit(&*store, put(key(number), number.to_string())).await;
    }
    drop(store);
    let found = content(&*place.open().await).await;
    assert!(found.len() >= 10);
    assert_eq!(found, filled(0..found.len()));
}

/// A caller may go away at any point of a commit or of a wait.
async fn a_cancelled_caller_leaves_no_half_commit(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    for number in 0..40 {
        let mut commit = store.commit(put(key(number), number.to_string()));
        for _ in 0..number % 4 {
            if (&mut commit).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(commit);
        let _ = store.durable(CommitSeq(store.durable_seq().0 + 1)).now_or_never();
    }
    commit_durably(&*store, put("end", "")).await;
    let seen = content(&*store).await;
    drop(store);
    assert_eq!(content(&*place.open().await).await, seen, "what was visible before a durable commit is durable");
}

async fn a_closed_store_comes_back_whole_and_answers_no_more(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    fill(&*store, 0..5).await;
    let last = commit(&*store, put(key(5), "5")).await;
    store.close().await.unwrap();
    assert!(matches!(store.commit(put("a", "1")).await, Err(StoreError::Closed)));
    assert!(matches!(store.durable(last).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(&key(1)).await, Err(StoreError::Closed)));
    assert!(matches!(store.snapshot(), Err(StoreError::Closed)));
    store.close().await.unwrap();
    // The closed store is still held: it has let go of the medium.
    let next = place.open().await;
    assert_eq!(content(&*next).await, filled(0..6));
    assert!(next.epoch() > store.epoch());
    drop(next);
    assert_eq!(content(&*place.open().await).await, filled(0..6));
}

async fn numbers_and_epochs_grow_over_reopening(kind: Kind) {
    let place = Place::new(kind);
    let (mut seq, mut epoch) = (CommitSeq(0), None);
    for round in 0..6 {
        let store = place.open().await;
        assert!(Some(store.epoch()) > epoch);
        epoch = Some(store.epoch());
        assert!(store.durable_seq() >= seq, "what was durable stays durable");
        let next = commit_durably(&*store, put(key(round), round.to_string())).await;
        assert!(next > seq);
        seq = next;
        if round % 2 == 0 {
            store.close().await.unwrap();
        }
        drop(store);
    }
    assert_eq!(content(&*place.open().await).await, filled(0..6));
}

async fn bounds_of_a_batch_are_kept(kind: Kind) {
    let place = Place::new(kind);
    let store = place.open().await;
    let limits = store.limits();
    let long = |length: usize| Bytes::from(vec![b'x'; length]);
    for batch in [
        put(long(limits.key_bytes_max + 1), "v"),
        put("k", long(limits.value_bytes_max + 1)),
        Batch { writes: vec![(long(limits.key_bytes_max + 1), None)], ..Batch::default() },
        Batch { writes: vec![("k".into(), None); limits.batch_writes_max + 1], ..Batch::default() },
        {
            let value = long(limits.value_bytes_max);
            let count = limits.batch_bytes_max / limits.value_bytes_max + 1;
            Batch { writes: vec![("k".into(), Some(value)); count], ..Batch::default() }
        },
    ] {
        let answer = store.commit(batch).await;
        assert!(matches!(answer, Err(StoreError::TooLarge(_))), "{answer:?}");
        assert!(answer.unwrap_err().to_string().contains("bytes"));
    }
    assert!(matches!(store.commit(put("", "v")).await, Err(StoreError::Key(_))));
    assert_eq!(content(&*store).await, Model::new());
    commit_durably(&*store, put(long(limits.key_bytes_max), long(limits.value_bytes_max))).await;
    drop(store);
    assert_eq!(content(&*place.open().await).await.len(), 1);
    assert!(Limits::DEFAULT.key_bytes_max <= u16::MAX as usize);
}

/// The log of a local store has one user, so it is fenced at the door; see below.
async fn an_overtaken_writer_changes_nothing(kind: Kind) {
    let place = Place::new(kind);
    let old = place.open().await;
    fill(&*old, 0..3).await;
    let unseen = commit(&*old, put("not durable", "")).await;
    let new = place.open().await;
    assert!(new.epoch() > old.epoch());
    let before = content(&*new).await;
    // A commit is ordered in memory; whether the medium took it is the ticket's answer.
    let first = match old.commit(put("stale", "1")).await {
        Ok(seq) => old.durable(seq).await,
        Err(error) => Err(error),
    };
    assert!(matches!(first, Err(StoreError::Fenced)), "{first:?}");
    let second = old.commit(put("stale", "2")).await;
    assert!(matches!(second, Err(StoreError::Fenced)), "{second:?}");
    if kind != Kind::Memory {
        assert!(matches!(old.durable(unseen).await, Err(StoreError::Fenced)));
    }
    assert_eq!(content(&*new).await, before);
    fill(&*new, 3..5).await;
    let _ = old.close().await;
    drop(old);
    drop(new);
    let again = content(&*place.open().await).await;
    assert!(!again.contains_key(&b"stale"[..]));
    assert_eq!(again.len(), before.len() + 2);
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(u8, Option<u16>)>),
    Cancelled(Vec<(u8, Option<u16>)>, u8),
    Durable,
    Snapshot,
    Close,
    Drop,
}

fn step() -> impl Strategy<Value = Step> {
    // Values up to 32 KiB: some fill the memtable, so that it is written out meanwhile.
    let writes = || prop::collection::vec((0..12u8, prop::option::weighted(0.8, 0..32768u16)), 0..6);
    prop_oneof![
        8 => writes().prop_map(Step::Commit),
        1 => (writes(), 0..4u8).prop_map(|(writes, polls)| Step::Cancelled(writes, polls)),
        3 => Just(Step::Durable),
        2 => Just(Step::Snapshot),
        1 => Just(Step::Close),
        2 => Just(Step::Drop),
    ]
}

fn batch_of(writes: &[(u8, Option<u16>)], stamp: usize) -> Batch {
    let mut batch = Batch::default();
    for (number, value) in writes {
        let value = value.map(|length| Bytes::from(vec![stamp as u8; length as usize]));
        batch.writes.push((key(*number as usize), value));
    }
    batch
}

fn after(model: &Model, batch: &Batch) -> Model {
    let mut model = model.clone();
    for (key, value) in &batch.writes {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
    model
}

/// What is there after a crash is what some commit left, and no durable commit is missing.
async fn survives(kind: Kind, steps: Vec<Step>) {
    let mut place = Place::new(kind);
    place.memtable_bytes = 128 << 10;
    let mut store = place.open().await;
    // State after each commit of this opening, with its ticket; the first is the durable ground.
    let mut states: Vec<(CommitSeq, Model)> = vec![(CommitSeq(0), Model::new())];
    let mut snapshots: Vec<(Arc<dyn Read>, Model)> = Vec::new();
    for (stamp, step) in steps.into_iter().enumerate() {
        let latest = states.last().unwrap().1.clone();
        match step {
            Step::Commit(writes) => {
                let batch = batch_of(&writes, stamp);
                let model = after(&latest, &batch);
                states.push((commit(&*store, batch).await, model));
            }
            Step::Cancelled(writes, polls) => {
                let batch = batch_of(&writes, stamp);
                let model = after(&latest, &batch);
                let mut commit = store.commit(batch);
                for _ in 0..polls {
                    if (&mut commit).now_or_never().is_some() {
                        break;
                    }
                }
                drop(commit);
                // Whether it happened shows once the next commit is ordered.
                let seq = store.commit(Batch::default()).await.unwrap();
                let now = content(&*store).await;
                assert!(now == latest || now == model, "a cancelled commit happens wholly or not at all");
                states.push((seq, now));
            }
            Step::Durable => {
                store.durable(states.last().unwrap().0).await.unwrap();
                states.drain(..states.len() - 1);
            }
            Step::Snapshot => {
                assert_eq!(content(&*store).await, latest);
                snapshots.push((store.snapshot().unwrap(), latest));
            }
            Step::Close | Step::Drop => {
                for (snapshot, model) in snapshots.drain(..) {
                    assert_eq!(content(&*snapshot).await, model);
                }
                let durable = store.durable_seq();
                let least = states.iter().rposition(|(seq, _)| *seq <= durable).unwrap_or(0);
                states.drain(..least);
                if matches!(step, Step::Close) {
                    store.close().await.unwrap();
                    states.drain(..states.len() - 1);
                }
                drop(store);
                store = place.open().await;
                let found = content(&*store).await;
                assert!(
                    states.iter().any(|(_, model)| *model == found),
                    "what survived is no prefix: {:?}",
                    found.keys()
                );
                states = vec![(store.durable_seq(), found)];
            }
        }
    }
}

fn random_histories_survive(kind: Kind) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..40))| {
        runtime.block_on(survives(kind, steps));
    });
}

macro_rules! conformance {
    ($store:ident, $kind:expr, $($case:ident),* $(,)?) => {
        mod $store {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case($kind).await;
            })*

            #[test]
            fn random_histories_survive() {
                super::random_histories_survive($kind);
            }
        }
    };
}

macro_rules! every_store {
    ($($case:ident),* $(,)?) => {
        conformance!(memory, Kind::Memory, an_overtaken_writer_changes_nothing, $($case),*);
        conformance!(local, Kind::Local, $($case),*);
        conformance!(object, Kind::Object, an_overtaken_writer_changes_nothing, $($case),*);
        conformance!(sealed_local, Kind::SealedLocal, $($case),*);
        conformance!(sealed_object, Kind::SealedObject, an_overtaken_writer_changes_nothing, $($case),*);
    };
}

every_store!(
    a_batch_is_applied_as_a_whole,
    one_failing_precondition_applies_nothing,
    only_one_of_many_wins_a_precondition,
    a_snapshot_does_not_see_later_commits,
    a_checkpoint_stays_as_it_was_until_it_is_deleted,
    pages_of_a_scan_make_up_the_range,
    a_new_store_is_empty,
    waiters_share_flushes_and_what_they_waited_for_survives,
    one_ticket_covers_all_earlier_commits,
    a_ticket_that_was_never_given_is_refused,
    commits_nobody_waited_for_survive_as_a_prefix,
    a_cancelled_caller_leaves_no_half_commit,
    a_closed_store_comes_back_whole_and_answers_no_more,
    numbers_and_epochs_grow_over_reopening,
    bounds_of_a_batch_are_kept,
);

fn cut(path: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

/// Flip the byte at an offset from the file's end.
fn flip(path: &Path, from_end: u64) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::End(-(from_end as i64))).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Current(-1)).unwrap();
    file.write_all(&[byte[0] ^ 0x55]).unwrap();
}

fn assert_corrupt(opened: Result<Arc<dyn Store>>) {
    match opened {
        Err(StoreError::Corrupt(_)) => {}
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a damaged log was opened"),
    }
}

#[tokio::test]
async fn a_torn_tail_costs_only_the_torn_commit() {
    let damages = [|path: &Path| cut(path, 3), |path: &Path| flip(path, 1), |path: &Path| flip(path, 12)];
    for (kind, damage) in LOGGED.into_iter().flat_map(|kind| damages.map(|damage| (kind, damage))) {
        let place = Place::new(kind);
        let store = place.open().await;
        fill(&*store, 0..10).await;
        drop(store);
        damage(place.log_files().last().unwrap());
        let store = place.open().await;
        assert_eq!(content(&*store).await, filled(0..9));
        fill(&*store, 9..12).await;
        drop(store);
        assert_eq!(content(&*place.open().await).await, filled(0..12));
    }
}

#[tokio::test]
async fn bytes_behind_the_last_commit_are_dropped() {
    for tail in [&[0; 4096][..], &[7; 5], &[0xff; 100], &[[0; 4096], [9; 4096], [0; 4096]].concat()] {
        let place = Place::new(Kind::Local);
        let store = place.open().await;
        fill(&*store, 0..5).await;
        drop(store);
        let last = place.log_files().pop().unwrap();
        OpenOptions::new().append(true).open(last).unwrap().write_all(tail).unwrap();
        for _ in 0..3 {
            assert_eq!(content(&*place.open().await).await, filled(0..5));
        }
    }
}

/// A crash while a log file is made leaves a part of its header.
#[tokio::test]
async fn a_half_made_log_file_is_no_damage() {
    for header in [&b""[..], b"atoll", &[0; 16], &[0; 44]] {
        let place = Place::new(Kind::Local);
        let store = place.open().await;
        fill(&*store, 0..5).await;
        drop(store);
        fs::write(place.log().join(format!("{:016x}.log", 2)), header).unwrap();
        for _ in 0..3 {
            assert_eq!(content(&*place.open().await).await, filled(0..5), "{header:?}");
        }
    }
}

#[tokio::test]
async fn damage_in_the_middle_of_the_last_file_is_reported() {
    for (kind, last_record_bytes) in LOGGED.into_iter().zip([60, 60 + atoll_keys::SEALED_BYTES as u64]) {
        let place = Place::new(kind);
        let store = place.open().await;
        fill(&*store, 0..20).await;
        drop(store);
        let last = place.log_files().pop().unwrap();
        let whole = fs::read(&last).unwrap();
        // Every byte but those of the last record, whose damage looks like a torn tail.
        for from_end in (last_record_bytes..=whole.len() as u64).step_by(7) {
            flip(&last, from_end);
            assert!(place.try_open().await.is_err(), "{kind:?}: byte {from_end} from the end");
            assert_eq!(fs::metadata(&last).unwrap().len(), whole.len() as u64, "a damaged log is left as it is");
            fs::write(&last, &whole).unwrap();
        }
        flip(&last, whole.len() as u64 / 2);
        assert_corrupt(place.try_open().await);
        fs::write(&last, &whole).unwrap();
        assert_eq!(content(&*place.open().await).await, filled(0..20));
    }
}

/// A crash may leave any beginning of what was not yet durable.
#[tokio::test]
async fn a_log_cut_anywhere_keeps_a_prefix() {
    for kind in LOGGED {
        let place = Place::new(kind);
        let store = place.open().await;
        fill(&*store, 0..5).await;
        drop(store);
        let last = place.log_files().pop().unwrap();
        let whole = fs::read(&last).unwrap();
        let mut kept = 5;
        for length in (44..whole.len()).rev().step_by(7) {
            fs::write(&last, &whole[..length]).unwrap();
            let other = Place { folder: copy(place.folder.path()), sealing: place.sealing.clone(), ..Place::new(kind) };
            let found = content(&*other.open().await).await;
            assert!(found.len() <= kept, "{kind:?}: more is found in {length} bytes than in more of them");
            kept = found.len();
            assert_eq!(found, filled(0..kept), "{kind:?}: {length} bytes");
        }
        assert_eq!(kept, 0);
    }
}

/// The same files in another folder.
fn copy(from: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut left = vec![(from.to_owned(), folder.path().to_owned())];
    while let Some((from, to)) = left.pop() {
        for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                left.push((entry.path(), to));
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    folder
}

/// All bytes of all files.
fn every_byte(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(every_byte(&entry.path())),
            false => all.extend(fs::read(entry.path()).unwrap()),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_store_shows_neither_values_nor_names() {
    for kind in [Kind::Local, Kind::Object, Kind::SealedLocal, Kind::SealedObject] {
        let mut place = Place::new(kind);
        place.memtable_bytes = 4096;
        let store = place.open().await;
        let mut all = Model::new();
        for number in 0..200 {
            let (key, value) = (format!("name {} Xerxes{number:04}", number % 3), format!("Yolanda{number}"));
            commit_durably(&*store, put(key.clone(), value.clone())).await;
            all.insert(key.into(), value.into());
        }
        store.checkpoint("then").await.unwrap();
        commit_durably(&*store, put("name 1 Xerxes0001", "other")).await;
        assert_eq!(content(&*store.at("then").await.unwrap()).await, all, "{kind:?}");
        all.insert("name 1 Xerxes0001".into(), "other".into());
        assert_eq!(content(&*store).await, all, "{kind:?}");
        assert_eq!(content(&*store.snapshot().unwrap()).await, all, "{kind:?}");
        let (start, end) = (Bytes::from("name 1 "), Bytes::from("name 2 "));
        let page = store.scan(Scan { start, end, entries_max: 1000 }).await.unwrap();
        assert_eq!(page.entries.len(), 67, "{kind:?}");
        assert!(page.entries.is_sorted_by_key(|(key, _)| store.sort_key(key)), "{kind:?}");
        let mut stale = put("name 1 Xerxes0001", "");
        stale.preconditions.push(Precondition::Absent { key: "name 1 Xerxes0001".into() });
        assert!(matches!(store.commit(stale).await, Err(StoreError::Precondition)), "{kind:?}");
        drop(store);
        assert_eq!(content(&*place.open().await).await, all, "{kind:?}");
        let bytes = every_byte(place.folder.path());
        for secret in [&b"Xerxes"[..], b"Yolanda"] {
            let is_shown = bytes.windows(secret.len()).any(|part| part == secret);
            assert_eq!(is_shown, place.sealing.is_none(), "{kind:?}");
        }
        let Some(right) = place.sealing.take() else { continue };
        for wrong in [None, Some(Sealing { keys: Arc::new(Keyring::random().unwrap()), ..right })] {
            place.sealing = wrong;
            assert!(place.try_open().await.is_err(), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn damage_in_an_older_file_is_reported() {
    let place = Place::new(Kind::Local);
    for round in 0..3 {
        let store = place.open().await;
        fill(&*store, round * 5..round * 5 + 5).await;
    }
    let files = place.log_files();
    assert_eq!(files.len(), 3);
    let middle = fs::read(&files[1]).unwrap();
    for damage in
        [|path: &Path| cut(path, 3), |path: &Path| flip(path, 1), |path: &Path| fs::remove_file(path).unwrap()]
    {
        damage(&files[1]);
        assert_corrupt(place.try_open().await);
        fs::write(&files[1], &middle).unwrap();
    }
    assert_eq!(content(&*place.open().await).await, filled(0..15));
}

#[tokio::test]
async fn a_second_server_is_refused_and_harms_nothing() {
    let place = Place::new(Kind::Local);
    let store = place.open().await;
    fill(&*store, 0..3).await;
    assert!(place.try_open().await.is_err());
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(place.open_slate(Some(elsewhere.path().join("log"))).await.is_err());
    fill(&*store, 3..6).await;
    store.close().await.unwrap();
    drop(store);
    assert_eq!(content(&*place.open().await).await, filled(0..6));
}

#[tokio::test]
async fn a_store_without_its_own_log_is_refused() {
    let place = Place::new(Kind::Local);
    let store = place.open().await;
    fill(&*store, 0..5).await;
    drop(store);
    let other = Place::new(Kind::Local);
    fill(&*other.open().await, 0..2).await;
    let empty = tempfile::tempdir().unwrap();
    for log in [Some(empty.path().join("log")), Some(other.log()), None] {
        let opened = place.open_slate(log.clone()).await;
        assert!(matches!(opened, Err(StoreError::Log(_))), "{log:?}");
    }
    // The log may move with its content.
    let moved = empty.path().join("moved");
    fs::rename(place.log(), &moved).unwrap();
    assert!(matches!(place.try_open().await, Err(StoreError::Log(_))));
    assert_eq!(content(&place.open_slate(Some(moved)).await.unwrap()).await, filled(0..5));
    assert_eq!(content(&*other.open().await).await, filled(0..2));
}

#[tokio::test]
async fn an_object_store_does_not_take_a_log_later() {
    let place = Place::new(Kind::Object);
    let store = place.open().await;
    fill(&*store, 0..3).await;
    drop(store);
    assert!(matches!(place.open_slate(Some(place.log())).await, Err(StoreError::Log(_))));
    assert_eq!(content(&*place.open().await).await, filled(0..3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_a_finished_log_file_survive_its_removal() {
    let place = Place::new(Kind::Local);
    let store = place.open().await;
    let value = Bytes::from(vec![7; 1 << 20]);
    for number in 0..70 {
        commit_durably(&*store, put(key(number), value.clone())).await;
    }
    // Finished and covered by the object store; the rest lies in the second file.
    let first = place.log().join(format!("{:016x}.log", 1));
    let deadline = Instant::now() + Duration::from_secs(60);
    while first.exists() {
        assert!(Instant::now() < deadline, "a covered log file stays");
        tokio::task::yield_now().await;
    }
    fill(&*store, 70..75).await;
    drop(store);
    let found = content(&*place.open().await).await;
    assert_eq!(found.len(), 75);
    assert!(found.iter().take(70).all(|(_, found)| *found == value));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_dropped_right_after_a_rotation_is_whole() {
    let place = Place::new(Kind::Local);
    let store = place.open().await;
    let value = Bytes::from(vec![7; 1 << 20]);
    let mut last = CommitSeq(0);
    for number in 0..65 {
        last = commit(&*store, put(key(number), value.clone())).await;
    }
    store.durable(last).await.unwrap();
    commit_durably(&*store, put(key(65), "end")).await;
    drop(store);
    let store = place.open().await;
    assert_eq!(content(&*store).await.len(), 66);
    commit_durably(&*store, put(key(66), "end")).await;
    drop(store);
    assert_eq!(content(&*place.open().await).await.len(), 67);
}

/// How many tables the store has.
fn tables(place: &Place) -> usize {
    fs::read_dir(place.meta("compacted")).into_iter().flatten().count()
}

/// Rewrite the same keys `rounds` times. Answers how many tables there were at most.
async fn rewrite(store: &dyn Store, place: &Place, rounds: usize) -> usize {
    let mut most = 0;
    for round in 0..rounds {
        let mut batch = Batch::default();
        for number in 0..4 {
            batch.put(key(number), vec![round as u8; 256]);
        }
        commit_durably(store, batch).await;
        most = most.max(tables(place));
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_tables_go_and_what_is_read_stays() {
    for kind in [Kind::Local, Kind::Object, Kind::SealedLocal] {
        let mut place = Place::new(kind);
        place.memtable_bytes = 4096;
        place.garbage_interval = Duration::from_secs(1);
        let store = place.open().await;
        rewrite(&*store, &place, 2).await;
        store.checkpoint("kept").await.unwrap();
        let kept = content(&*store).await;
        rewrite(&*store, &place, 40).await;
        let view = store.snapshot().unwrap();
        let seen = content(&*view).await;
        // Nothing is deleted under a reader, however long it takes.
        let before = rewrite(&*store, &place, 40).await;
        tokio::time::sleep(4 * place.garbage_interval).await;
        assert!(tables(&place) >= before, "{kind:?}");
        assert_eq!(content(&*view).await, seen, "{kind:?}");
        drop(view);
        let end = Instant::now() + Duration::from_secs(60);
        // What tells who is behind that versions of the state are gone.
        let boundaries = ["manifest", "compactions"].map(|of| place.meta(&format!("gc/{of}.boundary")));
        while tables(&place) * 2 > before || !boundaries.iter().all(|boundary| boundary.exists()) {
            assert!(Instant::now() < end, "{kind:?}: {} tables of {before} are left", tables(&place));
            // A newer table is what lets the older ones go.
            rewrite(&*store, &place, 1).await;
            tokio::time::sleep(place.garbage_interval).await;
        }
        let last = content(&*store).await;
        assert_eq!(content(&*store.at("kept").await.unwrap()).await, kept, "{kind:?}");
        store.close().await.unwrap();
        drop(store);
        let store = place.open().await;
        assert_eq!(content(&*store).await, last, "{kind:?}");
        assert_eq!(content(&*store.at("kept").await.unwrap()).await, kept, "{kind:?}");
    }
}
