//! Changes that a client made before it asked: the times and the inode numbers that it gave.
//!
//! Invariant: a number that a client gave becomes an inode only if no inode has it, which is known before
//! anything changes. In a reserve of the session that is so by construction: its numbers are nobody else's, and are
//! used in ascending order. Others (the reserve may have been one of an earlier authority's) are looked for first.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_types::limits::{INODES_RESERVED, SNAPSHOT_NUMBER_MAX};
use atoll_types::{Errno, InodeId, Made, SessionId, Timestamp};
use rustc_hash::FxHashSet;

use super::{Core, Need, Step, Stop};
use crate::format::{self, InodeRecord};

/// How far a client's clock may be ahead: a time that is further is taken for this one.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(1);
/// How long a client dates what it makes by the time that it was told: a term.
const TOLD_FOR: Duration = Duration::from_secs(4);
/// Most reserves that are kept for a session; of more, the oldest is forgotten.
const RESERVES_MAX: usize = 16;
/// How far a number that an earlier authority gave may be beyond what the store knows of: changes that are made again
/// come with it.
const AHEAD_MAX: u64 = 1 << 20;
/// Most numbers that are remembered to be no inode's.
const VACANT_MAX: usize = 4096;

/// What the operation that is executed now is to give what it makes and changes.
#[derive(Clone, Copy)]
pub(super) struct Making {
    at: Timestamp,
    /// Until it is given.
    inode: Option<InodeId>,
    /// An earlier authority gave the number.
    again: bool,
}

/// Numbers that are one session's to give, by the first that is left.
struct Reserve {
    session: SessionId,
    end: u64,
}

#[derive(Default)]
pub(super) struct Numbers {
    /// By the first number that is left; a reserve without any is gone.
    reserves: BTreeMap<u64, Reserve>,
    /// Looked for and found to be no inode's.
    vacant: FxHashSet<InodeId>,
}

impl Numbers {
    fn reserve_of(&self, inode: InodeId) -> Option<(u64, &Reserve)> {
        let (&first, reserve) = self.reserves.range(..=inode.0).next_back()?;
        (inode.0 < reserve.end).then_some((first, reserve))
    }
}

impl Core {
    /// A client is told the time.
    pub fn tell_time(&mut self) -> Timestamp {
        let now = Timestamp::now();
        self.told = self.told.max(now);
        now
    }

    /// How the operation that is executed next was made; `None` for one that is made by its execution.
    pub fn set_made(&mut self, made: Option<&Made>, again: bool) {
        self.making = made.map(|made| {
            let by_clock = Timestamp::now().max(self.told.later(TOLD_FOR)).later(CLOCK_SKEW_MAX);
            let latest = by_clock.max(self.counters.last_change);
            let nanos = made.at.nanos.min(Timestamp::NANOS_PER_SECOND - 1);
            Making { at: latest.min(Timestamp { nanos, ..made.at }), inode: made.inode, again }
        });
    }

    /// A time later than every change before; of what a client made, the one time that it gave.
    pub(super) fn now(&mut self) -> Timestamp {
        let now = match &self.making {
            Some(making) => making.at,
            None => Timestamp::now().max(self.counters.last_change.successor()),
        };
        self.counters.last_change = self.counters.last_change.max(now);
        now
    }

    /// Whether an inode can be made with the number that the client gave, if any. Changes nothing.
    pub(super) fn may_number(&mut self, session: SessionId) -> Step<()> {
        let Some(Making { inode: Some(inode), again, .. }) = self.making else { return Ok(()) };
        let end = self.next_inode + if again { AHEAD_MAX } else { 0 };
        if inode <= InodeId::ROOT || inode.0 >= end {
            return Err(Errno::EINVAL.into());
        }
        if !again && !self.leases.may_make(session) {
            return Err(Errno::ENOSPC.into());
        }
        match self.numbers.reserve_of(inode) {
            Some((_, reserve)) if reserve.session == session => return Ok(()),
            Some(_) => return Err(Errno::EINVAL.into()),
            None => {}
        }
        if self.inodes.contains_key(&inode) {
            return Err(Errno::EEXIST.into());
        }
        if self.numbers.vacant.contains(&inode) { Ok(()) } else { Err(Stop::Load(Need::Vacancy(inode))) }
    }

    /// The number that the client gave, once. [`Core::may_number`] has said yes.
    pub(super) fn take_number(&mut self) -> Option<InodeId> {
        let inode = self.making.as_mut()?.inode.take()?;
        self.numbers.vacant.remove(&inode);
        if let Some((first, _)) = self.numbers.reserve_of(inode)
            && let Some(reserve) = self.numbers.reserves.remove(&first)
            && inode.0 + 1 < reserve.end
        {
            self.numbers.reserves.insert(inode.0 + 1, reserve);
        }
        if inode.0 >= self.next_inode {
            self.next_inode = inode.0 + 1;
            self.cover_numbers();
        }
        Some(inode)
    }

    /// Whether an inode was found, in the store and in what it does not hold yet.
    pub fn install_vacancy(&mut self, stamp: u64, inode: InodeId, found: Option<InodeRecord>) {
        match found {
            Some(record) => self.install_inode(stamp, inode, record),
            None if stamp == self.moves && !self.inodes.contains_key(&inode) => {
                if self.numbers.vacant.len() >= VACANT_MAX {
                    self.numbers.vacant.clear();
                }
                self.numbers.vacant.insert(inode);
            }
            None => {}
        }
    }

    /// Whether there is no inode with this number. When there is one, it is cached afterwards.
    pub(super) fn is_vacant(&self, inode: InodeId) -> Step<bool> {
        if self.inodes.contains_key(&inode) {
            return Ok(false);
        }
        if self.numbers.vacant.contains(&inode) { Ok(true) } else { Err(Stop::Load(Need::Vacancy(inode))) }
    }

    /// An inode is made whose number was found to be vacant.
    pub(super) fn occupy(&mut self, inode: InodeId) {
        self.numbers.vacant.remove(&inode);
    }

    /// Numbers that nobody else gets, and the change after whose commit no later authority gives them away.
    /// The caller hands them to a session then, with [`Core::hand_numbers`].
    pub fn draw_numbers(&mut self) -> (InodeId, u64) {
        let first = self.next_inode;
        self.next_inode += u64::from(INODES_RESERVED);
        if self.cover_numbers() {
            self.order();
            self.write(format::counters_key(), Some(self.counters.encode()));
        }
        (InodeId(first), self.covered)
    }

    /// A number for a snapshot, with the change after whose commit nobody is given it again before all others were.
    pub fn number_snapshot(&mut self, is_taken: impl Fn(u16) -> bool) -> (u16, u64) {
        let mut number = self.counters.last_snapshot;
        loop {
            number = number % SNAPSHOT_NUMBER_MAX + 1;
            if !is_taken(number) {
                break;
            }
        }
        self.counters.last_snapshot = number;
        self.order();
        self.write(format::counters_key(), Some(self.counters.encode()));
        (number, self.ordered())
    }

    /// The numbers are the session's to give.
    pub fn hand_numbers(&mut self, session: SessionId, first: InodeId) {
        let reserves = &mut self.numbers.reserves;
        let own = reserves.iter().filter(|(_, reserve)| reserve.session == session);
        let surplus = (own.clone().count() + 1).saturating_sub(RESERVES_MAX);
        let oldest: Vec<u64> = own.map(|(&first, _)| first).take(surplus).collect();
        for first in oldest {
            reserves.remove(&first);
        }
        reserves.insert(first.0, Reserve { session, end: first.0 + u64::from(INODES_RESERVED) });
    }

    /// The session is over: it gives no more numbers.
    pub fn forget_reserves(&mut self, session: SessionId) {
        self.numbers.reserves.retain(|_, reserve| reserve.session != session);
    }
}
