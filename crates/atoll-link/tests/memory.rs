//! The bucket in memory keeps the promises that servers keep.

mod conformance;

use atoll_link::MemoryBucket;

#[tokio::test]
async fn a_bucket_in_memory_keeps_the_promises() {
    conformance::conformance(&MemoryBucket::new("b").with_versions(), conformance::ALL).await;
}
