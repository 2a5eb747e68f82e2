//! One piece of bytes, packed and unpacked. Invariant: `unpack(pack(x)) == x`,
//! and what fails its checksum is never returned.

use std::cell::RefCell;

use atoll_types::limits::EXTENT_BYTES_MAX;
use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::{BlobError, Codec, Location, Result};

/// Smaller pieces are stored raw: the saving is not worth the time.
const PACK_BYTES_MIN: usize = 4096;
/// Pieces from this size on are sampled first, so that incompressible data costs little.
const SAMPLED_BYTES_MIN: usize = 16 * 1024;
const SAMPLE_BYTES: usize = 2048;

struct Packer {
    table: CompressTable,
    output: Vec<u8>,
}

thread_local! {
    static PACKER: RefCell<Packer> = RefCell::new(Packer { table: CompressTable::large(), output: Vec::new() });
}

impl Packer {
    /// The packed bytes when packing saves at least an eighth.
    fn pack(&mut self, input: &[u8]) -> Option<&[u8]> {
        let room = get_maximum_output_size(input.len());
        if self.output.len() < room {
            self.output.resize(room, 0);
        }
        let length = compress_into_with_table(input, &mut self.output[..room], &mut self.table).ok()?;
        (length <= input.len() - input.len() / 8).then(|| &self.output[..length])
    }

    fn sample_packs(&mut self, input: &[u8]) -> bool {
        [0, input.len() / 2, input.len() - SAMPLE_BYTES]
            .into_iter()
            .any(|start| self.pack(&input[start..start + SAMPLE_BYTES]).is_some())
    }
}

/// The bytes to store for a piece of at most `EXTENT_BYTES_MAX` bytes.
pub(crate) fn pack(piece: Bytes, compress: bool) -> (Bytes, Codec) {
    debug_assert!(piece.len() <= EXTENT_BYTES_MAX);
    if !compress || piece.len() < PACK_BYTES_MIN {
        return (piece, Codec::Raw);
    }
    PACKER.with_borrow_mut(|packer| {
        if piece.len() >= SAMPLED_BYTES_MIN && !packer.sample_packs(&piece) {
            return (piece, Codec::Raw);
        }
        match packer.pack(&piece) {
            Some(packed) => (Bytes::copy_from_slice(packed), Codec::Lz4),
            None => (piece, Codec::Raw),
        }
    })
}

/// The piece at `location` from its stored bytes. Fails with `Corrupt` when they are not what was written.
pub(crate) fn unpack(location: &Location, stored: Bytes) -> Result<Bytes> {
    let corrupt = || BlobError::Corrupt { segment: location.segment, offset: location.offset, length: location.stored };
    if location.length as usize > EXTENT_BYTES_MAX
        || stored.len() != location.stored as usize
        || crc32c::crc32c(&stored) != location.checksum
    {
        return Err(corrupt());
    }
    decode(stored, location.codec, location.length).ok_or_else(corrupt)
}

/// Bytes whose checksum is known to hold, unpacked.
pub(crate) fn decode(stored: Bytes, codec: Codec, length: u32) -> Option<Bytes> {
    match codec {
        Codec::Raw => (stored.len() == length as usize).then_some(stored),
        Codec::Lz4 => {
            let mut output = vec![0; length as usize];
            let written = decompress_into(&stored, &mut output).ok()?;
            (written == output.len()).then(|| output.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Bytes {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes = (0..length).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        bytes.collect::<Vec<_>>().into()
    }

    #[test]
    fn packing_is_kept_only_when_it_saves() {
        for length in [0, 1, PACK_BYTES_MIN - 1, PACK_BYTES_MIN, 20_000, EXTENT_BYTES_MAX] {
            let (stored, codec) = pack(noise(length), true);
            assert_eq!((stored, codec), (noise(length), Codec::Raw), "{length}");
            let plain = Bytes::from(vec![7; length]);
            let (stored, codec) = pack(plain.clone(), true);
            assert_eq!(codec == Codec::Lz4, length >= PACK_BYTES_MIN);
            assert_eq!(decode(stored, codec, length as u32), Some(plain));
        }
        assert_eq!(pack(Bytes::from(vec![7; 8192]), false).1, Codec::Raw);
    }
}
