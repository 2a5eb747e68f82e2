//! Whether a volume is still this server's: another one may have taken it over while this one stood still.
//!
//! Commits of a server that was replaced fail by themselves; what it answers from memory would be old. So it answers
//! only while it is *sure*: it has read in the store that it is the owner, less than [`SURE_MS`] ago. Who takes a volume over
//! writes the owner record first and serves nobody for [`TAKEOVER_WAIT`]: by then the last owner is not sure any more.
//!
//! A commit that the store refuses because of the other server tells it at once: from then on its memory holds changes that
//! nobody may be shown.
//!
//! A store that cannot be asked makes nobody unsure who is awake. Who stood still for too long has to ask it first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use atoll_object::ObjectRoot;
use atoll_types::mutation::{Mutation, is_broken};
use atoll_volume::Volume;
use atoll_wire::UNNOTICED_MS;
use atoll_wire::clock::{Clock, Moment, Term};
use object_store::{ObjectStoreExt, path::Path};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::registry::{CLOSE_TIMEOUT, Record, Slot};
use crate::sessions::Sessions;

/// How long a server is sure of a volume after it has asked, in ms.
const SURE_MS: u64 = 5_000;
/// How often it asks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the store may take. Two looks that take as long are over while the last good one still holds.
const LOOK_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Pause between looks when somebody waits for one.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long who takes a volume over serves nobody: nobody is sure of it then, and clocks do not run alike.
pub(crate) const TAKEOVER_WAIT: Duration = Duration::from_millis(SURE_MS + UNNOTICED_MS + 100);

/// Who the store says has a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Ours,
    Others,
    /// It did not say.
    Unknown,
}

pub(crate) struct Ownership {
    clock: Clock,
    /// Until when it is sure.
    term: Mutex<Term>,
    is_lost: AtomicBool,
    looked: Notify,
    /// Somebody waits for a look.
    wanted: Notify,
}

impl Ownership {
    fn new(clock: Clock) -> Arc<Ownership> {
        Arc::new(Ownership {
            clock,
            term: Mutex::default(),
            is_lost: AtomicBool::new(false),
            looked: Notify::new(),
            wanted: Notify::new(),
        })
    }

    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Nobody else can have served the volume until now.
    pub fn is_sure(&self) -> bool {
        let left = self.term.lock().left_at(self.clock.now());
        !self.is_lost() && !left.is_zero()
    }

    /// Ready when it is sure; false when the volume is another server's.
    ///
    /// Ask this behind what was executed: then it was executed while nobody else served the volume.
    pub async fn holds(&self) -> bool {
        loop {
            let looked = self.looked.notified();
            if self.is_sure() {
                return true;
            }
            if self.is_lost() {
                return false;
            }
            self.wanted.notify_one();
            looked.await;
        }
    }

    /// A commit was refused: another server has the volume.
    pub fn lose(&self) {
        self.is_lost.store(true, Ordering::Release);
        self.looked.notify_waiters();
        self.wanted.notify_one();
    }

    /// A look that began at `asked` is over.
    fn settle(&self, asked: Moment, found: Found) {
        let term = self.term.lock();
        let was_sure = !term.left_at(self.clock.now()).is_zero();
        match found {
            Found::Ours => term.renew(asked, SURE_MS),
            Found::Unknown if was_sure => term.renew(asked, SURE_MS),
            Found::Unknown => {}
            Found::Others => {
                term.end();
                self.lose();
            }
        }
        drop(term);
        self.looked.notify_waiters();
    }
}

/// What it takes to look, and to let go.
pub(crate) struct Watched {
    pub name: String,
    pub owner: String,
    pub remote: ObjectRoot,
    pub slot: Slot,
    pub sessions: Arc<Sessions>,
}

impl Watched {
    /// Look again and again, until nobody has the answer any more.
    pub fn watch(self, clock: Clock) -> Arc<Ownership> {
        let ownership = Ownership::new(clock);
        tokio::spawn(self.run(Arc::downgrade(&ownership)));
        ownership
    }

    async fn run(self, ownership: Weak<Ownership>) {
        while let Some(ownership) = ownership.upgrade() {
            let asked = ownership.clock.now();
            let found = tokio::time::timeout(LOOK_TIMEOUT, self.look()).await;
            ownership.settle(asked, found.unwrap_or(Found::Unknown));
            if ownership.is_lost() {
                return self.let_go().await;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
            tokio::select! {
                _ = tokio::time::sleep(LOOK_INTERVAL - LOOK_PAUSE) => {}
                _ = ownership.wanted.notified() => {}
            }
        }
    }

    async fn look(&self) -> Found {
        if is_broken(Mutation::Unasked) {
            return Found::Ours;
        }
        let Ok(found) = self.remote.store.get(&Path::from("volume.json")).await else { return Found::Unknown };
        let Ok(bytes) = found.bytes().await else { return Found::Unknown };
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) if record.owner == self.owner => Found::Ours,
            Ok(_) => Found::Others,
            Err(_) => Found::Unknown,
        }
    }

    /// Its clients are to find the other server.
    async fn let_go(self) {
        tracing::warn!(volume = %self.name, "another server has taken the volume over: it is closed here");
        self.sessions.abandon(&self.name);
        let mut open = self.slot.lock().await;
        let is_fenced = open.as_ref().is_some_and(Volume::is_fenced);
        // It may have been brought back meanwhile.
        if (is_fenced || self.look().await == Found::Others)
            && let Some(volume) = open.take()
            && let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIMEOUT, volume.close()).await
        {
            tracing::info!(volume = %self.name, %error, "what was not durable is left to its clients");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn ownership() -> (Arc<Ownership>, Arc<AtomicU64>) {
        let now_ms = Arc::new(AtomicU64::new(1_000));
        let shown = now_ms.clone();
        let clocks = move || {
            let now = Duration::from_millis(shown.load(Ordering::Relaxed));
            (now, now + Duration::from_secs(1 << 20))
        };
        (Ownership::new(Clock(Some(Arc::new(clocks)))), now_ms)
    }

    #[test]
    fn a_store_that_is_away_makes_nobody_unsure_who_is_awake() {
        let (ownership, now_ms) = ownership();
        assert!(!ownership.is_sure(), "it has not asked yet");
        ownership.settle(ownership.clock.now(), Found::Unknown);
        assert!(!ownership.is_sure());
        ownership.settle(ownership.clock.now(), Found::Ours);
        for _ in 0..100 {
            now_ms.fetch_add(LOOK_INTERVAL.as_millis() as u64, Ordering::Relaxed);
            let asked = ownership.clock.now();
            now_ms.fetch_add(LOOK_TIMEOUT.as_millis() as u64, Ordering::Relaxed);
            assert!(ownership.is_sure());
            ownership.settle(asked, Found::Unknown);
        }
    }

    #[test]
    fn who_stood_still_has_to_ask_and_not_before_that() {
        let (ownership, now_ms) = ownership();
        ownership.settle(ownership.clock.now(), Found::Ours);
        let before = ownership.clock.now();
        now_ms.fetch_add(SURE_MS, Ordering::Relaxed);
        assert!(!ownership.is_sure());
        ownership.settle(before, Found::Ours);
        assert!(!ownership.is_sure(), "what was asked before says nothing of now");
        ownership.settle(ownership.clock.now(), Found::Unknown);
        assert!(!ownership.is_sure(), "the store is away, and another server may have the volume");
        ownership.settle(ownership.clock.now(), Found::Ours);
        assert!(ownership.is_sure());
    }

    #[tokio::test]
    async fn a_volume_that_is_lost_is_not_waited_for() {
        let (ownership, _) = ownership();
        let waiting = ownership.holds();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        ownership.settle(ownership.clock.now(), Found::Others);
        assert!(!waiting.await);
        ownership.settle(ownership.clock.now(), Found::Others);
        assert!(!ownership.holds().await);
    }
}
