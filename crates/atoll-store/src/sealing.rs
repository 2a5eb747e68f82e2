//! What an encrypted store does with its keys, blocks and log.
//!
//! Blocks of SlateDB are sealed as a whole, its bounds of tables are not: they show the first and last key of each. So what
//! somebody gave a name is hidden in the key itself, where a lookup still finds it. Scans then have such keys in the
//! order of what they are hidden as; those who merge scans ask for [`Read::sort_key`](crate::Read::sort_key).

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use atoll_keys::{KeyError, Keyring, Purpose, SEALED_BYTES};
use bytes::Bytes;
use slatedb::BlockTransformer;

use crate::StoreError;

/// What a store is sealed with.
#[derive(Clone)]
pub struct Sealing {
    pub keys: Arc<Keyring>,
    /// Where a name begins in a key, if one is in it. Bounds of scans must have none, or be keys.
    pub name_in_key: fn(&[u8]) -> Option<usize>,
}

impl fmt::Debug for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keys.fmt(f)
    }
}

pub(crate) fn sealing_error(error: KeyError) -> StoreError {
    match error {
        KeyError::Random => StoreError::Io(error.to_string()),
        error => StoreError::Corrupt(error.to_string()),
    }
}

impl Sealing {
    /// The key as it lies in the store.
    pub(crate) fn hide(&self, key: &Bytes) -> Bytes {
        let Some(start) = (self.name_in_key)(key) else { return key.clone() };
        let (beginning, name) = key.split_at(start);
        [beginning, &self.keys.hide_name(beginning, name)].concat().into()
    }

    /// The key that lies there as this.
    pub(crate) fn reveal(&self, key: Bytes) -> Result<Bytes, StoreError> {
        let Some(start) = (self.name_in_key)(&key) else { return Ok(key) };
        let (beginning, hidden) = key.split_at(start);
        let name = self.keys.reveal_name(beginning, hidden).map_err(sealing_error)?;
        Ok([beginning, &name].concat().into())
    }

    pub(crate) fn blocks(&self) -> Arc<dyn BlockTransformer> {
        Arc::new(Blocks(self.keys.clone()))
    }
}

struct Blocks(Arc<Keyring>);

#[async_trait]
impl BlockTransformer for Blocks {
    async fn encode(&self, block: Bytes) -> Result<Bytes, slatedb::Error> {
        let sealed = self.0.seal(Purpose::Block, &[], &block);
        sealed.map(Bytes::from).map_err(|error| slatedb::Error::unavailable(error.to_string()))
    }

    async fn decode(&self, sealed: Bytes) -> Result<Bytes, slatedb::Error> {
        let block = self.0.open(Purpose::Block, &[], &sealed);
        block.map(Bytes::from).map_err(|error| slatedb::Error::data(error.to_string()))
    }

    fn encoded_overhead(&self) -> usize {
        SEALED_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_key_is_hidden_and_the_rest_is_not() {
        let name_in_key = |key: &[u8]| (key.len() > 2 && key[0] == b'd').then_some(2);
        let sealing = Sealing { keys: Arc::new(Keyring::random().unwrap()), name_in_key };
        let plain = Bytes::from("i1 inode");
        assert_eq!(sealing.hide(&plain), plain);
        assert_eq!(sealing.reveal(plain.clone()).unwrap(), plain);
        let named = Bytes::from("d1 name");
        let hidden = sealing.hide(&named);
        assert_eq!(hidden[..2], named[..2]);
        assert!(!hidden.windows(4).any(|part| part == b"name"));
        assert_eq!(sealing.reveal(hidden.clone()).unwrap(), named);
        assert!(matches!(sealing.reveal(hidden.slice(..20)), Err(StoreError::Corrupt(_))));
    }
}
