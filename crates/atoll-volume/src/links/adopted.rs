//! Answers wait for what was just found in the bucket: [`crate::core`], `adopted`, says which.

use atoll_types::{Errno, FileKind, Operation, Outcome};

use crate::error::VolumeError;
use crate::leases::Leasing;
use crate::volume::Volume;

impl Volume {
    /// What of the bucket's must be durable before the operation is answered.
    pub(crate) fn adopted(&self, leasing: &Leasing<'_>, result: &Result<Outcome, Errno>) -> Option<u64> {
        if !self.inner.links.is_used() {
            return None;
        }
        let core = || self.inner.shared.core.lock();
        match (leasing.operation(), result.as_ref().ok()?) {
            (Operation::Lookup { .. }, Outcome::Entry(found)) if found.kind() == FileKind::Directory => {
                core().links.adopted.of_inode(found.inode)
            }
            // It goes on at a name of this part.
            (Operation::ReadDirectory { inode, .. }, Outcome::Listing { end: false, .. }) => {
                core().links.adopted.of_change([*inode].into_iter())
            }
            (operation, _) if operation.mutates() => core().links.adopted.of_change(leasing.touched()),
            _ => None,
        }
    }

    /// Before a file is opened: its client may keep what the open answers only of what is durable.
    pub(crate) async fn until_known(&self, operation: &Operation) -> Result<(), Errno> {
        let Operation::Open { inode, .. } = operation else { return Ok(()) };
        if !self.inner.links.is_used() {
            return Ok(());
        }
        let adopted = self.inner.shared.core.lock().links.adopted.of_inode(*inode);
        match adopted {
            Some(adopted) => self.until_adopted(adopted).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn until_adopted(&self, adopted: u64) -> Result<(), Errno> {
        let durable = self.patiently(async { Ok::<_, VolumeError>(self.until_durable(adopted).await) }).await;
        match durable.map_err(|error| error.errno())? {
            // A disk that is full keeps nobody from reading.
            Err(Errno::ENOSPC) => Ok(()),
            other => other,
        }
    }
}
