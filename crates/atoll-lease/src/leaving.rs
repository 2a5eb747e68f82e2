//! The client's side of one inode whose rights are on their way back.

use crate::Recall;

/// Recalls of one inode that are being carried out.
///
/// They are acknowledged together, when the last of their duties is done: a recall may find that an earlier one
/// has taken everything, while the kernel has not dropped it yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Leaving {
    duties: u32,
    recalls: Vec<Recall>,
}

impl Leaving {
    /// A recall came, and a duty with it unless there is nothing to do. Answers what to acknowledge now.
    pub fn begin(&mut self, recall: Recall, has_duty: bool) -> Vec<Recall> {
        self.recalls.push(recall);
        self.duties += u32::from(has_duty);
        self.finished()
    }

    /// A duty is done. Answers what to acknowledge now.
    pub fn done(&mut self) -> Vec<Recall> {
        self.duties -= 1;
        self.finished()
    }

    fn finished(&mut self) -> Vec<Recall> {
        if self.duties == 0 { std::mem::take(&mut self.recalls) } else { Vec::new() }
    }

    /// True when nothing is on its way back.
    pub fn is_empty(&self) -> bool {
        self.duties == 0
    }

    /// Recalls that are not acknowledged.
    pub fn recalls(&self) -> &[Recall] {
        &self.recalls
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Issue, Rights};
    use atoll_types::InodeId;

    fn recall(rights: Rights, issue: u64) -> Recall {
        Recall { inode: InodeId(7), rights, issue: Issue(issue) }
    }

    #[test]
    fn a_recall_with_nothing_to_do_waits_for_an_earlier_one() {
        let (first, second) = (recall(Rights::INODE, 1), recall(Rights::INODE | Rights::NAMES, 2));
        let mut leaving = Leaving::default();
        assert!(leaving.begin(first, true).is_empty());
        assert!(leaving.begin(second, false).is_empty(), "the kernel still keeps what the first takes");
        assert_eq!(leaving.done(), [first, second]);
        assert_eq!(leaving.begin(second, false), [second]);
    }

    #[test]
    fn duties_are_done_in_any_order() {
        let (first, second) = (recall(Rights::INODE, 1), recall(Rights::NAMES, 2));
        let mut leaving = Leaving::default();
        assert!(leaving.begin(first, true).is_empty() && leaving.begin(second, true).is_empty());
        assert!(leaving.done().is_empty() && !leaving.is_empty());
        assert_eq!(leaving.done(), [first, second]);
        assert!(leaving.is_empty());
    }
}
