//! The authority's side: who holds what, who waits for whom.
//!
//! An operation names its [`Claim`]s and is executed only while no other session
//! holds a right that they exclude. If one does, the operation becomes a waiter,
//! the holders are told to give up, and nothing that would hold the waiter up is
//! granted until it is done: so it waits for each holder once.
//!
//! An operation never waits for rights of its own session.

mod describe;

use std::collections::BTreeSet;

use atoll_types::{InodeId, SessionId};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{Grant, Issue, Recall, Rights};

/// How many inodes beyond its bounds an authority counts that were made before it was asked
/// ([`Authority::grant_made`]): the most that clients make until they learn that they may not.
pub const MADE_BEYOND_MAX: usize = 65_536;

/// What others must not hold on an inode while an operation is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub inode: InodeId,
    pub excludes: Rights,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// A recall and whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    pub session: SessionId,
    pub recall: Recall,
}

/// Bounds of an authority.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most inodes on which one session holds rights; more are not granted.
    pub inodes_per_session_max: usize,
    /// Most inodes on which rights are held, of all sessions together.
    pub inodes_max: usize,
    /// Recalls of an inode within a second that make it contended. Only such count as take what was granted since the
    /// last one: a holder that hands its rights over one by one goes nowhere and back.
    pub contended_recalls: u32,
    /// For how long nothing is granted on a contended inode, in ms.
    pub contended_ms: u64,
    /// A session that leaves a recall unanswered for longer is not renewed, in ms.
    pub renewal_ms: u64,
    /// A session that leaves a recall unanswered for longer, without progress, is overdue, in ms.
    pub recall_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            inodes_per_session_max: 200_000,
            inodes_max: 4_000_000,
            contended_recalls: 3,
            contended_ms: 3_000,
            renewal_ms: 1_000,
            recall_ms: 5_000,
        }
    }
}

/// What happened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    pub grants: u64,
    pub recalls: u64,
    pub acknowledged: u64,
    /// Sum of the times from a recall to its acknowledgement, in ms.
    pub recall_ms: u64,
    /// Inodes found contended.
    pub contended: u64,
    /// Grants refused because of a bound.
    pub refused: u64,
    pub fenced: u64,
}

/// One holder of rights on an inode, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderInfo {
    pub session: SessionId,
    pub rights: Rights,
    /// Rights it was told to give up and has not yet.
    pub recalling: Rights,
    /// When it was first granted something, in ms.
    pub since_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Holder {
    session: SessionId,
    rights: Rights,
    recalling: Rights,
    /// What it had already when somebody was last told to give up: to recall the rest of it goes on with the same.
    handed_over: Rights,
    /// Issue of the newest grant of each right.
    granted: [Issue; 4],
    since_ms: u64,
    recalled_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Entry {
    holders: Vec<Holder>,
    waiters: Vec<WaiterId>,
    /// Recalls since `window_ms` that took back what had just been granted, and the first one.
    recalls: u32,
    window_ms: u64,
    contended_until_ms: u64,
}

impl Entry {
    fn holder(&mut self, session: SessionId) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|h| h.session == session)
    }
}

#[derive(Clone, Debug)]
struct Waiter {
    session: SessionId,
    claims: Vec<Claim>,
}

#[derive(Clone, Debug, Default)]
struct Session {
    inodes: FxHashSet<InodeId>,
    /// Unanswered recalls by the time of the first.
    recalls: BTreeSet<(u64, InodeId)>,
    /// When it last wrote back something while a recall was unanswered.
    progress_ms: u64,
}

/// See the module. All times are in ms of one clock that never goes back.
#[derive(Clone, Debug, Default)]
pub struct Authority {
    limits: Limits,
    entries: FxHashMap<InodeId, Entry>,
    sessions: FxHashMap<SessionId, Session>,
    waiters: FxHashMap<WaiterId, Waiter>,
    /// Entries that count recalls.
    recalled: FxHashSet<InodeId>,
    last_issue: u64,
    last_waiter: u64,
    /// Pairs of inode and holder.
    held: usize,
    counts: Counts,
}

impl Authority {
    pub fn new(limits: Limits) -> Self {
        Authority { limits, ..Authority::default() }
    }

    /// Positions and issues come behind this one: those of an earlier authority of the volume do not.
    pub fn start_behind(&mut self, issue: Issue) {
        self.last_issue = self.last_issue.max(issue.0);
    }

    /// The newest position or issue.
    pub fn newest(&self) -> Issue {
        Issue(self.last_issue)
    }

    /// The session wants leases; others are never granted any.
    pub fn enroll(&mut self, session: SessionId) {
        self.sessions.entry(session).or_default();
    }

    /// False when the session never enrolled, or is over.
    pub fn is_enrolled(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// True when no other session holds what the claims exclude.
    pub fn is_free(&self, session: SessionId, claims: &[Claim]) -> bool {
        claims.iter().all(|claim| {
            let Some(entry) = self.entries.get(&claim.inode) else { return true };
            entry.holders.iter().all(|h| h.session == session || !h.rights.overlaps(claim.excludes))
        })
    }

    /// Queue an operation that is not free, and the recalls to send. When [`Authority::acknowledge`] or
    /// [`Authority::end_session`] answers the waiter, it is tried again; if it is still not free (other claims
    /// came up), it waits anew with `again`. It is withdrawn when it is done.
    pub fn wait(
        &mut self,
        session: SessionId,
        claims: Vec<Claim>,
        again: Option<WaiterId>,
        now_ms: u64,
    ) -> (WaiterId, Vec<Notice>) {
        let id = again.unwrap_or_else(|| {
            self.last_waiter += 1;
            WaiterId(self.last_waiter)
        });
        self.forget_claims(id);
        let mut notices = Vec::new();
        for claim in &claims {
            let entry = self.entries.entry(claim.inode).or_default();
            entry.waiters.push(id);
            let (mut told, mut is_new) = (false, false);
            for holder in entry.holders.iter_mut().filter(|h| h.session != session) {
                let rights = holder.rights & claim.excludes;
                if (rights - holder.recalling).is_empty() {
                    continue;
                }
                if holder.recalling.is_empty() {
                    holder.recalled_ms = now_ms;
                    if let Some(held) = self.sessions.get_mut(&holder.session) {
                        held.recalls.insert((now_ms, claim.inode));
                    }
                }
                is_new |= !(rights - holder.recalling - holder.handed_over).is_empty();
                holder.recalling |= rights;
                told = true;
                self.counts.recalls += 1;
                let recall = Recall { inode: claim.inode, rights, issue: Issue(self.last_issue) };
                notices.push(Notice { session: holder.session, recall });
            }
            if told {
                if now_ms.saturating_sub(entry.window_ms) >= 1_000 {
                    entry.window_ms = now_ms;
                    entry.recalls = 0;
                }
                entry.recalls += u32::from(is_new || entry.recalls == 0);
                entry.holders.iter_mut().for_each(|holder| holder.handed_over = holder.rights);
                self.recalled.insert(claim.inode);
                if entry.recalls >= self.limits.contended_recalls && entry.contended_until_ms <= now_ms {
                    entry.contended_until_ms = now_ms + self.limits.contended_ms;
                    self.counts.contended += 1;
                }
            }
        }
        self.waiters.insert(id, Waiter { session, claims });
        (id, notices)
    }

    /// The operation is done, or nobody wants it any more.
    pub fn withdraw(&mut self, waiter: WaiterId) {
        self.forget_claims(waiter);
        self.waiters.remove(&waiter);
    }

    fn forget_claims(&mut self, waiter: WaiterId) {
        let Some(known) = self.waiters.get_mut(&waiter) else { return };
        for claim in std::mem::take(&mut known.claims) {
            if let Some(entry) = self.entries.get_mut(&claim.inode) {
                entry.waiters.retain(|w| *w != waiter);
            }
            self.tidy(claim.inode);
        }
    }

    /// Grant what of `wanted` may be granted now.
    pub fn grant(&mut self, session: SessionId, inode: InodeId, wanted: Rights, now_ms: u64) -> Option<Grant> {
        self.grant_within(session, inode, wanted, now_ms, 0)
    }

    /// The same for an inode that the session made before it asked. It uses the rights already, so they are counted
    /// also beyond the bounds, as long as [`Authority::may_make`].
    pub fn grant_made(&mut self, session: SessionId, inode: InodeId, wanted: Rights, now_ms: u64) -> Option<Grant> {
        self.grant_within(session, inode, wanted, now_ms, MADE_BEYOND_MAX)
    }

    /// Whether one more inode that the session made before it asked can be counted.
    pub fn may_make(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_none_or(|held| self.has_room(held.inodes.len(), MADE_BEYOND_MAX))
    }

    fn has_room(&self, held_by_session: usize, beyond: usize) -> bool {
        held_by_session < self.limits.inodes_per_session_max.saturating_add(beyond)
            && self.held < self.limits.inodes_max.saturating_add(beyond)
    }

    fn grant_within(
        &mut self,
        session: SessionId,
        inode: InodeId,
        wanted: Rights,
        now_ms: u64,
        beyond: usize,
    ) -> Option<Grant> {
        let held_by_session = self.sessions.get(&session)?.inodes.len();
        let mut allowed = wanted;
        let mut is_new = true;
        if let Some(entry) = self.entries.get(&inode) {
            if entry.contended_until_ms > now_ms {
                return None;
            }
            for holder in &entry.holders {
                if holder.session == session {
                    is_new = false;
                    allowed -= holder.recalling;
                } else {
                    allowed -= holder.rights.excluded();
                }
            }
            for waiter in &entry.waiters {
                if let Some(waiter) = self.waiters.get(waiter).filter(|w| w.session != session) {
                    for claim in waiter.claims.iter().filter(|claim| claim.inode == inode) {
                        allowed -= claim.excludes;
                    }
                }
            }
        }
        let allowed = allowed.whole();
        if allowed.is_empty() {
            return None;
        }
        if is_new && !self.has_room(held_by_session, beyond) {
            self.counts.refused += 1;
            return None;
        }
        self.last_issue += 1;
        let issue = Issue(self.last_issue);
        let entry = self.entries.entry(inode).or_default();
        if is_new {
            let none = Rights::NONE;
            if entry.holders.len() == entry.holders.capacity() {
                // Most inodes have one holder.
                entry.holders.reserve_exact(entry.holders.len().max(1));
            }
            entry.holders.push(Holder {
                session,
                rights: none,
                recalling: none,
                handed_over: none,
                granted: [Issue(0); 4],
                since_ms: now_ms,
                recalled_ms: 0,
            });
            self.held += 1;
            if let Some(held) = self.sessions.get_mut(&session) {
                held.inodes.insert(inode);
            }
        }
        let holder = entry.holder(session)?;
        holder.rights |= allowed;
        for bit in allowed.bits() {
            holder.granted[bit] = issue;
        }
        self.counts.grants += 1;
        Some(Grant { inode, rights: allowed, issue })
    }

    /// Position of an operation among all that were executed: answers overtake each other on their way.
    pub fn stamp(&mut self) -> Issue {
        self.last_issue += 1;
        Issue(self.last_issue)
    }

    /// Grant again what the session holds on an inode that its own operation changed: word that what it keeps
    /// of it is old.
    pub fn touch(&mut self, session: SessionId, inode: InodeId) -> Option<Grant> {
        let holder = self.entries.get_mut(&inode)?.holder(session)?;
        let rights = holder.rights - holder.recalling;
        self.last_issue += 1;
        let issue = Issue(self.last_issue);
        for bit in rights.bits() {
            holder.granted[bit] = issue;
        }
        Some(Grant { inode, rights, issue })
    }

    /// A session gave rights up, asked or unasked; answers the waiters that are free now. Rights granted
    /// after the issue it names are not meant.
    pub fn acknowledge(&mut self, session: SessionId, given_up: &Recall, now_ms: u64) -> Vec<WaiterId> {
        let inode = given_up.inode;
        let Some(entry) = self.entries.get_mut(&inode) else { return Vec::new() };
        let Some(holder) = entry.holder(session) else { return Vec::new() };
        for bit in given_up.rights.bits() {
            if given_up.issue >= holder.granted[bit] {
                holder.rights -= Rights::bit(bit);
            }
        }
        holder.rights = holder.rights.whole();
        let recalled = !holder.recalling.is_empty();
        holder.recalling = holder.recalling & holder.rights;
        holder.handed_over = holder.handed_over & holder.rights;
        let (rights, recalling, recalled_ms) = (holder.rights, holder.recalling, holder.recalled_ms);
        if recalled && recalling.is_empty() {
            self.counts.acknowledged += 1;
            self.counts.recall_ms += now_ms.saturating_sub(recalled_ms);
            if let Some(held) = self.sessions.get_mut(&session) {
                held.recalls.remove(&(recalled_ms, inode));
            }
        }
        if rights.is_empty() {
            entry.holders.retain(|h| h.session != session);
            self.held -= 1;
            if let Some(held) = self.sessions.get_mut(&session) {
                held.inodes.remove(&inode);
            }
        }
        let free = self.free_waiters(inode);
        self.tidy(inode);
        free
    }

    /// The session is over: it holds nothing any more. Answers the waiters that are free now, and its own, which
    /// wait no more ([`Authority::is_waiting`]).
    pub fn end_session(&mut self, session: SessionId) -> Vec<WaiterId> {
        let own: Vec<WaiterId> = self.waiters.iter().filter(|(_, w)| w.session == session).map(|(id, _)| *id).collect();
        own.iter().for_each(|waiter| self.withdraw(*waiter));
        let mut free = own;
        let Some(gone) = self.sessions.remove(&session) else { return free };
        for inode in gone.inodes {
            if let Some(entry) = self.entries.get_mut(&inode) {
                entry.holders.retain(|h| h.session != session);
                self.held -= 1;
            }
            free.extend(self.free_waiters(inode));
            self.tidy(inode);
        }
        free
    }

    fn free_waiters(&self, inode: InodeId) -> Vec<WaiterId> {
        let Some(entry) = self.entries.get(&inode) else { return Vec::new() };
        let is_free =
            |id: &WaiterId| self.waiters.get(id).is_some_and(|waiter| self.is_free(waiter.session, &waiter.claims));
        entry.waiters.iter().copied().filter(is_free).collect()
    }

    /// Keep entries only for holders, waiters and contention that is not long past.
    fn tidy(&mut self, inode: InodeId) {
        let Some(entry) = self.entries.get(&inode) else { return };
        if entry.holders.is_empty() && entry.waiters.is_empty() && entry.recalls == 0 {
            self.entries.remove(&inode);
        }
    }

    /// Forget contention that is past; call now and then.
    pub fn sweep(&mut self, now_ms: u64) {
        let past =
            |entry: &Entry| entry.contended_until_ms <= now_ms && now_ms.saturating_sub(entry.window_ms) >= 1_000;
        let (entries, mut gone) = (&mut self.entries, Vec::new());
        self.recalled.retain(|inode| match entries.get_mut(inode) {
            Some(entry) if past(entry) => {
                entry.recalls = 0;
                gone.push(*inode);
                false
            }
            entry => entry.is_some(),
        });
        gone.into_iter().for_each(|inode| self.tidy(inode));
    }

    /// False when its session is over.
    pub fn is_waiting(&self, waiter: WaiterId) -> bool {
        self.waiters.contains_key(&waiter)
    }

    /// Recalls that the session has not answered, to be sent again after its connection broke.
    pub fn unanswered(&self, session: SessionId) -> Vec<Recall> {
        let Some(held) = self.sessions.get(&session) else { return Vec::new() };
        let recall = |(_, inode): &(u64, InodeId)| {
            let holder = self.entries.get(inode)?.holders.iter().find(|h| h.session == session)?;
            Some(Recall { inode: *inode, rights: holder.recalling, issue: Issue(self.last_issue) })
        };
        held.recalls.iter().filter_map(recall).collect()
    }

    /// The session writes back what it has to before it can answer a recall: it is alive.
    pub fn progress(&mut self, session: SessionId, now_ms: u64) {
        if let Some(held) = self.sessions.get_mut(&session)
            && !held.recalls.is_empty()
        {
            held.progress_ms = now_ms;
        }
    }

    /// Whether the session may go on using what it holds for another term.
    pub fn may_renew(&self, session: SessionId, now_ms: u64) -> bool {
        self.sessions.get(&session).is_some_and(|held| {
            held.recalls.first().is_none_or(|(since, _)| now_ms.saturating_sub(*since) <= self.limits.renewal_ms)
        })
    }

    /// Sessions that others wait for no longer.
    pub fn overdue(&self, now_ms: u64) -> Vec<SessionId> {
        let late = |held: &Session| {
            held.recalls
                .first()
                .is_some_and(|(since, _)| now_ms.saturating_sub((*since).max(held.progress_ms)) > self.limits.recall_ms)
        };
        self.sessions.iter().filter(|(_, held)| late(held)).map(|(id, _)| *id).collect()
    }

    /// Count a session that was fenced; [`Authority::end_session`] does it.
    pub fn count_fenced(&mut self) {
        self.counts.fenced += 1;
    }

    pub fn rights(&self, session: SessionId, inode: InodeId) -> Rights {
        let holder = |entry: &Entry| entry.holders.iter().find(|h| h.session == session).map(|h| h.rights);
        self.entries.get(&inode).and_then(holder).unwrap_or_default()
    }

    pub fn holders(&self, inode: InodeId) -> Vec<HolderInfo> {
        let info = |h: &Holder| HolderInfo {
            session: h.session,
            rights: h.rights,
            recalling: h.recalling,
            since_ms: h.since_ms,
        };
        self.entries.get(&inode).map(|entry| entry.holders.iter().map(info).collect()).unwrap_or_default()
    }

    /// Whether nothing is granted on the inode because too many wanted it.
    /// How many sessions may hold rights.
    pub fn enrolled(&self) -> usize {
        self.sessions.len()
    }

    /// For each session that holds some of these rights, one inode on which it does.
    pub fn holders_of(&self, rights: Rights) -> Vec<InodeId> {
        let holds = |session: SessionId, inode: InodeId| self.rights(session, inode).overlaps(rights);
        let sessions = self.sessions.iter();
        sessions.filter_map(|(id, held)| held.inodes.iter().copied().find(|inode| holds(*id, *inode))).collect()
    }

    pub fn is_contended(&self, inode: InodeId, now_ms: u64) -> bool {
        self.entries.get(&inode).is_some_and(|entry| entry.contended_until_ms > now_ms)
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Pairs of inode and holder.
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(7);

    fn authority() -> Authority {
        let mut authority = Authority::default();
        authority.enroll(A);
        authority.enroll(B);
        authority
    }

    fn write() -> Vec<Claim> {
        vec![Claim { inode: FILE, excludes: Rights::INODE_EXCLUSIVE }]
    }

    #[test]
    fn readers_share_and_a_writer_waits_for_each_of_them_once() {
        let mut authority = authority();
        assert!(authority.grant(A, FILE, Rights::INODE, 0).is_some());
        assert!(authority.grant(B, FILE, Rights::INODE, 0).is_some());
        assert!(!authority.is_free(A, &write()));
        let (waiter, notices) = authority.wait(A, write(), None, 0);
        assert_eq!(notices.len(), 1);
        assert_eq!(notices[0].session, B);
        assert!(authority.grant(B, FILE, Rights::INODE, 0).is_none(), "nothing that holds the waiter up");
        assert_eq!(authority.acknowledge(B, &notices[0].recall, 0), [waiter]);
        assert!(authority.is_free(A, &write()));
        authority.withdraw(waiter);
        assert!(authority.grant(A, FILE, Rights::INODE_EXCLUSIVE, 0).is_some());
        assert!(authority.grant(B, FILE, Rights::INODE, 0).is_none());
    }

    #[test]
    fn an_operation_never_waits_for_its_own_session() {
        let mut authority = authority();
        authority.grant(A, FILE, Rights::INODE_EXCLUSIVE, 0);
        assert!(authority.is_free(A, &write()));
        let (_, notices) = authority.wait(B, write(), None, 0);
        assert_eq!(notices[0].session, A);
        assert!(authority.is_free(A, &write()), "also while its own right is recalled");
    }

    #[test]
    fn an_acknowledgement_does_not_take_what_was_granted_after_it() {
        let mut authority = authority();
        authority.grant(A, FILE, Rights::INODE, 0);
        let (waiter, notices) = authority.wait(B, write(), None, 0);
        assert_eq!(authority.acknowledge(A, &notices[0].recall, 0), [waiter]);
        authority.withdraw(waiter);
        authority.grant(A, FILE, Rights::INODE, 0);
        authority.acknowledge(A, &notices[0].recall, 0);
        assert_eq!(authority.rights(A, FILE), Rights::INODE);
    }

    #[test]
    fn a_session_that_does_not_answer_is_not_renewed_and_then_overdue() {
        let mut authority = authority();
        authority.grant(A, FILE, Rights::INODE, 0);
        let (waiter, _) = authority.wait(B, write(), None, 100);
        assert!(authority.may_renew(A, 1_100) && !authority.may_renew(A, 1_101));
        assert!(authority.overdue(5_100).is_empty());
        assert_eq!(authority.overdue(5_101), [A]);
        authority.progress(A, 5_000);
        assert!(authority.overdue(10_000).is_empty() && !authority.may_renew(A, 5_000));
        assert_eq!(authority.end_session(A), [waiter]);
    }

    #[test]
    fn operations_of_a_session_that_is_over_wait_no_more() {
        let mut authority = authority();
        authority.grant(A, FILE, Rights::INODE, 0);
        let (waiter, _) = authority.wait(B, write(), None, 0);
        assert_eq!(authority.end_session(B), [waiter]);
        assert!(!authority.is_waiting(waiter));
    }

    #[test]
    fn ping_pong_ends_in_direct_mode_and_is_tried_again_later() {
        let mut authority = authority();
        for round in 0..3 {
            assert!(authority.grant(A, FILE, Rights::INODE, round).is_some());
            let (waiter, notices) = authority.wait(B, write(), None, round);
            authority.acknowledge(A, &notices[0].recall, round);
            authority.withdraw(waiter);
        }
        assert!(authority.grant(A, FILE, Rights::INODE, 3).is_none());
        assert!(authority.grant(A, FILE, Rights::INODE, 4_000).is_some());
    }

    #[test]
    fn a_handover_in_several_steps_is_no_ping_pong() {
        let mut authority = authority();
        let wanted = Rights::ALL;
        assert_eq!(authority.grant(A, FILE, wanted, 0).unwrap().rights, wanted);
        for (now_ms, rights) in
            [Rights::NAMES_WRITER, Rights::INODE_WRITER, Rights::NAMES, Rights::INODE].into_iter().enumerate()
        {
            let now_ms = now_ms as u64;
            let claims = vec![Claim { inode: FILE, excludes: rights }];
            let (waiter, notices) = authority.wait(B, claims, None, now_ms);
            // What it writes back before it gives up grants it again what it has.
            authority.touch(A, FILE);
            let given_up = Recall { issue: authority.newest(), ..notices[0].recall };
            assert_eq!(authority.acknowledge(A, &given_up, now_ms), [waiter]);
            authority.withdraw(waiter);
        }
        assert!(!authority.is_contended(FILE, 4));
        assert!(authority.grant(B, FILE, wanted, 4).is_some());
    }

    #[test]
    fn a_writer_among_readers_that_come_in_turn_is_ping_pong() {
        let mut authority = authority();
        let readers = [SessionId(11), SessionId(12), SessionId(13)];
        for reader in readers {
            authority.enroll(reader);
            authority.grant(reader, FILE, Rights::INODE, 0);
            let (waiter, notices) = authority.wait(A, write(), None, 0);
            authority.acknowledge(reader, &notices[0].recall, 0);
            authority.withdraw(waiter);
        }
        assert!(authority.is_contended(FILE, 0));
    }

    #[test]
    fn what_a_session_may_hold_is_bounded() {
        let mut authority = Authority::new(Limits { inodes_per_session_max: 1, ..Limits::default() });
        authority.enroll(A);
        assert!(authority.grant(A, FILE, Rights::INODE, 0).is_some());
        assert!(authority.grant(A, InodeId(8), Rights::INODE, 0).is_none());
        assert!(authority.grant(A, FILE, Rights::INODE_EXCLUSIVE, 0).is_some());
        assert!(authority.grant(B, FILE, Rights::INODE, 0).is_none(), "it did not enroll");
    }

    #[test]
    fn what_was_made_before_asking_is_counted_beyond_the_bounds_up_to_a_hard_stop() {
        let mut authority = Authority::new(Limits { inodes_per_session_max: 1, inodes_max: 1, ..Limits::default() });
        authority.enroll(A);
        assert!(authority.grant(A, FILE, Rights::INODE, 0).is_some());
        for number in 0..MADE_BEYOND_MAX as u64 {
            assert!(authority.may_make(A));
            let made = authority.grant_made(A, InodeId(100 + number), Rights::INODE_EXCLUSIVE, 0).unwrap();
            assert_eq!(made.rights, Rights::INODE_EXCLUSIVE);
        }
        assert!(!authority.may_make(A));
        assert!(authority.grant_made(A, InodeId(8), Rights::INODE_EXCLUSIVE, 0).is_none());
        assert!(authority.grant(A, InodeId(8), Rights::INODE, 0).is_none());
    }

    #[test]
    fn a_session_that_is_held_up_keeps_and_earns_nothing_exclusive() {
        let mut authority = authority();
        authority.grant(A, FILE, Rights::INODE_EXCLUSIVE, 0);
        let read = vec![Claim { inode: FILE, excludes: Rights::INODE_WRITER }];
        let (reader, notices) = authority.wait(B, read, None, 0);
        // It writes back first, which would earn it what it is to give up.
        let earned = authority.grant(A, FILE, Rights::INODE_EXCLUSIVE, 0).unwrap();
        assert_eq!(earned.rights, Rights::INODE);
        assert_eq!(authority.acknowledge(A, &notices[0].recall, 0), [reader]);
        assert_eq!(authority.rights(A, FILE), Rights::INODE);
    }
}
