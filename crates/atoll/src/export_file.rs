//! The file of `atoll volume export`, in a layout that depends on no machine: `docs/format.md`.
//!
//! Invariant: what is read is what was written, to the last record, or an error.

use std::io::{self, Read, Write};

use atoll_wire::Exported;
use bytes::{Buf, BufMut, Bytes, BytesMut};

const MAGIC: &[u8] = b"atoll export\n";
const VERSION: u32 = 1;
/// Largest block, in bytes: a server's answer, with the largest value as its last one.
const BLOCK_BYTES_MAX: usize = 2 << 20;

pub type Record = (Bytes, Bytes);

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a whole export: {what}"))
}

/// `u32 length, u32 CRC-32C, bytes`.
fn put_block(file: &mut impl Write, block: &[u8]) -> io::Result<()> {
    file.write_all(&(block.len() as u32).to_le_bytes())?;
    file.write_all(&crc32c::crc32c(block).to_le_bytes())?;
    file.write_all(block)
}

fn take_block(file: &mut impl Read) -> io::Result<Bytes> {
    let cut_off = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is cut off"),
        _ => error,
    };
    let mut head = [0; 8];
    file.read_exact(&mut head).map_err(cut_off)?;
    let mut fields = &head[..];
    let (length, checksum) = (fields.get_u32_le() as usize, fields.get_u32_le());
    if length > BLOCK_BYTES_MAX {
        return Err(damaged("a block is too long"));
    }
    let mut block = vec![0; length];
    file.read_exact(&mut block).map_err(cut_off)?;
    if crc32c::crc32c(&block) != checksum {
        return Err(damaged("a checksum does not hold"));
    }
    Ok(block.into())
}

pub struct Writer<W> {
    file: W,
    records: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(mut file: W, source: &Exported) -> io::Result<Self> {
        file.write_all(MAGIC)?;
        file.write_all(&VERSION.to_le_bytes())?;
        let json = serde_json::to_vec(source).map_err(io::Error::other)?;
        put_block(&mut file, &json)?;
        Ok(Writer { file, records: 0 })
    }

    /// At least one record.
    pub fn add(&mut self, records: &[Record]) -> io::Result<()> {
        let mut block = BytesMut::new();
        for (key, value) in records {
            block.put_u16_le(u16::try_from(key.len()).map_err(io::Error::other)?);
            block.put_u32_le(u32::try_from(value.len()).map_err(io::Error::other)?);
            block.put_slice(key);
            block.put_slice(value);
        }
        self.records += records.len() as u64;
        put_block(&mut self.file, &block)
    }

    /// The end: an empty block, and how many records there are.
    pub fn end(mut self) -> io::Result<(W, u64)> {
        put_block(&mut self.file, &[])?;
        put_block(&mut self.file, &self.records.to_le_bytes())?;
        self.file.flush()?;
        Ok((self.file, self.records))
    }
}

pub struct Reader<R> {
    file: R,
    records: u64,
    has_ended: bool,
}

impl<R: Read> Reader<R> {
    pub fn new(mut file: R) -> io::Result<(Self, Exported)> {
        let mut magic = [0; MAGIC.len()];
        let mut version = [0; 4];
        let none = |_| damaged("it does not begin as one");
        file.read_exact(&mut magic).map_err(none)?;
        file.read_exact(&mut version).map_err(none)?;
        if magic != MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        let version = u32::from_le_bytes(version);
        if version != VERSION {
            let text = format!("an export of version {version}; this release reads version {VERSION}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let source = take_block(&mut file)?;
        let source = serde_json::from_slice(&source).map_err(|_| damaged("it does not say of what"))?;
        Ok((Reader { file, records: 0, has_ended: false }, source))
    }

    /// The next records; none when all were read, and none is missing.
    pub fn next(&mut self) -> io::Result<Vec<Record>> {
        let mut block = if self.has_ended { Bytes::new() } else { take_block(&mut self.file)? };
        if block.is_empty() {
            if !std::mem::replace(&mut self.has_ended, true)
                && take_block(&mut self.file)? != self.records.to_le_bytes()[..]
            {
                return Err(damaged("records are missing"));
            }
            return Ok(Vec::new());
        }
        let mut records = Vec::new();
        while block.has_remaining() {
            if block.remaining() < 6 {
                return Err(damaged("a record is cut off"));
            }
            let (key, value) = (block.get_u16_le() as usize, block.get_u32_le() as usize);
            if block.remaining() < key + value {
                return Err(damaged("a record is cut off"));
            }
            records.push((block.split_to(key), block.split_to(value)));
        }
        self.records += records.len() as u64;
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Exported {
        let [volume, store, durability, compression] = ["work", "s3://b/p", "local", "lz4"].map(str::to_owned);
        Exported { volume, store, durability, compression, epoch: 7 }
    }

    fn record(n: u8) -> Record {
        (Bytes::from(vec![n; 3]), Bytes::from(vec![n; usize::from(n) * 50]))
    }

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &source()).unwrap();
        writer.add(&[record(0), record(1)]).unwrap();
        writer.add(&[record(2)]).unwrap();
        let (file, records) = writer.end().unwrap();
        assert_eq!(records, 3);
        file
    }

    fn read(file: &[u8]) -> io::Result<(Exported, Vec<Record>)> {
        let (mut reader, source) = Reader::new(file)?;
        let mut all = Vec::new();
        loop {
            let records = reader.next()?;
            if records.is_empty() {
                return Ok((source, all));
            }
            all.extend(records);
        }
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        assert_eq!(read(&written()).unwrap(), (source(), vec![record(0), record(1), record(2)]));
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_or_damaged_is_refused() {
        let file = written();
        for length in 0..file.len() {
            assert!(read(&file[..length]).is_err(), "cut at {length}");
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn a_block_that_is_missing_is_noticed() {
        let mut writer = Writer::new(Vec::new(), &source()).unwrap();
        writer.records = 5;
        let (file, _) = writer.end().unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("missing"));
    }
}
