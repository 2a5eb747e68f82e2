//! States as numbers, for model checking (`tests/explore`): two states with the same
//! description behave alike. Issues only have an order, so the caller names them;
//! times only have an age, cut off where more makes no difference.

use atoll_types::SessionId;

use super::{Authority, WaiterId};
use crate::Issue;

impl Authority {
    /// Append what the authority's behaviour from now on depends on.
    pub fn describe(
        &self,
        now_ms: u64,
        issue: &mut dyn FnMut(SessionId, Issue) -> u64,
        waiter: &dyn Fn(WaiterId) -> u64,
        out: &mut Vec<u64>,
    ) {
        let age = |since_ms: u64| now_ms.saturating_sub(since_ms).min(self.limits.recall_ms + 1);
        let mut inodes: Vec<_> = self.entries.iter().collect();
        inodes.sort_unstable_by_key(|(inode, _)| **inode);
        for (inode, entry) in inodes {
            let counts_recalls = entry.recalls > 0 && self.limits.contended_recalls < u32::MAX;
            if entry.holders.is_empty() && entry.waiters.is_empty() && !counts_recalls {
                continue;
            }
            out.push(inode.0);
            if counts_recalls {
                out.extend([entry.recalls as u64, now_ms.saturating_sub(entry.window_ms).min(1_000)]);
                out.push(entry.contended_until_ms.saturating_sub(now_ms));
            }
            let mut holders: Vec<_> = entry.holders.iter().collect();
            holders.sort_unstable_by_key(|holder| holder.session);
            out.push(holders.len() as u64);
            for holder in holders {
                out.extend([holder.session.0, holder.rights.number(), holder.recalling.number()]);
                if counts_recalls {
                    out.push(holder.handed_over.number());
                }
                out.push(if holder.recalling.is_empty() { 0 } else { age(holder.recalled_ms) });
                out.extend(holder.rights.bits().map(|bit| issue(holder.session, holder.granted[bit])));
            }
            let mut waiters: Vec<_> = entry.waiters.iter().map(|id| waiter(*id)).collect();
            waiters.sort_unstable();
            out.push(waiters.len() as u64);
            out.extend(waiters);
        }
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_unstable_by_key(|(id, _)| **id);
        for (id, session) in sessions {
            out.extend([id.0, session.recalls.len() as u64]);
            if !session.recalls.is_empty() {
                out.push(age(session.progress_ms));
            }
        }
        let mut waiters: Vec<_> = self.waiters.iter().map(|(id, known)| (waiter(*id), known)).collect();
        waiters.sort_unstable_by_key(|(id, _)| *id);
        for (id, known) in waiters {
            out.extend([id, known.session.0]);
            out.extend(known.claims.iter().flat_map(|claim| [claim.inode.0, claim.excludes.number()]));
        }
    }
}
