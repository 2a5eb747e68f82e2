//! The keys that a server has: lines of files that nobody else may read.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::passphrase::Stretching;
use crate::secret::Secret;
use crate::{KeyError, Result};

/// No file with keys or passphrases is longer.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Keys and passphrases of one server; each passphrase costs time when it is tried.
const SERVER_KEYS_MAX: usize = 64;
/// Shorter passphrases are refused.
const PASSPHRASE_CHARACTERS_MIN: usize = 12;

/// Names a wrapping key, in 16 hexadecimal digits, without telling it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappingId(pub(crate) String);

impl fmt::Display for WrappingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl WrappingId {
    pub(crate) fn of(key: &Secret) -> WrappingId {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.bytes()), b"atoll wrapping key id");
        WrappingId(hex::encode(&tag.as_ref()[..8]))
    }
}

/// What a server wraps and unwraps the keys of volumes with. Without any it can serve plain volumes only.
#[derive(Clone, Default)]
pub struct ServerKeys {
    /// The first one wraps, all unwrap.
    keys: Vec<Secret>,
    /// The first one wraps when there are no keys, all unwrap.
    passphrases: Vec<Zeroizing<String>>,
}

impl fmt::Debug for ServerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerKeys({} keys, {} passphrases)", self.keys.len(), self.passphrases.len())
    }
}

/// Lines that are neither empty nor comments, of a file that is its owner's alone.
fn lines(path: &Path) -> Result<Vec<Zeroizing<String>>> {
    let fail = |what: String| KeyError::File(format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|error| fail(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| fail(error.to_string()))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(fail(format!(
            "others can read or change this secret (mode {mode:04o}): run `chmod 600 {}`, and if somebody may have read \
             it, use a new one",
            path.display()
        )));
    }
    let mut text = Zeroizing::new(String::new());
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| fail(error.to_string()))?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(fail(format!("longer than {FILE_BYTES_MAX} bytes: this is no such file")));
    }
    let lines = text.lines().map(|line| line.trim_end_matches('\r')).filter(|line| !line.trim().is_empty());
    let lines: Vec<_> =
        lines.filter(|line| !line.starts_with('#')).map(|line| Zeroizing::new(line.to_owned())).collect();
    if lines.is_empty() {
        return Err(fail("nothing is in it".into()));
    }
    Ok(lines)
}

/// 32 bytes in hexadecimal or base64.
fn parse(line: &str) -> Option<Secret> {
    let line = line.trim();
    let bytes = Zeroizing::new(match line.len() {
        64 => hex::decode(line).ok()?,
        _ => STANDARD.decode(line).ok()?,
    });
    Secret::from_slice(&bytes)
}

impl ServerKeys {
    /// Read key files, whose lines are keys, and a file whose lines are passphrases.
    ///
    /// # Errors
    /// `File`, which says what to do.
    pub fn load(key_files: &[PathBuf], passphrase_file: Option<&Path>) -> Result<ServerKeys> {
        let mut server = ServerKeys::default();
        for path in key_files {
            for (number, line) in lines(path)?.iter().enumerate() {
                let key = parse(line).ok_or_else(|| {
                    KeyError::File(format!(
                        "{}: key {} is not 32 bytes in hexadecimal or base64: `atoll key generate FILE` makes one",
                        path.display(),
                        number + 1
                    ))
                })?;
                server.keys.push(key);
            }
        }
        if let Some(path) = passphrase_file {
            server.passphrases = lines(path)?;
            if server.passphrases.iter().any(|line| line.chars().count() < PASSPHRASE_CHARACTERS_MIN) {
                return Err(KeyError::File(format!(
                    "{}: a passphrase is shorter than {PASSPHRASE_CHARACTERS_MIN} characters: use a longer one",
                    path.display()
                )));
            }
        }
        if server.keys.len() + server.passphrases.len() > SERVER_KEYS_MAX {
            return Err(KeyError::File(format!("more than {SERVER_KEYS_MAX} keys and passphrases")));
        }
        Ok(server)
    }

    /// What wraps from now on.
    pub(crate) fn wrapping(&self) -> Result<(Secret, Option<Stretching>)> {
        match (self.keys.first(), self.passphrases.first()) {
            (Some(key), _) => Ok((key.clone(), None)),
            (None, Some(passphrase)) => {
                let stretching = Stretching::random()?;
                Ok((stretching.key(passphrase)?, Some(stretching)))
            }
            (None, None) => Err(KeyError::NoKey(
                "this server has no key: make one with `atoll key generate FILE`, keep a copy of it elsewhere, and start \
                 the server with --key-file FILE"
                    .into(),
            )),
        }
    }

    /// The key of this name.
    pub(crate) fn find(&self, wanted: &WrappingId, stretching: Option<&Stretching>) -> Result<Secret> {
        let is_wanted = |key: &Secret| WrappingId::of(key) == *wanted;
        let (what, give, there) = match stretching {
            None => {
                if let Some(key) = self.keys.iter().find(|key| is_wanted(key)) {
                    return Ok(key.clone());
                }
                ("key", "--key-file", self.keys.iter().map(|key| WrappingId::of(key).0).collect::<Vec<_>>().join(", "))
            }
            Some(stretching) => {
                for passphrase in &self.passphrases {
                    let key = stretching.key(passphrase)?;
                    if is_wanted(&key) {
                        return Ok(key);
                    }
                }
                let there = if self.passphrases.is_empty() { "" } else { "other passphrases" };
                ("a passphrase, key", "--passphrase-file", there.to_owned())
            }
        };
        match there.is_empty() {
            true => Err(KeyError::NoKey(format!(
                "its keys are wrapped with {what} {wanted}, and this server has none: start it with {give}"
            ))),
            false => Err(KeyError::WrongKey(format!(
                "its keys are wrapped with {what} {wanted}, and this server has {there}: start it with the right {give}, \
                 which can hold several"
            ))),
        }
    }
}

/// Write a new key to a file that is not there yet, for its owner alone. Returns the key's name.
///
/// # Errors
/// `File`, `Random`.
pub fn generate(path: &Path) -> Result<WrappingId> {
    let fail = |error: std::io::Error| KeyError::File(format!("{}: {error}", path.display()));
    let key = Secret::random()?;
    let id = WrappingId::of(&key);
    let text = Zeroizing::new(format!("# atoll key {id}\n{}\n", *Zeroizing::new(hex::encode(key.bytes()))));
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(path).map_err(fail)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(folder: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_generated_key_is_its_owners_alone_and_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let id = generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let keys = ServerKeys::load(std::slice::from_ref(&path), None).unwrap();
        assert_eq!(WrappingId::of(&keys.wrapping().unwrap().0), id);
        assert!(matches!(generate(&path), Err(KeyError::File(_))));
        let content = fs::read_to_string(path).unwrap();
        assert!(!format!("{keys:?}").contains(content.lines().last().unwrap()));
    }

    #[test]
    fn files_that_others_can_read_and_foreign_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let hex = "ab".repeat(32);
        let base64 = STANDARD.encode([0xab; 32]);
        let good = write(folder.path(), "good", &format!("# one\n\n{hex}\n{base64}\r\n"), 0o400);
        let keys = ServerKeys::load(&[good], None).unwrap();
        assert_eq!(keys.keys.len(), 2);
        assert_eq!(keys.keys[0].bytes(), keys.keys[1].bytes());
        let refused = |text: &str, mode| {
            let path = write(folder.path(), "wrong", text, mode);
            let Err(KeyError::File(why)) = ServerKeys::load(std::slice::from_ref(&path), None) else {
                panic!("accepted")
            };
            fs::remove_file(path).unwrap();
            why
        };
        assert!(refused(&hex, 0o640).contains("chmod 600"));
        assert!(refused(&hex, 0o604).contains("chmod 600"));
        for text in ["", "# nothing\n", "ab\n", &hex[2..], &"x".repeat(1 << 20)] {
            let why = refused(text, 0o600);
            assert!(text.len() < 60 || !why.contains(text), "a secret is shown: {why}");
        }
        let short = write(folder.path(), "short", "too short\n", 0o600);
        assert!(matches!(ServerKeys::load(&[], Some(&short)), Err(KeyError::File(_))));
    }
}
