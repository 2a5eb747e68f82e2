//! What went wrong with a request, and asking again.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::BucketError;

/// How often a request is sent before the bucket counts as away.
const ATTEMPTS_MAX: u32 = 4;
/// How long an attempt may take that moves no bytes to speak of.
const ATTEMPT: Duration = Duration::from_secs(30);
/// Bytes that go over the network lengthen an attempt as if no network were slower.
const UPLOAD_BYTES_PER_SECOND: u64 = 1 << 20;
/// Likewise for bytes that the bucket moves itself.
const COPY_BYTES_PER_SECOND: u64 = 16 << 20;
/// The pause before the second attempt is half of this at least; it doubles with each one.
const PAUSE: Duration = Duration::from_millis(200);
/// Of an answer's text in messages.
pub(crate) const TEXT_CHARS_MAX: usize = 300;

/// What a failed request means for what is done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// 304: the object is the one that the request named.
    Same,
    Absent,
    NoUpload,
    /// 412, or another write was under way.
    Condition,
    /// The range begins behind the object's end.
    Behind,
    Archived,
    Denied,
    Unsupported,
    /// It may be better the next time; what was asked for may have been done.
    Passing,
    /// Likewise; the answer, or what arrived of the request, was damaged.
    Damaged,
}

#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub kind: Kind,
    pub text: String,
}

impl Failure {
    pub fn new(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into() }
    }

    pub fn damaged(text: impl Into<String>) -> Failure {
        Failure::new(Kind::Damaged, text)
    }

    fn is_worth_another_attempt(&self) -> bool {
        matches!(self.kind, Kind::Passing | Kind::Damaged)
    }
}

impl From<Failure> for BucketError {
    fn from(failure: Failure) -> BucketError {
        match failure.kind {
            Kind::Absent => BucketError::Absent,
            Kind::Condition => BucketError::Changed,
            Kind::Archived => BucketError::Archived(failure.text),
            Kind::Denied => BucketError::Denied(failure.text),
            Kind::Unsupported => BucketError::Unsupported(failure.text),
            Kind::Passing | Kind::NoUpload => BucketError::Away(failure.text),
            Kind::Damaged | Kind::Same | Kind::Behind => BucketError::Wrong(failure.text),
        }
    }
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Failure {
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        match (&error, status) {
            // The request could not even be built: a header's value with a line break, no key at all.
            (SdkError::ConstructionFailure(_), _) => Failure::new(Kind::Unsupported, chain(&error)),
            // Nobody can read it.
            (SdkError::ServiceError(service), Some(200..=299)) if service.err().code().is_none() => {
                Failure::damaged(chain(&error))
            }
            (SdkError::ServiceError(service), Some(status)) => {
                let code = service.err().code().unwrap_or_default();
                let text = match (code, service.err().message()) {
                    ("", _) => format!("HTTP status {status}"),
                    (code, Some(message)) => format!("{code}: {message}"),
                    (code, None) => code.to_owned(),
                };
                Failure::new(kind(status, code), text.chars().take(TEXT_CHARS_MAX).collect::<String>())
            }
            (SdkError::ResponseError(_), Some(200..=299)) => Failure::damaged(chain(&error)),
            // Not what the protocol has, but a status: of a proxy.
            (SdkError::ResponseError(_), Some(status)) => {
                Failure::new(kind(status, ""), format!("HTTP status {status}: {}", chain(&error)))
            }
            _ => Failure::new(Kind::Passing, chain(&error)),
        }
    }
}

/// The code says it better than the status where there is one: errors come with status 200, too, when the answer had begun.
fn kind(status: u16, code: &str) -> Kind {
    match code {
        "NoSuchBucket" => Kind::Denied,
        "NoSuchUpload" => Kind::NoUpload,
        "InvalidObjectState" => Kind::Archived,
        "PreconditionFailed" | "ConditionalRequestConflict" | "OperationAborted" => Kind::Condition,
        "SlowDown"
        | "RequestTimeout"
        | "InternalError"
        | "ServiceUnavailable"
        | "Throttling"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded" => Kind::Passing,
        "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" => Kind::Damaged,
        "NotImplemented" => Kind::Unsupported,
        _ => match status {
            304 => Kind::Same,
            404 => Kind::Absent,
            412 => Kind::Condition,
            409 if code.is_empty() => Kind::Condition,
            416 => Kind::Behind,
            // 301 and 307: the bucket is in another region.
            300..=399 | 401 | 403 => Kind::Denied,
            501 => Kind::Unsupported,
            408 | 429 | 500..=599 | 200..=299 => Kind::Passing,
            _ => Kind::Unsupported,
        },
    }
}

pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// What a request has to move, which says how long an attempt may take.
#[derive(Clone, Copy)]
pub(super) enum Load {
    Light,
    /// Bytes over the network.
    Bytes(u64),
    /// Bytes within the bucket.
    Copied(u64),
}

impl Load {
    fn time(self) -> Duration {
        ATTEMPT
            + Duration::from_secs(match self {
                Load::Light => 0,
                Load::Bytes(bytes) => bytes / UPLOAD_BYTES_PER_SECOND,
                Load::Copied(bytes) => bytes / COPY_BYTES_PER_SECOND,
            })
    }
}

/// Make attempts until one is good, or fails in a way that another one would fail in, too, or they are used up.
pub(super) async fn attempts<T, F>(load: Load, attempt: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    attempts_within(load.time(), attempt).await
}

async fn attempts_within<T, F>(time: Duration, mut attempt: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut number = 1;
    loop {
        let failure = match within(time, attempt()).await {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        if number == ATTEMPTS_MAX || !failure.is_worth_another_attempt() {
            return Err(failure);
        }
        tracing::debug!(number, error = failure.text, "a request to a bucket is sent again");
        tokio::time::sleep(PAUSE.mul_f64(f64::from(1 << (number - 1)) * rand::random_range(0.5..1.0))).await;
        number += 1;
    }
}

/// Make one attempt, whatever becomes of it.
pub(super) async fn one_attempt<T>(attempt: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    within(ATTEMPT, attempt).await
}

async fn within<T>(time: Duration, attempt: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Failure::new(Kind::Passing, format!("no answer within {} s", time.as_secs()));
    tokio::time::timeout(time, attempt).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_more_than_the_status() {
        assert_eq!(kind(200, "PreconditionFailed"), Kind::Condition);
        assert_eq!(kind(400, "RequestTimeout"), Kind::Passing);
        assert_eq!(kind(403, "InvalidObjectState"), Kind::Archived);
        assert_eq!(kind(404, "NoSuchBucket"), Kind::Denied);
        assert_eq!(kind(404, "NoSuchVersion"), Kind::Absent);
        assert_eq!(kind(409, "ObjectParentIsFile"), Kind::Unsupported);
    }

    #[tokio::test]
    async fn only_what_may_pass_is_tried_again_and_not_for_ever() {
        for (kind, sent) in [(Kind::Passing, 4), (Kind::Damaged, 4), (Kind::Denied, 1), (Kind::Condition, 1)] {
            let mut count = 0;
            let outcome = attempts(Load::Light, || {
                count += 1;
                async { Err::<(), _>(Failure::new(kind, "")) }
            });
            assert_eq!(outcome.await.unwrap_err().kind, kind);
            assert_eq!(count, sent);
        }
    }

    #[tokio::test]
    async fn an_attempt_without_an_answer_ends() {
        let time = Duration::from_millis(10);
        let outcome = attempts_within(time, std::future::pending::<Result<(), Failure>>).await;
        assert_eq!(outcome.unwrap_err().kind, Kind::Passing);
    }
}
