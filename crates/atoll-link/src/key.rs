//! The key of an object.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A key, or the beginning of keys: UTF-8, at most [`ObjectKey::BYTES_MAX`] bytes. Nothing else is said of it: `a//b`, `/`, `..`
/// and the empty text (as a beginning of keys) are all right.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectKey(String);

impl ObjectKey {
    /// What S3 allows.
    pub const BYTES_MAX: usize = 1024;

    /// `None` when it is too long.
    pub fn new(key: impl Into<String>) -> Option<ObjectKey> {
        let key = key.into();
        (key.len() <= Self::BYTES_MAX).then_some(ObjectKey(key))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ObjectKey {
    type Error = &'static str;

    fn try_from(key: String) -> Result<Self, Self::Error> {
        ObjectKey::new(key).ok_or("longer than a key can be")
    }
}

impl From<ObjectKey> for String {
    fn from(key: ObjectKey) -> String {
        key.0
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
