//! The bytes of a segment that are in memory: pieces in the order of their
//! offsets, never overlapping. Recovered segments may have holes.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::Codec;

#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u32,
    pub(crate) bytes: Bytes,
    /// How to unpack it and how long it is then; unknown for a recovered fragment.
    pub(crate) packing: Option<(Codec, u32)>,
}

impl Piece {
    pub(crate) fn end(&self) -> u32 {
        self.offset + self.bytes.len() as u32
    }
}

#[derive(Debug, Default)]
pub(crate) struct Rope {
    pieces: VecDeque<Piece>,
}

impl Rope {
    /// Fragments in any order; where they overlap the one that starts first wins.
    pub(crate) fn recovered(mut fragments: Vec<(u32, Bytes)>) -> Self {
        fragments.sort_by_key(|(offset, _)| *offset);
        let mut rope = Rope::default();
        let mut end = 0;
        for (offset, bytes) in fragments {
            let skip = (end.max(offset) - offset) as usize;
            if skip < bytes.len() {
                let piece = Piece { offset: offset + skip as u32, bytes: bytes.slice(skip..), packing: None };
                end = piece.end();
                rope.push(piece);
            }
        }
        rope
    }

    pub(crate) fn push(&mut self, piece: Piece) {
        debug_assert!(self.end() <= piece.offset);
        self.pieces.push_back(piece);
    }

    pub(crate) fn end(&self) -> u32 {
        self.pieces.back().map_or(0, Piece::end)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes.len() as u64).sum()
    }

    /// The bytes `offset..offset + length` when all of them are here.
    pub(crate) fn slice(&self, offset: u32, length: u32) -> Option<Bytes> {
        let end = offset.checked_add(length)?;
        let first = self.pieces.partition_point(|piece| piece.end() <= offset);
        let piece = self.pieces.get(first)?;
        if piece.offset > offset {
            return None;
        }
        if piece.end() >= end {
            let start = (offset - piece.offset) as usize;
            return Some(piece.bytes.slice(start..start + length as usize));
        }
        let mut whole = BytesMut::with_capacity(length as usize);
        let mut at = offset;
        for piece in self.pieces.range(first..) {
            if piece.offset > at || at >= end {
                break;
            }
            let until = end.min(piece.end());
            whole.extend_from_slice(&piece.bytes[(at - piece.offset) as usize..(until - piece.offset) as usize]);
            at = until;
        }
        (at == end).then(|| whole.freeze())
    }

    /// What lies at `offset` or after it, as `(offset, bytes)`.
    pub(crate) fn from(&self, offset: u32) -> impl Iterator<Item = (u32, Bytes)> {
        let first = self.pieces.partition_point(|piece| piece.end() <= offset);
        self.pieces.range(first..).map(move |piece| {
            let skip = offset.saturating_sub(piece.offset);
            (piece.offset + skip, piece.bytes.slice(skip as usize..))
        })
    }

    /// Drops the pieces that end at `offset` or before; the bytes dropped.
    pub(crate) fn drop_before(&mut self, offset: u32) -> u64 {
        let count = self.pieces.partition_point(|piece| piece.end() <= offset);
        self.pieces.drain(..count).map(|piece| piece.bytes.len() as u64).sum()
    }

    /// Takes everything.
    pub(crate) fn take(&mut self) -> VecDeque<Piece> {
        std::mem::take(&mut self.pieces)
    }
}

/// Joins neighbours into chunks of at most `chunk_bytes_max`, so that 4 KiB writes
/// do not each cost a system call. Larger pieces are passed through uncopied.
pub(crate) fn coalesce(pieces: impl Iterator<Item = (u32, Bytes)>, chunk_bytes_max: usize) -> Vec<(u32, Bytes)> {
    let mut chunks: Vec<(u32, Bytes)> = Vec::new();
    let mut run: Vec<Bytes> = Vec::new();
    let (mut run_start, mut run_bytes) = (0u32, 0usize);
    let mut flush = |run: &mut Vec<Bytes>, start: u32, length: usize| match run.len() {
        0 => {}
        1 => chunks.extend(run.pop().map(|only| (start, only))),
        _ => {
            let mut joined = BytesMut::with_capacity(length);
            run.drain(..).for_each(|part| joined.extend_from_slice(&part));
            chunks.push((start, joined.freeze()));
        }
    };
    for (offset, bytes) in pieces {
        let joins = run_start as usize + run_bytes == offset as usize && run_bytes + bytes.len() <= chunk_bytes_max;
        if !joins {
            flush(&mut run, run_start, run_bytes);
            (run_start, run_bytes) = (offset, 0);
        }
        run_bytes += bytes.len();
        run.push(bytes);
    }
    flush(&mut run, run_start, run_bytes);
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cross_pieces_but_not_holes() {
        let fragments =
            vec![(8, Bytes::from("ijkl")), (0, Bytes::from("abcd")), (4, Bytes::from("ef")), (2, Bytes::from("cd"))];
        let rope = Rope::recovered(fragments);
        assert_eq!(rope.bytes(), 10);
        assert_eq!(rope.end(), 12);
        assert_eq!(rope.slice(1, 4), Some(Bytes::from("bcde")));
        assert_eq!(rope.slice(9, 2), Some(Bytes::from("jk")));
        assert_eq!(rope.slice(5, 2), None);
        assert_eq!(rope.slice(11, 2), None);
        assert_eq!(rope.slice(u32::MAX, 2), None);
    }

    #[test]
    fn coalescing_keeps_every_byte_and_every_hole() {
        let mut rope = Rope::recovered(vec![(0, Bytes::from("ab")), (2, Bytes::from("cd")), (6, Bytes::from("gh"))]);
        assert_eq!(coalesce(rope.from(1), 16), vec![(1, Bytes::from("bcd")), (6, Bytes::from("gh"))]);
        assert_eq!(coalesce(rope.from(0), 3).len(), 3);
        assert_eq!(rope.drop_before(3), 2);
        assert_eq!(rope.slice(3, 1), Some(Bytes::from("d")));
        assert_eq!(rope.take().len(), 2);
    }
}
