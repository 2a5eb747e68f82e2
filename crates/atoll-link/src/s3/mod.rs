//! A bucket over HTTP, by the S3 protocol.
//!
//! Each request is bounded in time and made a bounded number of times (`failure.rs`). What a bucket lacks is replaced by what
//! [`Capabilities`] says; until [`S3Bucket::probe`] has looked, it is taken for one that lacks everything.

mod copy;
mod failure;
mod headers;
mod list;
mod parts;
mod probe;
mod read;
mod sent;
mod text;
mod write;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_object::ObjectOptions;
use atoll_types::ByteRange;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::{Builder, tls};
use bytes::Bytes;
use parking_lot::RwLock;

pub(crate) use failure::{TEXT_CHARS_MAX, chain};
pub use probe::Capabilities;
pub use sent::Sent;

use crate::{Bucket, BucketError, Condition, Head, Headers, ObjectKey, Page, PartSource, Source, UploadLog, Version};

pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Shorter than servers keep a silent connection: few requests meet one that is about to be closed.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Where none is named.
pub(crate) const REGION_DEFAULT: &str = "us-east-1";
/// Which of the user metadata tells one write from another.
const GENERATION: &str = "atoll-generation";

/// How requests are sent.
pub(crate) fn http_client() -> SharedHttpClient {
    Builder::new()
        .pool_idle_timeout(CONNECTION_IDLE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https()
}

/// A bucket of an S3 server. A clone is the same bucket.
#[derive(Clone)]
pub struct S3Bucket {
    inner: Arc<Inner>,
    uploads: Option<Arc<dyn UploadLog>>,
}

struct Inner {
    url: String,
    name: String,
    client: Client,
    capabilities: RwLock<Capabilities>,
}

impl fmt::Debug for S3Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Bucket").field(&self.inner.url).finish()
    }
}

impl S3Bucket {
    /// The bucket at `s3://NAME`. Nothing is sent. At an endpoint the bucket is the first segment of paths; without one it is a
    /// part of the host's name, as Amazon wants it. Without keys, requests are not signed: public buckets allow that.
    pub fn open(url: &str, options: &ObjectOptions) -> Result<S3Bucket, BucketError> {
        S3Bucket::open_counted(url, options, Sent::default())
    }

    /// The same, and what is sent is counted.
    pub fn open_counted(url: &str, options: &ObjectOptions, sent: Sent) -> Result<S3Bucket, BucketError> {
        let name = url.strip_prefix("s3://").map(|name| name.strip_suffix('/').unwrap_or(name));
        let Some(name) = name.filter(|name| !name.is_empty() && !name.contains('/')) else {
            return Err(BucketError::Unsupported(format!("`{url}` is not a bucket: use s3://BUCKET")));
        };
        let mut config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(options.region.clone().unwrap_or_else(|| REGION_DEFAULT.to_owned())))
            .http_client(http_client())
            .interceptor(sent)
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            // Our own attempts know which of them may have had an effect, and include an answer's body.
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // Checksums in trailers are more than some servers understand; ours are in headers.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &options.endpoint {
            if endpoint.starts_with("http://") && !options.allow_http {
                return Err(BucketError::Unsupported(format!("{endpoint} is not encrypted, and that is not allowed")));
            }
            config = config.endpoint_url(endpoint.trim_end_matches('/')).force_path_style(true);
        }
        config = match (&options.access_key_id, &options.secret_access_key) {
            (Some(id), Some(secret)) => config.credentials_provider(Credentials::new(
                id,
                secret,
                options.session_token.clone(),
                None,
                "the options of the link",
            )),
            _ => config.allow_no_auth(),
        };
        Ok(S3Bucket {
            inner: Arc::new(Inner {
                url: format!("s3://{name}"),
                name: name.to_owned(),
                client: Client::from_conf(config.build()),
                capabilities: RwLock::default(),
            }),
            uploads: None,
        })
    }

    /// The same bucket, whose uploads in parts are told to the log.
    pub fn with_uploads(self, uploads: Arc<dyn UploadLog>) -> S3Bucket {
        S3Bucket { uploads: Some(uploads), ..self }
    }

    /// What the bucket was found to be able to do; nothing, before [`S3Bucket::probe`].
    pub fn capabilities(&self) -> Capabilities {
        *self.inner.capabilities.read()
    }

    /// Take the word of an earlier probe.
    pub fn assume(&self, capabilities: Capabilities) {
        *self.inner.capabilities.write() = capabilities;
    }

    fn client(&self) -> &Client {
        &self.inner.client
    }

    fn name(&self) -> &str {
        &self.inner.name
    }
}

#[async_trait]
impl Bucket for S3Bucket {
    fn url(&self) -> &str {
        &self.inner.url
    }

    async fn refuses(&self, key: &ObjectKey) -> Result<Option<&'static str>, BucketError> {
        Ok(self.capabilities().refuses(key))
    }

    async fn head(&self, key: &ObjectKey, unless: Option<&Version>) -> Result<Head, BucketError> {
        Ok(self.look(key, None, unless).await?)
    }

    async fn list(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
        delimited: bool,
        max: usize,
    ) -> Result<Page, BucketError> {
        Ok(self.page(prefix, after, delimited, max).await?)
    }

    async fn get(&self, key: &ObjectKey, version: &Version, range: ByteRange) -> Result<Bytes, BucketError> {
        Ok(self.read(key, version, range).await?)
    }

    async fn tags(&self, key: &ObjectKey) -> Result<Vec<(String, String)>, BucketError> {
        Ok(self.read_tags(key, None).await?)
    }

    async fn put(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        Ok(self.write(key, bytes, headers, condition).await?)
    }

    async fn put_parts(
        &self,
        key: &ObjectKey,
        parts: &mut (dyn PartSource + Send),
        headers: &Headers,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.write_parts(key, parts, headers, condition).await
    }

    async fn copy(
        &self,
        from: &ObjectKey,
        source: Source<'_>,
        to: &ObjectKey,
        headers: Option<&Headers>,
        condition: &Condition,
    ) -> Result<Version, BucketError> {
        self.copy_to(from, source, to, headers, condition).await
    }

    async fn delete(&self, key: &ObjectKey, version: &Version) -> Result<(), BucketError> {
        Ok(self.remove(key, version).await?)
    }

    async fn abort(&self, key: &ObjectKey, upload: &str) -> Result<(), BucketError> {
        Ok(self.abort_upload(key, upload).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ObjectOptions {
        ObjectOptions {
            access_key_id: Some("public-half".into()),
            secret_access_key: Some("secret-half".into()),
            ..ObjectOptions::default()
        }
    }

    #[test]
    fn only_a_bucket_is_opened() {
        for bad in ["", "bucket", "s3://", "s3:///", "s3://bucket/prefix", "file:///bucket"] {
            assert!(matches!(S3Bucket::open(bad, &options()), Err(BucketError::Unsupported(_))), "{bad}");
        }
        assert_eq!(S3Bucket::open("s3://bucket/", &options()).unwrap().url(), "s3://bucket");
    }

    #[test]
    fn an_endpoint_without_encryption_must_be_allowed() {
        let endpoint = Some("http://127.0.0.1:1".to_owned());
        let refused = ObjectOptions { endpoint: endpoint.clone(), ..options() };
        assert!(matches!(S3Bucket::open("s3://bucket", &refused), Err(BucketError::Unsupported(_))));
        S3Bucket::open("s3://bucket", &ObjectOptions { endpoint, allow_http: true, ..options() }).unwrap();
    }

    #[test]
    fn secrets_do_not_show() {
        let shown = format!("{:?}", S3Bucket::open("s3://bucket", &options()).unwrap());
        assert!(!shown.contains("half"), "{shown}");
    }
}
