//! How many requests were sent, by what they ask for: a store wants to be paid for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use parking_lot::Mutex;

/// Counts of all buckets that it was given to. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<Mutex<BTreeMap<String, u64>>>);

impl Sent {
    /// Each by its name in the S3 protocol, such as `GetObject`. Attempts that failed count, too.
    pub fn counts(&self) -> Vec<(String, u64)> {
        self.0.lock().iter().map(|(name, count)| (name.clone(), *count)).collect()
    }
}

impl Intercept for Sent {
    fn name(&self) -> &'static str {
        "Sent"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let name = config.load::<Metadata>().map_or("unknown", Metadata::name);
        let mut counts = self.0.lock();
        match counts.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(counts.insert(name.to_owned(), 1)),
        }
        Ok(())
    }
}
