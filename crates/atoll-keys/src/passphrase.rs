//! A wrapping key from a passphrase: Argon2id, with parameters that lie beside what it wraps.

use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::{SECRET_BYTES, Secret, random};
use crate::{KeyError, Result};

const SALT_BYTES: usize = 16;
/// What new salts come with: 64 MiB and three passes, about a quarter of a second.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;
/// Whoever writes to the store must not be able to have a server use more.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;

/// How a passphrase becomes a key. What lies in a store with other limits than ours is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stretching {
    /// In hexadecimal.
    salt: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Stretching {
    pub fn random() -> Result<Stretching> {
        let salt = hex::encode(random::<SALT_BYTES>()?);
        Ok(Stretching { salt, memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES })
    }

    pub fn key(&self, passphrase: &str) -> Result<Secret> {
        let refuse = |what: &str| KeyError::Record(format!("passphrase parameters: {what}"));
        let within = self.memory_kib <= MEMORY_KIB_MAX && self.passes <= PASSES_MAX && self.lanes <= LANES_MAX;
        if !within {
            return Err(refuse("more than this release does"));
        }
        let salt = hex::decode(&self.salt).ok().filter(|salt| salt.len() == SALT_BYTES);
        let salt = salt.ok_or_else(|| refuse("the salt is malformed"))?;
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(SECRET_BYTES));
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.map_err(|_| refuse("out of range"))?);
        let mut key = Zeroizing::new([0; SECRET_BYTES]);
        let made = argon.hash_password_into(passphrase.as_bytes(), &salt, &mut *key);
        made.map_err(|_| refuse("out of range"))?;
        Secret::from_slice(&*key).ok_or_else(|| refuse("out of range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_stranger_are_bounded() {
        let cheap = Stretching { memory_kib: 8, passes: 1, ..Stretching::random().unwrap() };
        assert_eq!(cheap.key("a").unwrap().bytes(), cheap.key("a").unwrap().bytes());
        assert_ne!(cheap.key("a").unwrap().bytes(), cheap.key("b").unwrap().bytes());
        let other = Stretching { salt: Stretching::random().unwrap().salt, ..cheap.clone() };
        assert_ne!(cheap.key("a").unwrap().bytes(), other.key("a").unwrap().bytes());
        for wrong in [
            Stretching { memory_kib: u32::MAX, ..cheap.clone() },
            Stretching { passes: PASSES_MAX + 1, ..cheap.clone() },
            Stretching { passes: 0, ..cheap.clone() },
            Stretching { lanes: 1000, ..cheap.clone() },
            Stretching { lanes: 0, ..cheap.clone() },
            Stretching { salt: "00".into(), ..cheap.clone() },
        ] {
            assert!(matches!(wrong.key("a"), Err(KeyError::Record(_))), "{wrong:?}");
        }
    }
}
