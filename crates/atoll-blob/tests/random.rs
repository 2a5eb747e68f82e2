//! Random appends, syncs, crashes and clean restarts, against a plain list of what was written.

mod support;

use std::sync::Arc;

use atoll_blob::{Compression, Location};
use atoll_keys::Keyring;
use bytes::Bytes;
use proptest::prelude::*;
use support::{Place, SETUPS, sample};

#[derive(Clone, Debug)]
enum Step {
    Append { length: usize, noise: bool },
    Sync { inline_bytes_max: usize },
    Read { which: usize, skip: u32, take: u32 },
    ReadAll,
    Crash,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (prop_oneof![1..8192usize, 1..400_000usize], any::<bool>())
            .prop_map(|(length, noise)| Step::Append { length, noise }),
        3 => prop_oneof![Just(0), Just(65_536), Just(usize::MAX)]
            .prop_map(|inline_bytes_max| Step::Sync { inline_bytes_max }),
        4 => (any::<usize>(), any::<u32>(), any::<u32>()).prop_map(|(which, skip, take)| Step::Read { which, skip, take }),
        1 => Just(Step::ReadAll),
        1 => Just(Step::Crash),
        1 => Just(Step::Close),
    ]
}

async fn run(setup: support::Setup, compression: Compression, encrypted: bool, steps: Vec<Step>) {
    let mut place = Place::new(setup);
    let mut config = place.config();
    config.compression = compression;
    config.keys = encrypted.then(|| Arc::new(Keyring::random().unwrap()));
    config.segment_bytes_max = 300_000;
    config.cache_bytes_max = 500_000;
    let mut blob = place.open(config.clone()).await;
    let mut written: Vec<(Location, Bytes)> = Vec::new();
    let mut synced = 0;
    for (seed, step) in steps.into_iter().chain([Step::ReadAll, Step::Close, Step::ReadAll]).enumerate() {
        match step {
            Step::Append { length, noise } => {
                let mut data = sample(seed as u64, length, noise);
                for location in blob.append(data.clone()).await.unwrap() {
                    written.push((location, data.split_to(location.length as usize)));
                }
                assert!(data.is_empty());
            }
            Step::Sync { inline_bytes_max } => {
                place.sync(&blob, inline_bytes_max).await;
                synced = written.len();
            }
            Step::Read { which, skip, take } => {
                if let Some((location, data)) = written.get(which % written.len().max(1)) {
                    let skip = skip % location.length;
                    let take = take % (location.length - skip + 1);
                    let read = blob.read(*location, skip, take).await.unwrap();
                    assert_eq!(read, data.slice(skip as usize..(skip + take) as usize));
                }
            }
            Step::ReadAll => {
                let pieces: Vec<_> =
                    written.iter().rev().map(|(location, _)| (*location, 0, location.length)).collect();
                let read = blob.read_many(&pieces).await.unwrap();
                assert!(read.iter().eq(written.iter().rev().map(|(_, data)| data)), "{setup:?}");
            }
            Step::Crash => {
                drop(blob);
                written.truncate(synced);
                blob = place.open(config.clone()).await;
            }
            Step::Close => {
                place.close(blob).await;
                synced = written.len();
                blob = place.open(config.clone()).await;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn synced_bytes_are_never_lost_and_never_change(
        steps in proptest::collection::vec(step(), 1..40), which in 0..3_usize, encrypted in any::<bool>(),
    ) {
        let compression = [Compression::None, Compression::Lz4, Compression::Zstd][which];
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        for setup in SETUPS {
            runtime.block_on(run(setup, compression, encrypted, steps.clone()));
        }
    }
}
