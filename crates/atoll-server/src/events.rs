//! Notifications of buckets, as they are posted to the HTTP listener: `POST /events` with a bearer token, `POST /events/TOKEN` by those
//! that can be given no header.
//!
//! Who posts is checked before a byte of the document is read. What is posted is a hint: `atoll-link`'s `notification`.

use std::sync::Arc;
use std::time::Duration;

use atoll_link::notification::{self, Hint};
use atoll_volume::Volume;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;

use crate::server::Context;

/// Largest document: four times what SNS and SQS carry.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// How long one may take to come, and a volume to be open or closed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

type Answer = (StatusCode, String);

pub(crate) fn routes() -> Router<Arc<Context>> {
    Router::new().route("/events", post(with_header)).route("/events/{token}", post(with_path))
}

async fn with_header(State(context): State<Arc<Context>>, headers: HeaderMap, body: Body) -> Answer {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
    receive(&context, token.map(|(_, token)| token.trim()), body).await
}

async fn with_path(State(context): State<Arc<Context>>, Path(token): Path<String>, body: Body) -> Answer {
    receive(&context, Some(&token), body).await
}

async fn receive(context: &Context, token: Option<&str>, body: Body) -> Answer {
    let count =
        |result: &str, hints: usize| context.metrics.hints.with_label_values(&["webhook", result]).inc_by(hints as u64);
    let Some(sender) = token.and_then(|token| context.tokens.check_sender(token)) else {
        count("refused", 1);
        return (StatusCode::UNAUTHORIZED, "a token is needed: `atoll token create --events` on the server\n".into());
    };
    let document = match tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, DOCUMENT_BYTES_MAX)).await {
        Ok(Ok(document)) => document,
        Ok(Err(_)) => {
            count("malformed", 1);
            return (StatusCode::PAYLOAD_TOO_LARGE, format!("more than {DOCUMENT_BYTES_MAX} bytes\n"));
        }
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the document did not come in time\n".into()),
    };
    match notification::read(&document) {
        Ok(hints) => match hear(context, sender.volume.as_deref(), &hints).await {
            Some(heard) => {
                count("heard", heard);
                count("unrelated", hints.len() - heard);
                (StatusCode::OK, format!("{heard} of {} hints are about links here\n", hints.len()))
            }
            None => {
                count("missed", hints.len());
                (StatusCode::SERVICE_UNAVAILABLE, "a volume is being opened or closed: send it again\n".into())
            }
        },
        Err(error) => {
            count("malformed", 1);
            tracing::debug!(%error, "a posted document");
            (StatusCode::BAD_REQUEST, format!("{error}\n"))
        }
    }
}

/// Tells how many of the hints an open link may be concerned by, of all volumes or only one; `None` when a volume could not be told.
/// Links of volumes that are not open believe nothing.
pub(crate) async fn hear(context: &Context, volume: Option<&str>, hints: &[Hint]) -> Option<usize> {
    let is_wanted = |name: &str| volume.is_none_or(|only| only == name);
    let tell = |volume: &Volume| {
        let concerns = |hint: &Hint| volume.hint(&hint.bucket, hint.key.as_ref()) > 0;
        hints.iter().map(concerns).collect::<Vec<bool>>()
    };
    let told = context.registry.with_each(is_wanted, PATIENCE, tell).await;
    let told = told.into_iter().collect::<Option<Vec<_>>>()?;
    Some((0..hints.len()).filter(|&at| told.iter().any(|of_volume| of_volume[at])).count())
}
