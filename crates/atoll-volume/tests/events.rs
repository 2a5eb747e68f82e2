//! A link with freshness `events`: what is known is believed until the bucket tells of it, or for a while.

mod linked;

use std::time::Duration;

use atoll_link::{Freshness, MemoryBucket, RequestKind};
use atoll_types::operation::OpenFlags;
use atoll_types::{Errno, Operation};
use atoll_volume::{HintReport, Volume};

use linked::*;

const RECHECK: Duration = Duration::from_secs(60);

async fn listening(site: &Site) -> Volume {
    site.linked_with(Freshness::Events { recheck_seconds: 60 }).await
}

async fn heard(volume: &Volume) -> HintReport {
    volume.links().await[0].hints.unwrap()
}

/// Three known files, of which the bucket has replaced one and deleted another.
async fn changed_untold() -> (Site, Volume) {
    let site = Site::new().await;
    for name in ["replaced", "deleted", "same"] {
        site.put(name, "old");
    }
    let volume = listening(&site).await;
    for name in ["replaced", "deleted", "same"] {
        walk(&volume, name).await.unwrap();
    }
    site.put("replaced", "newer");
    site.bucket.delete_object(&key("deleted"));
    (site, volume)
}

#[tokio::test(start_paused = true)]
async fn a_known_file_costs_no_request() {
    let site = Site::new().await;
    site.put("d/a", "one");
    let volume = listening(&site).await;
    assert_eq!(read_path(&volume, "d/a").await.unwrap(), "one");
    let before = site.all_requests();
    for _ in 0..3 {
        assert_eq!(read_path(&volume, "d/a").await.unwrap(), "one");
    }
    assert_eq!(site.all_requests(), before);
    // What is not there is asked for each time.
    assert_eq!(walk(&volume, "d/b").await.unwrap_err(), Errno::ENOENT);
    site.put("d/b", "two");
    assert_eq!(read_path(&volume, "d/b").await.unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn a_change_without_a_hint_is_seen_when_it_is_time() {
    let (site, volume) = changed_untold().await;
    tokio::time::advance(RECHECK - Duration::from_millis(10)).await;
    assert_eq!(walk(&volume, "replaced").await.unwrap().size, 3);
    walk(&volume, "deleted").await.unwrap();
    assert_eq!(heard(&volume).await.asked_in_time, 0);
    tokio::time::advance(Duration::from_millis(10)).await;
    assert_eq!(walk(&volume, "replaced").await.unwrap().size, 5);
    assert_eq!(walk(&volume, "deleted").await.unwrap_err(), Errno::ENOENT);
    let before = site.all_requests();
    walk(&volume, "same").await.unwrap();
    assert_eq!(site.all_requests() - before, 1);
    // It is known again.
    walk(&volume, "same").await.unwrap();
    assert_eq!(site.all_requests() - before, 1);
    assert_eq!(heard(&volume).await, HintReport { asked_in_time: 3, ..HintReport::default() });
}

#[tokio::test(start_paused = true)]
async fn the_next_look_after_a_hint_asks_and_others_do_not() {
    let (site, volume) = changed_untold().await;
    // In no order, and twice; some of another bucket, and of no link.
    for name in ["deleted", "replaced", "deleted", "unknown"] {
        assert_eq!(volume.hint("data", Some(&key(name))), 1);
    }
    assert_eq!(volume.hint("other", Some(&key("same"))), 0);
    assert_eq!(read_path(&volume, "replaced").await.unwrap(), "newer");
    assert_eq!(walk(&volume, "deleted").await.unwrap_err(), Errno::ENOENT);
    let before = site.all_requests();
    walk(&volume, "same").await.unwrap();
    walk(&volume, "replaced").await.unwrap();
    assert_eq!(site.all_requests(), before);
    // A lie costs a request.
    volume.hint("data", Some(&key("same")));
    walk(&volume, "same").await.unwrap();
    walk(&volume, "same").await.unwrap();
    assert_eq!(site.all_requests() - before, 1);
    // One whose key cannot be read is about everything.
    site.put("replaced", "newest!");
    assert_eq!(volume.hint("data", None), 1);
    assert_eq!(read_path(&volume, "replaced").await.unwrap(), "newest!");
    let report = heard(&volume).await;
    assert_eq!((report.hints, report.last, report.asked_in_doubt), (6, Some(Duration::ZERO), 4));
}

#[tokio::test(start_paused = true)]
async fn a_hint_while_the_bucket_is_asked_counts_for_the_next_look() {
    const DELAY: Duration = Duration::from_secs(1);
    let site = Site::with(MemoryBucket::new("data").with_delay(DELAY)).await;
    site.put("a", "old");
    let volume = listening(&site).await;
    walk(&volume, "a").await.unwrap();
    volume.hint("data", Some(&key("a")));
    let looking = {
        let volume = volume.clone();
        tokio::spawn(async move { walk(&volume, "a").await.unwrap().size })
    };
    // Whether the bucket looks before or after this, the hint is later than the question.
    tokio::time::sleep(DELAY / 2).await;
    site.put("a", "newer");
    volume.hint("data", Some(&key("a")));
    looking.await.unwrap();
    assert_eq!(walk(&volume, "a").await.unwrap().size, 5);
    let before = site.all_requests();
    walk(&volume, "a").await.unwrap();
    assert_eq!(site.all_requests(), before);
}

#[tokio::test(start_paused = true)]
async fn what_a_listing_confirms_is_believed() {
    let site = Site::new().await;
    site.put("a", "old");
    let volume = listening(&site).await;
    walk(&volume, "a").await.unwrap();
    volume.hint("data", Some(&key("a")));
    names(&volume, "/").await;
    let before = site.all_requests();
    walk(&volume, "a").await.unwrap();
    assert_eq!(site.all_requests(), before);
    site.put("a", "newer");
    names(&volume, "/").await;
    assert_eq!(walk(&volume, "a").await.unwrap().size, 5);
}

#[tokio::test(start_paused = true)]
async fn what_is_open_stays_what_it_was_or_is_stale() {
    let site = Site::new().await;
    site.put("a", "old");
    let volume = listening(&site).await;
    let open = walk(&volume, "a").await.unwrap().inode;
    ask(&volume, Operation::Open { inode: open, flags: OpenFlags::default() }).await.unwrap();
    site.put("a", "newer");
    // Nothing of it was read. That it is another one is noticed, and so seen by the next look without a hint.
    assert_eq!(read(&volume, open).await.unwrap_err(), Errno::ESTALE);
    assert_eq!(read_path(&volume, "a").await.unwrap(), "newer");
    assert_eq!(read(&volume, open).await.unwrap_err(), Errno::ESTALE);
    ask(&volume, Operation::Release { inode: open }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_published_is_asked_about_once_and_the_next_authority_believes_nothing() {
    let site = Site::new().await;
    let volume = listening(&site).await;
    write(&volume, ROOT, "a", "ours").await;
    settle(&volume).await;
    walk(&volume, "a").await.unwrap();
    let before = site.all_requests();
    walk(&volume, "a").await.unwrap();
    assert_eq!(site.all_requests(), before);
    // Told by the bucket, too.
    volume.hint("data", Some(&key("a")));
    assert_eq!(read_path(&volume, "a").await.unwrap(), "ours");
    volume.close().await.unwrap();
    site.put("a", "theirs");
    let volume = site.open().await;
    assert_eq!(read_path(&volume, "a").await.unwrap(), "theirs");
    assert_eq!(heard(&volume).await.hints, 0);
    assert!(site.requests(RequestKind::Put) >= 1);
}
