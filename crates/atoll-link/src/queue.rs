//! A queue of SQS, or of what speaks its protocol, to which a bucket sends its notifications.
//!
//! A message that was received is shown to nobody for [`HIDDEN`], and comes again unless it is deleted by then: who dies between the two
//! loses none.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use atoll_object::ObjectOptions;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region, StalledStreamProtectionConfig};
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry;
use serde::{Deserialize, Serialize};

use crate::s3;

/// Most messages of an answer, and how long one can be waited for: what the protocol allows.
pub const MESSAGES_MAX: usize = 10;
pub const WAIT_MAX: Duration = Duration::from_secs(20);
/// For how long a message that was received is shown to nobody, whatever is set at the queue. One that is not deleted by then does no
/// harm when it comes again; one that a killed server was sent is not to be waited for.
const HIDDEN: Duration = Duration::from_secs(10);
/// How long a request may take beyond what it waits for.
const ATTEMPT: Duration = Duration::from_secs(10);
const URL_BYTES_MAX: usize = 1024;

/// Where a queue is: `https://HOST/PATH`, as SQS names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueUrl(String);

impl QueueUrl {
    /// The server of the queue: the URL without its path.
    fn endpoint(&self) -> &str {
        let path = self.0.match_indices('/').nth(2).map_or(self.0.len(), |(at, _)| at);
        &self.0[..path]
    }

    /// What Amazon's names of servers say.
    fn region(&self) -> Option<&str> {
        let (_, host) = self.endpoint().split_once("://")?;
        let is_amazon = ["amazonaws.com", "amazonaws.com.cn", "api.aws"]
            .iter()
            .any(|domain| host.strip_suffix(domain).is_some_and(|before| before.ends_with('.')));
        let labels: Vec<&str> = host.split('.').collect();
        let of_service = |(at, label): (usize, &&str)| matches!(*label, "sqs" | "sqs-fips").then_some(at + 1);
        let at = labels.iter().enumerate().find_map(of_service)?;
        labels.get(at).copied().filter(|_| is_amazon)
    }
}

impl TryFrom<String> for QueueUrl {
    type Error = String;

    fn try_from(url: String) -> Result<QueueUrl, String> {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let (host, path) = rest.and_then(|rest| rest.split_once('/')).unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"?#@".contains(&byte);
        if host.is_empty() || path.is_empty() || !url.bytes().all(is_plain) || url.len() > URL_BYTES_MAX {
            return Err(format!(
                "this is no queue: give its URL, as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME, of at most {URL_BYTES_MAX} bytes"
            ));
        }
        Ok(QueueUrl(url))
    }
}

impl From<QueueUrl> for String {
    fn from(url: QueueUrl) -> String {
        url.0
    }
}

impl fmt::Display for QueueUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a queue did not do what was asked; what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueError {
    #[error("there is no such queue ({0}): make it, or link again with the URL of one")]
    Missing(String),
    #[error(
        "the queue refuses ({0}): allow sqs:ReceiveMessage and sqs:DeleteMessage to the credentials of the link, and see whether its \
         region is the queue's"
    )]
    Denied(String),
    #[error("the queue does not answer ({0}): see whether it can be reached from the server")]
    Away(String),
    #[error("the queue cannot do this ({0}): see whether its URL is that of a queue")]
    Unsupported(String),
}

impl<E> From<SdkError<E, HttpResponse>> for QueueError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> QueueError {
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        let Some(status) = status.filter(|status| !(200..300).contains(status)) else {
            return QueueError::Away(s3::chain(&error));
        };
        let code = error.code().unwrap_or_default();
        let text = match (code, error.message()) {
            ("", _) => format!("HTTP status {status}"),
            (code, Some(message)) => format!("{code}: {message}"),
            (code, None) => code.to_owned(),
        };
        failure(status, code)(text.chars().take(s3::TEXT_CHARS_MAX).collect())
    }
}

/// Errors of the protocol that Amazon speaks now come with status 400, of which the code tells more.
fn failure(status: u16, code: &str) -> fn(String) -> QueueError {
    let says = |words: &[&str]| words.iter().any(|word| code.contains(word));
    if says(&["NonExistentQueue", "QueueDoesNotExist", "QueueDeletedRecently"]) {
        QueueError::Missing
    } else if says(&["Throttl", "RequestLimitExceeded", "InternalError", "InternalFailure", "ServiceUnavailable"]) {
        QueueError::Away
    } else if says(&["AccessDenied", "Token", "Signature", "Security", "UnrecognizedClient", "OptInRequired"]) {
        QueueError::Denied
    } else {
        match status {
            300..=399 | 401 | 403 => QueueError::Denied,
            408 | 429 | 500.. => QueueError::Away,
            _ => QueueError::Unsupported,
        }
    }
}

/// What a message holds, and by what it is deleted.
#[derive(Clone, Debug)]
pub struct Message {
    pub body: String,
    receipt: String,
}

/// A clone is the same queue.
#[derive(Clone)]
pub struct Queue {
    url: QueueUrl,
    client: Client,
}

impl Queue {
    /// Nothing is sent. It is asked at the server that its URL names, in the region that this tells, and as whom the options say.
    pub fn open(url: &QueueUrl, options: &ObjectOptions) -> Queue {
        let region = url.region().or(options.region.as_deref()).unwrap_or(s3::REGION_DEFAULT);
        let mut config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.to_owned()))
            .endpoint_url(url.endpoint())
            .http_client(s3::http_client())
            .timeout_config(TimeoutConfig::builder().connect_timeout(s3::CONNECT).build())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let (Some(id), Some(secret)) = (&options.access_key_id, &options.secret_access_key) {
            let token = options.session_token.clone();
            config = config.credentials_provider(Credentials::new(id, secret, token, None, "the options of the link"));
        } else {
            config = config.allow_no_auth();
        }
        Queue { url: url.clone(), client: Client::from_conf(config.build()) }
    }

    /// Whether it is there and may be read. Messages stay where they are.
    pub async fn probe(&self) -> Result<(), QueueError> {
        self.take(1, Duration::ZERO, Duration::ZERO).await.map(drop)
    }

    /// The next messages; none when none has come for as long, in whole seconds up to [`WAIT_MAX`].
    pub async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError> {
        self.take(MESSAGES_MAX, wait, HIDDEN).await
    }

    async fn take(&self, most: usize, wait: Duration, hidden: Duration) -> Result<Vec<Message>, QueueError> {
        let request = self
            .client
            .receive_message()
            .queue_url(self.url.to_string())
            .max_number_of_messages(most as i32)
            .wait_time_seconds(wait.as_secs() as i32)
            .visibility_timeout(hidden.as_secs() as i32);
        let answer = within(wait + ATTEMPT, request.send()).await?;
        let message = |message: aws_sdk_sqs::types::Message| {
            Some(Message { body: message.body.unwrap_or_default(), receipt: message.receipt_handle? })
        };
        Ok(answer.messages.unwrap_or_default().into_iter().filter_map(message).collect())
    }

    /// Delete messages of one answer. Those with which that fails come again.
    pub async fn delete(&self, messages: &[Message]) -> Result<(), QueueError> {
        if messages.is_empty() {
            return Ok(());
        }
        let entry = |(number, message): (usize, &Message)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(number.to_string());
            entry.receipt_handle(&message.receipt).build().map_err(|error| QueueError::Unsupported(error.to_string()))
        };
        let entries = messages.iter().enumerate().map(entry).collect::<Result<_, _>>()?;
        let request =
            self.client.delete_message_batch().queue_url(self.url.to_string()).set_entries(Some(entries)).send();
        for failed in within(ATTEMPT, request).await?.failed {
            tracing::debug!(queue = %self.url, code = failed.code, "a message was not deleted and comes again");
        }
        Ok(())
    }
}

async fn within<T, E>(
    time: Duration,
    attempt: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T, QueueError>
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match tokio::time::timeout(time, attempt).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(QueueError::Away(format!("no answer within {} s", time.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<QueueUrl, String> {
        QueueUrl::try_from(text.to_owned())
    }

    #[test]
    fn a_queue_is_at_the_server_and_in_the_region_of_its_url() {
        for (text, endpoint, region) in [
            (
                "https://sqs.eu-central-1.amazonaws.com/123/q",
                "https://sqs.eu-central-1.amazonaws.com",
                Some("eu-central-1"),
            ),
            (
                "https://sqs.cn-north-1.amazonaws.com.cn/123/q",
                "https://sqs.cn-north-1.amazonaws.com.cn",
                Some("cn-north-1"),
            ),
            (
                "https://sqs-fips.us-east-2.amazonaws.com/1/q",
                "https://sqs-fips.us-east-2.amazonaws.com",
                Some("us-east-2"),
            ),
            (
                "https://vpce-1.sqs.us-west-2.vpce.amazonaws.com/1/q",
                "https://vpce-1.sqs.us-west-2.vpce.amazonaws.com",
                Some("us-west-2"),
            ),
            ("https://sqs.eu-west-1.api.aws/1/q", "https://sqs.eu-west-1.api.aws", Some("eu-west-1")),
            ("https://queue.amazonaws.com/1/q", "https://queue.amazonaws.com", None),
            ("http://127.0.0.1:9324/000000000000/q", "http://127.0.0.1:9324", None),
            ("https://sqs.example.com/q", "https://sqs.example.com", None),
            ("https://sqs.a.notamazonaws.com/q", "https://sqs.a.notamazonaws.com", None),
        ] {
            let parsed = url(text).unwrap();
            assert_eq!((parsed.endpoint(), parsed.region(), parsed.to_string()), (endpoint, region, text.to_owned()));
        }
        let long = format!("https://h/{}", "q".repeat(URL_BYTES_MAX));
        for bad in [
            "",
            "q",
            "sqs://h/q",
            "https://",
            "https://h",
            "https://h/",
            "https:///q",
            "https://a@h/q",
            "https://h/q q",
            &long,
        ] {
            assert!(url(bad).unwrap_err().contains("URL"), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let kind = |status, code| failure(status, code)("x".into());
        let text = || "x".to_owned();
        for code in ["AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"] {
            assert_eq!(kind(400, code), QueueError::Missing(text()));
        }
        for code in ["AccessDeniedException", "InvalidClientTokenId", "InvalidSignatureException", "ExpiredToken"] {
            assert_eq!(kind(400, code), QueueError::Denied(text()));
        }
        assert_eq!(kind(403, ""), QueueError::Denied(text()));
        for (status, code) in
            [(400, "ThrottlingException"), (400, "RequestThrottled"), (503, ""), (500, "InternalError")]
        {
            assert_eq!(kind(status, code), QueueError::Away(text()));
        }
        assert_eq!(kind(404, ""), QueueError::Unsupported(text()));
    }
}
