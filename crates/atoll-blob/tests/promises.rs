//! The promises of the blob, each on every staging where it makes sense.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_blob::{Blob, BlobError, Codec, Location};
use atoll_types::limits::EXTENT_BYTES_MAX;
use bytes::Bytes;
use object_store::{ObjectStoreExt, path::Path};
use support::{PATIENCE, Place, SETUPS, Setup, sample};

async fn whole(blob: &Blob, locations: &[Location]) -> Bytes {
    let pieces: Vec<_> = locations.iter().map(|location| (*location, 0, location.length)).collect();
    blob.read_many(&pieces).await.unwrap().concat().into()
}

const LENGTHS: [usize; 8] = [1, 100, 4095, 4096, 65_537, EXTENT_BYTES_MAX, EXTENT_BYTES_MAX + 1, 1 << 20];

#[tokio::test]
async fn bytes_read_back_as_written_before_and_after_upload_and_reopening() {
    for setup in SETUPS {
        let mut place = Place::new(setup);
        let blob = place.open(place.config()).await;
        let mut written = Vec::new();
        for (seed, length) in LENGTHS.into_iter().enumerate() {
            for noise in [true, false] {
                let data = sample(seed as u64, length, noise);
                let locations = blob.append(data.clone()).await.unwrap();
                assert_eq!(locations.len(), length.div_ceil(EXTENT_BYTES_MAX));
                assert_eq!(locations[0].codec == Codec::Lz4, !noise && length >= 4096);
                written.push((data, locations));
            }
        }
        for (data, locations) in &written {
            assert_eq!(whole(&blob, locations).await, data, "{setup:?}");
        }
        place.sync(&blob, 0).await;
        for (data, locations) in &written {
            assert_eq!(whole(&blob, locations).await, data, "{setup:?} synced");
        }
        place.close(blob).await;
        let blob = place.open(place.config()).await;
        let all: Vec<Location> = written.iter().flat_map(|(_, locations)| locations.clone()).collect();
        let before = place.objects.requests();
        let expected: Vec<u8> = written.iter().flat_map(|(data, _)| data.to_vec()).collect();
        assert!(whole(&blob, &all).await == expected, "{setup:?} reopened");
        assert!(place.objects.requests() - before <= 3, "neighbours are fetched together");
        let mut backwards = all.clone();
        backwards.reverse();
        assert_eq!(whole(&blob, &backwards).await.len(), expected.len());
        for (data, locations) in &written {
            let location = locations[0];
            let (skip, take) = (location.length / 3, location.length / 2);
            let part = blob.read(location, skip, take).await.unwrap();
            assert_eq!(part, data.slice(skip as usize..(skip + take) as usize));
        }
        let outside = blob.read(all[0], 1, all[0].length).await;
        assert!(matches!(outside, Err(BlobError::Io(_))), "{outside:?}");
        assert!(blob.append(Bytes::new()).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_thousand_small_appends_cost_few_requests() {
    for setup in SETUPS {
        let mut place = Place::new(setup);
        let blob = place.open(place.config()).await;
        for seed in 0..1000 {
            blob.append(sample(seed, 4096, true)).await.unwrap();
        }
        place.close(blob).await;
        assert!(place.objects.requests() <= 10, "{setup:?}: {}", place.objects.requests());
    }
}

#[tokio::test]
async fn segments_are_never_named_twice_and_stay_within_their_size() {
    let mut place = Place::new(Setup::Memory);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let mut config = place.config();
        config.segment_bytes_max = 256 * 1024;
        let blob = place.open(config).await;
        let locations = blob.append(sample(1, 1 << 20, true)).await.unwrap();
        let fresh: std::collections::BTreeSet<_> = locations.iter().map(|location| location.segment).collect();
        assert_eq!(fresh.len(), 4);
        assert!(locations.iter().all(|location| location.offset + location.stored <= 256 * 1024));
        assert!(fresh.is_disjoint(&seen));
        seen.extend(fresh);
        place.close(blob).await;
    }
}

#[tokio::test]
async fn small_syncs_ride_in_the_commit_and_survive_a_crash() {
    for setup in SETUPS {
        let mut place = Place::new(setup);
        let blob = place.open(place.config()).await;
        let mut written = Vec::new();
        for seed in 0..20 {
            let data = sample(seed, 3000, true);
            written.push((data.clone(), blob.append(data).await.unwrap()));
            let before = place.objects.requests();
            place.sync(&blob, 4096).await;
            assert_eq!(place.objects.requests(), before);
        }
        assert_eq!(place.recorded_open(), 1);
        blob.append(sample(99, 5000, true)).await.unwrap();
        drop(blob);
        let blob = place.open(place.config()).await;
        for (data, locations) in &written {
            assert_eq!(whole(&blob, locations).await, data, "{setup:?}");
        }
        place.drain(&blob).await;
        for (data, locations) in &written {
            assert_eq!(whole(&blob, locations).await, data, "{setup:?} uploaded");
        }
    }
}

#[tokio::test]
async fn large_syncs_survive_a_crash_without_fragments() {
    for setup in SETUPS {
        let mut place = Place::new(setup);
        let blob = place.open(place.config()).await;
        let data = sample(1, 300_000, true);
        let locations = blob.append(data.clone()).await.unwrap();
        let point = blob.sync(4096).await.unwrap();
        assert_eq!((point.opened.len(), point.fragments.len()), (1, 0));
        assert_eq!(point.uploaded.len(), usize::from(setup == Setup::Memory));
        place.commit(&blob, point);
        let tail = sample(2, 1000, true);
        let tail_locations = blob.append(tail.clone()).await.unwrap();
        place.sync(&blob, 4096).await;
        drop(blob);
        let blob = place.open(place.config()).await;
        assert_eq!(whole(&blob, &locations).await, data, "{setup:?}");
        assert_eq!(whole(&blob, &tail_locations).await, tail, "{setup:?}");
        place.close(blob).await;
        let blob = place.open(place.config()).await;
        assert_eq!(whole(&blob, &locations).await, data, "{setup:?}");
        assert_eq!(whole(&blob, &tail_locations).await, tail, "{setup:?}");
    }
}

#[tokio::test]
async fn a_whole_object_is_not_overwritten_by_what_a_lost_staging_disk_left() {
    let mut place = Place::new(Setup::Folder);
    let blob = place.open(place.config()).await;
    let head = blob.append(sample(1, 1000, true)).await.unwrap();
    place.sync(&blob, 4096).await;
    let rest = blob.append(sample(2, 200_000, true)).await.unwrap();
    place.sync(&blob, 4096).await;
    // Uploaded, but the commit that says so never happened.
    drop(blob.close().await.unwrap());
    drop(blob);
    std::fs::remove_dir_all(place.staging()).unwrap();
    let blob = place.open(place.config()).await;
    place.drain(&blob).await;
    assert_eq!(whole(&blob, &head).await, sample(1, 1000, true));
    assert_eq!(whole(&blob, &rest).await, sample(2, 200_000, true));
}

#[tokio::test]
async fn corruption_is_seen_in_the_damaged_piece_alone() {
    for setup in SETUPS {
        let mut place = Place::new(setup);
        let mut config = place.config();
        config.cache_bytes_max = 0;
        let blob = place.open(config.clone()).await;
        let mut locations = Vec::new();
        for seed in 0..5 {
            locations.extend(blob.append(sample(seed, 10_000, true)).await.unwrap());
        }
        let victim = locations[2];
        let damage = |file: std::path::PathBuf| {
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[victim.offset as usize + 77] ^= 1;
            std::fs::write(&file, bytes).unwrap();
        };
        let name = format!("{:016x}", victim.segment.0);
        match setup {
            Setup::Memory => {
                place.close(blob.clone()).await;
                let path = Path::from(format!("volume/data/{name}"));
                let mut bytes = place.objects.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
                bytes[victim.offset as usize + 77] ^= 1;
                place.objects.put(&path, bytes.into()).await.unwrap();
            }
            Setup::Folder => {
                place.sync(&blob, 0).await;
                damage(place.staging().join(name + ".staged"));
            }
            Setup::Objects => {
                place.close(blob.clone()).await;
                damage(place.staging().join(name));
            }
        }
        for (seed, location) in locations.iter().enumerate() {
            let read = blob.read(*location, 0, location.length).await;
            match read {
                Ok(bytes) => assert_eq!(bytes, sample(seed as u64, 10_000, true)),
                Err(BlobError::Corrupt { segment, offset, .. }) => {
                    assert_eq!((segment, offset, seed), (victim.segment, victim.offset, 2));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(blob.read(victim, 0, 1).await.is_err(), "{setup:?}");
        assert_eq!(blob.statistics().corrupt_pieces, 2);
    }
}

#[tokio::test]
async fn a_truncated_object_costs_only_the_pieces_it_lost() {
    let mut place = Place::new(Setup::Objects);
    let blob = place.open(place.config()).await;
    let first = blob.append(sample(1, 5000, true)).await.unwrap()[0];
    let second = blob.append(sample(2, 5000, true)).await.unwrap()[0];
    place.close(blob.clone()).await;
    let file = place.staging().join(format!("{:016x}", first.segment.0));
    std::fs::File::options().write(true).open(&file).unwrap().set_len(6000).unwrap();
    assert_eq!(blob.read(first, 0, 5000).await.unwrap(), sample(1, 5000, true));
    assert!(matches!(blob.read(second, 0, 1).await, Err(BlobError::Corrupt { .. })));
    blob.delete(first.segment).await.unwrap();
    assert!(matches!(blob.read(first, 0, 1).await, Err(BlobError::Missing(_))));
}

#[tokio::test]
async fn hostile_locations_are_refused_without_reserving_memory() {
    let mut place = Place::new(Setup::Memory);
    let blob = place.open(place.config()).await;
    let good = blob.append(sample(1, 5000, true)).await.unwrap()[0];
    for bad in [
        Location { stored: u32::MAX, ..good },
        Location { length: u32::MAX, ..good },
        Location { offset: u32::MAX, ..good },
        Location { codec: Codec::Lz4, ..good },
        Location { checksum: !good.checksum, ..good },
    ] {
        let read = blob.read(bad, 0, 1).await;
        assert!(matches!(read, Err(BlobError::Corrupt { .. })), "{bad:?}: {read:?}");
    }
}

#[tokio::test]
async fn writers_wait_for_room_and_go_on_when_there_is() {
    for setup in SETUPS {
        let mut place = Place::new(setup);
        let mut config = place.config();
        config.dirty_bytes_max = 1 << 20;
        config.staging_bytes_max = 2 << 20;
        config.segment_bytes_max = 512 * 1024;
        let blob = place.open(config).await;
        place.objects.puts_fail.store(setup != Setup::Objects, Ordering::SeqCst);
        let writer = tokio::spawn({
            let blob = blob.clone();
            async move {
                let mut locations = Vec::new();
                for seed in 0..64 {
                    locations.push(blob.append(sample(seed, 131_072, true)).await.unwrap());
                    let statistics = blob.statistics();
                    assert!(statistics.dirty_bytes <= 1 << 20, "{statistics:?}");
                }
                locations
            }
        });
        let changed = blob.changed();
        let mut commit = async || {
            changed.notified().await;
            // Fragments only: in memory nothing else can be durable while the store refuses.
            let point = blob.sync(usize::MAX).await.unwrap();
            place.commit(&blob, point);
        };
        if setup != Setup::Objects {
            let stuck = async {
                while blob.statistics().waits == 0 || blob.statistics().upload_errors == 0 {
                    commit().await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(2), stuck).await;
            assert!(!writer.is_finished(), "{setup:?}");
        }
        place.objects.puts_fail.store(false, Ordering::SeqCst);
        let finish = async {
            let mut writer = writer;
            loop {
                tokio::select! {
                    locations = &mut writer => break locations.unwrap(),
                    () = changed.notified() => {
                        let point = blob.sync(usize::MAX).await.unwrap();
                        place.commit(&blob, point);
                    }
                }
            }
        };
        let locations = tokio::time::timeout(PATIENCE, finish).await.unwrap();
        for (seed, locations) in locations.iter().enumerate() {
            assert_eq!(whole(&blob, locations).await, sample(seed as u64, 131_072, true), "{setup:?}");
        }
        place.close(blob).await;
    }
}

#[tokio::test]
async fn aged_segments_are_uploaded_without_anybody_asking_but_not_before_they_are_recorded() {
    for setup in [Setup::Memory, Setup::Folder] {
        let mut place = Place::new(setup);
        let mut config = place.config();
        config.segment_age_max = Duration::from_millis(1);
        let blob = place.open(config).await;
        let location = blob.append(sample(1, 1000, true)).await.unwrap()[0];
        assert_eq!(place.objects.requests(), 0);
        place.sync(&blob, 4096).await;
        let changed = blob.changed();
        tokio::time::timeout(PATIENCE, changed.notified()).await.unwrap();
        let point = blob.sync(4096).await.unwrap();
        assert_eq!(point.uploaded, [location.segment]);
        assert!(point.opened.is_empty() && point.fragments.is_empty());
        place.commit(&blob, point);
        assert_eq!(blob.statistics().segments_pending, 0);
        assert_eq!(blob.read(location, 0, 1000).await.unwrap(), sample(1, 1000, true));
    }
}

#[tokio::test]
async fn staged_files_go_once_forgotten_and_strays_at_the_next_start() {
    let mut place = Place::new(Setup::Folder);
    let blob = place.open(place.config()).await;
    blob.append(sample(1, 100_000, true)).await.unwrap();
    // Staged, but the commit that would record it never happens.
    drop(blob.sync(0).await.unwrap());
    drop(blob);
    let files = |place: &Place| std::fs::read_dir(place.staging()).unwrap().count();
    assert_eq!(files(&place), 1);
    let blob = place.open(place.config()).await;
    assert_eq!(files(&place), 0);
    blob.append(sample(1, 100_000, true)).await.unwrap();
    place.sync(&blob, 0).await;
    assert_eq!(files(&place), 1);
    place.close(blob.clone()).await;
    assert_eq!(blob.statistics().staged_bytes, 0);
    let gone = async {
        while files(&place) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert!(matches!(blob.append(sample(1, 1, true)).await, Err(BlobError::Closed)));
}

#[tokio::test]
async fn prefetched_pieces_cost_one_request_and_none_when_read() {
    let mut place = Place::new(Setup::Memory);
    let blob = place.open(place.config()).await;
    let locations = blob.append(sample(1, 1 << 20, true)).await.unwrap();
    place.close(blob).await;
    let blob = place.open(place.config()).await;
    let before = place.objects.requests();
    blob.prefetch(locations.clone());
    assert_eq!(whole(&blob, &locations).await, sample(1, 1 << 20, true));
    assert_eq!(whole(&blob, &locations).await, sample(1, 1 << 20, true));
    assert_eq!(place.objects.requests() - before, 1);
    blob.delete(locations[0].segment).await.unwrap();
    assert!(matches!(blob.read(locations[0], 0, 1).await, Err(BlobError::Missing(_))));
    assert_eq!(blob.statistics().cached_bytes, 0);
}

#[tokio::test]
async fn large_segments_are_uploaded_in_parts_and_read_whole() {
    for setup in [Setup::Memory, Setup::Folder] {
        let mut place = Place::new(setup);
        let blob = place.open(place.config()).await;
        let data = sample(1, 20 << 20, true);
        let locations = blob.append(data.clone()).await.unwrap();
        place.close(blob).await;
        let blob = place.open(place.config()).await;
        assert!(whole(&blob, &locations).await == data);
    }
}

#[tokio::test]
async fn a_full_staging_disk_is_told_and_loses_nothing() {
    let mut place = Place::new(Setup::Folder);
    let blob = place.open(place.config()).await;
    // The file of the first segment of the first epoch is a device that is always full.
    let file = place.staging().join("0000000100000000.staged");
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    let data = sample(1, 100_000, true);
    let locations = blob.append(data.clone()).await.unwrap();
    let sync = blob.sync(0).await;
    assert!(matches!(sync, Err(BlobError::NoSpace(_))), "{sync:?}");
    assert!(blob.statistics().staging_errors > 0);
    assert_eq!(whole(&blob, &locations).await, data);
    std::fs::remove_file(&file).unwrap();
    place.sync(&blob, 0).await;
    assert_eq!(blob.statistics().dirty_bytes, 0);
    let more = blob.append(sample(2, 10, true)).await.unwrap();
    place.sync(&blob, 10).await;
    drop(blob);
    let blob = place.open(place.config()).await;
    assert_eq!(whole(&blob, &locations).await, data);
    assert_eq!(whole(&blob, &more).await, sample(2, 10, true));
}

#[tokio::test]
async fn writers_are_refused_while_the_staging_disk_is_full_and_closing_uploads_from_memory() {
    let mut place = Place::new(Setup::Folder);
    let mut config = place.config();
    config.segment_bytes_max = 131_072;
    let blob = place.open(config).await;
    let file = place.staging().join("0000000100000000.staged");
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    let data = sample(1, 131_072, true);
    let locations = blob.append(data.clone()).await.unwrap();
    blob.append(data.clone()).await.unwrap();
    let refused = async {
        while !matches!(blob.append(sample(2, 5, true)).await, Err(BlobError::NoSpace(_))) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    place.close(blob.clone()).await;
    assert_eq!(whole(&blob, &locations).await, data);
}
