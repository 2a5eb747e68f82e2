//! Keys of encrypted volumes, as they lie in the store beside the owner record.
//!
//! They are read anew whenever a volume is opened, and replaced by one conditional PUT: what is there is always whole, and
//! never has fewer keys than before.

use std::sync::Arc;

use atoll_keys::{KeyRecord, Keyring, RECORD_BYTES_MAX};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion, path::Path as ObjectPath};

use crate::registry::{Record, Registry};

type Result<T> = std::result::Result<T, String>;

/// How an encrypted volume's bytes are encrypted.
pub(crate) const CIPHER: &str = "aes-256-gcm";

fn path() -> ObjectPath {
    ObjectPath::from("keys.json")
}

impl Registry {
    /// The key record of a volume, and which version of it this is.
    pub(crate) async fn key_record(&self, name: &str) -> Result<(KeyRecord, UpdateVersion)> {
        let remote = self.remote(name);
        let fail = |error: object_store::Error| format!("volume `{name}`: {}/keys.json: {error}", remote.url);
        let found = match remote.store.get(&path()).await {
            Err(object_store::Error::NotFound { .. }) => {
                return Err(format!(
                    "volume `{name}` is encrypted, and {}/keys.json, which holds its keys, is missing: put a copy of it \
                     back; without it the volume cannot be read",
                    remote.url
                ));
            }
            found => found.map_err(fail)?,
        };
        if found.meta.size > RECORD_BYTES_MAX as u64 {
            return Err(format!("volume `{name}`: {}/keys.json is too long to be a key record", remote.url));
        }
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let json = found.bytes().await.map_err(fail)?;
        Ok((KeyRecord::parse(&json).map_err(|error| format!("volume `{name}`: {error}"))?, version))
    }

    async fn unwrap(&self, name: &str, id: u128, record: KeyRecord) -> Result<Keyring> {
        let server = self.keys.clone();
        // A passphrase takes its time.
        let unwrapped = tokio::task::spawn_blocking(move || record.unwrap(id, &server)).await;
        let unwrapped = unwrapped.map_err(|error| error.to_string())?;
        unwrapped.map_err(|error| format!("volume `{name}` is encrypted: {error}"))
    }

    /// What an encrypted volume is sealed with.
    pub(crate) async fn keyring(&self, name: &str, record: &Record) -> Result<Option<Arc<Keyring>>> {
        if !record.encrypted {
            return Ok(None);
        }
        let (keys, _) = self.key_record(name).await?;
        Ok(Some(Arc::new(self.unwrap(name, record.id()?, keys).await?)))
    }

    /// The key record of a volume with these keys.
    pub(crate) async fn wrap(&self, keys: Keyring, id: u128) -> Result<Vec<u8>> {
        let server = self.keys.clone();
        let wrapped = tokio::task::spawn_blocking(move || KeyRecord::of(&keys, None, id, &server)?.json()).await;
        wrapped.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Keep the keys of a new volume, whose name was claimed.
    pub(crate) async fn keep_keys(&self, name: &str, json: Vec<u8>) -> Result<()> {
        self.put_keys(name, json, PutMode::Create).await
    }

    async fn put_keys(&self, name: &str, json: Vec<u8>, mode: PutMode) -> Result<()> {
        let remote = self.remote(name);
        let put = remote.store.put_opts(&path(), PutPayload::from(json), PutOptions::from(mode)).await;
        match put {
            Ok(_) => Ok(()),
            Err(object_store::Error::Precondition { .. }) => {
                Err(format!("volume `{name}`: somebody else changed {}/keys.json meanwhile: try again", remote.url))
            }
            Err(error) => Err(format!("volume `{name}`: cannot write {}/keys.json: {error}", remote.url)),
        }
    }

    /// Wrap the keys of a volume anew with what this server wraps with; with `data`, also have what is written from now on
    /// sealed with a new data key. The volume goes on meanwhile.
    pub async fn rotate_key(&self, name: &str, data: bool) -> Result<()> {
        let record = self.record(name)?;
        if !record.encrypted {
            return Err(format!(
                "volume `{name}` is not encrypted: create one with --encrypt and copy what is in this one"
            ));
        }
        let id = record.id()?;
        let slot = self.slot(name);
        // Nobody opens or closes it meanwhile.
        let open = slot.lock().await;
        let (before, version) = self.key_record(name).await?;
        let keys = self.unwrap(name, id, before).await?;
        let server = self.keys.clone();
        let wrapped = tokio::task::spawn_blocking(move || {
            let fresh = if data { Some(keys.fresh()?) } else { None };
            let json = KeyRecord::of(&keys, fresh.as_ref(), id, &server)?.json()?;
            Ok::<_, atoll_keys::KeyError>((json, fresh))
        });
        let wrapped = wrapped.await.map_err(|error| error.to_string())?;
        let (json, fresh) = wrapped.map_err(|error| format!("volume `{name}`: {error}"))?;
        self.put_keys(name, json, PutMode::Update(version)).await?;
        // A crash before this leaves a key that is used from the next start on.
        if let (Some(keys), Some(fresh)) = (open.as_ref().and_then(|volume| volume.blob().keys()), fresh) {
            keys.install(fresh);
        }
        Ok(())
    }
}
