//! The client protocol: messages and framing. No sockets.
//!
//! A frame is `u32 length` (little-endian, of what follows), `u64 id`, and a
//! message in postcard encoding. Requests carry an id that their answer
//! repeats; id 0 is for what the server says unasked. The first frame of a
//! connection is a [`Hello`] behind [`MAGIC`] and the version ([`encode_hello`]):
//! those, and the layout of [`Response::Refused`], are the same in every release,
//! so that releases that do not fit each other can say so.
//!
//! Every frame is bounded by [`FRAME_BYTES_MAX`], the first one by
//! [`HELLO_BYTES_MAX`], and the operations of one by `COMPOUND_OPERATIONS_MAX`
//! while it is decoded.

pub mod clock;

use atoll_lease::{Grant, Issue, Recall};
pub use atoll_types::Made;
use atoll_types::{
    Caller, Errno, InodeId, JournalPosition, Operation, OperationSeq, Outcome, SessionId, Timestamp, limits,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The protocol of this release. A server refuses others.
pub const VERSION: u16 = 13;
/// Largest frame behind its length, in bytes: the largest I/O and room for its header.
pub const FRAME_BYTES_MAX: usize = limits::IO_BYTES_MAX + 64 * 1024;
/// Largest first frame, from a peer that is not known yet, in bytes.
pub const HELLO_BYTES_MAX: usize = 4096;
/// Most rights that one message gives up.
pub const RECALLS_MAX: usize = 1024;
/// For how long a client may use what it holds after it sent the ping that the server answered with
/// a renewal, in ms. It is shorter than what a server waits before it fences a session
/// (`atoll_lease::Limits::recall_ms`) less the age of a recall that stops renewals (`renewal_ms`) and [`UNNOTICED_MS`].
pub const TERM_MS: u64 = 3_400;
/// A client's machine may stand still for so long and not know of it: its clocks may differ by that much, in ms.
pub const UNNOTICED_MS: u64 = 500;
/// What the first frame of a connection starts with.
pub const MAGIC: [u8; 4] = *b"ATOL";

/// `VOLUME` or `VOLUME@SNAPSHOT`, in its parts.
pub fn volume_parts(name: &str) -> (&str, Option<&str>) {
    name.split_once('@').map_or((name, None), |(volume, snapshot)| (volume, Some(snapshot)))
}

/// How to resume a session after its connection broke.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    pub session: SessionId,
    pub secret: u128,
}

impl std::fmt::Debug for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resume({})", self.session)
    }
}

/// What connections of one session are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lane {
    Control,
    /// Large reads and writes, so that they never delay a small request.
    Bulk,
}

/// The first message of every connection.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub features: u64,
    pub token: Option<String>,
    /// `None` for a connection that only administers.
    pub volume: Option<String>,
    pub resume: Option<Resume>,
    pub lane: Lane,
    /// The client keeps answers under leases, and answers recalls.
    pub leases: bool,
    /// Everything in its journal up to here was executed.
    pub executed: JournalPosition,
    /// The end of its journal.
    pub journal_end: JournalPosition,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hello(volume {:?}, resume {:?}, {:?})", self.volume, self.resume, self.lane)
    }
}

/// Operations to execute in order, up to the first that fails.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Execute {
    pub caller: Caller,
    /// Number of this mutation; 0 when it changes nothing.
    pub sequence: OperationSeq,
    /// The client has the answers of every mutation below this number.
    pub acknowledged: OperationSeq,
    /// The client knows every mutation below this number to be durable.
    pub released: OperationSeq,
    /// To be executed when everything in the session's journal up to here is.
    pub after: JournalPosition,
    /// The operations are what stands in the journal behind `after`. Each is executed, also when one before it fails.
    pub journal: bool,
    /// An earlier authority executed them at this position, and this one may not have them.
    pub again: Option<Issue>,
    /// How and when each operation was made; empty when they are made by their execution.
    #[serde(deserialize_with = "bounded_made")]
    pub made: Vec<Made>,
    /// 1 to `COMPOUND_OPERATIONS_MAX`.
    #[serde(deserialize_with = "bounded")]
    pub operations: Vec<Operation>,
}

fn bounded<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Operation>, D::Error> {
    sequence(from, 1, limits::COMPOUND_OPERATIONS_MAX)
}

fn bounded_made<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Made>, D::Error> {
    sequence(from, 0, limits::COMPOUND_OPERATIONS_MAX)
}

fn bounded_recalls<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Recall>, D::Error> {
    sequence(from, 1, RECALLS_MAX)
}

/// `least` to `most` elements; refuses more before they take memory.
fn sequence<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
    least: usize,
    most: usize,
) -> Result<Vec<T>, D::Error> {
    struct Visitor<T>(usize, usize, std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{} to {} elements", self.0, self.1)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = sequence.next_element()? {
                if elements.len() == self.1 {
                    return Err(serde::de::Error::invalid_length(elements.len() + 1, &self));
                }
                elements.push(element);
            }
            if elements.len() < self.0 {
                return Err(serde::de::Error::invalid_length(elements.len(), &self));
            }
            Ok(elements)
        }
    }
    from.deserialize_seq(Visitor(least, most, std::marker::PhantomData))
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Execute(Execute),
    /// Give up the waiting request with this id; it answers `EINTR` unless it is done.
    Cancel(u64),
    /// Renews what the session holds, if the answer says so.
    Ping,
    /// Inode numbers for what the client will make; answered by [`Response::Reserved`].
    Reserve,
    /// Everything was made again that an earlier authority may have lost; answered by [`Response::Returned`].
    Returned,
    /// Rights that were given up: the answer to recalls, or unasked. Not answered.
    #[serde(deserialize_with = "bounded_recalls")]
    GiveUp(Vec<Recall>),
    /// The session ends now, not when its time is over; answered by [`Response::Ended`].
    Goodbye,
    Admin(AdminRequest),
    /// The client has the answers of all its changes below this number: what [`Response::Confirm`] asks for. Not answered.
    Heard(OperationSeq),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub features: u64,
    /// `None` for a connection that only administers.
    pub resume: Option<Resume>,
    /// False when the session asked for was unknown and a new one was made.
    pub resumed: bool,
    /// Differs for each start of a server.
    pub instance: u64,
    /// Positions of this authority are behind this one, those of earlier ones are not.
    pub since: Issue,
    /// Up to where the session's journal was executed when this authority began; later if it was resumed.
    pub journal: JournalPosition,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The request was refused; `message` is for people and says what to do. First, so that every release knows it.
    Refused {
        message: String,
    },
    Welcome(Welcome),
    /// One result for each operation executed; the last one may be the error that stopped them.
    Results {
        results: Vec<Result<Outcome, Errno>>,
        /// What the session may keep of them.
        grants: Vec<Grant>,
        /// Position of the last operation among all of the volume: answers overtake each other.
        order: Issue,
        /// When it changed something.
        at: Timestamp,
        /// Everything up to this position is durable.
        durable: Issue,
        /// Others wait for the client to have heard of this: it says so at once ([`Request::Heard`]).
        watched: bool,
    },
    Pong {
        /// The session may use what it holds for another [`TERM_MS`].
        renewed: bool,
        /// The server's clock.
        now: Timestamp,
        /// Everything up to this position is durable.
        durable: Issue,
    },
    /// `count` numbers from `first` on are the session's to give, for good.
    Reserved {
        first: InodeId,
        count: u32,
    },
    Returned,
    Ended,
    /// Unasked: somebody waits until the client has the answers that it was sent; to be answered with [`Request::Heard`].
    Confirm,
    /// Unasked: rights to give up, to be answered with [`Request::GiveUp`].
    Recall(Vec<Recall>),
    Admin(AdminReply),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    VolumeCreate {
        name: String,
        durability: String,
        compression: String,
        encrypt: bool,
        /// What its root directory is linked with.
        link: Option<Link>,
    },
    VolumeList,
    VolumeInfo {
        name: String,
    },
    VolumeDelete {
        name: String,
    },
    TokenCreate {
        volume: Option<String>,
        read_only: bool,
        /// For senders of events alone.
        events: bool,
        expires_seconds: Option<u64>,
        label: String,
    },
    TokenList,
    TokenRevoke {
        id: String,
    },
    Status,
    /// Who holds leases on an inode.
    Leases {
        volume: String,
        inode: InodeId,
    },
    /// End a session: what it holds, has open and has locked is given to others.
    LeaseRevoke {
        session: SessionId,
    },
    /// Check a volume; with `read`, all its bytes, too. A repair needs a volume that nobody uses.
    Fsck {
        volume: String,
        repair: bool,
        read: bool,
    },
    /// Take over a volume of the store that another data folder made.
    VolumeAttach {
        name: String,
    },
    /// Delete objects that nothing refers to; a dry run counts them.
    CollectGarbage {
        volume: String,
        dry_run: bool,
    },
    /// What a volume may hold; `None` is no bound.
    VolumeQuota {
        name: String,
        bytes: Option<u64>,
        inodes: Option<u64>,
    },
    /// What a directory of a volume may hold with everything below; `None` takes its quota away. Progress may come before
    /// the reply.
    DirectoryQuota {
        volume: String,
        directory: InodeId,
        limits: Option<QuotaLimits>,
    },
    /// Quotas of directories whose numbers are behind this one, as many as fit; answered by [`AdminReply::Quotas`].
    DirectoryQuotas {
        volume: String,
        after: InodeId,
    },
    /// For how long files are kept that lost their last name, in seconds, or that they are not; `None` only asks.
    VolumeTrash {
        name: String,
        change: Option<Option<u64>>,
    },
    /// Destroy what is kept of them; answers with that.
    TrashEmpty {
        volume: String,
    },
    /// Make a volume that begins as another one is now, or as it is at a snapshot.
    VolumeClone {
        source: String,
        snapshot: Option<String>,
        name: String,
    },
    /// Keep a volume as it is now; `VOLUME@NAME` is the name of that from then on.
    SnapshotCreate {
        volume: String,
        name: String,
    },
    SnapshotList {
        volume: String,
    },
    /// Have the bytes that a snapshot refers to uploaded, and tell what an import of it needs to know.
    Export {
        volume: String,
        snapshot: String,
    },
    /// Records of a snapshot's metadata, from this key on.
    ExportRecords {
        volume: String,
        snapshot: String,
        from: Option<Bytes>,
    },
    /// Make a volume of what an export says. The next records come on this connection; when it ends, nothing is left.
    Import {
        name: String,
        durability: String,
        compression: String,
        encrypt: bool,
        source: Exported,
    },
    ImportRecords(Vec<(Bytes, Bytes)>),
    /// All records were sent: check them, and write the bytes again that they refer to. The volume is there afterwards.
    ImportEnd,
    SnapshotDelete {
        volume: String,
        name: String,
    },
    /// Turn a volume that nobody uses back to what it was.
    SnapshotRestore {
        volume: String,
        name: String,
    },
    /// Wrap the keys of an encrypted volume anew with the server's first key; with `data`, also have it seal with a new one.
    VolumeRotateKey {
        name: String,
        data: bool,
    },
    /// Link an empty directory with a bucket, if that can be used; answered by [`AdminReply::Links`] with this link.
    LinkCreate {
        volume: String,
        directory: InodeId,
        link: Link,
    },
    /// Links of directories whose numbers are behind this one, as many as fit, without what waits in them; answered by
    /// [`AdminReply::Links`].
    LinkList {
        volume: String,
        after: InodeId,
    },
    /// One link, with the first files that are not published.
    LinkStatus {
        volume: String,
        directory: InodeId,
    },
    /// Publish what is not published, and make a linked directory an empty one again. With `discard`, what is not published is lost.
    LinkDetach {
        volume: String,
        directory: InodeId,
        discard: bool,
    },
    /// Wait until a file, or all below a directory, is in the bucket as it is now; answered by [`AdminReply::Published`]. Who may
    /// write to the volume may ask for it.
    Publish {
        volume: String,
        inode: InodeId,
    },
    /// Keep credentials by a name that links may have.
    CredentialsSet {
        name: String,
        credentials: BucketCredentials,
    },
    /// Their names; answered by [`AdminReply::Credentials`].
    CredentialsList,
    CredentialsDelete {
        name: String,
    },
}

/// A link of a directory with a bucket, as it is asked for and as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// s3://BUCKET/PREFIX.
    pub url: String,
    /// `None`: the server's own.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub credentials: Option<String>,
    /// `None`, of what is asked for: the default.
    pub freshness: Option<String>,
    /// Of freshness `events`: for how many seconds what was confirmed is believed.
    pub recheck_seconds: Option<u32>,
    pub publish: Option<String>,
    pub on_conflict: Option<String>,
    /// Of freshness `events`: the URL of the queue that notifications are read from.
    pub queue: Option<String>,
    /// Bytes of a file that may be sent within ten minutes beyond what was written to it; 0: any number.
    pub budget: Option<u64>,
}

/// What requests to a bucket are signed with. Does not show in `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketCredentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    #[serde(default)]
    pub session_token: Option<String>,
}

impl std::fmt::Debug for BucketCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BucketCredentials")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    pub name: String,
    pub durability: String,
    pub store: String,
    /// Known while it is open.
    pub compression: Option<String>,
    /// The cipher of an encrypted volume.
    pub encryption: Option<String>,
    /// What its keys are wrapped with, while the store can be asked.
    pub wrapping_key: Option<String>,
    /// The volume as whose copy it began.
    pub clone_of: Option<String>,
    pub open: bool,
    pub inodes: u64,
    pub bytes: u64,
    /// What it may hold, known while it is open; `None` is no bound.
    pub quota_bytes: Option<u64>,
    pub quota_inodes: Option<u64>,
    /// Linked directories, and what is not published or still to be deleted of them; 0 while it is not open.
    pub links: u64,
    pub unpublished: u64,
    pub sessions: u64,
}

/// What is in a volume's trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashInfo {
    /// `None`: files are not kept.
    pub retention_seconds: Option<u64>,
    pub files: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    pub id: String,
    pub label: String,
    pub volume: Option<String>,
    pub read_only: bool,
    /// For senders of events alone.
    pub events: bool,
    /// Seconds since 1970.
    pub expires: Option<u64>,
    /// Shown once, when the token is made.
    pub secret: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub uptime_seconds: u64,
    pub store: String,
    pub sessions: u64,
    pub volumes: Vec<VolumeInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminReply {
    Done,
    Volumes(Vec<VolumeInfo>),
    Tokens(Vec<TokenInfo>),
    Status(Status),
    Leases(Vec<LeaseInfo>),
    /// The work goes on; another reply to the same request follows. A `total` of 0 is not known.
    Progress {
        phase: String,
        done: u64,
        total: u64,
    },
    Fsck(Box<FsckReport>),
    /// By number; none when there are no more.
    Quotas(Vec<QuotaInfo>),
    /// Oldest first.
    Snapshots(Vec<SnapshotInfo>),
    Exported(Exported),
    Records {
        records: Vec<(Bytes, Bytes)>,
        /// The next ones start here; `None` at the end.
        next: Option<Bytes>,
    },
    Imported {
        inodes: u64,
        bytes: u64,
    },
    Trash(TrashInfo),
    Garbage {
        objects: u64,
        bytes: u64,
    },
    /// By number; none when there are no more.
    Links(Vec<LinkInfo>),
    Published {
        objects: Vec<PublishedInfo>,
        /// Another reply to the same request follows.
        more: bool,
    },
    Credentials(Vec<String>),
}

impl AdminReply {
    /// Another reply to the same request follows.
    pub fn goes_on(&self) -> bool {
        matches!(self, AdminReply::Progress { .. } | AdminReply::Published { more: true, .. })
    }
}

/// A link, and what is not in the bucket yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInfo {
    pub directory: InodeId,
    /// `None` when it is longer than an answer can hold.
    pub path: Option<String>,
    pub link: Link,
    /// Files whose objects are to be written, copied or moved.
    pub unpublished: u64,
    /// Objects that are to be deleted.
    pub deleting: u64,
    /// Since the volume was opened.
    pub conflicts: u64,
    /// Bytes that were written to files that have become objects, that were sent for them, and that were copied within the bucket, since
    /// the volume was opened.
    pub written: u64,
    pub sent: u64,
    pub copied: u64,
    /// Files that wait because rewriting them has used up their budget.
    pub held_back: u64,
    /// Why the bucket cannot be used now.
    pub trouble: Option<String>,
    /// Of a link with freshness `events`.
    pub hints: Option<HintsInfo>,
    /// Of a link with a queue.
    pub queue: Option<QueueInfo>,
    /// What the bucket can do and cannot do, by name; empty when nobody has looked yet.
    pub capabilities: Vec<(String, bool)>,
    /// The first files that are not published.
    pub waiting: Vec<UnpublishedInfo>,
}

/// Notifications that a link has heard since its volume was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintsInfo {
    pub hints: u64,
    /// Since the last one.
    pub last_seconds: Option<u64>,
    /// Known files that the bucket was asked about because of one or of a change of ours, and because of the time.
    pub asked_in_doubt: u64,
    pub asked_in_time: u64,
}

/// The queue of a link, which others may share, since the first of them was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    pub messages: u64,
    /// Since it was last read.
    pub answered_seconds: Option<u64>,
    /// Why it cannot be read now.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpublishedInfo {
    pub inode: InodeId,
    /// `None`: it cannot have one.
    pub key: Option<String>,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedInfo {
    pub key: String,
    /// With its quotes.
    pub etag: String,
    /// Where the bucket keeps versions.
    pub version: Option<String>,
}

/// What an import has to know of the volume beside its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    pub volume: String,
    /// Its server's store, below which the bytes lie.
    pub store: String,
    pub durability: String,
    pub compression: String,
    /// Its newest epoch.
    pub epoch: u64,
}

/// `None` is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaLimits {
    pub bytes: Option<u64>,
    pub inodes: Option<u64>,
}

/// The quota of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaInfo {
    pub directory: InodeId,
    /// `None` when the directory is gone and something of it is still open.
    pub path: Option<String>,
    pub state: String,
    pub limits: QuotaLimits,
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
}

/// What a check of a volume found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckReport {
    /// Why the volume cannot be opened as it is.
    pub refused: Option<String>,
    pub inodes: u64,
    pub directories: u64,
    pub names: u64,
    pub extents: u64,
    /// Logical bytes in extents.
    pub bytes: u64,
    pub segments: u64,
    /// Bytes that were read and compared with their checksums.
    pub bytes_read: u64,
    /// Objects that nothing refers to, and their bytes.
    pub garbage_objects: u64,
    pub garbage_bytes: u64,
    /// Problems by kind, and how many of each.
    pub problems: Vec<(String, u64)>,
    /// The same after a repair.
    pub left: Option<Vec<(String, u64)>>,
    /// The first problems, as many as fit.
    pub findings: Vec<FsckFinding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckFinding {
    pub problem: String,
    pub inode: Option<InodeId>,
    pub path: Option<String>,
    pub text: String,
    /// A repair can mend it.
    pub mendable: bool,
}

/// Who holds what on one inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    pub session: SessionId,
    /// As `atoll_lease::Rights` shows them.
    pub rights: String,
    /// Rights it was told to give up and has not yet.
    pub recalling: String,
    pub seconds: u64,
}

/// Why a frame is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {0} bytes is too large")]
    TooLarge(usize),
    #[error("malformed message")]
    Malformed,
    #[error("the peer speaks protocol {0}, this release {VERSION}: use the same release on both sides")]
    Version(u16),
}

/// Append the first frame of a connection.
pub fn encode_hello(id: u64, hello: &Hello, out: &mut BytesMut) -> Result<(), WireError> {
    let mut preamble = [0; 6];
    preamble[..4].copy_from_slice(&MAGIC);
    preamble[4..].copy_from_slice(&VERSION.to_le_bytes());
    frame(id, &preamble, hello, out)
}

/// The first message of a connection.
pub fn decode_hello(body: &[u8]) -> Result<Hello, WireError> {
    let body = body.strip_prefix(&MAGIC).ok_or(WireError::Malformed)?;
    let (version, body) = body.split_first_chunk().ok_or(WireError::Malformed)?;
    match u16::from_le_bytes(*version) {
        VERSION => decode(body),
        other => Err(WireError::Version(other)),
    }
}

/// Append one frame.
pub fn encode<M: Serialize>(id: u64, message: &M, out: &mut BytesMut) -> Result<(), WireError> {
    frame(id, &[], message, out)
}

/// Writes a message where it is sent from: payloads are copied once.
struct Outgoing<'a>(&'a mut BytesMut);

impl postcard::ser_flavors::Flavor for Outgoing<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn frame<M: Serialize>(id: u64, preamble: &[u8], message: &M, out: &mut BytesMut) -> Result<(), WireError> {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u64_le(id);
    out.extend_from_slice(preamble);
    if postcard::serialize_with_flavor(message, Outgoing(out)).is_err() {
        out.truncate(start);
        return Err(WireError::Malformed);
    }
    let length = out.len() - start - 4;
    if length > FRAME_BYTES_MAX {
        out.truncate(start);
        return Err(WireError::TooLarge(length));
    }
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// Take the next whole frame of at most `most` bytes from what was received; `None` when more is needed.
pub fn next_frame(received: &mut BytesMut, most: usize) -> Result<Option<(u64, Bytes)>, WireError> {
    let Some(header) = received.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*header) as usize;
    if length > most {
        return Err(WireError::TooLarge(length));
    }
    if length < 8 {
        return Err(WireError::Malformed);
    }
    if received.len() < 4 + length {
        received.reserve(4 + length - received.len());
        return Ok(None);
    }
    let mut frame = received.split_to(4 + length).freeze();
    frame.advance(4);
    let id = frame.get_u64_le();
    Ok(Some((id, frame)))
}

/// The message of a frame. Bytes that are left over make it malformed.
pub fn decode<'a, M: Deserialize<'a>>(body: &'a [u8]) -> Result<M, WireError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::{InodeId, Name};
    use proptest::prelude::*;

    #[test]
    fn a_term_ends_before_its_session_can_be_fenced() {
        // A term that a recall of the greatest age let begin is over when the recall fences.
        let limits = atoll_lease::Limits::default();
        assert!(TERM_MS + UNNOTICED_MS + limits.renewal_ms < limits.recall_ms);
    }

    fn request() -> Request {
        let name = Name::new(&b"name"[..]).unwrap();
        Request::Execute(Execute {
            caller: Caller { uid: 1, gid: 2, pid: 3 },
            sequence: OperationSeq(4),
            acknowledged: OperationSeq(2),
            released: OperationSeq(1),
            after: JournalPosition(1),
            journal: true,
            again: Some(Issue(3)),
            made: vec![Made { caller: Caller::default(), at: Timestamp::default(), inode: Some(InodeId(9)) }; 2],
            operations: vec![Operation::Lookup { parent: InodeId::ROOT, name }, Operation::Sync],
        })
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let mut wire = BytesMut::new();
        encode(7, &request(), &mut wire).unwrap();
        let (id, body) = next_frame(&mut wire, FRAME_BYTES_MAX).unwrap().unwrap();
        assert_eq!((id, decode::<Request>(&body).unwrap()), (7, request()));
        assert!(wire.is_empty());
    }

    #[test]
    fn a_frame_in_parts_is_waited_for() {
        let mut whole = BytesMut::new();
        encode(7, &request(), &mut whole).unwrap();
        for cut in 0..whole.len() {
            assert_eq!(next_frame(&mut BytesMut::from(&whole[..cut]), FRAME_BYTES_MAX), Ok(None));
        }
    }

    #[test]
    fn a_name_that_no_directory_can_hold_is_malformed() {
        let mut wire = BytesMut::new();
        encode(1, &request(), &mut wire).unwrap();
        let (_, body) = next_frame(&mut wire, FRAME_BYTES_MAX).unwrap().unwrap();
        let at = body.windows(4).position(|w| w == b"name").unwrap();
        let mut bad = body.to_vec();
        bad[at] = b'/';
        assert_eq!(decode::<Request>(&bad), Err(WireError::Malformed));
    }

    fn compound(operations: usize) -> Vec<u8> {
        let execute = Execute { operations: vec![Operation::Sync; operations], ..Execute::default() };
        postcard::to_allocvec(&Request::Execute(execute)).unwrap()
    }

    #[test]
    fn a_compound_is_bounded() {
        assert!(decode::<Request>(&compound(limits::COMPOUND_OPERATIONS_MAX)).is_ok());
        assert_eq!(decode::<Request>(&compound(limits::COMPOUND_OPERATIONS_MAX + 1)), Err(WireError::Malformed));
        assert_eq!(decode::<Request>(&compound(0)), Err(WireError::Malformed));
    }

    #[test]
    fn a_hello_names_its_version_before_anything_else() {
        let hello = Hello {
            features: 0,
            token: None,
            volume: Some("v".into()),
            resume: None,
            lane: Lane::Bulk,
            leases: false,
            executed: JournalPosition(3),
            journal_end: JournalPosition(5),
        };
        let mut wire = BytesMut::new();
        encode_hello(1, &hello, &mut wire).unwrap();
        assert_eq!(next_frame(&mut wire.clone(), 8), Err(WireError::TooLarge(wire.len() - 4)));
        let (_, body) = next_frame(&mut wire, HELLO_BYTES_MAX).unwrap().unwrap();
        assert_eq!(decode_hello(&body), Ok(hello));
        let mut future = body.to_vec();
        let next = VERSION + 1;
        future[4..6].copy_from_slice(&next.to_le_bytes());
        future.truncate(7);
        assert_eq!(decode_hello(&future), Err(WireError::Version(next)));
        future[0] = b'X';
        assert_eq!(decode_hello(&future), Err(WireError::Malformed));
    }

    #[test]
    fn credentials_do_not_show() {
        let secret = || "half".to_owned();
        let credentials =
            BucketCredentials { access_key_id: secret(), secret_access_key: secret(), session_token: Some(secret()) };
        let request = Request::Admin(AdminRequest::CredentialsSet { name: "name".into(), credentials });
        let shown = format!("{request:?}");
        assert!(shown.contains("name") && !shown.contains("half"), "{shown}");
    }

    #[test]
    fn a_refusal_has_the_layout_of_every_release() {
        let refused = Response::Refused { message: "no".into() };
        assert_eq!(postcard::to_allocvec(&refused).unwrap(), b"\0\x02no");
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = next_frame(&mut BytesMut::from(&bytes[..]), FRAME_BYTES_MAX);
            let _ = decode_hello(&bytes);
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Response>(&bytes);
        }

        #[test]
        fn damaged_messages_never_panic(at in 0usize..60, with in any::<u8>()) {
            let mut wire = BytesMut::new();
            encode(7, &request(), &mut wire).unwrap();
            let at = 12 + at % (wire.len() - 12);
            wire[at] = with;
            if let Ok(Some((_, body))) = next_frame(&mut wire, FRAME_BYTES_MAX) {
                let _ = decode::<Request>(&body);
            }
        }
    }
}
