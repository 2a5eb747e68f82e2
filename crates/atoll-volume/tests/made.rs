//! Changes that clients made before they asked: their times, their numbers, and the rights under which they are made.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use atoll_blob::{Blob, BlobConfig, Staging};
use atoll_lease::{Notice, Rights};
use atoll_store::{MemoryMedium, MemoryStore};
use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::operation::{AttributeChanges, OpenFlags, RenameMode, WriteAt, XattrMode};
use atoll_types::{
    Attributes, ByteRange, Caller, Errno, FileKind, InodeId, LockOwner, Made, Mode, Name, Operation, Outcome,
    SessionId, Timestamp,
};
use atoll_volume::{Durability, Volume, VolumeConfig, VolumeSettings};
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const ROOT: InodeId = InodeId::ROOT;
const CALLER: Caller = Caller { uid: 7, gid: 8, pid: 9 };

struct World {
    medium: MemoryMedium,
    objects: Arc<InMemory>,
}

impl World {
    async fn new() -> World {
        let world = World { medium: MemoryMedium::new(), objects: Arc::new(InMemory::new()) };
        let settings = VolumeSettings::new(Durability::Object, 1);
        atoll_volume::format(&MemoryStore::open(&world.medium), &settings, &Caller::default()).await.unwrap();
        world
    }

    /// A new authority with two sessions that give up what they are told to at once. One that is there is cut off.
    async fn start(&self) -> Volume {
        let volume = self.start_silent().await;
        let giving = volume.clone();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        volume.on_recall(move |notice: Notice| tell.send(notice).unwrap());
        tokio::spawn(async move {
            while let Some(notice) = told.recv().await {
                giving.given_up(notice.session, &[notice.recall]);
            }
        });
        volume
    }

    /// The same with sessions that are told nothing.
    async fn start_silent(&self) -> Volume {
        let blob = BlobConfig::new(self.objects.clone(), Path::default(), Staging::Memory);
        let opening = |epoch, recovered| -> Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(Blob::open(blob, epoch, recovered))
        };
        let store = Arc::new(MemoryStore::open(&self.medium));
        let volume = Volume::open(store, opening, VolumeConfig::default()).await.unwrap();
        volume.enroll(A);
        volume.enroll(B);
        volume
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).unwrap()
}

fn create(parent: InodeId, text: &str) -> Operation {
    Operation::Create { parent, name: name(text), permissions: 0o644, umask: 0o22, flags: OpenFlags::default() }
}

fn make_directory(parent: InodeId, text: &str) -> Operation {
    Operation::MakeDirectory { parent, name: name(text), permissions: 0o755, umask: 0 }
}

fn unlink(text: &str) -> Operation {
    Operation::Unlink { parent: ROOT, name: name(text) }
}

fn write(inode: InodeId) -> Operation {
    Operation::Write { inode, at: WriteAt::End, data: Bytes::from_static(b"bytes"), drop_privileges: false }
}

fn default_list() -> Operation {
    // Version 2, then user::rwx, group::r-x, other::--- without ids.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(1u16, 7u16), (4, 5), (0x20, 0)] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(u32::MAX.to_le_bytes());
    }
    Operation::SetXattr {
        inode: ROOT,
        name: Bytes::from_static(b"system.posix_acl_default"),
        value: list.into(),
        mode: XattrMode::Set,
        drop_privileges: false,
    }
}

fn made(at: Timestamp, inode: Option<InodeId>) -> Made {
    Made { caller: CALLER, at, inode }
}

/// So many seconds ago.
fn ago(seconds: i64) -> Timestamp {
    Timestamp { seconds: Timestamp::now().seconds - seconds, nanos: 5 }
}

fn nth(first: InodeId, number: u64) -> InodeId {
    InodeId(first.0 + number)
}

async fn attributes(volume: &Volume, inode: InodeId) -> Attributes {
    let get = Operation::GetAttributes { inode };
    let Ok(Outcome::Entry(found)) = volume.execute(B, &CALLER, get).await else { panic!("no attributes") };
    found
}

/// Execute a change that was made before, in the newest session that there is.
async fn execute_made(volume: &Volume, made: Made, operation: Operation) -> Result<Outcome, Errno> {
    volume.execute_made(A, &made, operation).await.0
}

/// Execute a change, and answer the rights that it earned on an inode.
async fn earned(volume: &Volume, session: SessionId, operation: Operation, inode: Option<InodeId>) -> Rights {
    let (result, earned) = volume.execute_leased(session, &CALLER, operation).await;
    let outcome = result.unwrap();
    let inode = inode.or_else(|| outcome.attributes().map(|found| found.inode)).unwrap();
    let grants = earned.grants.iter().filter(|grant| grant.inode == inode);
    grants.fold(Rights::NONE, |all, grant| all | grant.rights)
}

#[tokio::test]
async fn an_inode_has_the_number_and_the_time_that_its_client_gave() {
    let world = World::new().await;
    let volume = world.start().await;
    let (first, count) = volume.reserve(A).await.unwrap();
    assert!(count > 1);
    let at = ago(3);
    execute_made(&volume, made(at, Some(nth(first, 4))), create(ROOT, "f")).await.unwrap();
    let found = attributes(&volume, nth(first, 4)).await;
    assert_eq!((found.uid, found.gid, found.mode.permissions()), (7, 8, 0o644));
    assert_eq!([found.accessed, found.modified, found.changed, found.created], [at; 4]);
    let root = attributes(&volume, ROOT).await;
    assert_eq!([root.modified, root.changed], [at; 2]);

    let later = ago(2);
    execute_made(&volume, made(later, None), write(nth(first, 4))).await.unwrap();
    let found = attributes(&volume, nth(first, 4)).await;
    assert_eq!((found.size, found.modified, found.changed, found.created), (5, later, later, at));

    // What is not made before has the authority's own time again, and number.
    let before = Timestamp::now();
    let Ok(Outcome::Created { attributes: other, .. }) = volume.execute(A, &CALLER, create(ROOT, "g")).await else {
        panic!()
    };
    assert!(other.created >= before);
    assert!(other.inode.0 >= first.0 + u64::from(count));
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_time_far_ahead_is_not_believed_and_later_changes_are_later() {
    let world = World::new().await;
    let volume = world.start().await;
    let now = Timestamp::now();
    let far = Timestamp { seconds: now.seconds + 3600, nanos: u32::MAX };
    execute_made(&volume, made(far, None), create(ROOT, "f")).await.unwrap();
    let root = attributes(&volume, ROOT).await;
    assert!(root.changed > now && root.changed.seconds <= Timestamp::now().seconds + 1);
    volume.execute(A, &CALLER, create(ROOT, "g")).await.unwrap();
    assert!(attributes(&volume, ROOT).await.changed > root.changed);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_number_that_is_not_the_clients_to_give_makes_nothing() {
    let world = World::new().await;
    let volume = world.start().await;
    let (first, count) = volume.reserve(A).await.unwrap();
    let (others, _) = volume.reserve(B).await.unwrap();
    let at = ago(1);
    execute_made(&volume, made(at, Some(first)), create(ROOT, "f")).await.unwrap();
    for (number, errno) in [
        (first, Errno::EEXIST),
        (ROOT, Errno::EINVAL),
        (InodeId(0), Errno::EINVAL),
        (others, Errno::EINVAL),
        (nth(others, u64::from(count)), Errno::EINVAL),
        (InodeId::PREVIOUS, Errno::EINVAL),
    ] {
        let refused = execute_made(&volume, made(at, Some(number)), create(ROOT, "g")).await;
        assert_eq!(refused, Err(errno), "{number}");
    }
    let lookup = Operation::Lookup { parent: ROOT, name: name("g") };
    assert_eq!(volume.execute(A, &CALLER, lookup).await, Err(Errno::ENOENT));
    assert_eq!(volume.report().inodes, 2);

    // Numbers may be left out, and given later all the same.
    for number in [5, 3] {
        let name = format!("n{number}");
        execute_made(&volume, made(at, Some(nth(first, number))), create(ROOT, &name)).await.unwrap();
    }
    // Reserves end with their session.
    volume.end_session(A).await;
    volume.enroll(A);
    execute_made(&volume, made(at, Some(nth(first, 9))), create(ROOT, "h")).await.unwrap();
    volume.close().await.unwrap();
}

#[tokio::test]
async fn reserved_numbers_outlive_the_authority_that_gave_them() {
    let world = World::new().await;
    let volume = world.start().await;
    let (first, count) = volume.reserve(A).await.unwrap();
    execute_made(&volume, made(ago(3), Some(first)), create(ROOT, "f")).await.unwrap();
    volume.execute(A, &CALLER, Operation::Sync).await.unwrap();

    // The next authority finds what is durable. It gives none of the numbers away, and takes them from the client.
    let volume = world.start().await;
    let Ok(Outcome::Created { attributes: made_here, .. }) = volume.execute(B, &CALLER, create(ROOT, "here")).await
    else {
        panic!()
    };
    assert!(made_here.inode.0 >= first.0 + u64::from(count));
    assert!(volume.reserve(B).await.unwrap().0.0 >= first.0 + u64::from(count));
    let twice = execute_made(&volume, made(ago(2), Some(first)), create(ROOT, "twice")).await;
    assert_eq!(twice, Err(Errno::EEXIST));
    let next = nth(first, 1);
    execute_made(&volume, made(ago(2), Some(next)), create(ROOT, "g")).await.unwrap();
    let twice = execute_made(&volume, made(ago(2), Some(next)), create(ROOT, "twice")).await;
    assert_eq!(twice, Err(Errno::EEXIST));
    volume.close().await.unwrap();
}

#[tokio::test]
async fn only_the_newest_reserves_of_a_session_are_kept() {
    let world = World::new().await;
    let volume = world.start().await;
    let mut reserves = Vec::new();
    for _ in 0..17 {
        reserves.push(volume.reserve(A).await.unwrap().0);
    }
    for pair in reserves.windows(2) {
        assert!(pair[0] < pair[1]);
    }
    // The oldest is nobody's: others may give its numbers, which are looked for first.
    let others = volume.execute_made(B, &made(ago(1), Some(reserves[0])), create(ROOT, "a")).await.0;
    assert!(others.is_ok());
    let others = volume.execute_made(B, &made(ago(1), Some(reserves[1])), create(ROOT, "b")).await.0;
    assert_eq!(others, Err(Errno::EINVAL));
    volume.close().await.unwrap();
}

#[tokio::test]
async fn nothing_is_made_without_a_session() {
    let world = World::new().await;
    let volume = world.start().await;
    volume.end_session(A).await;
    assert_eq!(execute_made(&volume, made(ago(1), None), create(ROOT, "f")).await, Err(Errno::EIO));
    volume.close().await.unwrap();
}

#[tokio::test]
async fn who_changes_something_alone_earns_it_exclusively() {
    let world = World::new().await;
    let volume = world.start().await;
    let both = Rights::ALL;
    assert_eq!(earned(&volume, A, create(ROOT, "f"), None).await, Rights::INODE_EXCLUSIVE);
    let node = Operation::MakeNode {
        parent: ROOT,
        name: name("fifo"),
        mode: Mode::new(FileKind::Fifo, 0o600),
        umask: 0,
        device: 0,
    };
    assert_eq!(earned(&volume, A, node, None).await, Rights::INODE_EXCLUSIVE);
    let link = Operation::MakeSymlink { parent: ROOT, name: name("s"), target: Bytes::from_static(b"f") };
    assert_eq!(earned(&volume, A, link, None).await, Rights::INODE_EXCLUSIVE);
    assert_eq!(earned(&volume, A, make_directory(ROOT, "d"), None).await, both);

    assert_eq!(earned(&volume, A, create(ROOT, "g"), Some(ROOT)).await, both);
    assert_eq!(earned(&volume, A, unlink("g"), Some(ROOT)).await, both);
    let rename = Operation::Rename {
        parent: ROOT,
        name: name("f"),
        new_parent: ROOT,
        new_name: name("h"),
        mode: RenameMode::Replace,
    };
    assert_eq!(earned(&volume, A, rename, Some(ROOT)).await, both);

    // What is only found is shared.
    let lookup = Operation::Lookup { parent: ROOT, name: name("h") };
    let Ok(Outcome::Entry(file)) = volume.execute(A, &CALLER, lookup).await else { panic!() };
    volume.end_session(A).await;
    volume.enroll(A);
    assert_eq!(earned(&volume, A, create(ROOT, "h"), None).await, Rights::INODE);
    assert_eq!(earned(&volume, A, write(file.inode), None).await, Rights::INODE_EXCLUSIVE);
    volume.end_session(A).await;
    volume.enroll(A);
    let changes = AttributeChanges { permissions: Some(0o600), ..AttributeChanges::default() };
    let mode = Operation::SetAttributes { inode: file.inode, changes };
    assert_eq!(earned(&volume, A, mode.clone(), None).await, Rights::INODE_EXCLUSIVE);
    assert_eq!(earned(&volume, A, Operation::SetAttributes { inode: ROOT, changes }, None).await, Rights::INODE);
    volume.end_session(A).await;
    volume.enroll(A);
    let open = |truncate| {
        let flags = OpenFlags { truncate, ..OpenFlags::default() };
        Operation::Open { inode: file.inode, flags }
    };
    assert_eq!(earned(&volume, A, open(false), None).await, Rights::INODE);
    assert_eq!(earned(&volume, A, open(true), None).await, Rights::INODE_EXCLUSIVE);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_directory_with_a_default_list_is_never_exclusive() {
    let world = World::new().await;
    let volume = world.start().await;
    volume.execute(A, &CALLER, default_list()).await.unwrap();
    assert_eq!(earned(&volume, A, create(ROOT, "f"), Some(ROOT)).await, Rights::NAMES);
    assert_eq!(earned(&volume, A, make_directory(ROOT, "d"), None).await, Rights::NAMES | Rights::INODE);
    let file = Operation::Lookup { parent: ROOT, name: name("f") };
    let Ok(Outcome::Entry(_)) = volume.execute(A, &CALLER, file).await else { panic!() };
    volume.close().await.unwrap();
}

#[tokio::test]
async fn who_takes_something_from_others_earns_it_shared() {
    let world = World::new().await;
    let volume = world.start().await;
    let Ok(Outcome::Created { attributes: file, .. }) = volume.execute(A, &CALLER, create(ROOT, "f")).await else {
        panic!()
    };
    let get = Operation::GetAttributes { inode: file.inode };
    assert_eq!(earned(&volume, B, get, None).await, Rights::INODE, "taken from the one who made it");
    assert_eq!(earned(&volume, A, write(file.inode), None).await, Rights::INODE, "the other one had it");
    assert_eq!(earned(&volume, A, write(file.inode), None).await, Rights::INODE_EXCLUSIVE, "nobody had it");

    // What a client calls by a number of its own it uses already.
    let lookup = Operation::Lookup { parent: ROOT, name: name("g") };
    assert_eq!(volume.execute(B, &CALLER, lookup).await, Err(Errno::ENOENT));
    let (first, _) = volume.reserve(A).await.unwrap();
    let (result, earned) = volume.execute_made(A, &made(ago(1), Some(first)), create(ROOT, "g")).await;
    result.unwrap();
    let rights = |inode| earned.grants.iter().filter(|g| g.inode == inode).fold(Rights::NONE, |r, g| r | g.rights);
    assert_eq!(rights(first), Rights::INODE_EXCLUSIVE);
    assert!(rights(ROOT).contains(Rights::NAMES) && !rights(ROOT).overlaps(Rights::NAMES_WRITER));
    volume.close().await.unwrap();
}

fn lock(inode: InodeId, owner: u64, wait: bool) -> Operation {
    let (space, kind, range) = (LockSpace::Range, LockKind::Exclusive, ByteRange::EVERYTHING);
    Operation::SetLock { inode, lock: Lock { space, owner: LockOwner(owner), pid: 0, kind, range }, wait }
}

fn unlock(inode: InodeId, owner: u64) -> Operation {
    let (space, range) = (LockSpace::Range, ByteRange::EVERYTHING);
    Operation::Unlock { inode, space, owner: LockOwner(owner), range }
}

#[tokio::test]
async fn who_locks_a_file_alone_may_decide_about_its_locks_and_nobody_beside_others() {
    let world = World::new().await;
    let volume = world.start().await;
    let Ok(Outcome::Created { attributes: file, .. }) = volume.execute(A, &CALLER, create(ROOT, "f")).await else {
        panic!()
    };
    let inode = file.inode;
    assert_eq!(earned(&volume, B, lock(inode, 1, false), Some(inode)).await, Rights::NONE, "the other one has it open");
    assert!(volume.unanswered_recalls(A).is_empty());
    assert_eq!(earned(&volume, A, write(inode), None).await, Rights::INODE, "the other one decides no more than it");
    volume.execute(A, &CALLER, Operation::Release { inode }).await.unwrap();
    assert_eq!(earned(&volume, B, unlock(inode, 1), Some(inode)).await, Rights::NONE);
    volume.execute(A, &CALLER, lock(inode, 1, false)).await.unwrap();
    assert_eq!(volume.execute(B, &CALLER, lock(inode, 1, false)).await, Err(Errno::EAGAIN));
    let waiting = volume.clone();
    let waiter = tokio::spawn(async move { waiting.execute(B, &CALLER, lock(inode, 1, true)).await });
    tokio::task::yield_now().await;
    assert_eq!(earned(&volume, A, write(inode), None).await, Rights::INODE, "somebody waits for its lock");
    volume.execute(A, &CALLER, unlock(inode, 1)).await.unwrap();
    assert_eq!(waiter.await.unwrap(), Ok(Outcome::Done));
    assert_eq!(earned(&volume, A, write(inode), None).await, Rights::INODE, "somebody has a lock");
    volume.execute(B, &CALLER, unlock(inode, 1)).await.unwrap();
    assert_eq!(earned(&volume, A, lock(inode, 1, false), Some(inode)).await, Rights::INODE_EXCLUSIVE);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn locks_of_a_session_that_comes_back_are_there_before_anybody_is_served() {
    let world = World::new().await;
    let volume = world.start().await;
    let Ok(Outcome::Created { attributes: file, .. }) = volume.execute(A, &CALLER, create(ROOT, "f")).await else {
        panic!()
    };
    let inode = file.inode;
    volume.begin_grace([A], Duration::from_secs(60));
    let hold = |owner| {
        let Operation::SetLock { lock, .. } = lock(inode, owner, false) else { panic!() };
        Operation::HoldLocks { inode, locks: vec![lock] }
    };
    let mut stranger = Box::pin(volume.execute(B, &CALLER, hold(2)));
    assert!(futures_util::poll!(&mut stranger).is_pending(), "it is not among those who come back");
    let mut locks = Box::pin(volume.execute(B, &CALLER, lock(inode, 2, false)));
    assert!(futures_util::poll!(&mut locks).is_pending());
    assert_eq!(volume.execute(A, &CALLER, hold(1)).await, Ok(Outcome::Done));
    volume.returned(A);
    assert_eq!((stranger.await, locks.await), (Err(Errno::EAGAIN), Err(Errno::EAGAIN)));
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_session_that_writes_back_is_alive() {
    let world = World::new().await;
    let volume = world.start_silent().await;
    let Ok(Outcome::Created { attributes: file, .. }) = volume.execute(A, &CALLER, create(ROOT, "f")).await else {
        panic!()
    };
    let reading = volume.clone();
    let get = Operation::GetAttributes { inode: file.inode };
    let reader = tokio::spawn(async move { reading.execute(B, &CALLER, get).await });
    while volume.unanswered_recalls(A).is_empty() {
        tokio::task::yield_now().await;
    }
    let recall = volume.unanswered_recalls(A);
    // Its own change does not wait, and what it earns does not hold the reader up.
    let (result, earned) = volume.execute_made(A, &made(ago(0), None), write(file.inode)).await;
    result.unwrap();
    assert!(earned.grants.iter().all(|grant| !grant.rights.overlaps(Rights::INODE_WRITER)));
    volume.given_up(A, &recall);
    let Ok(Ok(Outcome::Entry(seen))) = tokio::time::timeout(Duration::from_secs(10), reader).await.unwrap() else {
        panic!()
    };
    assert_eq!(seen.size, 5);
    volume.close().await.unwrap();
}

/// True while the operation waits.
async fn waits(operation: &mut (impl Future<Output = Result<Outcome, Errno>> + Unpin)) -> bool {
    tokio::select! {
        biased;
        _ = operation => false,
        _ = tokio::task::yield_now() => true,
    }
}

#[tokio::test]
async fn a_file_that_was_open_before_a_restart_is_open_before_anybody_removes_it() {
    let world = World::new().await;
    let volume = world.start().await;
    let Ok(Outcome::Created { attributes: file, .. }) = volume.execute(A, &CALLER, create(ROOT, "f")).await else {
        panic!()
    };
    volume.execute(A, &CALLER, write(file.inode)).await.unwrap();
    volume.execute(A, &CALLER, Operation::Sync).await.unwrap();

    let volume = world.start().await;
    let former = SessionId(77);
    volume.begin_grace([former], Duration::from_secs(60));
    let mut removed = Box::pin(volume.execute(B, &CALLER, unlink("f")));
    let get = Operation::GetAttributes { inode: file.inode };
    let mut read = Box::pin(volume.execute(B, &CALLER, get));
    assert!(waits(&mut removed).await && waits(&mut read).await);
    let open = Operation::Open { inode: file.inode, flags: OpenFlags::default() };
    let (opened, earned) = volume.execute_leased(A, &CALLER, open.clone()).await;
    assert!(opened.is_ok() && earned.grants.is_empty());
    assert!(waits(&mut removed).await && waits(&mut read).await);

    volume.returned(former);
    assert!(read.await.is_ok());
    removed.await.unwrap();
    assert_eq!(attributes(&volume, file.inode).await.size, 5, "it is open");
    let (_, earned) = volume.execute_leased(A, &CALLER, open).await;
    assert!(!earned.grants.is_empty());
    volume.close().await.unwrap();
}
