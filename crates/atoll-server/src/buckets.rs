//! Buckets of links: reached as the server's environment, the link, and the credentials that it names say.
//!
//! What a bucket can do is found out when it is first linked, and kept in the data folder. Where that is lost, or was never there, it is found
//! out before the first write; reads do not wait for it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use atoll_link::{
    Bucket, BucketError, Capabilities, Condition, Head, Headers, LinkSettings, ObjectKey, Page, PartSource, S3Bucket,
    Sent, Source, UploadLog, Version,
};
use atoll_object::ObjectOptions;
use atoll_types::ByteRange;
use atoll_volume::Connect;
use atoll_wire::BucketCredentials;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::credentials::Credentials;
use crate::durable;

/// Open buckets at a time; more, and all of them are opened anew as they are used.
const OPEN_MAX: usize = 1024;
/// Buckets of which it is kept what they can do; the oldest make room.
const KNOWN_MAX: usize = 1024;

/// A bucket, and as whom it is used.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    bucket: String,
    endpoint: Option<String>,
    region: Option<String>,
    credentials: Option<String>,
}

/// What a bucket was found to be able to do, whoever uses it.
#[derive(Clone, Serialize, Deserialize)]
struct Known {
    bucket: String,
    endpoint: Option<String>,
    capabilities: Capabilities,
}

pub(crate) struct Buckets {
    /// What the server was started with.
    own: ObjectOptions,
    pub credentials: Credentials,
    path: PathBuf,
    known: Mutex<Vec<Known>>,
    open: Mutex<HashMap<Place, S3Bucket>>,
    /// To all of them.
    pub sent: Sent,
    /// Held by the one who finds out what a bucket can do, while others want to write there.
    probing: tokio::sync::Mutex<()>,
}

impl Buckets {
    pub fn new(own: ObjectOptions, credentials: Credentials, path: PathBuf) -> Buckets {
        let known = match std::fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(known)) => known,
            // What it says is found out again.
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "cannot be read: buckets are looked at again");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        Buckets {
            own,
            credentials,
            path,
            known: Mutex::new(known),
            open: Mutex::default(),
            sent: Sent::default(),
            probing: tokio::sync::Mutex::default(),
        }
    }

    /// How volumes come to the buckets of their links.
    pub fn connect(self: &Arc<Self>) -> Connect {
        let buckets = self.clone();
        Arc::new(move |settings, uploads| {
            let url = format!("s3://{}", settings.bucket);
            let (buckets, settings) = (buckets.clone(), settings.clone());
            Ok(Arc::new(LinkedBucket { buckets, settings, url, uploads }) as Arc<dyn Bucket>)
        })
    }

    /// Links that name these use the new ones from now on.
    pub fn set_credentials(&self, name: &str, credentials: BucketCredentials) -> Result<(), String> {
        self.credentials.set(name, credentials)?;
        self.open.lock().retain(|place, _| place.credentials.as_deref() != Some(name));
        Ok(())
    }

    /// Links that name these cannot use their buckets from now on. False when there are none.
    pub fn delete_credentials(&self, name: &str) -> Result<bool, String> {
        let was_there = self.credentials.delete(name)?;
        self.open.lock().retain(|place, _| place.credentials.as_deref() != Some(name));
        Ok(was_there)
    }

    /// Where and as whom to reach the bucket of a link.
    pub fn options(&self, settings: &LinkSettings) -> Result<ObjectOptions, String> {
        let mut options = self.own.clone();
        if let Some(endpoint) = &settings.endpoint {
            // One without encryption is allowed when it is named.
            options.allow_http |= endpoint.starts_with("http://");
            options.endpoint = Some(endpoint.clone());
        }
        if settings.region.is_some() {
            options.region = settings.region.clone();
        }
        if let Some(name) = &settings.credentials {
            let Some(named) = self.credentials.get(name) else {
                return Err(format!("this server keeps no credentials `{name}` (`atoll link credentials set {name}`)"));
            };
            options.access_key_id = Some(named.access_key_id);
            options.secret_access_key = Some(named.secret_access_key);
            options.session_token = named.session_token;
        }
        Ok(options)
    }

    /// Nothing is sent.
    fn open(&self, settings: &LinkSettings) -> Result<S3Bucket, BucketError> {
        let place = Place {
            bucket: settings.bucket.clone(),
            endpoint: settings.endpoint.clone(),
            region: settings.region.clone(),
            credentials: settings.credentials.clone(),
        };
        // Held until it is there: otherwise credentials that are replaced meanwhile would stay in use.
        let mut open = self.open.lock();
        if let Some(bucket) = open.get(&place) {
            return Ok(bucket.clone());
        }
        let url = format!("s3://{}", settings.bucket);
        let options = self.options(settings).map_err(BucketError::Denied)?;
        let bucket = S3Bucket::open_counted(&url, &options, self.sent.clone())?;
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(place, bucket.clone());
        Ok(bucket)
    }

    fn endpoint(&self, settings: &LinkSettings) -> Option<String> {
        settings.endpoint.clone().or_else(|| self.own.endpoint.clone())
    }

    /// What the bucket of a link can do, if somebody has looked.
    pub fn capabilities(&self, settings: &LinkSettings) -> Option<Capabilities> {
        let endpoint = self.endpoint(settings);
        let known = self.known.lock();
        let of = known.iter().find(|known| known.bucket == settings.bucket && known.endpoint == endpoint)?;
        Some(of.capabilities)
    }

    /// Find out what the bucket of a link can do, by writing below its prefix.
    pub async fn probe(&self, settings: &LinkSettings) -> Result<(), BucketError> {
        self.look(settings, &self.open(settings)?).await.map(drop)
    }

    async fn look(&self, settings: &LinkSettings, bucket: &S3Bucket) -> Result<Capabilities, BucketError> {
        let capabilities = bucket.probe(&settings.prefix).await?;
        let found = Known { bucket: settings.bucket.clone(), endpoint: self.endpoint(settings), capabilities };
        let mut known = self.known.lock();
        known.retain(|known| known.bucket != found.bucket || known.endpoint != found.endpoint);
        if known.len() >= KNOWN_MAX {
            known.remove(0);
        }
        known.push(found);
        let kept = serde_json::to_vec_pretty(&*known).map_err(std::io::Error::other);
        if let Err(error) = kept.and_then(|json| durable::write(&self.path, &json, 0o600)) {
            // It is found out again after the next start.
            tracing::warn!(path = %self.path.display(), %error, "cannot keep what a bucket can do");
        }
        Ok(capabilities)
    }

    /// The bucket of a link, to write to.
    async fn writable(&self, settings: &LinkSettings) -> Result<S3Bucket, BucketError> {
        let bucket = self.open(settings)?;
        let mut found = self.capabilities(settings);
        if found.is_none() {
            let _alone = self.probing.lock().await;
            // Somebody else may have looked meanwhile.
            found = self.capabilities(settings);
            if found.is_none() {
                found = Some(self.look(settings, &bucket).await?);
            }
        }
        if let Some(found) = found {
            bucket.assume(found);
        }
        Ok(bucket)
    }
}

/// The bucket of a link. It is opened anew when its credentials have changed.
struct LinkedBucket {
    buckets: Arc<Buckets>,
    settings: LinkSettings,
    url: String,
    uploads: Arc<dyn UploadLog>,
}

impl std::fmt::Debug for LinkedBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LinkedBucket").field(&self.url).finish()
    }
}

impl LinkedBucket {
    fn readable(&self) -> Result<S3Bucket, BucketError> {
        self.buckets.open(&self.settings)
    }

    async fn writable(&self) -> Result<S3Bucket, BucketError> {
        Ok(self.buckets.writable(&self.settings).await?.with_uploads(self.uploads.clone()))
    }
}

#[async_trait]
impl Bucket for LinkedBucket {
    fn url(&self) -> &str {
        &self.url
    }

    async fn refuses(&self, key: &ObjectKey) -> Result<Option<&'static str>, BucketError> {
        self.writable().await?.refuses(key).await
    }

    async fn head(&self, key: &ObjectKey, unless: Option<&Version>) -> Result<Head, BucketError> {
        self.readable()?.head(key, unless).await
    }

    async fn list(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
        delimited: bool,
        max: usize,
    ) -> Result<Page, BucketError> {
        self.readable()?.list(prefix, after, delimited, max).await
    }

    async fn get(&self, key: &ObjectKey, version: &Version, range: ByteRange) -> Result<Bytes, BucketError> {
        self.readable()?.get(key, version, range).await
    }

    async fn tags(&self, key: &ObjectKey) -> Result<Vec<(String, String)>, BucketError> {
        self.readable()?.tags(key).await
    }

    async fn put(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.writable().await?.put(key, bytes, headers, condition).await
    }

    async fn put_parts(
        &self,
        key: &ObjectKey,
        parts: &mut (dyn PartSource + Send),
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.writable().await?.put_parts(key, parts, headers, condition).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        source: Source<'_>,
        to: &ObjectKey,
        headers: Option<&Headers>,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.writable().await?.copy(from, source, to, headers, condition).await
    }

    async fn delete(&self, key: &ObjectKey, version: &Version) -> Result<(), BucketError> {
        self.writable().await?.delete(key, version).await
    }

    async fn abort(&self, key: &ObjectKey, upload: &str) -> Result<(), BucketError> {
        self.readable()?.abort(key, upload).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(folder: &std::path::Path) -> Buckets {
        let own = ObjectOptions {
            endpoint: Some("https://own.example".into()),
            region: Some("own".into()),
            access_key_id: Some("own id".into()),
            secret_access_key: Some("own secret".into()),
            session_token: Some("own token".into()),
            allow_http: false,
        };
        let credentials = Credentials::load(folder.join("credentials.json")).unwrap();
        Buckets::new(own, credentials, folder.join("buckets.json"))
    }

    #[test]
    fn a_link_says_what_differs_from_the_servers_environment() {
        let folder = tempfile::tempdir().unwrap();
        let buckets = buckets(folder.path());
        let plain = LinkSettings::parse("s3://bucket/prefix").unwrap();
        let own = buckets.options(&plain).unwrap();
        assert_eq!((own.endpoint.as_deref(), own.region.as_deref()), (Some("https://own.example"), Some("own")));
        assert_eq!((own.access_key_id.as_deref(), own.session_token.as_deref()), (Some("own id"), Some("own token")));

        let elsewhere = LinkSettings {
            endpoint: Some("http://127.0.0.1:9000".into()),
            region: Some("there".into()),
            credentials: Some("named".into()),
            ..plain
        };
        // Never with others than those that it names.
        let error = buckets.options(&elsewhere).unwrap_err();
        assert!(error.contains("atoll link credentials set named"), "{error}");
        let named = BucketCredentials {
            access_key_id: "named-id".into(),
            secret_access_key: "named-secret".into(),
            session_token: None,
        };
        buckets.set_credentials("named", named).unwrap();
        let options = buckets.options(&elsewhere).unwrap();
        assert!(options.allow_http);
        assert_eq!((options.endpoint, options.region), (elsewhere.endpoint.clone(), Some("there".to_owned())));
        assert_eq!((options.access_key_id.as_deref(), options.session_token), (Some("named-id"), None));
        assert_eq!(options.secret_access_key.as_deref(), Some("named-secret"));
        assert!(buckets.delete_credentials("named").unwrap());
        assert!(buckets.options(&elsewhere).is_err());
    }

    #[derive(Debug)]
    struct Unheard;

    #[async_trait]
    impl UploadLog for Unheard {
        async fn begun(&self, _: &ObjectKey, _: &str) -> Result<(), BucketError> {
            Ok(())
        }

        fn ended(&self, _: &str, _: bool) {}
    }

    #[tokio::test]
    async fn a_bucket_in_use_is_opened_anew_with_new_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let buckets = Arc::new(buckets(folder.path()));
        let named = LinkSettings { credentials: Some("named".into()), ..LinkSettings::parse("s3://bucket").unwrap() };
        let linked = buckets.connect()(&named, Arc::new(Unheard)).unwrap();
        let key = ObjectKey::new("key").unwrap();
        assert!(matches!(linked.head(&key, None).await, Err(BucketError::Denied(_))));
        let credentials = |secret: &str| BucketCredentials {
            access_key_id: "id".into(),
            secret_access_key: secret.into(),
            session_token: None,
        };
        buckets.set_credentials("named", credentials("first")).unwrap();
        buckets.open(&named).unwrap();
        assert_eq!(buckets.open.lock().len(), 1);
        buckets.set_credentials("other", credentials("other")).unwrap();
        assert_eq!(buckets.open.lock().len(), 1);
        buckets.set_credentials("named", credentials("second")).unwrap();
        assert_eq!(buckets.open.lock().len(), 0);
        buckets.open(&named).unwrap();
        buckets.delete_credentials("named").unwrap();
        assert!(matches!(linked.head(&key, None).await, Err(BucketError::Denied(_))));
    }
}
