//! What of a link is believed without asking the bucket, under freshness `events`.
//!
//! Invariant: a file is believed only if the bucket was asked about it after the last hint at its key and after the last change of
//! ours there, and not longer ago than the link's recheck time. A hint says nothing of what the bucket has: it only makes the next
//! look ask.
//!
//! All of it is in memory alone. When the bucket was last asked lies with the cached inode and goes with it; hints are kept as
//! moments in a table of fixed size, by a hash of the key. Keys that share a place are asked for once more, which does no harm.
//! So what nobody remembers, after a crash too, is in doubt.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use atoll_link::{LinkSettings, ObjectKey, Version};
use atoll_types::{InodeId, Name};
use tokio::time::{Duration, Instant};

use super::{Core, Step, is_same_version};

/// Moments of hints that are kept of a volume: 512 KiB.
const PLACES: usize = 65_536;

/// The last answer that said that a file is as it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmed {
    /// The question's number in [`super::linked::Links`].
    asked: u64,
    at: Instant,
}

/// Why the bucket is asked about a file that is known, or that it is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Belief {
    Believed,
    /// There was a hint, or a change of ours.
    Doubted,
    /// It was confirmed too long ago, or never since it is in memory.
    Elapsed,
}

/// Hints at a link, and what came of them.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Heard {
    pub hints: u64,
    pub last: Option<Instant>,
    /// Known files that the bucket was asked about because of a hint or a change of ours, and because of the time.
    pub asked_in_doubt: u64,
    pub asked_in_time: u64,
    /// When all of the link was last in doubt.
    everything: u64,
}

/// When what was last in doubt, as numbers of questions.
#[derive(Default)]
pub(crate) struct Doubts {
    hasher: RandomState,
    /// Empty before the first one.
    places: Vec<u64>,
    heard: BTreeMap<InodeId, Heard>,
}

impl Doubts {
    fn place(&self, link: InodeId, key: &ObjectKey) -> usize {
        (self.hasher.hash_one((link, key)) % PLACES as u64) as usize
    }

    /// From the question `now` on, only later ones tell what is at the key.
    pub fn doubt(&mut self, link: InodeId, key: &ObjectKey, now: u64) {
        if self.places.is_empty() {
            self.places = vec![0; PLACES];
        }
        let place = self.place(link, key);
        self.places[place] = now;
    }

    fn doubted(&self, link: InodeId, key: &ObjectKey) -> u64 {
        let everything = self.heard.get(&link).map_or(0, |heard| heard.everything);
        let place = self.places.get(self.place(link, key)).copied().unwrap_or_default();
        place.max(everything)
    }

    fn belief(&self, link: InodeId, key: &ObjectKey, confirmed: Option<Confirmed>, recheck: Duration) -> Belief {
        match confirmed {
            Some(confirmed) if confirmed.asked <= self.doubted(link, key) => Belief::Doubted,
            Some(confirmed) if confirmed.at.elapsed() < recheck => Belief::Believed,
            _ => Belief::Elapsed,
        }
    }

    pub fn heard(&self, link: InodeId) -> Heard {
        self.heard.get(&link).copied().unwrap_or_default()
    }

    /// A hint at a key, or at all of the link.
    fn hear(&mut self, link: InodeId, key: Option<&ObjectKey>, now: u64) {
        let heard = self.heard.entry(link).or_default();
        heard.hints += 1;
        heard.last = Some(Instant::now());
        match key {
            Some(key) => self.doubt(link, key, now),
            None => self.doubt_all(link, now),
        }
    }

    pub fn doubt_all(&mut self, link: InodeId, now: u64) {
        self.heard.entry(link).or_default().everything = now;
    }

    /// The bucket is asked about a known file.
    pub fn asks(&mut self, link: InodeId, belief: Belief) {
        let heard = self.heard.entry(link).or_default();
        match belief {
            Belief::Believed => {}
            Belief::Doubted => heard.asked_in_doubt += 1,
            Belief::Elapsed => heard.asked_in_time += 1,
        }
    }

    pub fn forget(&mut self, link: InodeId) {
        self.heard.remove(&link);
    }
}

impl Core {
    /// Whether a file, known to be this object, is believed. `None`: the link does not hear hints.
    pub fn belief(&self, link: InodeId, inode: InodeId, key: &ObjectKey) -> Option<Belief> {
        let recheck = self.links.recheck(link)?;
        let confirmed = self.inodes.get(&inode).and_then(|cached| cached.confirmed);
        Some(self.links.doubts.belief(link, key, confirmed, recheck))
    }

    /// An answer to the question `asked`, which was sent not before `at`, names this version. If it is what the name stands for, all that
    /// HEAD tells of it being known, it is believed from then on.
    pub fn confirm(
        &mut self,
        parent: InodeId,
        name: &Name,
        version: &Version,
        (asked, at): (u64, Instant),
    ) -> Step<()> {
        let Some((inode, _)) = self.lookup_dentry(parent, name)? else { return Ok(()) };
        let Some(linked) = self.linked(inode)? else { return Ok(()) };
        let link = linked.link;
        let is_it = linked.is_described
            && linked.object.as_ref().is_some_and(|object| is_same_version(&object.version, version));
        if is_it
            && self.links.recheck(link).is_some()
            && let Some(cached) = self.inodes.get_mut(&inode)
            && cached.confirmed.is_none_or(|known| known.asked < asked)
        {
            cached.confirmed = Some(Confirmed { asked, at });
        }
        Ok(())
    }

    /// Something may have happened to an object of a bucket, or with `None` to any one in it. Tells how many links may hold it.
    pub fn hint(&mut self, bucket: &str, key: Option<&ObjectKey>) -> usize {
        let now = self.links.moment();
        let may_hold = |settings: &LinkSettings| {
            settings.freshness.recheck_seconds().is_some()
                && settings.bucket == bucket
                && key.is_none_or(|key| key.as_str().starts_with(settings.prefix.as_str()))
        };
        let mut found = 0;
        for (link, _) in self.links.roots.iter().filter(|(_, settings)| may_hold(settings)) {
            self.links.doubts.hear(*link, key, now);
            found += 1;
        }
        found
    }

    /// The object was found to be another one than is known.
    pub fn doubt(&mut self, link: InodeId, key: &ObjectKey) {
        if self.links.recheck(link).is_some() {
            let now = self.links.moment();
            self.links.doubts.doubt(link, key, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::linked::Links;
    use super::*;

    const LINK: InodeId = InodeId(1);
    const RECHECK: Duration = Duration::from_secs(60);

    fn key(text: &str) -> ObjectKey {
        ObjectKey::new(text).unwrap()
    }

    /// What happens to one key, as seen by one file.
    #[derive(Clone, Debug)]
    enum Event {
        Put,
        /// The newest change that no hint has told yet is told.
        Hint,
        HintAtAll,
        Ask,
        /// The bucket looks, somewhere between question and answer.
        Look(usize),
        Answer(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => Just(Event::Put),
            2 => Just(Event::Hint),
            1 => Just(Event::HintAtAll),
            3 => Just(Event::Ask),
            3 => (0..3_usize).prop_map(Event::Look),
            3 => (0..3_usize).prop_map(Event::Answer),
        ]
    }

    proptest! {
        /// Whatever the order of changes, hints, questions and answers: when every change was told, a file that is believed is what the
        /// bucket has.
        #[test]
        fn what_is_believed_when_all_hints_came_is_what_the_bucket_has(events in proptest::collection::vec(event(), 0..60)) {
            let mut links = Links::default();
            let key = key("a");
            let (mut bucket, mut told, mut known) = (0_u32, 0_u32, 0_u32);
            let mut confirmed: Option<Confirmed> = None;
            let mut questions: Vec<(u64, Option<u32>)> = Vec::new();
            for event in events {
                match event {
                    Event::Put => bucket += 1,
                    Event::Hint | Event::HintAtAll => {
                        let now = links.moment();
                        links.doubts.hear(LINK, matches!(event, Event::Hint).then_some(&key), now);
                        told = bucket;
                    }
                    Event::Ask if questions.len() < 3 => questions.push((links.ask(), None)),
                    Event::Ask => {}
                    Event::Look(at) => {
                        if let Some((_, seen @ None)) = questions.get_mut(at) {
                            *seen = Some(bucket);
                        }
                    }
                    Event::Answer(at) => {
                        if let Some(&(asked, Some(seen))) = questions.get(at) {
                            questions.remove(at);
                            links.answered(asked);
                            // Another version is another inode, which nobody has confirmed.
                            if seen != known {
                                known = seen;
                                confirmed = None;
                            }
                            if confirmed.is_none_or(|known| known.asked < asked) {
                                confirmed = Some(Confirmed { asked, at: Instant::now() });
                            }
                        }
                    }
                }
                let belief = links.doubts.belief(LINK, &key, confirmed, RECHECK);
                if told == bucket && belief == Belief::Believed {
                    prop_assert_eq!(known, bucket);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_while_the_bucket_is_asked_makes_it_be_asked_again() {
        let mut links = Links::default();
        let (a, b) = (key("a"), key("b"));
        let asked = links.ask();
        let at = Instant::now();
        let now = links.moment();
        links.doubts.hear(LINK, Some(&a), now);
        let confirmed = Some(Confirmed { asked, at });
        assert_eq!(links.doubts.belief(LINK, &a, confirmed, RECHECK), Belief::Doubted);
        assert_eq!(links.doubts.belief(LINK, &b, confirmed, RECHECK), Belief::Believed);
        let again = Some(Confirmed { asked: links.ask(), at });
        assert_eq!(links.doubts.belief(LINK, &a, again, RECHECK), Belief::Believed);
        let now = links.moment();
        links.doubts.hear(LINK, None, now);
        assert_eq!(links.doubts.belief(LINK, &b, again, RECHECK), Belief::Doubted);
        let last = Some(Confirmed { asked: links.ask(), at });
        tokio::time::advance(RECHECK).await;
        assert_eq!(links.doubts.belief(LINK, &b, last, RECHECK), Belief::Elapsed);
        assert_eq!(links.doubts.belief(LINK, &b, None, RECHECK), Belief::Elapsed);
    }
}
