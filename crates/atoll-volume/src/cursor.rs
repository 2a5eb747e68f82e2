//! A range of the store, entry by entry.

use std::collections::VecDeque;

use atoll_store::{Read, Scan};
use bytes::Bytes;

use crate::error::VolumeError;
use crate::format::{self, KeyRange};

const PAGE: usize = 4096;

pub(crate) struct Cursor<'a> {
    read: &'a dyn Read,
    page: VecDeque<(Bytes, Bytes)>,
    /// What is not read yet.
    rest: Option<KeyRange>,
}

impl<'a> Cursor<'a> {
    pub fn new(read: &'a dyn Read, range: KeyRange) -> Self {
        Cursor { read, page: VecDeque::new(), rest: Some(range) }
    }

    async fn fill(&mut self) -> Result<(), VolumeError> {
        while self.page.is_empty()
            && let Some((start, end)) = self.rest.take()
        {
            let page = self.read.scan(Scan { start, end: end.clone(), entries_max: PAGE }).await?;
            self.page = page.entries.into();
            self.rest = page.next.map(|next| (next, end));
        }
        Ok(())
    }

    pub async fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, VolumeError> {
        self.fill().await?;
        Ok(self.page.pop_front())
    }

    /// The number in the next key; 0 when it has none, which is no number of an inode.
    pub async fn number(&mut self) -> Result<Option<u64>, VolumeError> {
        self.fill().await?;
        Ok(self.page.front().map(|(key, _)| format::key_number(key).unwrap_or(0)))
    }

    /// The next entry if its number is not beyond `last`.
    pub async fn up_to(&mut self, last: u64) -> Result<Option<(Bytes, Bytes)>, VolumeError> {
        match self.number().await? {
            Some(number) if number <= last => Ok(self.page.pop_front()),
            _ => Ok(None),
        }
    }
}
