//! Half-open byte ranges of a file.

use serde::{Deserialize, Serialize};

/// `start..end` in bytes; empty when `start >= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    /// To the end of the file, however long.
    pub const EVERYTHING: ByteRange = ByteRange { start: 0, end: u64::MAX };

    pub fn new(start: u64, end: u64) -> Self {
        ByteRange { start, end }
    }

    /// The range of `len` bytes from `start`, cut at the largest offset.
    pub fn at(start: u64, len: u64) -> Self {
        ByteRange { start, end: start.saturating_add(len) }
    }

    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// What lies in both; empty when they do not overlap.
    pub fn intersection(&self, other: &ByteRange) -> ByteRange {
        ByteRange { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    pub fn overlaps(&self, other: &ByteRange) -> bool {
        self.start < other.end && other.start < self.end
    }
}
