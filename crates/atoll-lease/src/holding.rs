//! The client's side of one inode.

use crate::{Grant, Issue, Recall, Rights};

/// What a client holds on one inode.
///
/// A recall may overtake the reply with the grant that it takes back, so the newest
/// recall of each right is remembered: grants that are not newer are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Holding {
    rights: Rights,
    /// Of the newest grant that was taken.
    issue: Issue,
    recalled: [Issue; 4],
}

impl Holding {
    /// Nothing is held, and grants up to `floor` are void.
    pub fn since(floor: Issue) -> Self {
        Holding { rights: Rights::NONE, issue: floor, recalled: [floor; 4] }
    }

    /// The newest grant or recall that is known.
    pub fn newest(&self) -> Issue {
        self.recalled.iter().copied().fold(self.issue, Issue::max)
    }

    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Everything granted up to here is known.
    pub fn issue(&self) -> Issue {
        self.issue
    }

    /// Take a grant; answers what of it counts.
    pub fn grant(&mut self, grant: &Grant) -> Rights {
        let mut taken = Rights::NONE;
        for bit in grant.rights.bits() {
            if grant.issue > self.recalled[bit] {
                taken |= Rights::bit(bit);
            }
        }
        let taken = taken.whole();
        self.rights |= taken;
        self.issue = self.issue.max(grant.issue);
        taken
    }

    /// The inode was made by the client itself, in a place that nobody else sees: these rights are its own before the
    /// authority knows of it.
    pub fn own(&mut self, rights: Rights) {
        self.rights |= rights;
    }

    /// Stop using rights at once; answers those that were held. When all that rests on them is gone
    /// (unwritten changes written, the kernel told), the recall is sent back as its acknowledgement.
    pub fn recall(&mut self, recall: &Recall) -> Rights {
        for bit in recall.rights.bits() {
            self.recalled[bit] = self.recalled[bit].max(recall.issue);
        }
        let held = self.rights & recall.rights;
        self.rights = (self.rights - recall.rights).whole();
        held
    }

    /// Give rights up unasked: the message to send when nothing rests on them any more.
    pub fn release(&mut self, inode: atoll_types::InodeId, rights: Rights) -> Recall {
        let message = Recall { inode, rights: self.rights & rights, issue: self.issue };
        for bit in rights.bits() {
            self.recalled[bit] = self.recalled[bit].max(self.issue);
        }
        self.rights = (self.rights - rights).whole();
        message
    }

    /// Append what it does from now on depends on, for model checking; see [`crate::Authority::describe`].
    pub fn describe(&self, issue: &mut dyn FnMut(Issue) -> u64, out: &mut Vec<u64>) {
        out.extend([self.rights.number(), issue(self.issue)]);
        out.extend(self.recalled.iter().map(|recalled| issue(*recalled)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::InodeId;

    const FILE: InodeId = InodeId(7);

    fn grant(rights: Rights, issue: u64) -> Grant {
        Grant { inode: FILE, rights, issue: Issue(issue) }
    }

    fn recall(rights: Rights, issue: u64) -> Recall {
        Recall { inode: FILE, rights, issue: Issue(issue) }
    }

    #[test]
    fn a_recall_that_overtakes_its_grant_voids_it() {
        let mut holding = Holding::default();
        assert_eq!(holding.recall(&recall(Rights::INODE_EXCLUSIVE, 5)), Rights::NONE);
        assert_eq!(holding.grant(&grant(Rights::INODE_EXCLUSIVE | Rights::NAMES, 4)), Rights::NAMES);
        assert_eq!(holding.grant(&grant(Rights::INODE, 6)), Rights::INODE);
    }

    #[test]
    fn a_reader_takes_only_the_exclusive_half() {
        let mut holding = Holding::default();
        holding.grant(&grant(Rights::INODE_EXCLUSIVE, 1));
        assert_eq!(holding.recall(&recall(Rights::INODE_WRITER, 1)), Rights::INODE_WRITER);
        assert_eq!(holding.rights(), Rights::INODE);
    }

    #[test]
    fn an_exclusive_half_without_its_shared_half_is_nothing() {
        let mut holding = Holding::default();
        holding.recall(&recall(Rights::INODE, 3));
        assert_eq!(holding.grant(&grant(Rights::INODE_EXCLUSIVE, 2)), Rights::NONE);
    }
}
