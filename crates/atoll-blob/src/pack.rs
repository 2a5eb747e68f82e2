//! One piece of bytes, packed, sealed, and back. Invariant: `unpack(pack(x)) == x`,
//! and what fails its checksum, or was changed since it was sealed, is never returned.

use std::cell::RefCell;

use atoll_keys::{Keyring, Purpose};
use atoll_types::limits::EXTENT_BYTES_MAX;
use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use zstd::bulk::Compressor;

use crate::{BlobError, Codec, Compression, Location, Result};

/// Smaller pieces are stored raw: the saving is not worth the time.
const PACK_BYTES_MIN: usize = 4096;
/// Pieces from this size on are sampled first, so that incompressible data costs little.
const SAMPLED_BYTES_MIN: usize = 16 * 1024;
const SAMPLE_BYTES: usize = 2048;
/// Beyond it Zstandard takes much more time for little.
const ZSTD_LEVEL: i32 = 3;

struct Packer {
    table: CompressTable,
    /// Made when it is first wanted: it takes memory.
    zstd: Option<Compressor<'static>>,
    output: Vec<u8>,
}

thread_local! {
    static PACKER: RefCell<Packer> =
        RefCell::new(Packer { table: CompressTable::large(), zstd: None, output: Vec::new() });
}

impl Packer {
    /// The packed bytes when packing saves at least an eighth.
    fn pack(&mut self, input: &[u8], codec: Codec) -> Option<&[u8]> {
        let length = match codec {
            Codec::Raw => return None,
            Codec::Lz4 => {
                self.make_room(get_maximum_output_size(input.len()));
                compress_into_with_table(input, &mut self.output, &mut self.table).ok()?
            }
            Codec::Zstd => {
                self.make_room(zstd::zstd_safe::compress_bound(input.len()));
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(Compressor::new(ZSTD_LEVEL).ok()?),
                };
                zstd.compress_to_buffer(input, &mut self.output[..]).ok()?
            }
        };
        (length <= input.len() - input.len() / 8).then(|| &self.output[..length])
    }

    fn make_room(&mut self, room: usize) {
        if self.output.len() < room {
            self.output.resize(room, 0);
        }
    }

    fn sample_packs(&mut self, input: &[u8], codec: Codec) -> bool {
        [0, input.len() / 2, input.len() - SAMPLE_BYTES]
            .into_iter()
            .any(|start| self.pack(&input[start..start + SAMPLE_BYTES], codec).is_some())
    }
}

/// The bytes to store for a piece of at most `EXTENT_BYTES_MAX` bytes, not sealed yet.
fn squeeze(piece: Bytes, compression: Compression) -> (Bytes, Codec) {
    debug_assert!(piece.len() <= EXTENT_BYTES_MAX);
    let codec = match compression {
        Compression::None => Codec::Raw,
        Compression::Lz4 => Codec::Lz4,
        Compression::Zstd => Codec::Zstd,
    };
    if codec == Codec::Raw || piece.len() < PACK_BYTES_MIN {
        return (piece, Codec::Raw);
    }
    PACKER.with_borrow_mut(|packer| {
        if piece.len() >= SAMPLED_BYTES_MIN && !packer.sample_packs(&piece, codec) {
            return (piece, Codec::Raw);
        }
        match packer.pack(&piece, codec) {
            Some(packed) => (Bytes::copy_from_slice(packed), codec),
            None => (piece, Codec::Raw),
        }
    })
}

/// What a sealed piece is bound to: it is never unpacked as another codec's, or to another length.
fn bound(codec: Codec, length: u32) -> [u8; 5] {
    let mut bound = [codec.number(); 5];
    bound[1..].copy_from_slice(&length.to_le_bytes());
    bound
}

/// The bytes to store for a piece of at most `EXTENT_BYTES_MAX` bytes.
///
/// # Errors
/// `Io` when the system has no random bytes to seal with.
pub(crate) fn pack(piece: Bytes, compression: Compression, keys: Option<&Keyring>) -> Result<(Bytes, Codec)> {
    let length = piece.len() as u32;
    let (packed, codec) = squeeze(piece, compression);
    let Some(keys) = keys else { return Ok((packed, codec)) };
    let sealed = keys.seal(Purpose::Piece, &bound(codec, length), &packed);
    Ok((sealed.map_err(|error| BlobError::Io(error.to_string()))?.into(), codec))
}

/// The piece at `location` from its stored bytes. Fails with `Corrupt` when they are not what was written.
pub(crate) fn unpack(location: &Location, stored: Bytes, keys: Option<&Keyring>) -> Result<Bytes> {
    let corrupt = || BlobError::Corrupt { segment: location.segment, offset: location.offset, length: location.stored };
    if location.length as usize > EXTENT_BYTES_MAX
        || stored.len() != location.stored as usize
        || crc32c::crc32c(&stored) != location.checksum
    {
        return Err(corrupt());
    }
    decode(stored, location.codec, location.length, keys).ok_or_else(corrupt)
}

/// Bytes whose checksum is known to hold, opened and unpacked.
pub(crate) fn decode(stored: Bytes, codec: Codec, length: u32, keys: Option<&Keyring>) -> Option<Bytes> {
    let packed = match keys {
        None => stored,
        Some(keys) => keys.open(Purpose::Piece, &bound(codec, length), &stored).ok()?.into(),
    };
    let unpacked = |unpack: &dyn Fn(&mut [u8]) -> Option<usize>| {
        let mut output = vec![0; length as usize];
        (unpack(&mut output)? == output.len()).then(|| output.into())
    };
    match codec {
        Codec::Raw => (packed.len() == length as usize).then_some(packed),
        Codec::Lz4 => unpacked(&|output| decompress_into(&packed, output).ok()),
        Codec::Zstd => unpacked(&|output| zstd::bulk::decompress_to_buffer(&packed, output).ok()),
    }
}

#[cfg(test)]
mod tests {
    use atoll_types::SegmentId;
    use proptest::prelude::*;

    use super::*;

    const PACKING: [(Compression, Codec); 2] = [(Compression::Lz4, Codec::Lz4), (Compression::Zstd, Codec::Zstd)];

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
        for (compression, packed) in PACKING {
            for length in [0, 1, PACK_BYTES_MIN - 1, PACK_BYTES_MIN, 20_000, EXTENT_BYTES_MAX] {
                let (stored, codec) = pack(noise(length), compression, None).unwrap();
                assert_eq!((stored, codec), (noise(length), Codec::Raw), "{length}");
                let plain = Bytes::from(vec![7; length]);
                let (stored, codec) = pack(plain.clone(), compression, None).unwrap();
                assert_eq!(codec == packed, length >= PACK_BYTES_MIN);
                assert_eq!(decode(stored, codec, length as u32, None), Some(plain));
            }
        }
        assert_eq!(pack(Bytes::from(vec![7; 8192]), Compression::None, None).unwrap().1, Codec::Raw);
    }

    /// Letters and digits alone have no repeats, which is all that LZ4 finds.
    #[test]
    fn zstd_packs_what_lz4_does_not() {
        let text: Bytes = noise(64 * 1024).iter().map(|byte| b'0' + byte % 64).collect::<Vec<_>>().into();
        assert_eq!(pack(text.clone(), Compression::Lz4, None).unwrap().1, Codec::Raw);
        let (stored, codec) = pack(text.clone(), Compression::Zstd, None).unwrap();
        assert_eq!(codec, Codec::Zstd);
        assert!(stored.len() < text.len() / 5 * 4);
        assert_eq!(decode(stored, codec, text.len() as u32, None), Some(text));
    }

    fn located(stored: &Bytes, codec: Codec, length: usize) -> Location {
        let checksum = crc32c::crc32c(stored);
        let stored = stored.len() as u32;
        Location { segment: SegmentId(1), offset: 0, stored, length: length as u32, codec, checksum }
    }

    proptest! {
        /// Also when the checksum was made to fit.
        #[test]
        fn a_sealed_piece_comes_back_whole_or_not_at_all(
            noisy in any::<bool>(), length in 0..20_000_usize, which in 0..2_usize, at in any::<usize>(), bit in 0..8_u8,
        ) {
            let keys = Keyring::random().unwrap();
            let piece = if noisy { noise(length) } else { Bytes::from(vec![b'a'; length]) };
            let (stored, codec) = pack(piece.clone(), PACKING[which].0, Some(&keys)).unwrap();
            let location = located(&stored, codec, length);
            prop_assert_eq!(unpack(&location, stored.clone(), Some(&keys)).unwrap(), piece);
            let mut flipped = stored.to_vec();
            flipped[at % stored.len()] ^= 1 << bit;
            let flipped = Bytes::from(flipped);
            prop_assert!(unpack(&location, flipped.clone(), Some(&keys)).is_err());
            prop_assert!(unpack(&located(&flipped, codec, length), flipped, Some(&keys)).is_err());
            for other in [Codec::Raw, Codec::Lz4, Codec::Zstd].into_iter().filter(|other| *other != codec) {
                let location = Location { codec: other, ..location };
                prop_assert!(unpack(&location, stored.clone(), Some(&keys)).is_err());
            }
            let longer = Location { length: location.length + 1, ..location };
            prop_assert!(unpack(&longer, stored.clone(), Some(&keys)).is_err());
            prop_assert!(unpack(&location, stored.clone(), Some(&Keyring::random().unwrap())).is_err());
            if codec == Codec::Raw && length > 0 {
                prop_assert!(unpack(&location, stored, None).is_err());
            }
        }
    }
}
