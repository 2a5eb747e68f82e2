//! What clients may keep of linked files: attributes and bytes, never names; and it is given up before the file is another one.

mod linked;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_lease::{Notice, Rights};
use atoll_types::operation::{OpenFlags, WriteAt};
use atoll_types::{Caller, Errno, InodeId, Operation, Outcome, SessionId};
use atoll_volume::Volume;

use linked::*;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

/// A linked volume with both sessions, of which each gives up what it is told to after a second, and what that was.
async fn volume(site: &Site) -> (Volume, Arc<Mutex<Vec<(SessionId, InodeId)>>>) {
    let volume = site.linked().await;
    volume.enroll(A);
    volume.enroll(B);
    let recalls = Arc::<Mutex<Vec<_>>>::default();
    let (giving, noted) = (volume.clone(), recalls.clone());
    volume.on_recall(move |notice: Notice| {
        noted.lock().unwrap().push((notice.session, notice.recall.inode));
        let giving = giving.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            giving.given_up(notice.session, &[notice.recall]);
        });
    });
    (volume, recalls)
}

/// The answer, and what the session may keep.
async fn ask_as(
    volume: &Volume,
    session: SessionId,
    operation: Operation,
) -> (Result<Outcome, Errno>, Vec<(InodeId, Rights)>) {
    let (result, earned) = volume.execute_leased(session, &Caller::default(), operation).await;
    (result, earned.grants.iter().map(|grant| (grant.inode, grant.rights)).collect())
}

async fn look_up(volume: &Volume, session: SessionId, text: &str) -> (Result<InodeId, Errno>, Vec<(InodeId, Rights)>) {
    let (result, kept) = ask_as(volume, session, Operation::Lookup { parent: ROOT, name: name(text) }).await;
    (result.map(|found| found.attributes().unwrap().inode), kept)
}

/// Found, and durable.
async fn found(volume: &Volume, text: &str) -> InodeId {
    let inode = walk(volume, text).await.unwrap().inode;
    ask(volume, Operation::Sync).await.unwrap();
    inode
}

#[tokio::test(start_paused = true)]
async fn of_a_file_all_is_kept_but_its_name() {
    let site = Site::new().await;
    site.put("a", "bytes");
    site.put("d/x", "bytes");
    let (volume, recalls) = volume(&site).await;
    // The next authority would not know it; who opens it waits for that.
    let (inode, kept) = look_up(&volume, A, "a").await;
    assert_eq!(kept, []);
    let inode = inode.unwrap();
    let open = Operation::Open { inode, flags: OpenFlags::default() };
    assert_eq!(ask_as(&volume, A, open).await.1, [(inode, Rights::INODE)]);
    for session in [A, B] {
        assert_eq!(look_up(&volume, session, "a").await, (Ok(inode), vec![(inode, Rights::INODE)]));
    }
    found(&volume, "d").await;
    assert_eq!(look_up(&volume, A, "d").await.1, []);
    assert_eq!(look_up(&volume, A, "absent").await, (Err(Errno::ENOENT), vec![]));
    // Who changes it keeps no more.
    let write = Operation::Write { inode, at: WriteAt::End, data: "more".into(), drop_privileges: false };
    let (result, kept) = ask_as(&volume, A, write).await;
    result.unwrap();
    assert!(kept.iter().all(|(of, rights)| *of == inode && *rights == Rights::INODE), "{kept:?}");
    assert_eq!(*recalls.lock().unwrap(), [(B, inode)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_given_up_before_an_object_that_was_replaced_is_shown() {
    let site = Site::new().await;
    site.put("a", "bytes");
    site.put("b", "bytes");
    let (volume, recalls) = volume(&site).await;
    let (a, b) = (found(&volume, "a").await, found(&volume, "b").await);
    assert_eq!(look_up(&volume, A, "a").await.1, [(a, Rights::INODE)]);
    assert_eq!(look_up(&volume, A, "b").await.1, [(b, Rights::INODE)]);
    site.put("a", "other bytes");
    site.bucket.delete_object(&key("b"));
    let began = tokio::time::Instant::now();
    let (now, _) = look_up(&volume, B, "a").await;
    assert!(now.unwrap() != a && began.elapsed() >= Duration::from_secs(1));
    assert_eq!(*recalls.lock().unwrap(), [(A, a)]);
    assert_eq!(names(&volume, "/").await, ["a"]);
    assert_eq!(*recalls.lock().unwrap(), [(A, a), (A, b)]);
}

/// Also by who keeps it.
#[tokio::test(start_paused = true)]
async fn who_keeps_a_file_gives_it_up_for_its_own_look() {
    let site = Site::new().await;
    site.put("a", "bytes");
    let (volume, recalls) = volume(&site).await;
    let a = found(&volume, "a").await;
    assert_eq!(look_up(&volume, A, "a").await.1, [(a, Rights::INODE)]);
    site.put("a", "other bytes");
    assert_ne!(look_up(&volume, A, "a").await.0.unwrap(), a);
    assert_eq!(*recalls.lock().unwrap(), [(A, a)]);
}

/// The open that a client has answered by itself is told when it gives up, and keeps the version, where the bucket does.
#[tokio::test(start_paused = true)]
async fn a_file_that_only_its_client_knows_to_be_open_is_read_on() {
    let site = Site::with(atoll_link::MemoryBucket::new("data").with_versions()).await;
    site.put("a", "bytes");
    let volume = site.linked().await;
    volume.enroll(A);
    let telling = volume.clone();
    volume.on_recall(move |notice: Notice| {
        let telling = telling.clone();
        tokio::spawn(async move {
            let open = Operation::Open { inode: notice.recall.inode, flags: OpenFlags::default() };
            telling.execute(notice.session, &Caller::default(), open).await.unwrap();
            telling.given_up(notice.session, &[notice.recall]);
        });
    });
    let a = found(&volume, "a").await;
    assert_eq!(look_up(&volume, A, "a").await.1, [(a, Rights::INODE)]);
    site.put("a", "other bytes");
    assert_eq!(read_path(&volume, "a").await.unwrap(), "other bytes");
    assert_eq!(read(&volume, a).await.unwrap(), "bytes");
}
