//! File names: any bytes but `/` and NUL, 1 to 255 of them, not `.` or `..`.

use bytes::Bytes;
use std::fmt;

use crate::{Errno, InodeId, limits};

/// A checked file name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Name(Bytes);

impl TryFrom<Bytes> for Name {
    type Error = Errno;

    fn try_from(bytes: Bytes) -> Result<Self, Errno> {
        Name::new(bytes)
    }
}

impl From<Name> for Bytes {
    fn from(name: Name) -> Bytes {
        name.0
    }
}

/// A directory in the root that no listing shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// Each snapshot.
    Snapshots,
    /// Files that lost their last name.
    Trash,
}

impl Hidden {
    pub fn name(self) -> &'static [u8] {
        match self {
            Hidden::Snapshots => b".snapshots",
            Hidden::Trash => b".trash",
        }
    }
}

impl Name {
    /// `ENAMETOOLONG` over 255 bytes, `EINVAL` for a name no directory can hold.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, Errno> {
        let bytes = bytes.into();
        if bytes.len() > limits::NAME_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if bytes.is_empty() || &bytes[..] == b"." || &bytes[..] == b".." || bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Errno::EINVAL);
        }
        Ok(Name(bytes))
    }

    /// What the name may stand for that no listing shows. Whether it does, only the authority knows.
    pub fn hidden(&self, parent: InodeId) -> Option<Hidden> {
        [Hidden::Snapshots, Hidden::Trash]
            .into_iter()
            .find(|hidden| parent == InodeId::ROOT && self.as_bytes() == hidden.name())
    }

    pub fn is_hidden(&self, parent: InodeId) -> bool {
        self.hidden(parent).is_some()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0))
    }
}

impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_directory_can_hold_are_names() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(Name::new(bad.to_vec()), Err(Errno::EINVAL));
        }
        assert_eq!(Name::new(vec![b'a'; 256]), Err(Errno::ENAMETOOLONG));
        assert!(Name::new(vec![b'a'; 255]).is_ok());
        assert!(Name::new(vec![0xff, 0xfe]).is_ok());
        assert!(Name::new(&b"..."[..]).is_ok());
    }
}
