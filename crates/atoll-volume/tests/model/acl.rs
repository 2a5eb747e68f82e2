//! POSIX access control lists as the Linux kernel treats them (`fs/posix_acl.c`).

use atoll_types::Errno;

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

pub const USER_OBJ: u16 = 1;
pub const USER: u16 = 2;
pub const GROUP_OBJ: u16 = 4;
pub const GROUP: u16 = 8;
pub const MASK: u16 = 16;
pub const OTHER: u16 = 32;

/// (tag, permissions, id)
pub type Entry = (u16, u16, u32);

pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// `None`: the value says that there is to be no list.
pub fn decode(value: &[u8]) -> Result<Option<Vec<Entry>>, Errno> {
    if value.is_empty() {
        return Ok(None);
    }
    let (version, rest) = value.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
    if *version != [2, 0, 0, 0] {
        return Err(Errno::EOPNOTSUPP);
    }
    if rest.len() % 8 != 0 {
        return Err(Errno::EINVAL);
    }
    let half = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]);
    let word = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
    let entries: Vec<Entry> = rest.chunks(8).map(|c| (half(c), half(&c[2..]), word(&c[4..]))).collect();
    if entries.iter().any(|(tag, _, _)| ![USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(tag)) {
        return Err(Errno::EINVAL);
    }
    Ok(if entries.is_empty() { None } else { Some(entries) })
}

/// One of each obligatory entry, in the order of the tags, and a mask where somebody is named.
pub fn is_valid(entries: &[Entry]) -> bool {
    let tags: Vec<u16> = entries.iter().map(|e| e.0).collect();
    let count = |tag: u16| tags.iter().filter(|t| **t == tag).count();
    let named = count(USER) + count(GROUP) > 0;
    tags.is_sorted()
        && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| count(tag) == 1)
        && (if named { count(MASK) == 1 } else { count(MASK) <= 1 })
        && entries
            .iter()
            .all(|(tag, permissions, id)| *permissions <= 7 && !([USER, GROUP].contains(tag) && *id == u32::MAX))
}

/// The entry that the group bits of the mode stand for.
fn group_class(entries: &[Entry]) -> u16 {
    if entries.iter().any(|e| e.0 == MASK) { MASK } else { GROUP_OBJ }
}

/// How far the mode bits of an entry are shifted; `None` where it has none.
fn shift(entries: &[Entry], tag: u16) -> Option<u32> {
    match tag {
        USER_OBJ => Some(6),
        OTHER => Some(0),
        _ if tag == group_class(entries) => Some(3),
        _ => None,
    }
}

pub fn mode_of(entries: &[Entry]) -> u32 {
    entries.iter().filter_map(|e| Some(u32::from(e.1) << shift(entries, e.0)?)).sum()
}

/// True when the mode says all of the list.
pub fn is_mode(entries: &[Entry]) -> bool {
    entries.iter().all(|e| [USER_OBJ, GROUP_OBJ, OTHER].contains(&e.0))
}

/// The list after `change` of every entry that has mode bits.
pub fn with_mode(entries: &[Entry], change: impl Fn(u16, u16) -> u16, mode: u32) -> Vec<Entry> {
    let bits = |shift: u32| (mode >> shift & 7) as u16;
    let changed = entries.iter().map(|&(tag, permissions, id)| match shift(entries, tag) {
        Some(shift) => (tag, change(permissions, bits(shift)), id),
        None => (tag, permissions, id),
    });
    changed.collect()
}
