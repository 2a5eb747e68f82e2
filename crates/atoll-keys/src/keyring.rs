//! The data keys of one volume, and sealing with them.
//!
//! What is sealed is `u32 data key (little-endian), 16 random bytes, ciphertext, 16-byte tag`. AES-256-GCM encrypts it with
//! a key that HKDF-SHA-256 makes from the data key, the purpose and the random bytes, for this message alone; so its nonce
//! is zero. Random bytes would have to meet for two messages to share a key: at 2^48 messages of one data key the odds of
//! that are below 2^-32.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;

use crate::names::NameKey;
use crate::secret::{Secret, random};
use crate::{KeyError, Result};

const ID_BYTES: usize = 4;
const SALT_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// What sealing adds to a message.
pub const SEALED_BYTES: usize = ID_BYTES + SALT_BYTES + TAG_BYTES;

/// Names a data key: unique among those of one volume and of those that it began as a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What bytes are for: those of one purpose are never taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A piece of file bytes.
    Piece,
    /// A commit in the local log.
    Log,
    /// A block of the metadata store.
    Block,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Purpose::Piece => b"piece",
            Purpose::Log => b"log",
            Purpose::Block => b"block",
        }
    }
}

pub struct DataKey {
    id: KeyId,
    secret: Secret,
    root: hkdf::Prk,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

impl DataKey {
    pub(crate) fn new(id: KeyId, secret: Secret) -> DataKey {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"atoll data key").extract(secret.bytes());
        DataKey { id, secret, root }
    }

    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    fn of_message(&self, purpose: Purpose, salt: &[u8]) -> Result<LessSafeKey> {
        let info = [purpose.label(), salt];
        let key = self.root.expand(&info, &AES_256_GCM).map_err(|_| KeyError::Forged)?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }
}

/// The key of a message seals no other.
fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

struct Keys {
    current: Arc<DataKey>,
    all: HashMap<KeyId, Arc<DataKey>>,
}

/// What one volume is sealed and opened with. Keys are added and never go, since what they sealed stays.
pub struct Keyring {
    keys: RwLock<Keys>,
    names: NameKey,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({})", self.current().id)
    }
}

impl Keyring {
    /// Of a new volume.
    pub fn random() -> Result<Keyring> {
        let current = DataKey::new(KeyId(u32::from_le_bytes(random()?)), Secret::random()?);
        Ok(Keyring::new(current, Vec::new(), NameKey::new(Secret::random()?)))
    }

    pub(crate) fn new(current: DataKey, others: Vec<DataKey>, names: NameKey) -> Keyring {
        let current = Arc::new(current);
        let mut all: HashMap<_, _> = others.into_iter().map(|key| (key.id, Arc::new(key))).collect();
        all.insert(current.id, current.clone());
        Keyring { keys: RwLock::new(Keys { current, all }), names }
    }

    /// Of a volume that begins as a copy of this one: it opens what is there, and seals with a key of its own, which this
    /// one does not have. Names in keys of its store, which it has from this one, stay as they are.
    pub fn branch(&self) -> Result<Keyring> {
        let current = self.fresh()?;
        let keys = self.keys.read();
        let others = keys.all.values().map(|key| DataKey::new(key.id, key.secret.clone())).collect();
        Ok(Keyring::new(current, others, NameKey::new(self.names.secret().clone())))
    }

    /// A key that is not in use yet, with an identifier that none of these has.
    pub fn fresh(&self) -> Result<DataKey> {
        loop {
            let id = KeyId(u32::from_le_bytes(random()?));
            if !self.keys.read().all.contains_key(&id) {
                return Ok(DataKey::new(id, Secret::random()?));
            }
        }
    }

    /// From now on seal with this key. It must lie in the store before: see [`KeyRecord`](crate::KeyRecord).
    pub fn install(&self, key: DataKey) {
        let key = Arc::new(key);
        let mut keys = self.keys.write();
        keys.all.insert(key.id, key.clone());
        keys.current = key;
    }

    pub fn current(&self) -> Arc<DataKey> {
        self.keys.read().current.clone()
    }

    /// All of them, by identifier.
    pub(crate) fn all(&self) -> Vec<Arc<DataKey>> {
        let mut all: Vec<_> = self.keys.read().all.values().cloned().collect();
        all.sort_by_key(|key| key.id);
        all
    }

    pub(crate) fn names(&self) -> &NameKey {
        &self.names
    }

    /// `bound` is not in the result, and must be given again to open it.
    ///
    /// # Errors
    /// `Random`.
    pub fn seal(&self, purpose: Purpose, bound: &[u8], message: &[u8]) -> Result<Vec<u8>> {
        let key = self.current();
        let salt: [u8; SALT_BYTES] = random()?;
        let mut sealed = Vec::with_capacity(message.len() + SEALED_BYTES);
        sealed.extend_from_slice(&key.id.0.to_le_bytes());
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(message);
        let start = ID_BYTES + SALT_BYTES;
        let tag = key.of_message(purpose, &salt)?.seal_in_place_separate_tag(
            only_nonce(),
            Aad::from(bound),
            &mut sealed[start..],
        );
        sealed.extend_from_slice(tag.map_err(|_| KeyError::Forged)?.as_ref());
        Ok(sealed)
    }

    /// The message that was sealed.
    ///
    /// # Errors
    /// `Unknown`, `Forged`.
    pub fn open(&self, purpose: Purpose, bound: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let (id, rest) = sealed.split_first_chunk::<ID_BYTES>().ok_or(KeyError::Forged)?;
        let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>().ok_or(KeyError::Forged)?;
        let id = KeyId(u32::from_le_bytes(*id));
        let key = self.keys.read().all.get(&id).cloned().ok_or(KeyError::Unknown(id))?;
        let mut message = rest.to_vec();
        let opened = key.of_message(purpose, salt)?.open_in_place(only_nonce(), Aad::from(bound), &mut message);
        let length = opened.map_err(|_| KeyError::Forged)?.len();
        message.truncate(length);
        Ok(message)
    }

    /// The same name, after the same beginning, always becomes the same bytes: a key can be looked up by them.
    pub fn hide_name(&self, beginning: &[u8], name: &[u8]) -> Vec<u8> {
        self.names.hide(beginning, name)
    }

    /// # Errors
    /// `Forged`.
    pub fn reveal_name(&self, beginning: &[u8], hidden: &[u8]) -> Result<Vec<u8>> {
        self.names.reveal(beginning, hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_sealed_opens_and_nothing_else_does(
            message in proptest::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), bit in 0..8_u8,
        ) {
            let keys = Keyring::random().unwrap();
            let sealed = keys.seal(Purpose::Piece, b"bound", &message).unwrap();
            prop_assert_eq!(sealed.len(), message.len() + SEALED_BYTES);
            prop_assert_eq!(&keys.open(Purpose::Piece, b"bound", &sealed).unwrap(), &message);
            prop_assert_eq!(keys.open(Purpose::Log, b"bound", &sealed), Err(KeyError::Forged));
            prop_assert_eq!(keys.open(Purpose::Piece, b"other", &sealed), Err(KeyError::Forged));
            let mut flipped = sealed.clone();
            flipped[at % sealed.len()] ^= 1 << bit;
            prop_assert!(keys.open(Purpose::Piece, b"bound", &flipped).is_err());
            prop_assert!(keys.open(Purpose::Piece, b"bound", &sealed[..at % sealed.len()]).is_err());
        }
    }

    #[test]
    fn one_message_is_never_sealed_the_same_way_twice() {
        let keys = Keyring::random().unwrap();
        let sealed = |_| keys.seal(Purpose::Piece, b"", b"message").unwrap()[ID_BYTES..].to_vec();
        let all: std::collections::HashSet<_> = (0..100).map(sealed).collect();
        assert_eq!(all.len(), 100);
    }

    #[test]
    fn a_branch_opens_what_was_there_and_its_source_nothing_of_it() {
        let source = Keyring::random().unwrap();
        let before = source.seal(Purpose::Block, b"", b"shared").unwrap();
        let branch = source.branch().unwrap();
        assert_eq!(branch.open(Purpose::Block, b"", &before).unwrap(), b"shared");
        let (later, own) =
            (branch.seal(Purpose::Block, b"", b"x").unwrap(), source.seal(Purpose::Block, b"", b"y").unwrap());
        assert_eq!(source.open(Purpose::Block, b"", &later), Err(KeyError::Unknown(branch.current().id())));
        assert_eq!(branch.open(Purpose::Block, b"", &own).unwrap(), b"y", "until the source has a new key");
        source.install(source.fresh().unwrap());
        let own = source.seal(Purpose::Block, b"", b"y").unwrap();
        assert_eq!(branch.open(Purpose::Block, b"", &own), Err(KeyError::Unknown(source.current().id())));
        assert_eq!(branch.hide_name(b"d", b"name"), source.hide_name(b"d", b"name"));
    }

    #[test]
    fn what_an_older_key_sealed_opens_after_a_new_one_came() {
        let keys = Keyring::random().unwrap();
        let old = keys.seal(Purpose::Log, b"", b"old").unwrap();
        let id = keys.current().id();
        keys.install(keys.fresh().unwrap());
        assert_ne!(keys.current().id(), id);
        assert_eq!(keys.open(Purpose::Log, b"", &old).unwrap(), b"old");
        assert!(!format!("{keys:?}{:?}", keys.current()).contains(&hex::encode(keys.current().secret().bytes())));
    }
}
