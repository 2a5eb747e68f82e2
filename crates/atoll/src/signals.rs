//! Being asked to stop.

use tokio::signal::unix::{SignalKind, signal};

use crate::Result;

/// Ready at SIGTERM or Ctrl-C.
pub async fn asked_to_stop() -> Result<()> {
    let mut term = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
    Ok(())
}
