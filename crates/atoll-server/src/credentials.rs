//! Credentials of buckets, by name, for links that do not use those of the server's environment.
//!
//! They lie in the data folder, readable for its owner alone, and are in no answer, message or log line.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use atoll_wire::BucketCredentials;
use parking_lot::Mutex;

use crate::{durable, names};

/// Names at a time.
const NAMES_MAX: usize = 1000;
/// Of one of the texts. Session tokens are long.
const TEXT_BYTES_MAX: usize = 8192;

pub(crate) struct Credentials {
    path: PathBuf,
    all: Mutex<BTreeMap<String, BucketCredentials>>,
}

impl Credentials {
    pub fn load(path: PathBuf) -> std::io::Result<Credentials> {
        let all = match fs::read(&path) {
            // The error would quote what it does not understand.
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| std::io::Error::other("damaged"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Credentials { path, all: Mutex::new(all) })
    }

    fn save(&self, all: &BTreeMap<String, BucketCredentials>) -> Result<(), String> {
        let json = serde_json::to_vec_pretty(all).map_err(|error| error.to_string())?;
        durable::write(&self.path, &json, 0o600).map_err(|error| format!("{}: {error}", self.path.display()))
    }

    pub fn get(&self, name: &str) -> Option<BucketCredentials> {
        self.all.lock().get(name).cloned()
    }

    pub fn names(&self) -> Vec<String> {
        self.all.lock().keys().cloned().collect()
    }

    /// Keep credentials, in place of those that had the name.
    pub fn set(&self, name: &str, credentials: BucketCredentials) -> Result<(), String> {
        names::check("set of credentials", name)?;
        check(&credentials)?;
        let mut all = self.all.lock();
        let mut new = all.clone();
        new.insert(name.to_owned(), credentials);
        if new.len() > NAMES_MAX {
            return Err(format!("at most {NAMES_MAX} credentials are kept: delete some first"));
        }
        self.save(&new)?;
        *all = new;
        Ok(())
    }

    /// False when there are none of that name.
    pub fn delete(&self, name: &str) -> Result<bool, String> {
        let mut all = self.all.lock();
        let mut new = all.clone();
        if new.remove(name).is_none() {
            return Ok(false);
        }
        self.save(&new)?;
        *all = new;
        Ok(true)
    }
}

/// What can be in the header that signs a request.
fn check(credentials: &BucketCredentials) -> Result<(), String> {
    let BucketCredentials { access_key_id, secret_access_key, session_token } = credentials;
    let is_good = |text: &str| {
        !text.is_empty() && text.len() <= TEXT_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let texts = [
        ("access key id", Some(access_key_id)),
        ("secret access key", Some(secret_access_key)),
        ("session token", session_token.as_ref()),
    ];
    match texts.into_iter().find(|(_, text)| text.is_some_and(|text| !is_good(text))) {
        Some((what, _)) => {
            Err(format!("this is no {what}: give 1 to {TEXT_BYTES_MAX} characters of ASCII without spaces"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keys(secret: &str) -> BucketCredentials {
        BucketCredentials { access_key_id: "id".into(), secret_access_key: secret.into(), session_token: None }
    }

    #[test]
    fn credentials_are_kept_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.json");
        let credentials = Credentials::load(path.clone()).unwrap();
        credentials.set("one", keys("first")).unwrap();
        credentials.set("one", keys("second")).unwrap();
        credentials.set("two", keys("third")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Credentials::load(path).unwrap();
        assert_eq!(again.names(), ["one", "two"]);
        assert!(again.get("one") == Some(keys("second")) && again.get("three").is_none());
        assert!(again.delete("one").unwrap() && !again.delete("one").unwrap());
        assert_eq!(again.names(), ["two"]);
    }

    #[test]
    fn what_cannot_sign_a_request_is_refused_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let credentials = Credentials::load(folder.path().join("credentials.json")).unwrap();
        for bad in ["", "with space", "line\nbreak", "ümlaut", &"x".repeat(TEXT_BYTES_MAX + 1)] {
            let error = credentials.set("name", keys(bad)).unwrap_err();
            assert!(error.contains("secret access key") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
        let token = BucketCredentials { session_token: Some(String::new()), ..keys("good") };
        assert!(credentials.set("name", token).is_err());
        assert!(credentials.set("a/b", keys("good")).is_err());
        assert!(credentials.names().is_empty());
    }

    #[test]
    fn a_damaged_file_is_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.json");
        fs::write(&path, r#"{"name": "half"}"#).unwrap();
        let Err(error) = Credentials::load(path) else { panic!("it was read") };
        assert!(!error.to_string().contains("half"), "{error}");
    }
}
