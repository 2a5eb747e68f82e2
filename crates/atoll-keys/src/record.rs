//! What lies in the store of a volume's keys: the keys, wrapped, and who can unwrap them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::names::NameKey;
use crate::passphrase::Stretching;
use crate::secret::{Secret, random};
use crate::{DataKey, KeyError, KeyId, Keyring, Result, ServerKeys, WrappingId};

const VERSION: u32 = 1;
/// No record is longer, in bytes.
pub const RECORD_BYTES_MAX: usize = 256 << 10;
/// Data keys of one volume, those of its ancestors included.
pub const KEYS_MAX: usize = 1000;
const NONCE_BYTES: usize = 12;

/// A key record: who reads it from the store checks its length against [`RECORD_BYTES_MAX`] before.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    version: u32,
    /// The volume's identity, in hexadecimal.
    volume: String,
    /// What the keys are wrapped with.
    wrapping_key: WrappingId,
    /// How a passphrase becomes that key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passphrase: Option<Stretching>,
    /// The data key that seals.
    current: String,
    /// The key that hides names.
    names: String,
    data: Vec<Wrapped>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    id: String,
    /// `nonce, ciphertext, tag`, in base64.
    key: String,
}

#[derive(Deserialize)]
struct OnlyVersion {
    version: u32,
}

fn cipher(key: &Secret) -> LessSafeKey {
    // Fails only for another length than a secret has.
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.bytes()).expect("32 bytes are a key"))
}

/// A wrapped key is of one volume and of one name there.
fn bound(volume: u128, name: &str) -> Vec<u8> {
    format!("atoll {volume:032x} {name}").into_bytes()
}

fn wrap(cipher: &LessSafeKey, volume: u128, name: &str, key: &Secret) -> Result<String> {
    let nonce: [u8; NONCE_BYTES] = random()?;
    let mut wrapped = nonce.to_vec();
    let mut sealed = Zeroizing::new(*key.bytes());
    let tag = cipher.seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(bound(volume, name)),
        &mut *sealed,
    );
    wrapped.extend_from_slice(&*sealed);
    wrapped.extend_from_slice(tag.map_err(|_| KeyError::Random)?.as_ref());
    Ok(STANDARD.encode(wrapped))
}

fn unwrap(cipher: &LessSafeKey, volume: u128, name: &str, wrapped: &str) -> Result<Secret> {
    let damaged = || KeyError::Record(format!("key {name} is not what was written"));
    let mut wrapped = Zeroizing::new(STANDARD.decode(wrapped).map_err(|_| damaged())?);
    let (nonce, rest) = wrapped.split_first_chunk_mut::<NONCE_BYTES>().ok_or_else(damaged)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let key = cipher.open_in_place(nonce, Aad::from(bound(volume, name)), rest).map_err(|_| damaged())?;
    Secret::from_slice(key).ok_or_else(damaged)
}

/// The key of names in wrapped form has this name.
const NAMES: &str = "names";

impl KeyRecord {
    /// The keys of a volume, and `fresh`, if there is one, which seals from now on; wrapped with what the server wraps with.
    /// Takes a while when that is a passphrase.
    ///
    /// # Errors
    /// `NoKey`, `Random`; `Record` when there are too many.
    pub fn of(keys: &Keyring, fresh: Option<&DataKey>, volume: u128, server: &ServerKeys) -> Result<KeyRecord> {
        let (wrapping, passphrase) = server.wrapping()?;
        let cipher = cipher(&wrapping);
        let all = keys.all();
        if all.len() + usize::from(fresh.is_some()) > KEYS_MAX {
            return Err(KeyError::Record(format!("a volume has at most {KEYS_MAX} data keys: copy it to a new one")));
        }
        let mut data = Vec::with_capacity(all.len() + 1);
        for key in all.iter().map(|key| &**key).chain(fresh) {
            let id = key.id().to_string();
            let key = wrap(&cipher, volume, &id, key.secret())?;
            data.push(Wrapped { id, key });
        }
        Ok(KeyRecord {
            version: VERSION,
            volume: format!("{volume:032x}"),
            wrapping_key: WrappingId::of(&wrapping),
            passphrase,
            current: fresh.map_or_else(|| keys.current().id(), DataKey::id).to_string(),
            names: wrap(&cipher, volume, NAMES, keys.names().secret())?,
            data,
        })
    }

    /// # Errors
    /// `Future`, `Record`.
    pub fn parse(json: &[u8]) -> Result<KeyRecord> {
        let malformed = |error: serde_json::Error| KeyError::Record(error.to_string());
        if json.len() > RECORD_BYTES_MAX {
            return Err(KeyError::Record(format!("longer than {RECORD_BYTES_MAX} bytes")));
        }
        let OnlyVersion { version } = serde_json::from_slice(json).map_err(malformed)?;
        match version {
            VERSION => {}
            newer if newer > VERSION => return Err(KeyError::Future(newer)),
            other => return Err(KeyError::Record(format!("there is no version {other}"))),
        }
        let record: KeyRecord = serde_json::from_slice(json).map_err(malformed)?;
        if record.data.len() > KEYS_MAX {
            return Err(KeyError::Record(format!("more than {KEYS_MAX} data keys")));
        }
        Ok(record)
    }

    /// # Errors
    /// `Record` when it would be too long to be read.
    pub fn json(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec_pretty(self).map_err(|error| KeyError::Record(error.to_string()))?;
        match json.len() <= RECORD_BYTES_MAX {
            true => Ok(json),
            false => Err(KeyError::Record(format!("longer than {RECORD_BYTES_MAX} bytes"))),
        }
    }

    /// What the keys are wrapped with.
    pub fn wrapping_key(&self) -> &WrappingId {
        &self.wrapping_key
    }

    /// The volume's keys. Takes a while when they are wrapped with a passphrase.
    ///
    /// # Errors
    /// `NoKey`, `WrongKey`, `Record`.
    pub fn unwrap(&self, volume: u128, server: &ServerKeys) -> Result<Keyring> {
        if self.volume != format!("{volume:032x}") {
            return Err(KeyError::Record(format!("of another volume, {}", self.volume)));
        }
        let cipher = cipher(&server.find(&self.wrapping_key, self.passphrase.as_ref())?);
        let names = NameKey::new(unwrap(&cipher, volume, NAMES, &self.names)?);
        let (mut current, mut others) = (None, Vec::new());
        for Wrapped { id, key } in &self.data {
            let number = u32::from_str_radix(id, 16).ok().map(KeyId).filter(|number| number.to_string() == *id);
            let number = number.ok_or_else(|| KeyError::Record("the name of a key is malformed".into()))?;
            let key = DataKey::new(number, unwrap(&cipher, volume, id, key)?);
            match *id == self.current {
                true => current = Some(key),
                false => others.push(key),
            }
        }
        let current = current.ok_or_else(|| KeyError::Record("the current key is not there".into()))?;
        Ok(Keyring::new(current, others, names))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::{Purpose, generate};

    fn server(folder: &tempfile::TempDir, names: &[&str]) -> ServerKeys {
        let path = |name: &&str| -> PathBuf {
            let path = folder.path().join(name);
            if !path.exists() {
                generate(&path).unwrap();
            }
            path
        };
        ServerKeys::load(&names.iter().map(path).collect::<Vec<_>>(), None).unwrap()
    }

    fn again(record: &KeyRecord) -> KeyRecord {
        KeyRecord::parse(&record.json().unwrap()).unwrap()
    }

    #[test]
    fn keys_come_back_for_who_has_the_right_one_only() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b, both) = (server(&folder, &["a"]), server(&folder, &["b"]), server(&folder, &["b", "a"]));
        let keys = Keyring::random().unwrap();
        let sealed = keys.seal(Purpose::Piece, b"", b"bytes").unwrap();
        let record = again(&KeyRecord::of(&keys, None, 7, &a).unwrap());
        for right in [&a, &both] {
            let keys = record.unwrap(7, right).unwrap();
            assert_eq!(keys.open(Purpose::Piece, b"", &sealed).unwrap(), b"bytes");
            assert_eq!(keys.hide_name(b"", b"n"), keys.hide_name(b"", b"n"));
        }
        let wanted = record.wrapping_key().to_string();
        let Err(KeyError::WrongKey(why)) = record.unwrap(7, &b) else { panic!("unwrapped with a wrong key") };
        assert!(why.contains(&wanted) && why.contains("--key-file"), "{why}");
        let Err(KeyError::NoKey(why)) = record.unwrap(7, &ServerKeys::default()) else { panic!("without a key") };
        assert!(why.contains(&wanted), "{why}");
        assert!(matches!(record.unwrap(8, &a), Err(KeyError::Record(_))));
        let moved = KeyRecord { volume: format!("{:032x}", 8), ..record.clone() };
        assert!(matches!(moved.unwrap(8, &a), Err(KeyError::Record(_))), "a key of another volume is no key");
    }

    #[test]
    fn keys_can_be_wrapped_anew_and_added() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (server(&folder, &["old"]), server(&folder, &["new", "old"]));
        let keys = Keyring::random().unwrap();
        let sealed = keys.seal(Purpose::Piece, b"", b"bytes").unwrap();
        let before = KeyRecord::of(&keys, None, 7, &old).unwrap();
        let fresh = keys.fresh().unwrap();
        let after = again(&KeyRecord::of(&before.unwrap(7, &new).unwrap(), Some(&fresh), 7, &new).unwrap());
        assert_ne!(before.wrapping_key(), after.wrapping_key());
        assert!(matches!(after.unwrap(7, &old), Err(KeyError::WrongKey(_))));
        let found = after.unwrap(7, &new).unwrap();
        assert_eq!(found.current().id(), fresh.id());
        assert_eq!(found.open(Purpose::Piece, b"", &sealed).unwrap(), b"bytes");
    }

    #[test]
    fn a_passphrase_is_as_good_as_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let with = |text: &str| {
            let path = folder.path().join("passphrase");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            ServerKeys::load(&[], Some(&path)).unwrap()
        };
        let keys = Keyring::random().unwrap();
        let record = again(&KeyRecord::of(&keys, None, 7, &with("correct horse battery\n")).unwrap());
        let found = record.unwrap(7, &with("another one, newer\ncorrect horse battery\n")).unwrap();
        assert_eq!(found.current().id(), keys.current().id());
        let refused = record.unwrap(7, &with("incorrect horse battery\n"));
        assert!(matches!(refused, Err(KeyError::WrongKey(_))), "{refused:?}");
        assert!(matches!(record.unwrap(7, &ServerKeys::default()), Err(KeyError::NoKey(_))));
    }

    #[test]
    fn a_changed_record_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&folder, &["a"]);
        let record = KeyRecord::of(&Keyring::random().unwrap(), None, 7, &server).unwrap();
        let json = record.json().unwrap();
        for at in 0..json.len() {
            let mut changed = json.clone();
            changed[at] ^= 1;
            let found = KeyRecord::parse(&changed).and_then(|record| record.unwrap(7, &server));
            assert!(found.is_err(), "byte {at} was changed unnoticed");
        }
        let newer = serde_json::json!({"version": 2, "what": "ever"}).to_string();
        assert_eq!(KeyRecord::parse(newer.as_bytes()).unwrap_err(), KeyError::Future(2));
        assert!(matches!(KeyRecord::parse(&vec![b' '; RECORD_BYTES_MAX + 1]), Err(KeyError::Record(_))));
        let longest = Wrapped { id: "0".repeat(8), key: "0".repeat(80) };
        let full = KeyRecord { data: vec![longest; KEYS_MAX], ..record };
        assert!(full.json().is_ok(), "as many keys as are allowed fit");
    }
}
