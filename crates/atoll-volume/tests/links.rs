//! A linked directory and its bucket are one thing, whoever changes it.

mod linked;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use atoll_link::{Fault, Headers, LinkSettings, MemoryBucket, Request, RequestKind};
use atoll_types::operation::{AttributeChanges, DirectoryEntry, OpenFlags, RenameMode};
use atoll_types::{ByteRange, Errno, FileKind, Operation, Outcome};
use atoll_volume::{LinkError, Traffic};

use linked::*;

#[tokio::test(start_paused = true)]
async fn an_object_is_a_file_at_once_and_as_it_is_now() {
    let site = Site::new().await;
    site.put("a.txt", "one");
    site.put("d/b.txt", "two");
    let volume = site.linked().await;
    assert_eq!(read_path(&volume, "a.txt").await.unwrap(), "one");
    assert_eq!(read_path(&volume, "d/b.txt").await.unwrap(), "two");
    assert_eq!(walk(&volume, "d").await.unwrap().mode.kind(), Some(FileKind::Directory));
    assert_eq!(walk(&volume, "c").await.unwrap_err(), Errno::ENOENT);
    site.put("c", "three");
    site.put("a.txt", "one more");
    assert_eq!(read_path(&volume, "c").await.unwrap(), "three");
    assert_eq!(read_path(&volume, "a.txt").await.unwrap(), "one more");
    assert_eq!(names(&volume, "/").await, ["a.txt", "c", "d"]);
    site.bucket.delete_object(&key("a.txt"));
    assert_eq!(walk(&volume, "a.txt").await.unwrap_err(), Errno::ENOENT);
    site.bucket.delete_object(&key("c"));
    site.bucket.delete_object(&key("d/b.txt"));
    assert!(names(&volume, "/").await.is_empty());
    assert_eq!(walk(&volume, "d").await.unwrap_err(), Errno::ENOENT);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_of_a_known_file_is_one_request() {
    let site = Site::new().await;
    site.put("d/a", "one");
    let volume = site.linked().await;
    let directory = walk(&volume, "d").await.unwrap().inode;
    lookup(&volume, directory, "a").await.unwrap();
    let before: u64 = site.bucket.requests().values().sum();
    lookup(&volume, directory, "a").await.unwrap();
    walk(&volume, "d/a").await.unwrap();
    let after: u64 = site.bucket.requests().values().sum();
    assert_eq!(after - before, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_written_is_an_object_when_it_is_closed() {
    let site = Site::new().await;
    let volume = site.linked().await;
    let open = create(&volume, ROOT, "open", "half").await;
    write(&volume, ROOT, "a.txt", "hello").await;
    let directory = make_directory(&volume, ROOT, "d").await;
    write(&volume, directory, "b", "below").await;
    for path in ["a.txt", "d/b"] {
        let inode = walk(&volume, path).await.unwrap().inode;
        let published = volume.publish(inode).await.unwrap();
        assert_eq!(published[0].key.as_str(), path);
    }
    assert_eq!(site.objects(), tree(&[("a.txt", "hello"), ("d/b", "below")]));
    put(&volume, open, 4, " and half").await;
    ask(&volume, Operation::Release { inode: open }).await.unwrap();
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("a.txt", "hello"), ("d/b", "below"), ("open", "half and half")]));
    // It is still the same file, read from its object.
    assert_eq!(read_path(&volume, "open").await.unwrap(), "half and half");
    assert_eq!(site.requests(RequestKind::Put), 3);
    let headers = site.bucket.headers(&key("a.txt")).unwrap();
    assert_eq!(headers.content_type.as_deref(), Some("text/plain"));
    assert_eq!(headers.metadata.get("file-permissions").map(String::as_str), Some("0100640"));
}

#[tokio::test(start_paused = true)]
async fn what_is_made_or_emptied_is_no_object_before_it_is_closed() {
    let site = Site::new().await;
    site.put("old", "bytes");
    let volume = site.linked().await;
    let flags = OpenFlags::default();
    let create = Operation::Create { parent: ROOT, name: name("new"), permissions: 0o640, umask: 0, flags };
    let new = entry(&volume, create).await.unwrap().inode;
    let old = walk(&volume, "old").await.unwrap().inode;
    entry(&volume, Operation::Open { inode: old, flags: OpenFlags { truncate: true, ..flags } }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(site.objects(), tree(&[("old", "bytes")]));
    for inode in [new, old] {
        ask(&volume, Operation::Release { inode }).await.unwrap();
    }
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("new", ""), ("old", "")]));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_rewritten_all_the_time_waits_when_its_budget_is_used_up() {
    let site = Site::new().await;
    let settings = LinkSettings { budget: Some(10_000), ..LinkSettings::parse("s3://data").unwrap() };
    let volume = site.linked_as(settings).await;
    let inode = write(&volume, ROOT, "hot", &"-".repeat(4_000)).await;
    settle(&volume).await;
    let report = async || volume.links().await.remove(0);
    assert_eq!(report().await.traffic, Traffic { written: 4_000, sent: 4_000, copied: 0 });
    // Each of them sends 3,999 bytes more than were written.
    for round in 0..3 {
        put(&volume, inode, round, "x").await;
        settle(&volume).await;
    }
    put(&volume, inode, 3, "x").await;
    let minute = Duration::from_secs(60);
    tokio::time::sleep(minute).await;
    assert_eq!(site.requests(RequestKind::Put), 4);
    let held = report().await;
    assert_eq!((held.unpublished, held.held_back), (1, 1));
    assert!(held.waiting[0].why.contains("budget"), "{:?}", held.waiting);
    assert_eq!(held.traffic, Traffic { written: 4_003, sent: 16_000, copied: 0 });
    // Another file has a budget of its own, and who asks does not wait.
    write(&volume, ROOT, "cold", "bytes").await;
    tokio::time::sleep(minute / 60).await;
    assert_eq!(site.objects()["cold"], "bytes");
    volume.publish(inode).await.unwrap();
    assert!(site.objects()["hot"].starts_with("xxxx-"));
    put(&volume, inode, 4, "x").await;
    tokio::time::sleep(minute).await;
    assert!(site.objects()["hot"].starts_with("xxxx-"));
    tokio::time::sleep(minute * 5).await;
    assert!(site.objects()["hot"].starts_with("xxxxx-"), "as much as is sent too much has come back");
    assert_eq!(report().await.held_back, 0);
}

#[tokio::test(start_paused = true)]
async fn a_rewrite_keeps_what_the_object_has_beside_its_bytes() {
    let site = Site::new().await;
    let mut headers = Headers { content_type: Some("text/x-odd".into()), ..Headers::default() };
    headers.metadata.insert("project".into(), "atoll".into());
    headers.tags = Some(vec![("team".into(), "storage".into())]);
    site.bucket.put_object_with(&key("a"), "0123456789", headers);
    let volume = site.linked().await;
    let inode = walk(&volume, "a").await.unwrap().inode;
    put(&volume, inode, 2, "xx").await;
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("a", "01xx456789")]));
    let headers = site.bucket.headers(&key("a")).unwrap();
    assert_eq!(headers.content_type.as_deref(), Some("text/x-odd"));
    assert_eq!(headers.metadata.get("project").map(String::as_str), Some("atoll"));
    assert_eq!(headers.tags, Some(vec![("team".into(), "storage".into())]));
    let chmod = AttributeChanges { permissions: Some(0o600), ..AttributeChanges::default() };
    ask(&volume, Operation::SetAttributes { inode, changes: chmod }).await.unwrap();
    settle(&volume).await;
    let headers = site.bucket.headers(&key("a")).unwrap();
    assert_eq!(headers.metadata.get("file-permissions").map(String::as_str), Some("0100600"));
    assert_eq!(headers.metadata.get("project").map(String::as_str), Some("atoll"));
    assert_eq!(walk(&volume, "a").await.unwrap().mode.permissions(), 0o600);
}

#[tokio::test(start_paused = true)]
async fn a_file_written_beside_and_renamed_over_is_one_put() {
    let site = Site::new().await;
    site.put("config", "old");
    let volume = site.linked().await;
    walk(&volume, "config").await.unwrap();
    let inode = create(&volume, ROOT, "config.tmp", "new").await;
    rename(&volume, ROOT, "config.tmp", ROOT, "config", RenameMode::Replace).await;
    ask(&volume, Operation::Release { inode }).await.unwrap();
    assert_eq!(read_path(&volume, "config").await.unwrap(), "new");
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("config", "new")]));
    assert_eq!((site.requests(RequestKind::Put), site.requests(RequestKind::Delete)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_unlinked_or_renamed_is_so_at_once_and_then_in_the_bucket() {
    let site = Site::new().await;
    for (at, bytes) in [("a", "1"), ("b", "2"), ("d/x", "3"), ("d/e/y", "4"), ("d/e/z", "5")] {
        site.put(at, bytes);
    }
    let volume = site.linked().await;
    walk(&volume, "a").await.unwrap();
    walk(&volume, "b").await.unwrap();
    unlink(&volume, ROOT, "a").await;
    rename(&volume, ROOT, "b", ROOT, "c", RenameMode::Replace).await;
    // Of what is below nobody knows yet but the bucket.
    walk(&volume, "d").await.unwrap();
    rename(&volume, ROOT, "d", ROOT, "moved", RenameMode::Replace).await;
    assert_eq!(names(&volume, "/").await, ["c", "moved"]);
    assert_eq!(walk(&volume, "a").await.unwrap_err(), Errno::ENOENT);
    assert_eq!(walk(&volume, "d").await.unwrap_err(), Errno::ENOENT);
    assert_eq!(read_path(&volume, "moved/e/y").await.unwrap(), "4");
    settle(&volume).await;
    let expected = tree(&[("c", "2"), ("moved/e/y", "4"), ("moved/e/z", "5"), ("moved/x", "3")]);
    assert_eq!(site.objects(), expected);
    assert_eq!(names(&volume, "moved").await, ["e", "x"]);
    assert_eq!(read_path(&volume, "moved/e/z").await.unwrap(), "5");
}

#[tokio::test(start_paused = true)]
async fn names_that_change_places_change_them_in_the_bucket() {
    let site = Site::new().await;
    for (at, bytes) in [("a", "A"), ("b", "B"), ("p/1", "P"), ("q/2", "Q")] {
        site.put(at, bytes);
    }
    let volume = site.linked().await;
    for path in ["a", "b", "p", "q"] {
        walk(&volume, path).await.unwrap();
    }
    rename(&volume, ROOT, "a", ROOT, "b", RenameMode::Exchange).await;
    rename(&volume, ROOT, "p", ROOT, "q", RenameMode::Exchange).await;
    assert_eq!(read_path(&volume, "a").await.unwrap(), "B");
    assert_eq!(read_path(&volume, "q/1").await.unwrap(), "P");
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("a", "B"), ("b", "A"), ("p/2", "Q"), ("q/1", "P")]));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_used_again_waits_for_the_object_that_was_there() {
    let site = Site::new().await;
    site.put("a", "old");
    site.put("d/x", "deep");
    let volume = site.linked().await;
    walk(&volume, "a").await.unwrap();
    walk(&volume, "d").await.unwrap();
    rename(&volume, ROOT, "a", ROOT, "b", RenameMode::Replace).await;
    write(&volume, ROOT, "a", "new").await;
    rename(&volume, ROOT, "d", ROOT, "e", RenameMode::Replace).await;
    let again = make_directory(&volume, ROOT, "d").await;
    write(&volume, again, "x", "other").await;
    assert_eq!(names(&volume, "d").await, ["x"]);
    assert_eq!(read_path(&volume, "d/x").await.unwrap(), "other");
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("a", "new"), ("b", "old"), ("d/x", "other"), ("e/x", "deep")]));
    site.put("d/y", "foreign");
    assert_eq!(names(&volume, "d").await, ["x", "y"]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_removed_only_when_the_bucket_has_nothing_below_it() {
    let site = Site::new().await;
    site.put("d/x", "1");
    site.put("m/", "");
    let volume = site.linked().await;
    walk(&volume, "d").await.unwrap();
    walk(&volume, "m").await.unwrap();
    let remove = |text: &str| Operation::RemoveDirectory { parent: ROOT, name: name(text) };
    assert_eq!(ask(&volume, remove("d")).await.unwrap_err(), Errno::ENOTEMPTY);
    ask(&volume, remove("m")).await.unwrap();
    let inode = walk(&volume, "d").await.unwrap().inode;
    unlink(&volume, inode, "x").await;
    // It stays, as it would on a disk.
    settle(&volume).await;
    assert_eq!(names(&volume, "/").await, ["d"]);
    ask(&volume, remove("d")).await.unwrap();
    settle(&volume).await;
    assert!(names(&volume, "/").await.is_empty());
    assert!(site.objects().is_empty());
}

/// From now on the bucket does not hear of deletions.
fn delete_nothing(site: &Site) {
    let is_deletion = |request: &Request| request.kind == RequestKind::Delete;
    site.bucket.set_faults(move |request| if is_deletion(request) { Fault::Away } else { Fault::None });
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_not_empty_when_the_bucket_has_more_behind_what_is_deleted() {
    const FILES: usize = 40;
    let site = Site::new().await;
    let volume = site.linked().await;
    let d = make_directory(&volume, ROOT, "d").await;
    for number in 0..FILES {
        write(&volume, d, &format!("f{number}"), "bytes").await;
    }
    settle(&volume).await;
    delete_nothing(&site);
    for number in 0..FILES {
        unlink(&volume, d, &format!("f{number}")).await;
    }
    // Nobody has looked at it.
    site.put("d/z", "another's");
    let remove = Operation::RemoveDirectory { parent: ROOT, name: name("d") };
    assert_eq!(ask(&volume, remove.clone()).await.unwrap_err(), Errno::ENOTEMPTY);
    unlink(&volume, d, "z").await;
    ask(&volume, remove).await.unwrap();
    assert!(names(&volume, "").await.is_empty());
    assert_eq!(site.objects().len(), FILES + 1);
    site.bucket.set_faults(|_| Fault::None);
    settle(&volume).await;
    assert!(site.objects().is_empty(), "{:?}", site.objects());
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_was_removed_is_not_seen_again_while_its_objects_are_deleted() {
    let site = Site::new().await;
    for at in ["a/d/x", "a/d/y", "a/file"] {
        site.put(at, "old");
    }
    let volume = site.linked().await;
    assert_eq!(names(&volume, "a/d").await, ["x", "y"]);
    delete_nothing(&site);
    let a = walk(&volume, "a").await.unwrap().inode;
    let d = walk(&volume, "a/d").await.unwrap().inode;
    for file in ["x", "y"] {
        unlink(&volume, d, file).await;
    }
    let remove = |parent, text| Operation::RemoveDirectory { parent, name: name(text) };
    ask(&volume, remove(a, "d")).await.unwrap();
    assert_eq!(names(&volume, "a").await, ["file"]);
    assert_eq!(walk(&volume, "a/d").await.unwrap_err(), Errno::ENOENT);
    unlink(&volume, a, "file").await;
    // What others have put there is there.
    site.put("a/d/z", "new");
    assert_eq!(names(&volume, "a").await, ["d"]);
    assert_eq!(names(&volume, "a/d").await, ["z"]);
    unlink(&volume, walk(&volume, "a/d").await.unwrap().inode, "z").await;
    ask(&volume, remove(a, "d")).await.unwrap();
    ask(&volume, remove(ROOT, "a")).await.unwrap();
    assert!(names(&volume, "").await.is_empty());
    site.bucket.set_faults(|_| Fault::None);
    settle(&volume).await;
    assert!(site.objects().is_empty(), "{:?}", site.objects());
}

#[tokio::test(start_paused = true)]
async fn a_conflict_keeps_both() {
    let site = Site::new().await;
    site.put("a", "base");
    let volume = site.linked().await;
    let inode = walk(&volume, "a").await.unwrap().inode;
    ask(&volume, Operation::Open { inode, flags: OpenFlags::default() }).await.unwrap();
    put(&volume, inode, 0, "ours").await;
    site.put("a", "theirs");
    ask(&volume, Operation::Release { inode }).await.unwrap();
    assert!(matches!(volume.publish(inode).await, Err(LinkError::Conflict(_))));
    settle(&volume).await;
    assert_eq!(read_path(&volume, "a").await.unwrap(), "theirs");
    let kept = names(&volume, ".atoll/conflicts").await;
    assert_eq!(kept.len(), 1);
    assert_eq!(read_path(&volume, &format!(".atoll/conflicts/{}", kept[0])).await.unwrap(), "ours");
    let objects = site.objects();
    assert_eq!(objects["a"], "theirs");
    assert_eq!(objects[&format!(".atoll/conflicts/{}", kept[0])], "ours");
    assert_eq!(volume.links().await[0].conflicts, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_there_and_changed_here_stays() {
    let site = Site::new().await;
    site.put("a", "base");
    let volume = site.linked().await;
    let inode = walk(&volume, "a").await.unwrap().inode;
    ask(&volume, Operation::Open { inode, flags: OpenFlags::default() }).await.unwrap();
    put(&volume, inode, 0, "ours").await;
    site.bucket.delete_object(&key("a"));
    ask(&volume, Operation::Release { inode }).await.unwrap();
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("a", "ours")]));
}

#[tokio::test(start_paused = true)]
async fn an_open_file_never_mixes_two_versions() {
    let site = Site::new().await;
    site.put("a", "first");
    let versioned = Site::with(MemoryBucket::new("data").with_versions()).await;
    versioned.put("a", "first");
    for (site, expected) in [(&site, Err(Errno::ESTALE)), (&versioned, Ok("first".to_owned()))] {
        let volume = site.linked().await;
        let inode = walk(&volume, "a").await.unwrap().inode;
        ask(&volume, Operation::Open { inode, flags: OpenFlags::default() }).await.unwrap();
        site.put("a", "second, longer");
        let now = walk(&volume, "a").await.unwrap();
        assert_ne!(now.inode, inode);
        assert_eq!(read(&volume, now.inode).await.unwrap(), "second, longer");
        assert_eq!(read(&volume, inode).await, expected);
    }
}

/// The first request of this kind for `a` has its effect, and its answer after that, so many milliseconds late.
fn first_is_late(kind: RequestKind, effect: u64, answer: u64) -> impl Fn(&Request) -> Fault + Send + Sync {
    let was_seen = AtomicBool::new(false);
    let late = Fault::Late { effect: Duration::from_millis(effect), answer: Duration::from_millis(answer) };
    move |request| {
        let is_of_it = request.kind == kind && request.key == key("a");
        if is_of_it && !was_seen.swap(true, Ordering::Relaxed) { late } else { Fault::None }
    }
}

/// The bucket is slow to answer the read, and the object is somewhere else meanwhile.
#[tokio::test(start_paused = true)]
async fn a_read_goes_on_where_its_object_was_moved() {
    let site = Site::new().await;
    site.put("a", "bytes");
    let volume = site.linked().await;
    let inode = walk(&volume, "a").await.unwrap().inode;
    site.bucket.set_faults(first_is_late(RequestKind::Get, 3000, 0));
    let change = async {
        rename(&volume, ROOT, "a", ROOT, "b", RenameMode::Replace).await;
        settle(&volume).await;
        assert_eq!(site.objects(), tree(&[("b", "bytes")]));
    };
    assert_eq!(tokio::join!(read(&volume, inode), change).0.unwrap(), "bytes");
}

/// The same, and what it read was replaced: before, or by a publication of which nobody knows yet that it has had its effect.
#[tokio::test(start_paused = true)]
async fn a_read_goes_on_in_the_object_that_took_the_place_of_its_own() {
    for (get, put_answer, is_lost) in [(3000, 0, false), (1000, 3000, false), (500, 0, true)] {
        let site = Site::new().await;
        site.put("a", "0123456789");
        let volume = site.linked().await;
        let inode = walk(&volume, "a").await.unwrap().inode;
        let gets = first_is_late(RequestKind::Get, get, 0);
        let puts = first_is_late(RequestKind::Put, 0, put_answer);
        site.bucket.set_faults(move |request| match (gets(request), puts(request)) {
            (Fault::None, Fault::Late { .. }) if is_lost => Fault::LostAnswer,
            (Fault::None, put) => put,
            (get, _) => get,
        });
        let change = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            put(&volume, inode, 0, "abcdefghij").await;
        };
        assert_eq!(tokio::join!(read(&volume, inode), change).0.unwrap(), "abcdefghij");
        settle(&volume).await;
        assert_eq!(site.objects(), tree(&[("a", "abcdefghij")]));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unlinked_file_that_is_open_is_read_on() {
    let site = Site::new().await;
    site.put("a", "bytes");
    let volume = site.linked().await;
    let inode = walk(&volume, "a").await.unwrap().inode;
    ask(&volume, Operation::Open { inode, flags: OpenFlags::default() }).await.unwrap();
    unlink(&volume, ROOT, "a").await;
    assert_eq!(walk(&volume, "a").await.unwrap_err(), Errno::ENOENT);
    assert!(names(&volume, "/").await.is_empty());
    assert_eq!(read(&volume, inode).await.unwrap(), "bytes");
    ask(&volume, Operation::Release { inode }).await.unwrap();
    settle(&volume).await;
    assert!(site.objects().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_listing_goes_by_pages_in_the_order_of_keys_and_holds_what_is_here_alone() {
    let site = Site::new().await;
    let mut expected = Vec::new();
    for number in 0..2_500 {
        let at = format!("f{number:05}");
        site.put(&at, "x");
        expected.push(at);
    }
    site.put("a-b", "1");
    site.put("a/x", "2");
    site.put("a.b", "3");
    let volume = site.linked().await;
    let open = create(&volume, ROOT, "f01000-local", "half").await;
    expected.insert(1001, "f01000-local".into());
    let expected: Vec<String> = ["a-b", "a.b", "a"].map(String::from).into_iter().chain(expected).collect();
    for entries_max in [4096, 7, 1000] {
        let listed = list_in(&volume, ROOT, entries_max).await;
        let text = |entry: &DirectoryEntry| String::from_utf8(entry.name.as_bytes().to_vec()).unwrap();
        let listed: Vec<String> = listed.iter().map(text).collect();
        assert!(listed == expected, "{} names of {} with {entries_max}", listed.len(), expected.len());
    }
    ask(&volume, Operation::Release { inode: open }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_thousand_names_are_one_request_and_the_next_listing_asks_again() {
    let site = Site::new().await;
    for number in 0..990 {
        site.put(&format!("f{number:05}"), "x");
    }
    let volume = site.linked().await;
    for more in ["g", "h"] {
        let before = site.requests(RequestKind::List);
        let listed = list_in(&volume, ROOT, 100).await;
        // A kernel goes on behind what it had room for, and once more at the end.
        for number in [5, 50, listed.len() - 1] {
            let after = listed[number].cookie;
            let go_on =
                Operation::ReadDirectory { inode: ROOT, after, entries_max: 1, with_attributes: false, ahead: false };
            let Ok(Outcome::Listing { entries, end }) = ask(&volume, go_on).await else { panic!("no listing") };
            assert_eq!(entries.first().map(|entry| entry.cookie), listed.get(number + 1).map(|entry| entry.cookie));
            assert_eq!(end, entries.is_empty());
        }
        assert_eq!(site.requests(RequestKind::List) - before, 1);
        site.put(more, "x");
    }
    assert_eq!(list_in(&volume, ROOT, 100).await.len(), 992);
}

#[tokio::test(start_paused = true)]
async fn an_object_beside_a_directory_of_its_name_has_a_name_too() {
    let site = Site::new().await;
    site.put("a", "object");
    let volume = site.linked().await;
    assert_eq!(read_path(&volume, "a").await.unwrap(), "object");
    site.put("a/b", "below");
    site.put("a//c", "deeper");
    assert_eq!(names(&volume, "/").await, ["a", "%@fa", "a"].map(String::from)[1..].to_vec());
    assert_eq!(read_path(&volume, "%@fa").await.unwrap(), "object");
    assert_eq!(read_path(&volume, "a/b").await.unwrap(), "below");
    assert_eq!(read_path(&volume, "a/%@e/c").await.unwrap(), "deeper");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_published_is_published_by_the_next_authority() {
    let site = Site::new().await;
    site.put("old", "1");
    site.put("d/x", "2");
    let volume = site.linked().await;
    walk(&volume, "old").await.unwrap();
    walk(&volume, "d").await.unwrap();
    site.bucket.set_faults(|request| match request.kind {
        RequestKind::Put | RequestKind::Copy | RequestKind::Delete => Fault::LostAnswer,
        _ => Fault::None,
    });
    write(&volume, ROOT, "new", "3").await;
    unlink(&volume, ROOT, "old").await;
    rename(&volume, ROOT, "d", ROOT, "e", RenameMode::Replace).await;
    ask(&volume, Operation::Sync).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    volume.close().await.unwrap();
    site.bucket.set_faults(|_| Fault::None);
    let volume = site.open().await;
    assert_eq!(names(&volume, "/").await, ["e", "new"]);
    assert_eq!(read_path(&volume, "new").await.unwrap(), "3");
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("e/x", "2"), ("new", "3")]));
    assert_eq!(volume.links().await[0].conflicts, 0);
}

/// What a client holds when the authority dies without a word, the next one knows.
#[tokio::test(start_paused = true)]
async fn what_was_just_found_is_the_same_for_the_next_authority() {
    let site = Site::new().await;
    for at in ["a", "d/e/f", "b", "c"] {
        site.put(at, at);
    }
    let volume = site.linked().await;
    ask(&volume, Operation::Sync).await.unwrap();
    let file = walk(&volume, "a").await.unwrap().inode;
    ask(&volume, Operation::Open { inode: file, flags: OpenFlags::default() }).await.unwrap();
    let directory = walk(&volume, "d/e").await.unwrap().inode;
    site.cut();
    let volume = site.open().await;
    assert_eq!(read(&volume, file).await.unwrap(), "a");
    assert_eq!(lookup(&volume, directory, "f").await.unwrap().inode, walk(&volume, "d/e/f").await.unwrap().inode);

    // A listing goes on.
    let list = |inode, after, entries_max| Operation::ReadDirectory {
        inode,
        after,
        entries_max,
        with_attributes: false,
        ahead: false,
    };
    let Ok(Outcome::Listing { entries, end: false }) = ask(&volume, list(ROOT, 0, 2)).await else { panic!() };
    let after = entries[1].cookie;
    site.cut();
    let volume = site.open().await;
    let Ok(Outcome::Listing { entries, end: true }) = ask(&volume, list(ROOT, after, 10)).await else { panic!() };
    assert_eq!(entries.iter().map(|entry| entry.name.as_bytes()).collect::<Vec<_>>(), [b"c", b"d"]);

    // What was changed of it is said again, and finds it there; and so does what took the place of something that went.
    let found = walk(&volume, "b").await.unwrap().inode;
    let changes = AttributeChanges { permissions: Some(0o600), ..AttributeChanges::default() };
    ask(&volume, Operation::SetAttributes { inode: found, changes }).await.unwrap();
    site.bucket.delete_object(&key("c"));
    assert_eq!(walk(&volume, "c").await.unwrap_err(), Errno::ENOENT);
    make_directory(&volume, ROOT, "c").await;
    site.cut();
    let volume = site.open().await;
    assert_eq!(entry(&volume, Operation::GetAttributes { inode: found }).await.unwrap().inode, found);
    // The directory itself may be lost, and then it is made again.
    let make = Operation::MakeDirectory { parent: ROOT, name: name("c"), permissions: 0o755, umask: 0 };
    if walk(&volume, "c").await.is_err() {
        ask(&volume, make).await.unwrap();
    }
    assert_eq!(walk(&volume, "c").await.unwrap().mode.kind(), Some(FileKind::Directory));
}

/// What was sent of an object in parts is nothing that anybody sees, and costs.
#[tokio::test(start_paused = true)]
async fn what_is_left_of_an_upload_is_given_up() {
    for is_killed in [false, true] {
        let site = Site::new().await;
        let mut volume = site.linked().await;
        site.bucket.set_faults(|request| match request.kind {
            RequestKind::CompleteUpload | RequestKind::AbortUpload => Fault::Away,
            _ => Fault::None,
        });
        let inode = create(&volume, ROOT, "large", "").await;
        for at in 0..17 {
            put(&volume, inode, at << 20, &"x".repeat(1 << 20)).await;
        }
        ask(&volume, Operation::Release { inode }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(site.bucket.uploads() > 0);
        if is_killed {
            site.cut();
            volume = site.open().await;
        }
        site.bucket.set_faults(|_| Fault::None);
        settle(&volume).await;
        assert_eq!(site.objects()["large"].len(), 17 << 20);
        // Longer than any pause between attempts.
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(site.bucket.uploads(), 0, "killed: {is_killed}");
        // And nothing of it is remembered: a detached directory can be linked anew.
        volume.detach(ROOT, false).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_detached_directory_leaves_the_bucket_as_it_is() {
    let site = Site::new().await;
    site.put("a", "1");
    let volume = site.open().await;
    let directory = make_directory(&volume, ROOT, "link").await;
    volume.link(directory, LinkSettings::parse("s3://data/p").unwrap()).await.unwrap();
    write(&volume, directory, "b", "2").await;
    let fifo = atoll_types::Mode::new(FileKind::Fifo, 0o600);
    let node = Operation::MakeNode { parent: directory, name: name("f"), mode: fifo, umask: 0, device: 0 };
    ask(&volume, node).await.unwrap();
    assert!(matches!(volume.detach(directory, false).await, Err(LinkError::Unpublished(1))));
    unlink(&volume, directory, "f").await;
    volume.detach(directory, false).await.unwrap();
    assert!(list_in(&volume, directory, 4096).await.is_empty());
    assert_eq!(site.objects(), tree(&[("a", "1"), ("p/b", "2")]));
    write(&volume, directory, "c", "3").await;
    assert!(volume.links().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_large_object_is_rewritten_with_the_parts_that_changed() {
    const SIZE: usize = 40 << 20;
    let site = Site::new().await;
    let bytes: Vec<u8> = (0..SIZE).map(|at| (at / 4096) as u8).collect();
    site.bucket.put_object(&key("big"), bytes.clone());
    let volume = site.linked().await;
    let inode = walk(&volume, "big").await.unwrap().inode;
    put(&volume, inode, 20 << 20, "changed").await;
    settle(&volume).await;
    let mut expected = bytes;
    expected[20 << 20..][..7].copy_from_slice(b"changed");
    assert!(site.bucket.objects()[&key("big")] == expected);
    assert!(site.requests(RequestKind::CopyPart) >= 2, "{:?}", site.bucket.requests());
    assert!(site.requests(RequestKind::Get) <= 12, "{:?}", site.bucket.requests());
}

#[tokio::test(start_paused = true)]
async fn reads_all_over_a_large_object_fetch_pieces_and_who_begins_at_its_start_a_block() {
    let site = Site::new().await;
    for large in ["one", "other"] {
        site.bucket.put_object(&key(large), vec![7; 40 << 20]);
    }
    let volume = site.linked().await;
    for (large, places, requests) in [("one", [21, 23, 22], [1, 1, 0]), ("other", [0, 3, 1], [1, 0, 0])] {
        let inode = walk(&volume, large).await.unwrap().inode;
        for (mib, expected) in places.into_iter().zip(requests) {
            let before = site.requests(RequestKind::Get);
            ask(&volume, Operation::Read { inode, range: ByteRange::at(mib << 20, 4096) }).await.unwrap();
            assert_eq!(site.requests(RequestKind::Get) - before, expected, "{large} {mib}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_linked_directory_may_be_called_otherwise() {
    let site = Site::new().await;
    site.put("p/a", "1");
    let volume = site.open().await;
    let directory = make_directory(&volume, ROOT, "link").await;
    volume.link(directory, LinkSettings::parse("s3://data/p").unwrap()).await.unwrap();
    rename(&volume, ROOT, "link", ROOT, "other", RenameMode::Replace).await;
    assert_eq!(read_path(&volume, "other/a").await.unwrap(), "1");
    write(&volume, directory, "b", "2").await;
    settle(&volume).await;
    assert_eq!(site.objects(), tree(&[("p/a", "1"), ("p/b", "2")]));
    let remove = Operation::RemoveDirectory { parent: ROOT, name: name("other") };
    assert!(matches!(ask(&volume, remove).await, Err(Errno::EBUSY | Errno::ENOTEMPTY)));
}
