//! What a volume shows, to be compared with what it, or a version of it, shows at another time.

use std::collections::BTreeMap;

use atoll_types::{ByteRange, Caller, FileKind, InodeId, Operation, Outcome, SessionId, Timestamp};
use atoll_volume::Volume;

const LOOKING: SessionId = SessionId(9);

async fn ask(volume: &Volume, operation: Operation) -> Outcome {
    volume
        .execute(LOOKING, &Caller::default(), operation.clone())
        .await
        .unwrap_or_else(|e| panic!("{operation:?}: {e}"))
}

/// Where the trash is among the paths, which the root may have an entry for.
const TRASH: &str = "(trash)";

/// Each path, the trash included, with everything that is there but the time of the last access.
pub async fn tree(volume: &Volume) -> BTreeMap<String, String> {
    tree_below(volume, InodeId::ROOT).await
}

/// The same below a directory, which may be the root of a snapshot, inodes by their own numbers.
pub async fn tree_below(volume: &Volume, directory: InodeId) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(directory, FileKind::Directory, String::new())];
    if directory.in_volume() == InodeId::ROOT {
        let trash = directory.snapshot().map_or(InodeId::TRASH, |number| InodeId::TRASH.in_snapshot(number));
        let look = Operation::GetAttributes { inode: trash };
        if volume.execute(LOOKING, &Caller::default(), look).await.is_ok() {
            todo.push((trash, FileKind::Directory, TRASH.to_owned()));
        }
    }
    while let Some((inode, kind, path)) = todo.pop() {
        let Outcome::Entry(mut attributes) = ask(volume, Operation::GetAttributes { inode }).await else { panic!() };
        attributes.accessed = Timestamp::default();
        attributes.inode = attributes.inode.in_volume();
        let mut text = format!("{attributes:?}");
        let Outcome::Data(names) = ask(volume, Operation::ListXattrs { inode }).await else { panic!() };
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = names.slice_ref(name);
            let value = ask(volume, Operation::GetXattr { inode, name: name.clone() }).await;
            text += &format!(" {name:?}={value:?}");
        }
        match kind {
            FileKind::Directory => {
                let list = Operation::ReadDirectory {
                    inode,
                    after: 0,
                    entries_max: 4096,
                    with_attributes: false,
                    ahead: false,
                };
                let Outcome::Listing { entries, end: true } = ask(volume, list).await else {
                    panic!("a part of {path}")
                };
                let child = |entry: atoll_types::operation::DirectoryEntry| {
                    let name = entry.name.as_bytes().escape_ascii().to_string();
                    (entry.inode, entry.kind, format!("{path}/{name}"))
                };
                todo.extend(entries.into_iter().map(child));
            }
            FileKind::Regular => {
                // Files of tests are large by their holes alone.
                let range = ByteRange::new(0, attributes.size.min(2 << 20));
                text += &format!(" {:x}", checksum(volume, inode, range).await);
            }
            FileKind::Symlink => text += &format!(" {:?}", ask(volume, Operation::ReadSymlink { inode }).await),
            _ => {}
        }
        found.insert(path, text);
    }
    found
}

async fn checksum(volume: &Volume, inode: InodeId, range: ByteRange) -> u64 {
    let mut sum = 14_695_981_039_346_656_037_u64;
    let mut at = range.start;
    while at < range.end {
        let part = ByteRange::new(at, range.end.min(at + (1 << 20)));
        let Outcome::Data(bytes) = ask(volume, Operation::Read { inode, range: part }).await else { panic!() };
        assert_eq!(bytes.len() as u64, part.len());
        // FNV-1a.
        bytes.iter().for_each(|byte| sum = (sum ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211));
        at = part.end;
    }
    sum
}
