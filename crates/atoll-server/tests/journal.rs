//! What a server does with the journal of a client: changes that were made before it was asked.
//!
//! The client here is bare: it sends messages and waits for answers, and gives up nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_lease::{Grant, Issue, Rights};
use atoll_server::{Server, ServerConfig};
use atoll_types::locks::{Lock, LockKind, LockSpace};
use atoll_types::operation::OpenFlags;
use atoll_types::{
    Attributes, ByteRange, Caller, Errno, InodeId, JournalPosition, LockOwner, Made, Name, Operation, OperationSeq,
    Outcome, Timestamp,
};
use atoll_wire::{
    AdminRequest, Execute, FRAME_BYTES_MAX, HELLO_BYTES_MAX, Hello, Lane, Request, Response, Resume, Welcome,
};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const ROOT: InodeId = InodeId::ROOT;
/// Whatever is waited for comes within this time, or never.
const PATIENCE: Duration = Duration::from_secs(20);

type Results = Vec<Result<Outcome, Errno>>;

struct Client {
    stream: UnixStream,
    received: BytesMut,
    next_id: u64,
    /// Answers that came while another one was waited for.
    early: Vec<(u64, Response)>,
    welcome: Welcome,
}

/// How a client introduces itself.
#[derive(Clone, Default)]
struct Introduction {
    resume: Option<Resume>,
    bulk: bool,
    without_leases: bool,
    executed: u64,
    journal_end: u64,
}

impl Client {
    async fn connect(socket: &Path, introduction: Introduction, volume: Option<&str>) -> Client {
        let hello = Hello {
            features: 0,
            token: None,
            volume: volume.map(str::to_owned),
            resume: introduction.resume,
            lane: if introduction.bulk { Lane::Bulk } else { Lane::Control },
            leases: !introduction.without_leases,
            executed: JournalPosition(introduction.executed),
            journal_end: JournalPosition(introduction.journal_end),
        };
        let mut bytes = BytesMut::new();
        atoll_wire::encode_hello(1, &hello, &mut bytes).unwrap();
        assert!(bytes.len() < HELLO_BYTES_MAX);
        let stream = UnixStream::connect(socket).await.unwrap();
        let welcome = Welcome {
            features: 0,
            resume: None,
            resumed: false,
            instance: 0,
            since: Issue(0),
            journal: JournalPosition(0),
            read_only: false,
        };
        let mut client = Client { stream, received: BytesMut::new(), next_id: 2, early: Vec::new(), welcome };
        client.stream.write_all(&bytes).await.unwrap();
        let Response::Welcome(welcome) = client.answer(1).await else { panic!("not welcome") };
        client.welcome = welcome;
        client
    }

    async fn open(server: &Running, introduction: Introduction) -> Client {
        Client::connect(&server.socket, introduction, Some("v")).await
    }

    async fn again(&self, server: &Running, bulk: bool) -> Client {
        let resume = self.welcome.resume.clone();
        let client = Client::open(server, Introduction { resume, bulk, ..Introduction::default() }).await;
        assert!(client.welcome.resumed);
        client
    }

    /// Send a request; answers its id.
    async fn send(&mut self, request: Request) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut bytes = BytesMut::new();
        atoll_wire::encode(id, &request, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
        id
    }

    async fn next(&mut self) -> (u64, Response) {
        let read = async {
            loop {
                if let Some((id, body)) = atoll_wire::next_frame(&mut self.received, FRAME_BYTES_MAX).unwrap() {
                    return (id, atoll_wire::decode(&body).unwrap());
                }
                assert!(self.stream.read_buf(&mut self.received).await.unwrap() > 0, "the server hung up");
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an answer")
    }

    async fn answer(&mut self, id: u64) -> Response {
        if let Some(at) = self.early.iter().position(|(early, _)| *early == id) {
            return self.early.remove(at).1;
        }
        loop {
            let (found, response) = self.next().await;
            if found == id {
                return response;
            }
            self.early.push((found, response));
        }
    }

    async fn results(&mut self, id: u64) -> (Results, Vec<Grant>) {
        match self.answer(id).await {
            Response::Results { results, grants, .. } => (results, grants),
            other => panic!("{other:?}"),
        }
    }

    async fn call(&mut self, request: Request) -> Results {
        let id = self.send(request).await;
        self.results(id).await.0
    }

    async fn reserve(&mut self) -> Response {
        let id = self.send(Request::Reserve).await;
        self.answer(id).await
    }

    /// Everything that was sent before has been read by the server when this returns.
    async fn ping(&mut self) {
        let id = self.send(Request::Ping).await;
        assert!(matches!(self.answer(id).await, Response::Pong { .. }));
    }

    /// Say that everything was made again.
    async fn come_back(&mut self) {
        let id = self.send(Request::Returned).await;
        assert!(matches!(self.answer(id).await, Response::Returned));
    }

    /// Do as the next recall says.
    async fn give_up(&mut self) {
        let Response::Recall(rights) = self.answer(0).await else { panic!() };
        self.send(Request::GiveUp(rights)).await;
    }

    fn has_answer(&self, id: u64) -> bool {
        self.early.iter().any(|(early, _)| *early == id)
    }
}

struct Running {
    server: Server,
    socket: PathBuf,
}

impl Running {
    async fn start(folder: &Path) -> Running {
        let config = ServerConfig { data: folder.to_owned(), cache_bytes_max: 1 << 20, ..ServerConfig::default() };
        let http = Some("127.0.0.1:0".parse().unwrap());
        let server = Server::start(ServerConfig { http, ..config }).await.unwrap();
        Running { socket: server.addresses().socket.clone(), server }
    }

    /// Stop it, and start another one.
    async fn restart(self, folder: &Path) -> Running {
        self.server.stop().await.unwrap();
        Running::start(folder).await
    }

    /// A server with one volume, for the first time.
    async fn new(folder: &Path) -> Running {
        let running = Running::start(folder).await;
        let mut admin = Client::connect(&running.socket, Introduction::default(), None).await;
        let create = AdminRequest::VolumeCreate {
            name: "v".into(),
            durability: "local".into(),
            compression: "lz4".into(),
            encrypt: false,
            link: None,
        };
        let id = admin.send(Request::Admin(create)).await;
        assert!(matches!(admin.answer(id).await, Response::Admin(_)));
        running
    }

    /// A figure of `/metrics`.
    async fn figure(&self, name: &str) -> u64 {
        let mut stream = tokio::net::TcpStream::connect(self.server.addresses().http.unwrap()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let line = text.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with(' '));
        line.unwrap_or_else(|| panic!("no {name}"))[name.len()..].trim().parse().unwrap()
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).unwrap()
}

fn create(text: &str) -> Operation {
    let flags = OpenFlags { exclusive: true, ..OpenFlags::default() };
    Operation::Create { parent: ROOT, name: name(text), permissions: 0o644, umask: 0, flags }
}

fn lookup(text: &str) -> Operation {
    Operation::Lookup { parent: ROOT, name: name(text) }
}

fn execute(sequence: u64, after: u64, made: Vec<Made>, operations: Vec<Operation>) -> Request {
    Request::Execute(Execute {
        caller: Caller::default(),
        sequence: OperationSeq(sequence),
        acknowledged: OperationSeq(1),
        released: OperationSeq(1),
        after: JournalPosition(after),
        journal: !made.is_empty(),
        again: None,
        made,
        operations,
    })
}

fn ask(after: u64, operation: Operation) -> Request {
    execute(0, after, Vec::new(), vec![operation])
}

/// What stands in the journal behind `after`.
fn journal(sequence: u64, after: u64, operations: Vec<Operation>) -> Request {
    execute(sequence, after, vec![made(None); operations.len()], operations)
}

fn made(inode: Option<InodeId>) -> Made {
    let at = Timestamp { seconds: 1_000_000, nanos: 7 };
    Made { caller: Caller { uid: 5, gid: 6, pid: 7 }, at, inode }
}

fn entry(result: &Result<Outcome, Errno>) -> Attributes {
    *result.as_ref().unwrap().attributes().unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn the_journal_is_executed_in_order_across_connections() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut control = Client::open(&server, Introduction::default()).await;
    let mut bulk = control.again(&server, true).await;

    let remove = Operation::Unlink { parent: ROOT, name: name("a") };
    let later = bulk.send(journal(2, 2, vec![remove, create("c")])).await;
    let read = bulk.send(ask(4, lookup("a"))).await;
    let early_read = bulk.send(ask(0, lookup("a"))).await;
    assert_eq!(bulk.results(early_read).await.0, [Err(Errno::ENOENT)], "it need not wait");
    bulk.ping().await;
    assert!(!bulk.has_answer(later) && !bulk.has_answer(read));

    let first = control.call(journal(1, 0, vec![create("a"), create("b")])).await;
    assert!(first.iter().all(Result::is_ok));
    let later = bulk.results(later).await.0;
    assert!(later.iter().all(Result::is_ok), "{later:?}");
    assert_eq!(bulk.results(read).await.0, [Err(Errno::ENOENT)]);
    assert!(control.call(ask(4, lookup("c"))).await[0].is_ok());
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn a_change_that_fails_does_not_stop_those_behind_it() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut client = Client::open(&server, Introduction::default()).await;
    let id = client.send(journal(1, 0, vec![create("a"), create("a"), create("b")])).await;
    let (results, grants) = client.results(id).await;
    assert!(matches!(results[..], [Ok(_), Err(Errno::EEXIST), Ok(_)]), "{results:?}");
    for inode in [entry(&results[0]).inode, entry(&results[2]).inode] {
        assert!(grants.iter().any(|grant| grant.inode == inode && grant.rights == Rights::INODE_EXCLUSIVE));
    }
    // A request of the usual kind ends with the first that fails.
    let usual = execute(2, 3, Vec::new(), vec![create("c"), create("c"), create("d")]);
    assert!(matches!(client.call(usual).await[..], [Ok(_), Err(Errno::EEXIST)]));
    assert_eq!(server.figure("atoll_journal_batches_total").await, 1);
    assert_eq!(server.figure("atoll_journal_changes_total").await, 3);
    assert_eq!(server.figure("atoll_journal_failures_total").await, 1);
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn what_comes_again_after_a_lost_connection_is_executed_once() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut client = Client::open(&server, Introduction::default()).await;
    let batch = || journal(1, 0, vec![create("a"), create("a")]);
    let first = client.call(batch()).await;
    let mut client = client.again(&server, false).await;
    assert_eq!(client.call(batch()).await, first);
    // Also under another number, as of a process that does not know of the first: the journal is further.
    assert_eq!(client.call(journal(2, 0, vec![create("z")])).await, [Ok(Outcome::Done)]);
    assert!(client.call(journal(3, 2, vec![create("b")])).await[0].is_ok());
    let results = client.call(journal(4, 1, vec![create("a"), create("b"), create("c")])).await;
    assert!(matches!(results[..], [Ok(Outcome::Done), Ok(Outcome::Done), Ok(Outcome::Created { .. })]), "{results:?}");
    assert_eq!(client.call(ask(4, lookup("z"))).await, [Err(Errno::ENOENT)]);
    assert!(client.call(ask(4, lookup("c"))).await[0].is_ok());
    assert_eq!(server.figure("atoll_journal_changes_total").await, 4);
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn numbers_and_times_are_those_that_the_client_gave() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut client = Client::open(&server, Introduction::default()).await;
    let Response::Reserved { first, count } = client.reserve().await else { panic!() };
    assert_eq!(count, atoll_types::limits::INODES_RESERVED);
    let create = execute(1, 0, vec![made(Some(first))], vec![create("a")]);
    assert_eq!(entry(&client.call(create).await[0]).inode, first);
    let found = entry(&client.call(ask(1, Operation::GetAttributes { inode: first })).await[0]);
    assert_eq!((found.uid, found.gid, found.created, found.changed), (5, 6, made(None).at, made(None).at));
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn a_journal_that_breaks_the_protocol_is_refused_whole() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut client = Client::open(&server, Introduction::default()).await;
    let two = || vec![create("a"), create("b")];
    let einval = [Err(Errno::EINVAL), Err(Errno::EINVAL)];
    assert_eq!(client.call(execute(1, 0, vec![made(None)], two())).await, einval);
    assert_eq!(client.call(execute(0, 0, vec![made(None); 2], two())).await, einval);
    let mut without = Client::open(&server, Introduction { without_leases: true, ..Introduction::default() }).await;
    assert_eq!(without.call(journal(1, 0, two())).await, einval);
    assert!(client.call(journal(1, 0, two())).await.iter().all(Result::is_ok), "nothing was executed before");
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn what_waits_for_the_journal_ends_with_its_session_and_with_the_server() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut client = Client::open(&server, Introduction::default()).await;
    let waiting = client.send(ask(9, lookup("a"))).await;
    client.ping().await;
    assert!(!client.has_answer(waiting));
    let mut other = client.again(&server, true).await;
    let goodbye = other.send(Request::Goodbye).await;
    assert!(matches!(other.answer(goodbye).await, Response::Ended));
    // It is not executed, and the connection ends.
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    while let Some((id, body)) = atoll_wire::next_frame(&mut BytesMut::from(&rest[..]), FRAME_BYTES_MAX).unwrap() {
        let response: Response = atoll_wire::decode(&body).unwrap();
        let failed = matches!(&response, Response::Results { results, .. } if results[..] == [Err(Errno::EIO)]);
        assert!(id == waiting && failed, "{response:?}");
        rest.drain(..12 + body.len());
    }

    // A server that stops does not wait for it either.
    let mut client = Client::open(&server, Introduction::default()).await;
    client.send(ask(9, lookup("a"))).await;
    client.ping().await;
    tokio::time::timeout(Duration::from_secs(5), server.server.stop()).await.expect("it stops").unwrap();
}

#[tokio::test]
async fn after_a_restart_nobody_is_served_before_the_journals_of_those_who_were_there() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut client = Client::open(&server, Introduction::default()).await;
    let Response::Reserved { first, count } = client.reserve().await else { panic!() };
    assert!(client.call(journal(1, 0, vec![create("a")])).await[0].is_ok());
    let resume = client.welcome.resume.clone();
    let server = server.restart(folder.path()).await;
    let mut other = Client::open(&server, Introduction::default()).await;
    let read = other.send(ask(0, lookup("c"))).await;
    let Response::Reserved { first: others, .. } = other.reserve().await else { panic!() };
    assert!(others.0 >= first.0 + u64::from(count));
    assert!(!other.has_answer(read));

    // The client had made three changes, of which one was executed.
    let introduction = Introduction { resume, executed: 1, journal_end: 3, ..Introduction::default() };
    let mut client = Client::open(&server, introduction).await;
    assert!(client.welcome.resumed);
    assert_eq!(client.welcome.journal, JournalPosition(1));
    client.come_back().await;
    let own = client.send(ask(3, lookup("c"))).await;
    let number = InodeId(first.0 + 1);
    let batch = execute(2, 1, vec![made(Some(number))], vec![create("b")]);
    assert_eq!(entry(&client.call(batch).await[0]).inode, number);
    other.ping().await;
    client.ping().await;
    assert!(!other.has_answer(read) && !client.has_answer(own), "the journal is not executed yet");
    assert!(client.call(journal(3, 2, vec![create("c")])).await[0].is_ok());
    assert!(client.results(own).await.0[0].is_ok());
    // The other one finds what was made, once the client has given up what it earned by it.
    client.give_up().await;
    client.give_up().await;
    assert!(other.results(read).await.0[0].is_ok());
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_without_changes_ends_the_wait_by_coming_back() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let client = Client::open(&server, Introduction::default()).await;
    let resume = client.welcome.resume.clone();
    let server = server.restart(folder.path()).await;
    let mut other = Client::open(&server, Introduction::default()).await;
    let read = other.send(ask(0, lookup("a"))).await;
    other.ping().await;
    assert!(!other.has_answer(read));
    let mut client = Client::open(&server, Introduction { resume, ..Introduction::default() }).await;
    other.ping().await;
    assert!(!other.has_answer(read), "it may come with changes");
    client.come_back().await;
    assert_eq!(other.results(read).await.0, [Err(Errno::ENOENT)]);
    server.server.stop().await.unwrap();
}

/// A change that was executed at this position before.
fn again(order: u64, sequence: u64, number: InodeId, operation: Operation) -> Request {
    let Request::Execute(execute) = execute(sequence, 0, vec![made(Some(number))], vec![operation]) else { panic!() };
    Request::Execute(Execute { journal: false, again: Some(Issue(order)), ..execute })
}

#[tokio::test]
async fn changes_are_made_again_in_their_order_and_once() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut first = Client::open(&server, Introduction::default()).await;
    let second = Client::open(&server, Introduction::default()).await;
    let made = first.call(execute(1, 0, Vec::new(), vec![create("here")])).await;
    let server = server.restart(folder.path()).await;
    let mut first = first.again(&server, false).await;
    let mut second = second.again(&server, false).await;
    let mut third = Client::open(&server, Introduction::default()).await;
    let read = third.send(ask(0, lookup("b"))).await;

    let here = entry(&made[0]).inode;
    // A number that the store does not know to be given away is as it was.
    let far = InodeId(here.0 + 100_000);
    let rename = Operation::Rename {
        parent: ROOT,
        name: name("a"),
        new_parent: ROOT,
        new_name: name("b"),
        mode: Default::default(),
    };
    let waits = second.send(again(12, 1, ROOT, rename)).await;
    second.ping().await;
    assert!(!second.has_answer(waits));
    // The store has it: nothing is done, least of all refused.
    assert_eq!(first.call(again(10, 1, here, create("here"))).await, [Ok(Outcome::Done)]);
    let results = first.call(again(11, 2, far, create("a"))).await;
    assert_eq!(entry(&results[0]).inode, far);
    second.ping().await;
    assert!(!second.has_answer(waits), "the other may come with more");
    first.come_back().await;
    assert_eq!(second.results(waits).await.0, [Ok(Outcome::Done)]);
    third.ping().await;
    assert!(!third.has_answer(read));
    second.come_back().await;
    assert_eq!(entry(&third.results(read).await.0[0]).inode, far);
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_that_comes_back_too_late_is_over() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let client = Client::open(&server, Introduction::default()).await;
    let resume = client.welcome.resume.clone();
    let server = server.restart(folder.path()).await;
    let mut other = Client::open(&server, Introduction::default()).await;
    assert_eq!(other.call(ask(0, lookup("a"))).await, [Err(Errno::ENOENT)], "the wait is bounded");
    let late = Client::open(&server, Introduction { resume, ..Introduction::default() }).await;
    assert!(!late.welcome.resumed);
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn a_request_without_an_answer_gets_that_of_the_server_before() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let mut client = Client::open(&server, Introduction::default()).await;
    let ask = || execute(1, 0, Vec::new(), vec![create("a"), create("a")]);
    let answer = client.call(ask()).await;
    let server = server.restart(folder.path()).await;
    let mut client = client.again(&server, false).await;
    client.come_back().await;
    assert_eq!(client.call(ask()).await, answer);
    server.server.stop().await.unwrap();
}

#[tokio::test]
async fn what_an_older_connection_brings_about_locks_is_not_executed() {
    let folder = folder();
    let server = Running::new(folder.path()).await;
    let lock = |owner, wait| {
        let (space, kind, range) = (LockSpace::Whole, LockKind::Exclusive, ByteRange::EVERYTHING);
        let lock = Lock { space, owner: LockOwner(owner), pid: 0, kind, range };
        ask(0, Operation::SetLock { inode: ROOT, lock, wait })
    };
    let unlock = |owner| {
        let (space, range) = (LockSpace::Whole, ByteRange::EVERYTHING);
        ask(0, Operation::Unlock { inode: ROOT, space, owner: LockOwner(owner), range })
    };
    let mut other = Client::open(&server, Introduction::default()).await;
    assert_eq!(other.call(lock(1, false)).await, [Ok(Outcome::Done)]);
    let mut old = Client::open(&server, Introduction::default()).await;
    old.send(lock(1, true)).await;
    old.ping().await;

    // The wait is over with its connection, before the new one is served, though the server has not seen it break.
    let mut new = old.again(&server, false).await;
    assert_eq!(other.call(unlock(1)).await, [Ok(Outcome::Done)]);
    assert_eq!(other.call(lock(2, false)).await, [Ok(Outcome::Done)]);
    assert_eq!(other.call(unlock(2)).await, [Ok(Outcome::Done)]);

    // What comes late there gives nothing back.
    assert_eq!(new.call(lock(1, false)).await, [Ok(Outcome::Done)]);
    let mut late = BytesMut::new();
    atoll_wire::encode(90, &unlock(1), &mut late).unwrap();
    // It may be closed already.
    let _ = old.stream.write_all(&late).await;
    while old.stream.read_buf(&mut old.received).await.is_ok_and(|bytes| bytes > 0) {}
    assert_eq!(other.call(lock(3, false)).await, [Err(Errno::EAGAIN)]);
    server.server.stop().await.unwrap();
}
