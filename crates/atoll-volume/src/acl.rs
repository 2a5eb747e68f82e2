//! POSIX access control lists in the form Linux passes them as extended
//! attributes: a version word (2) and 8-byte entries (tag, permissions, id),
//! little-endian. Checks against a caller are the kernel's; here are the rules
//! that tie a list to the mode of its inode.

use atoll_types::Errno;
use bytes::{BufMut, Bytes, BytesMut};

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// The entries, whatever they say together.
fn decode(acl: &[u8]) -> Result<Vec<Entry>, Errno> {
    let (version, entries) = acl.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
    if *version != VERSION.to_le_bytes() {
        return Err(Errno::EOPNOTSUPP);
    }
    if !entries.len().is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let entries: Vec<Entry> = entries
        .chunks_exact(8)
        .map(|c| Entry {
            tag: u16::from_le_bytes([c[0], c[1]]),
            permissions: u16::from_le_bytes([c[2], c[3]]),
            id: u32::from_le_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let known = entries.iter().all(|e| matches!(e.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER));
    if known { Ok(entries) } else { Err(Errno::EINVAL) }
}

/// True when a value that is to be set says that there is to be no list: it is empty or has no entries.
pub fn is_absent(acl: &[u8]) -> Result<bool, Errno> {
    Ok(acl.is_empty() || decode(acl)?.is_empty())
}

/// As `posix_acl_valid` of Linux: one entry of each obligatory tag, in the order of the tags, and a mask
/// where somebody is named.
fn parse(acl: &[u8]) -> Result<Vec<Entry>, Errno> {
    let entries = decode(acl)?;
    let count = |tag| entries.iter().filter(|e| e.tag == tag).count();
    let in_order = entries.is_sorted_by_key(|e| e.tag);
    let nobody = entries.iter().any(|e| matches!(e.tag, USER | GROUP) && e.id == u32::MAX);
    let named = count(USER) + count(GROUP) > 0;
    let whole = count(USER_OBJ) == 1 && count(GROUP_OBJ) == 1 && count(OTHER) == 1 && count(MASK) <= 1;
    if !in_order || nobody || !whole || (named && count(MASK) == 0) || entries.iter().any(|e| e.permissions > 7) {
        return Err(Errno::EINVAL);
    }
    Ok(entries)
}

fn encode(entries: &[Entry]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(4 + entries.len() * 8);
    bytes.put_u32_le(VERSION);
    for e in entries {
        bytes.put_u16_le(e.tag);
        bytes.put_u16_le(e.permissions);
        bytes.put_u32_le(e.id);
    }
    bytes.freeze()
}

fn of(entries: &[Entry], tag: u16) -> Option<u32> {
    entries.iter().find(|e| e.tag == tag).map(|e| u32::from(e.permissions))
}

/// The nine mode bits that a list implies: the group's are the mask's where there is one.
fn mode_bits(entries: &[Entry]) -> u32 {
    let group = of(entries, MASK).or(of(entries, GROUP_OBJ)).unwrap_or(0);
    of(entries, USER_OBJ).unwrap_or(0) << 6 | group << 3 | of(entries, OTHER).unwrap_or(0)
}

fn is_mode_alone(entries: &[Entry]) -> bool {
    entries.len() == 3
}

/// Permissions after an access list was set, and whether the mode says all of it
/// (then no attribute need be kept).
pub fn permissions_after_set_access(acl: &[u8], old: u32) -> Result<(u32, bool), Errno> {
    let entries = parse(acl)?;
    Ok(((old & !0o777) | mode_bits(&entries), is_mode_alone(&entries)))
}

/// `EINVAL` unless it is a well-formed list.
pub fn validate(acl: &[u8]) -> Result<(), Errno> {
    parse(acl).map(|_| ())
}

/// The access list after `chmod`.
pub fn access_after_chmod(acl: &[u8], permissions: u32) -> Result<Bytes, Errno> {
    let mut entries = parse(acl)?;
    let has_mask = of(&entries, MASK).is_some();
    for e in &mut entries {
        match e.tag {
            USER_OBJ => e.permissions = (permissions >> 6 & 7) as u16,
            OTHER => e.permissions = (permissions & 7) as u16,
            MASK => e.permissions = (permissions >> 3 & 7) as u16,
            GROUP_OBJ if !has_mask => e.permissions = (permissions >> 3 & 7) as u16,
            _ => {}
        }
    }
    Ok(encode(&entries))
}

/// What a new inode inherits.
pub struct Inherited {
    pub permissions: u32,
    /// `None` when the mode says all of it.
    pub access: Option<Bytes>,
}

/// Inheritance from the parent's default list: the list replaces the umask, and
/// the wished permissions narrow the list (acl(5), "object creation and default ACLs").
pub fn create_with_default(default: &[u8], permissions: u32) -> Result<Inherited, Errno> {
    let mut entries = parse(default)?;
    let has_mask = of(&entries, MASK).is_some();
    for e in &mut entries {
        match e.tag {
            USER_OBJ => e.permissions &= (permissions >> 6 & 7) as u16,
            OTHER => e.permissions &= (permissions & 7) as u16,
            MASK => e.permissions &= (permissions >> 3 & 7) as u16,
            GROUP_OBJ if !has_mask => e.permissions &= (permissions >> 3 & 7) as u16,
            _ => {}
        }
    }
    let narrowed = (permissions & !0o777) | mode_bits(&entries);
    let access = if is_mode_alone(&entries) { None } else { Some(encode(&entries)) };
    Ok(Inherited { permissions: narrowed, access })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Bytes {
        encode(&entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id }).collect::<Vec<_>>())
    }

    #[test]
    fn a_list_without_names_is_the_mode() {
        let acl = list(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 1, 0)]);
        assert_eq!(permissions_after_set_access(&acl, 0o4000), Ok((0o4751, true)));
    }

    #[test]
    fn the_mask_is_the_group_bits() {
        let acl = list(&[(USER_OBJ, 6, 0), (USER, 7, 10), (GROUP_OBJ, 4, 0), (MASK, 6, 0), (OTHER, 0, 0)]);
        assert_eq!(permissions_after_set_access(&acl, 0), Ok((0o660, false)));
        let narrowed = access_after_chmod(&acl, 0o640).unwrap();
        assert_eq!(permissions_after_set_access(&narrowed, 0), Ok((0o640, false)));
        let inherited = create_with_default(&acl, 0o644).unwrap();
        assert_eq!(inherited.permissions, 0o640);
        assert!(inherited.access.is_some());
    }

    #[test]
    fn malformed_lists_are_refused() {
        for bad in [&b""[..], b"\x02\0\0", b"\x02\0\0\0\x01", b"\x02\0\0\0"] {
            assert_eq!(validate(bad), Err(Errno::EINVAL));
        }
        assert_eq!(validate(b"\x01\0\0\0"), Err(Errno::EOPNOTSUPP));
        assert_eq!(validate(&list(&[(USER_OBJ, 7, 0)])), Err(Errno::EINVAL));
        let no_mask = list(&[(USER_OBJ, 6, 0), (USER, 7, 10), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]);
        assert_eq!(validate(&no_mask), Err(Errno::EINVAL));
        let out_of_order = list(&[(GROUP_OBJ, 5, 0), (USER_OBJ, 7, 0), (OTHER, 1, 0)]);
        assert_eq!(validate(&out_of_order), Err(Errno::EINVAL));
    }

    #[test]
    fn a_value_without_entries_means_no_list() {
        assert_eq!(is_absent(b""), Ok(true));
        assert_eq!(is_absent(b"\x02\0\0\0"), Ok(true));
        assert_eq!(is_absent(&list(&[(USER_OBJ, 7, 0)])), Ok(false));
    }
}
