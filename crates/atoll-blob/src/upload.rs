//! Background work: seals old segments, writes large ones to staging, uploads
//! sealed ones with bounded concurrency. Failures are repeated for ever, with
//! backoff, counted, and warned about once a minute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_types::SegmentId;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, PutPayload};

use crate::blob::{Inner, blocking, count};
use crate::staging::failure;
use crate::state::{CHUNK_BYTES_MAX, Content};
use crate::{BlobError, Result};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
const WARN_INTERVAL: Duration = Duration::from_secs(60);
const STAGE_RETRY: Duration = Duration::from_secs(1);
/// How long to wait when nothing is due; any change wakes earlier.
const IDLE: Duration = Duration::from_secs(600);
/// Larger segments are sent in parts.
const PUT_BYTES_MAX: u32 = 16 << 20;
const PART_BYTES: u32 = 8 << 20;
const PART_CONCURRENCY: usize = 4;

/// Says whether it is time to warn again.
#[derive(Default)]
struct Warning(Option<Instant>);

impl Warning {
    fn due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= WARN_INTERVAL);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// Runs until the last handle is dropped.
pub(crate) async fn run(inner: Arc<Inner>) {
    let mut warning = Warning::default();
    loop {
        let (due, _) = inner.state.lock().seal_aged(Instant::now());
        start_uploads(&inner);
        let staged = inner.stage(None).await;
        start_uploads(&inner);
        let wait = match staged {
            Ok(()) => due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now())),
            Err(error) => {
                if warning.due() {
                    tracing::warn!(%error, "cannot write to the staging disk");
                }
                STAGE_RETRY
            }
        };
        tokio::select! {
            () = inner.kick.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn start_uploads(inner: &Arc<Inner>) {
    loop {
        let segment = {
            let mut state = inner.state.lock();
            if state.uploading >= inner.config.upload_concurrency {
                return;
            }
            match state.next_upload() {
                Some(segment) => segment,
                None => return,
            }
        };
        inner.spawn(upload(inner.clone(), segment));
    }
}

async fn upload(inner: Arc<Inner>, segment: SegmentId) {
    let mut warning = Warning::default();
    let mut backoff = BACKOFF_MIN;
    while let Err(error) = attempt(&inner, segment).await {
        count(&inner.counters.upload_errors, 1);
        if warning.due() {
            tracing::warn!(%segment, %error, "cannot upload; trying again");
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
    if !inner.upload_finished(segment)
        && let Err(error) = inner.delete_object(segment).await
    {
        tracing::warn!(%segment, %error, "an object deleted while it was uploaded is left behind");
    }
    inner.state.lock().uploading -= 1;
    inner.kick.notify_one();
}

/// One try. `Ok` also when the segment was deleted meanwhile.
async fn attempt(inner: &Arc<Inner>, segment: SegmentId) -> Result<()> {
    let Some(content) = inner.state.lock().content(segment) else { return Ok(()) };
    let Content { staged, rest, length, probe } = content;
    let path = inner.object_path(segment);
    let objects = &inner.config.objects;
    let io = |error: object_store::Error| BlobError::Io(error.to_string());
    if probe {
        // What is left here is a part of what the last run may have uploaded: never overwrite the whole with it.
        match objects.head(&path).await {
            Ok(meta) if meta.size >= u64::from(length) => return Ok(()),
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(io(error)),
        }
    }
    let chunks = if staged > 0 { [read_staged(inner, segment, staged).await?, rest].concat() } else { rest };
    let chunks = without_holes(chunks);
    if length <= PUT_BYTES_MAX {
        objects.put(&path, chunks.into_iter().collect()).await.map_err(io)?;
    } else {
        let mut writer = objects.put_multipart(&path).await.map_err(io)?;
        let parts: Vec<_> = parts(chunks).into_iter().map(|part| writer.put_part(part)).collect();
        let sent: std::result::Result<Vec<()>, _> =
            stream::iter(parts).buffer_unordered(PART_CONCURRENCY).try_collect().await;
        let finished = match sent {
            Ok(_) => writer.complete().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = finished {
            if let Err(abort) = writer.abort().await {
                tracing::debug!(%segment, error = %abort, "cannot abort a multipart upload");
            }
            return Err(io(error));
        }
    }
    count(&inner.counters.uploads, 1);
    count(&inner.counters.upload_bytes, u64::from(length));
    Ok(())
}

async fn read_staged(inner: &Arc<Inner>, segment: SegmentId, staged: u32) -> Result<Vec<(u32, Bytes)>> {
    let shared = inner.clone();
    blocking(move || {
        let folder = shared.folder.as_ref().ok_or_else(|| BlobError::Io("no staging folder".into()))?;
        let mut chunks = Vec::new();
        let mut offset = 0;
        while offset < staged {
            let want = (staged - offset).min(CHUNK_BYTES_MAX as u32);
            let bytes = folder.read(segment, offset, want).map_err(|error| failure(&error))?;
            if bytes.len() != want as usize {
                return Err(BlobError::Io(format!("staged file of {segment} is shorter than it was")));
            }
            chunks.push((offset, bytes));
            offset += want;
        }
        Ok(chunks)
    })
    .await
}

/// Zeros where a recovered segment has nothing, so that offsets stay right.
fn without_holes(chunks: Vec<(u32, Bytes)>) -> Vec<Bytes> {
    let mut whole = Vec::with_capacity(chunks.len());
    let mut end = 0;
    for (offset, bytes) in chunks {
        if offset > end {
            whole.push(Bytes::from(vec![0; (offset - end) as usize]));
        }
        end = offset + bytes.len() as u32;
        whole.push(bytes);
    }
    whole
}

/// Payloads of exactly `PART_BYTES` each but the last: some stores insist on equal parts.
fn parts(chunks: Vec<Bytes>) -> Vec<PutPayload> {
    let mut parts = Vec::new();
    let (mut part, mut size) = (Vec::new(), 0);
    for mut chunk in chunks {
        while !chunk.is_empty() {
            let taken = chunk.split_to(chunk.len().min(PART_BYTES as usize - size));
            size += taken.len();
            part.push(taken);
            if size == PART_BYTES as usize {
                parts.push(std::mem::take(&mut part).into_iter().collect());
                size = 0;
            }
        }
    }
    if size > 0 {
        parts.push(part.into_iter().collect());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_but_the_last_and_keep_every_byte() {
        let chunks =
            without_holes(vec![(3, Bytes::from(vec![1; 9 << 20])), ((9 << 20) + 3, Bytes::from(vec![2; 12 << 20]))]);
        let parts = parts(chunks);
        let sizes: Vec<_> = parts.iter().map(PutPayload::content_length).collect();
        assert_eq!(sizes, [8 << 20, 8 << 20, (5 << 20) + 3]);
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().flatten().copied()).collect();
        assert_eq!(whole[..4], [0, 0, 0, 1]);
        assert_eq!(whole.last(), Some(&2));
    }
}
