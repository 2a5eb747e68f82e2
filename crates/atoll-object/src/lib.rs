//! Object stores by URL: credentials from the environment, bounded retries, and
//! a probe for what Atoll cannot do without.

mod folder;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;

use crate::folder::Folder;

/// Why an object store cannot be used; every message says what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("`{0}` is not a store: use file:///FOLDER or s3://BUCKET/PREFIX")]
    Url(String),
    #[error("cannot use folder {folder}: {reason}")]
    Folder { folder: String, reason: String },
    #[error("{url}: {reason}: check the bucket's name, AWS_* credentials and AWS_ENDPOINT_URL")]
    Unusable { url: String, reason: String },
    #[error(
        "{url} does not honour If-None-Match on PUT: Atoll needs conditional writes to keep two servers from one volume"
    )]
    NoConditionalPut { url: String },
}

/// Where and as whom to reach S3. Secrets do not show in `Debug`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ObjectOptions {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    pub session_token: Option<String>,
    pub allow_http: bool,
}

impl fmt::Debug for ObjectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectOptions")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl ObjectOptions {
    /// The usual `AWS_*` variables. A plain-HTTP endpoint is allowed when it is named.
    pub fn from_env() -> Self {
        let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = get("AWS_ENDPOINT_URL_S3").or_else(|| get("AWS_ENDPOINT_URL")).or_else(|| get("AWS_ENDPOINT"));
        let plain = endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
        ObjectOptions {
            endpoint,
            region: get("AWS_REGION").or_else(|| get("AWS_DEFAULT_REGION")),
            access_key_id: get("AWS_ACCESS_KEY_ID"),
            secret_access_key: get("AWS_SECRET_ACCESS_KEY"),
            session_token: get("AWS_SESSION_TOKEN"),
            allow_http: plain || get("AWS_ALLOW_HTTP").is_some_and(|v| v == "true" || v == "1"),
        }
    }
}

/// A place in an object store: every path is relative to it.
#[derive(Clone, Debug)]
pub struct ObjectRoot {
    pub store: Arc<dyn ObjectStore>,
    /// The same place in the file system, for a `file://` store.
    pub folder: Option<PathBuf>,
    pub url: String,
}

impl ObjectRoot {
    /// The place `name` (one or more path segments) below this one.
    pub fn child(&self, name: &str) -> ObjectRoot {
        ObjectRoot {
            store: Arc::new(PrefixStore::new(self.store.clone(), Path::from(name))),
            folder: self.folder.as_ref().map(|folder| folder.join(name)),
            url: format!("{}/{name}", self.url.trim_end_matches('/')),
        }
    }
}

/// Do what may block beside the runtime's threads. A runtime of one thread is a simulation's: there it is a task, so that
/// one seed gives one order of everything.
pub fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => tokio::spawn(async move { work() }),
        _ => tokio::task::spawn_blocking(work),
    }
}

/// Open `file:///folder` (made if missing, writes are fsynced) or `s3://bucket/prefix`. Nothing is sent yet.
pub fn open(url: &str, options: &ObjectOptions) -> Result<ObjectRoot, ObjectError> {
    if let Some(folder) = url.strip_prefix("file://") {
        if !folder.starts_with('/') {
            return Err(ObjectError::Url(url.to_owned()));
        }
        let refuse = |reason: String| ObjectError::Folder { folder: folder.to_owned(), reason };
        std::fs::create_dir_all(folder).map_err(|error| refuse(error.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| refuse(error.to_string()))?;
        let store: Arc<dyn ObjectStore> = Arc::new(Folder::new(store.with_fsync(true)));
        return Ok(ObjectRoot { store, folder: Some(PathBuf::from(folder)), url: url.to_owned() });
    }
    let Some(rest) = url.strip_prefix("s3://") else { return Err(ObjectError::Url(url.to_owned())) };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(ObjectError::Url(url.to_owned()));
    }
    // The process-wide choice; a second installation is refused, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(options.region.as_deref().unwrap_or("us-east-1"))
        .with_allow_http(options.allow_http)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(RetryConfig { max_retries: 6, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() });
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let (Some(id), Some(secret)) = (&options.access_key_id, &options.secret_access_key) {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
    }
    if let Some(token) = &options.session_token {
        builder = builder.with_token(token);
    }
    let store =
        builder.build().map_err(|error| ObjectError::Unusable { url: url.to_owned(), reason: error.to_string() })?;
    let prefix = Path::from(prefix);
    let store: Arc<dyn ObjectStore> =
        if prefix.as_ref().is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(ObjectRoot { store, folder: None, url: url.to_owned() })
}

/// Write, write again under the condition that nothing is there, and delete: what lacks shows here.
pub async fn probe(root: &ObjectRoot) -> Result<(), ObjectError> {
    let unusable = |error: object_store::Error| ObjectError::Unusable {
        url: root.url.clone(),
        reason: match error {
            object_store::Error::NotFound { .. } => "the bucket is missing".to_owned(),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                "access is forbidden".to_owned()
            }
            error => error.to_string(),
        },
    };
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let path = Path::from(format!("atoll-probe-{}-{}", std::process::id(), now.as_nanos()));
    let create = || {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        root.store.put_opts(&path, PutPayload::from_static(b"probe"), options)
    };
    match create().await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(unusable(error)),
    }
    let second = create().await;
    root.store.delete(&path).await.map_err(unusable)?;
    match second {
        Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Ok(_) => Err(ObjectError::NoConditionalPut { url: root.url.clone() }),
        Err(error) => Err(unusable(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_urls_are_stores() {
        let options = ObjectOptions::default();
        for bad in ["", "/tmp", "file://relative", "s3://", "gs://bucket"] {
            assert!(matches!(open(bad, &options), Err(ObjectError::Url(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_folder_honours_conditional_writes() {
        let folder = tempfile::tempdir().unwrap();
        let root = open(&format!("file://{}", folder.path().display()), &ObjectOptions::default()).unwrap();
        probe(&root.child("a/b")).await.unwrap();
    }

    /// An S3 server over HTTP that says yes to everything, conditions included.
    fn careless_server() -> String {
        use std::io::{BufRead, BufReader, Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().take(16).flatten() {
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut length = 0;
                    let mut line = String::new();
                    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
                        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        if line == "\r\n" {
                            let _ = reader.by_ref().take(length).read_to_end(&mut Vec::new());
                            let body = "<DeleteResult><Deleted><Key>k</Key></Deleted></DeleteResult>";
                            let head =
                                format!("HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: {}\r\n\r\n", body.len());
                            (&stream).write_all((head + body).as_bytes()).unwrap();
                            length = 0;
                        }
                        line.clear();
                    }
                });
            }
        });
        url
    }

    #[tokio::test]
    async fn a_bucket_that_ignores_conditions_is_refused() {
        let options = ObjectOptions {
            endpoint: Some(careless_server()),
            access_key_id: Some("key".into()),
            secret_access_key: Some("secret".into()),
            allow_http: true,
            ..ObjectOptions::default()
        };
        let root = open("s3://bucket/prefix", &options).unwrap();
        let error = probe(&root).await.unwrap_err();
        assert!(matches!(error, ObjectError::NoConditionalPut { .. }), "{error}");
        assert!(error.to_string().contains("If-None-Match"));
    }
}
