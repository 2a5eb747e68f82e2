//! What is stored of links, beside their settings.
//!
//! Invariant: what an inode knows of its object lies in its own record, so that it changes with the rest of it. Two more kinds
//! of keys are what a new authority has to go on with: inodes whose objects are not as they are (`unpublished`), and objects
//! that are there and no name stands for (`gone`).

use atoll_link::names::Prefix;
use atoll_link::{ObjectKey, Version};
use atoll_types::{InodeId, Name};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::VolumeError;

/// An object that a file's bytes are, or were before it was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BaseObject {
    pub key: ObjectKey,
    pub version: Version,
    /// In bytes.
    pub size: u64,
    /// It must be restored before it can be read.
    pub archived: bool,
}

/// What a file has that its object has not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum Dirty {
    #[default]
    No,
    /// Owner, mode or times.
    Attributes,
    /// Its extents are stored; of a file that is not dirty so, they are those of its object and are not.
    Bytes,
}

/// What an inode knows of the bucket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Linked {
    /// The directory that is linked.
    pub link: InodeId,
    /// The name that the bucket knows it by. `None`: it is in the volume alone, or it is the linked directory itself.
    pub home: Option<(InodeId, Bytes)>,
    /// Of a file: where its bytes are from. Of a directory: its own empty object.
    pub object: Option<BaseObject>,
    /// Of a directory: how the keys begin of what it holds. `None` while others are still to be moved away from there.
    pub prefix: Option<Prefix>,
    pub dirty: Dirty,
    /// Of a directory: it stays when the bucket has nothing below it, since it was made or changed here.
    pub kept: bool,
    /// What HEAD tells was taken over; a listing does not tell it.
    pub is_described: bool,
}

impl Linked {
    pub fn is_home(&self, parent: InodeId, name: &Name) -> bool {
        self.home.as_ref().is_some_and(|(directory, own)| *directory == parent && own == name.as_bytes())
    }
}

/// An object, or with a `/` at the end of its key every object below, that no name stands for: not any more, or not yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gone {
    pub was: Was,
    /// Whose it was, and who has begun to write there.
    pub of: Vec<InodeId>,
    /// Whose bytes it still is, or what it still holds: it stays until they are elsewhere.
    pub holder: Option<InodeId>,
}

/// What is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Was {
    /// All that is below.
    Directory,
    /// Only this version is ours to delete or to replace, and what an earlier authority of ours wrote over it.
    Object(Version),
    /// Perhaps there is one, whose writing was begun and is not noted.
    Attempt,
}

impl Gone {
    pub fn is_directory(&self) -> bool {
        self.was == Was::Directory
    }

    /// Whether it is to be deleted now.
    pub fn is_free(&self) -> bool {
        self.holder.is_none() && !self.is_directory()
    }
}

/// Most bytes of a record of a link.
const RECORD_BYTES_MAX: usize = 16 * 1024;

pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    postcard::to_allocvec(record).expect("a record without maps and floats can be encoded")
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, VolumeError> {
    let malformed = || VolumeError::Corrupt(format!("malformed {what}"));
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(malformed());
    }
    match postcard::take_from_bytes(bytes) {
        Ok((record, [])) => Ok(record),
        _ => Err(malformed()),
    }
}
