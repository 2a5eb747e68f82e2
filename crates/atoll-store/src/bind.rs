//! Which log belongs to a store: an object beside SlateDB's says it, and is
//! looked at before SlateDB is opened, since that fences whoever runs the volume.

use atoll_object::ObjectRoot;
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::log::{LogFolder, LogId};
use crate::{Result, StoreError};

/// Holds the id of the local log, or nothing for durability `object`.
const BINDING: &str = "log";

fn io(error: Error) -> StoreError {
    StoreError::Io(error.to_string())
}

async fn bound(root: &ObjectRoot) -> Result<Option<Option<LogId>>> {
    let content = match root.store.get(&Path::from(BINDING)).await {
        Ok(found) => found.bytes().await.map_err(io)?,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if content.is_empty() {
        return Ok(Some(None));
    }
    let id: [u8; 16] = content[..].try_into().map_err(|_| StoreError::Corrupt(format!("object `{BINDING}`")))?;
    Ok(Some(Some(LogId(id))))
}

async fn bind(root: &ObjectRoot, id: Option<LogId>) -> Result<()> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let content = id.map_or_else(PutPayload::new, |id| PutPayload::from(id.0.to_vec()));
    root.store.put_opts(&Path::from(BINDING), content, options).await.map(|_| ()).map_err(io)
}

/// Bind a store that will have content before it is opened, with a new log or none. Returns the log's id.
pub(crate) async fn make(root: &ObjectRoot, logged: bool) -> Result<Option<LogId>> {
    let id = logged.then(LogId::random).transpose()?;
    bind(root, id).await?;
    Ok(id)
}

async fn is_new(root: &ObjectRoot, database: &str) -> Result<bool> {
    match root.store.list(Some(&Path::from(database))).next().await {
        None => Ok(true),
        Some(Ok(_)) => Ok(false),
        Some(Err(error)) => Err(io(error)),
    }
}

/// Bind a new store to its log, or refuse a log that is not the store's. Returns the log's id.
pub(crate) async fn check(root: &ObjectRoot, database: &str, log: Option<&LogFolder>) -> Result<Option<LogId>> {
    let refuse = |why: &str| Err(StoreError::Log(format!("{}: {why}", root.url)));
    match (bound(root).await?, log, log.and_then(LogFolder::id)) {
        (Some(None), None, _) => Ok(None),
        (Some(None), Some(_), _) => refuse("its commits are durable in the object store, not in a log"),
        (Some(Some(_)), None, _) => refuse("its newest commits are in a local log, which must be given"),
        (Some(Some(bound)), Some(_), Some(found)) if bound == found => Ok(Some(bound)),
        (_, Some(_), Some(_)) => refuse("the log is another store's"),
        // A crash between binding and making the log: nothing was committed yet.
        (Some(Some(bound)), Some(_), None) if is_new(root, database).await? => Ok(Some(bound)),
        (Some(Some(_)), Some(_), None) => refuse("its log is not here, and with it the newest commits"),
        (None, Some(_), None) if is_new(root, database).await? => {
            let id = LogId::random()?;
            bind(root, Some(id)).await?;
            Ok(Some(id))
        }
        (None, None, _) if is_new(root, database).await? => {
            bind(root, None).await?;
            Ok(None)
        }
        (None, ..) => refuse(&format!("object `{BINDING}`, which names its log, is missing")),
    }
}
