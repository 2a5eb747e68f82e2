//! What the store holds of a session: which of its changes are executed.
//!
//! It is written in the batch that holds the changes themselves. So a change that a client sends again, to this
//! authority or to the next, is executed exactly once: whoever knows that it was executed knows its effect, too.

use std::collections::BTreeMap;

use atoll_types::{Errno, JournalPosition, OperationSeq, Outcome};
use bytes::{BufMut, Bytes, BytesMut};

use crate::error::VolumeError;
use crate::format::{self, Fields};

/// Most gaps among the numbers of executed changes; of more, the oldest are taken for executed.
const GAPS_MAX: usize = 4096;
/// Longest answer in bytes, as stored.
const ANSWER_BYTES_MAX: usize = 1 << 20;

pub type Results = Vec<Result<Outcome, Errno>>;

/// Who a session is, for the server that serves it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionInfo {
    /// What its client proves itself with.
    pub secret: u128,
    pub read_only: bool,
    /// It keeps answers under leases.
    pub leases: bool,
}

impl std::fmt::Debug for SessionInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionInfo(read_only {}, leases {})", self.read_only, self.leases)
    }
}

/// Which of its session's changes an operation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// None: it may be executed twice, or is nobody's.
    #[default]
    None,
    Numbered {
        sequence: OperationSeq,
        /// The client has the answers of every change below this number.
        acknowledged: OperationSeq,
        /// The client knows every change below this number to be durable.
        released: OperationSeq,
    },
    /// With it, the session's journal is executed up to here.
    Journal(JournalPosition),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    pub info: SessionInfo,
    /// The journal is executed up to here.
    pub journal: JournalPosition,
    /// Every change below this number is executed, or never will be.
    released: u64,
    /// Numbers of executed changes from there on: first number to the one behind the last.
    executed: BTreeMap<u64, u64>,
    /// Answers that the client may not have.
    answers: BTreeMap<u64, Results>,
}

impl SessionRecord {
    pub fn new(info: SessionInfo, journal: JournalPosition) -> Self {
        SessionRecord { info, journal, released: 1, executed: BTreeMap::new(), answers: BTreeMap::new() }
    }

    /// An operation was executed.
    pub fn note(&mut self, mark: Mark, result: Result<&Outcome, Errno>) {
        match mark {
            Mark::None => {}
            Mark::Journal(position) => self.journal = self.journal.max(position),
            Mark::Numbered { sequence, acknowledged, released } => {
                self.release(released.0);
                if self.answers.first_key_value().is_some_and(|(first, _)| *first < acknowledged.0) {
                    self.answers = self.answers.split_off(&acknowledged.0);
                }
                self.insert(sequence.0);
                if sequence.0 >= acknowledged.0 {
                    self.answers.entry(sequence.0).or_default().push(result.cloned());
                }
            }
        }
    }

    fn release(&mut self, released: u64) {
        if released <= self.released {
            return;
        }
        self.released = released;
        while let Some((&start, &end)) = self.executed.first_key_value()
            && start < released
        {
            self.executed.remove(&start);
            if end > released {
                self.executed.insert(released, end);
            }
        }
    }

    fn insert(&mut self, sequence: u64) {
        if self.is_executed(sequence) {
            return;
        }
        let end = self.executed.remove(&(sequence + 1)).unwrap_or(sequence + 1);
        match self.executed.range_mut(..sequence).next_back() {
            Some((_, before)) if *before == sequence => *before = end,
            _ => {
                self.executed.insert(sequence, end);
            }
        }
        if self.executed.len() > GAPS_MAX
            && let Some((_, &end)) = self.executed.first_key_value()
        {
            self.release(end);
        }
    }

    fn is_executed(&self, sequence: u64) -> bool {
        let range = self.executed.range(..=sequence).next_back();
        sequence < self.released || range.is_some_and(|(_, end)| sequence < *end)
    }

    /// The answers of a change that was executed, as far as they are kept; `None` when it was not.
    pub fn answers(&self, sequence: OperationSeq) -> Option<Results> {
        self.is_executed(sequence.0).then(|| self.answers.get(&sequence.0).cloned().unwrap_or_default())
    }

    pub fn encode(&self) -> Bytes {
        let mut v = format::value(64);
        v.put_u128(self.info.secret);
        v.put_u8(u8::from(self.info.read_only) | u8::from(self.info.leases) << 1);
        v.put_u64(self.journal.0);
        v.put_u64(self.released);
        v.put_u32(self.executed.len() as u32);
        for (start, end) in &self.executed {
            v.put_u64(*start);
            v.put_u64(*end);
        }
        for (sequence, results) in &self.answers {
            // One that does not fit is not kept: its change is executed all the same.
            let Ok(bytes) = postcard::to_allocvec(results) else { continue };
            if bytes.len() <= ANSWER_BYTES_MAX {
                v.put_u64(*sequence);
                v.put_u32(bytes.len() as u32);
                v.put_slice(&bytes);
            }
        }
        BytesMut::freeze(v)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, VolumeError> {
        let mut f = Fields::new(bytes, "session")?;
        let secret = u128::from_be_bytes(f.take()?);
        let flags = f.u8()?;
        let info = SessionInfo { secret, read_only: flags & 1 != 0, leases: flags & 2 != 0 };
        let mut record = SessionRecord::new(info, JournalPosition(f.u64()?));
        record.released = f.u64()?;
        for _ in 0..f.u32()? {
            let (start, end) = (f.u64()?, f.u64()?);
            record.executed.insert(start, end);
        }
        while !f.is_empty() {
            let sequence = f.u64()?;
            let length = f.u32()? as usize;
            // Answers of another release may look otherwise: then it is only known that the change was executed.
            let results = postcard::from_bytes(f.slice(length)?).unwrap_or_default();
            record.answers.insert(sequence, results);
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> SessionRecord {
        let info = SessionInfo { secret: 7, read_only: false, leases: true };
        SessionRecord::new(info, JournalPosition(3))
    }

    fn numbered(sequence: u64, acknowledged: u64, released: u64) -> Mark {
        Mark::Numbered {
            sequence: OperationSeq(sequence),
            acknowledged: OperationSeq(acknowledged),
            released: OperationSeq(released),
        }
    }

    #[test]
    fn what_was_executed_is_known_with_its_answer_until_the_client_has_it() {
        let mut record = record();
        record.note(numbered(2, 1, 1), Ok(&Outcome::Offset(5)));
        record.note(numbered(2, 1, 1), Err(Errno::ENOENT));
        assert_eq!(record.answers(OperationSeq(2)), Some(vec![Ok(Outcome::Offset(5)), Err(Errno::ENOENT)]));
        assert_eq!(record.answers(OperationSeq(1)), None, "a number may come later");
        record.note(numbered(3, 3, 1), Ok(&Outcome::Done));
        assert_eq!(record.answers(OperationSeq(2)), Some(Vec::new()));
        record.note(numbered(4, 4, 4), Ok(&Outcome::Done));
        assert_eq!(record.answers(OperationSeq(1)), Some(Vec::new()), "released");
    }

    #[test]
    fn a_journal_only_moves_on() {
        let mut record = record();
        record.note(Mark::Journal(JournalPosition(9)), Err(Errno::ENOSPC));
        record.note(Mark::Journal(JournalPosition(8)), Ok(&Outcome::Done));
        assert_eq!(record.journal, JournalPosition(9));
    }

    #[test]
    fn gaps_are_bounded() {
        let mut record = record();
        for sequence in 0..3 * GAPS_MAX as u64 {
            record.note(numbered(2 * sequence + 2, u64::MAX, 1), Ok(&Outcome::Done));
        }
        assert!(record.executed.len() <= GAPS_MAX);
    }

    proptest! {
        #[test]
        fn numbers_are_executed_when_they_were_noted(noted in proptest::collection::vec(1u64..40, 0..60), released in 1u64..40) {
            let mut record = record();
            for &sequence in &noted {
                record.note(numbered(sequence, u64::MAX, 1), Ok(&Outcome::Done));
            }
            record.release(released);
            for sequence in 1..45 {
                let expected = sequence < released || noted.contains(&sequence);
                prop_assert_eq!(record.answers(OperationSeq(sequence)).is_some(), expected);
            }
            prop_assert_eq!(SessionRecord::decode(&record.encode()).unwrap(), record);
        }

        #[test]
        fn decoding_foreign_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SessionRecord::decode(&[&[format::FORMAT_VERSION][..], &bytes].concat());
        }
    }
}
