//! Tokens that let clients in over the network. Only their hashes are kept.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use atoll_wire::TokenInfo;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::durable;

/// What a client may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// `None`: all volumes, and administration.
    pub volume: Option<String>,
    pub read_only: bool,
    /// The token that gave them; `None` for a trusted socket.
    token: Option<String>,
    /// Seconds since 1970.
    expires: Option<u64>,
    /// State of the list when they were given.
    revision: u64,
}

/// Who may say that something has happened in a bucket, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    /// `None`: links of all volumes hear it.
    pub volume: Option<String>,
}

impl Rights {
    pub fn everything() -> Self {
        Rights { volume: None, read_only: false, token: None, expires: None, revision: 0 }
    }

    pub fn administers(&self) -> bool {
        self.volume.is_none() && !self.read_only
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Token {
    id: String,
    label: String,
    volume: Option<String>,
    read_only: bool,
    /// It is for senders of events alone.
    #[serde(default)]
    events: bool,
    /// Seconds since 1970.
    expires: Option<u64>,
    /// SHA-256 of the secret, hexadecimal.
    hash: String,
}

pub(crate) struct Tokens {
    path: PathBuf,
    list: Mutex<Vec<Token>>,
    /// Grows when a token is revoked.
    revision: AtomicU64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

impl Tokens {
    pub fn load(path: PathBuf) -> std::io::Result<Tokens> {
        let list = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Tokens { path, list: Mutex::new(list), revision: AtomicU64::new(0) })
    }

    fn save(&self, list: &[Token]) -> std::io::Result<()> {
        durable::write(&self.path, &serde_json::to_vec_pretty(list)?, 0o600)
    }

    /// Whether rights that were given earlier still hold: not revoked, not expired.
    pub fn holds(&self, rights: &mut Rights) -> bool {
        let Some(token) = &rights.token else { return true };
        let revision = self.revision.load(Ordering::Acquire);
        if revision != rights.revision {
            rights.revision = revision;
            if !self.list.lock().iter().any(|t| t.id == *token) {
                return false;
            }
        }
        rights.expires.is_none_or(|expires| expires > now())
    }

    /// `None` when it is unknown or has expired.
    fn find(&self, secret: &str) -> Option<Token> {
        let hash = hash(secret);
        let list = self.list.lock();
        let found = list.iter().find(|t| bool::from(t.hash.as_bytes().ct_eq(hash.as_bytes())))?;
        (found.expires.is_none_or(|expires| expires > now())).then(|| found.clone())
    }

    /// The rights of a secret; `None` when it is unknown or has expired, or is a sender's.
    pub fn check(&self, secret: &str) -> Option<Rights> {
        // Before it is looked up: what is revoked meanwhile is noticed by `holds`.
        let revision = self.revision.load(Ordering::Acquire);
        let found = self.find(secret).filter(|found| !found.events)?;
        Some(Rights {
            volume: found.volume,
            read_only: found.read_only,
            token: Some(found.id),
            expires: found.expires,
            revision,
        })
    }

    /// Whose secret for sending events it is.
    pub fn check_sender(&self, secret: &str) -> Option<Sender> {
        let found = self.find(secret).filter(|found| found.events)?;
        Some(Sender { volume: found.volume })
    }

    pub fn create(
        &self,
        volume: Option<String>,
        read_only: bool,
        events: bool,
        expires_seconds: Option<u64>,
        label: String,
    ) -> std::io::Result<TokenInfo> {
        let random: [u8; 40] = crate::random()?;
        let (id, secret) = (hex(&random[..8]), format!("atoll_{}", hex(&random[8..])));
        let expires = expires_seconds.map(|seconds| now().saturating_add(seconds));
        let token = Token { id, label, volume, read_only, events, expires, hash: hash(&secret) };
        let mut list = self.list.lock();
        let mut new = list.clone();
        new.push(token.clone());
        self.save(&new)?;
        *list = new;
        Ok(TokenInfo { secret: Some(secret), ..info(&token) })
    }

    pub fn list(&self) -> Vec<TokenInfo> {
        self.list.lock().iter().map(info).collect()
    }

    /// False when there is no such token.
    pub fn revoke(&self, id: &str) -> std::io::Result<bool> {
        let mut list = self.list.lock();
        let mut new = list.clone();
        new.retain(|token| token.id != id);
        if new.len() == list.len() {
            return Ok(false);
        }
        self.save(&new)?;
        *list = new;
        self.revision.fetch_add(1, Ordering::AcqRel);
        Ok(true)
    }
}

fn info(token: &Token) -> TokenInfo {
    TokenInfo {
        id: token.id.clone(),
        label: token.label.clone(),
        volume: token.volume.clone(),
        read_only: token.read_only,
        events: token.events,
        expires: token.expires,
        secret: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lets_in_until_it_is_revoked_and_its_secret_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.json");
        let tokens = Tokens::load(path.clone()).unwrap();
        let made = tokens.create(Some("v".into()), true, false, None, "l".into()).unwrap();
        let secret = made.secret.unwrap();
        let again = Tokens::load(path.clone()).unwrap();
        let mut rights = again.check(&secret).unwrap();
        assert_eq!((rights.volume.as_deref(), rights.read_only), (Some("v"), true));
        assert!(again.holds(&mut rights));
        assert!(!fs::read_to_string(&path).unwrap().contains(&secret));
        assert_eq!(again.check("wrong"), None);
        assert!(again.revoke(&made.id).unwrap());
        assert!(!again.holds(&mut rights) && !again.revoke(&made.id).unwrap());
        assert_eq!(again.check(&secret), None);
        let expired = again.create(None, false, false, Some(0), String::new()).unwrap();
        assert_eq!(again.check(&expired.secret.unwrap()), None);
    }

    #[test]
    fn a_token_of_a_sender_is_no_other_and_no_other_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.json");
        let tokens = Tokens::load(path.clone()).unwrap();
        let secret =
            |events| tokens.create(Some("v".into()), false, events, None, String::new()).unwrap().secret.unwrap();
        let (sender, other) = (secret(true), secret(false));
        let again = Tokens::load(path).unwrap();
        assert_eq!(again.check(&sender), None);
        assert_eq!(again.check_sender(&sender), Some(Sender { volume: Some("v".into()) }));
        assert!(again.check(&other).is_some());
        assert_eq!(again.check_sender(&other), None);
        // As it was written before there were senders.
        let old = r#"[{"id":"1","label":"","volume":null,"read_only":false,"expires":null,"hash":"00"}]"#;
        let old: Vec<Token> = serde_json::from_str(old).unwrap();
        assert!(!old[0].events);
    }
}
