//! Names that are looked up: hidden, and yet the same name always becomes the same bytes.
//!
//! A synthetic nonce, as SIV has it: the first 12 bytes of an HMAC-SHA-256 over what is hidden and what stands before it, then
//! AES-256-GCM with that nonce. Two different names share a nonce only when those 96 bits meet; who sees the result
//! learns the length of a name, and whether two are the same in one place.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};

use crate::secret::Secret;
use crate::{KeyError, Result};

const NONCE_BYTES: usize = 12;

pub(crate) struct NameKey {
    secret: Secret,
    nonces: hmac::Key,
    cipher: LessSafeKey,
}

impl NameKey {
    pub fn new(secret: Secret) -> NameKey {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"atoll name key").extract(secret.bytes());
        // Fails only for lengths that no algorithm of these has.
        let nonces = hmac::Key::from(root.expand(&[b"nonce"], hmac::HMAC_SHA256).expect("32 bytes can be had"));
        let cipher = UnboundKey::from(root.expand(&[b"name"], &AES_256_GCM).expect("32 bytes can be had"));
        NameKey { secret, nonces, cipher: LessSafeKey::new(cipher) }
    }

    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    fn nonce(&self, beginning: &[u8], name: &[u8]) -> [u8; NONCE_BYTES] {
        let mut context = hmac::Context::with_key(&self.nonces);
        context.update(&(beginning.len() as u64).to_le_bytes());
        context.update(beginning);
        context.update(name);
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&context.sign().as_ref()[..NONCE_BYTES]);
        nonce
    }

    pub fn hide(&self, beginning: &[u8], name: &[u8]) -> Vec<u8> {
        let nonce = self.nonce(beginning, name);
        let mut hidden = nonce.to_vec();
        hidden.extend_from_slice(name);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.cipher.seal_in_place_separate_tag(nonce, Aad::from(beginning), &mut hidden[NONCE_BYTES..]);
        // Fails only beyond 64 GiB.
        hidden.extend_from_slice(tag.expect("a name can be encrypted").as_ref());
        hidden
    }

    pub fn reveal(&self, beginning: &[u8], hidden: &[u8]) -> Result<Vec<u8>> {
        let (nonce, rest) = hidden.split_first_chunk::<NONCE_BYTES>().ok_or(KeyError::Forged)?;
        let mut name = rest.to_vec();
        let opened = self.cipher.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(beginning), &mut name);
        let length = opened.map_err(|_| KeyError::Forged)?.len();
        name.truncate(length);
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_hidden_the_same_way_in_one_place_only() {
        let key = NameKey::new(Secret::random().unwrap());
        let hidden = key.hide(b"d1", b"secret.txt");
        assert_eq!(hidden, key.hide(b"d1", b"secret.txt"));
        assert!(!hidden.windows(6).any(|part| part == b"secret"));
        assert_eq!(key.reveal(b"d1", &hidden).unwrap(), b"secret.txt");
        assert_ne!(hidden, key.hide(b"d2", b"secret.txt"));
        assert_eq!(key.reveal(b"d2", &hidden), Err(KeyError::Forged));
        for at in 0..hidden.len() {
            let mut flipped = hidden.clone();
            flipped[at] ^= 1;
            assert_eq!(key.reveal(b"d1", &flipped), Err(KeyError::Forged));
            assert_eq!(key.reveal(b"d1", &hidden[..at]), Err(KeyError::Forged));
        }
        assert_ne!(hidden, NameKey::new(Secret::random().unwrap()).hide(b"d1", b"secret.txt"));
    }
}
