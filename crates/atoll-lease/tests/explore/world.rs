//! The world that is explored: clients, their kernels and connections, and the
//! authority with a tiny store. [`Authority`], [`Holding`] and [`Leaving`] are the
//! real ones; the rest follows `atoll-volume` (`claims.rs`, `leases.rs`), `atoll-client` (`cache.rs`,
//! `client.rs`) and `atoll-server` (`sessions.rs`).
//!
//! A client that is frozen is one that takes no action while time goes on: any
//! client may be, at any moment, for any time.

mod client;
mod describe;
mod faults;
mod server;

use atoll_lease::{Authority, Grant, Holding, Issue, Leaving, Limits, Notice, Recall, Rights, WaiterId};
use atoll_types::{InodeId, SessionId};

use super::mutations::Mutation;
use super::operations::*;

pub const CLIENTS: usize = 3;
/// Real limits in ticks: the age of a recall that stops renewals, the term, the age that fences.
pub const RENEWAL: u64 = 1;
pub const TERM: u64 = 2;
pub const RECALL: u64 = 3;
const _: () = assert!(TERM + RENEWAL <= RECALL);

#[derive(Clone, Debug)]
pub struct Setting {
    pub scripts: Each<&'static [Operation]>,
    /// Operations that a client has in flight at a time.
    pub in_flight: Each<usize>,
    /// How often the connection of a client may break.
    pub breaks: Each<u8>,
    pub mortal: Each<bool>,
    /// Writers are granted exclusive rights and write back.
    pub exclusive: bool,
    /// What was made of the names before.
    pub names: u64,
    /// Time goes on.
    pub time: bool,
    /// The kernel drops bytes too, which waits for its reads and writes of them that are in flight.
    pub page_locks: bool,
    /// Recalls of an inode that send it to direct mode.
    pub contended: u32,
    pub broken: Option<Mutation>,
    /// Order reads also by a change of the reader's own that has not returned.
    pub strict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The next operation of a client's script begins, and ends too when it is answered from what is kept.
    Start(usize),
    /// The client writes back what is unwritten of an inode.
    Flush(usize, InodeId),
    /// A request arrives, or one that waited is tried again.
    Serve(usize, usize),
    /// A reply arrives.
    Answer(usize, usize),
    /// A recall arrives.
    Recall(usize, usize),
    /// The kernel has dropped what a recall takes; the client gives up.
    Drop(usize, usize),
    /// The authority hears that rights were given up.
    Acknowledge(usize, usize),
    /// A connection is lost with all that is on it.
    Break(usize),
    /// The client finds out.
    Notice(usize),
    Reconnect(usize),
    /// A ping and its answer.
    Renew(usize),
    Die(usize),
    Fence,
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reply {
    read: Each<Option<u64>>,
    wrote: Each<Option<u64>>,
    grants: Vec<Grant>,
    order: Issue,
}

#[derive(Clone, Debug)]
enum Server {
    Idle,
    Waiting { waiter: WaiterId, woken: bool },
    Done(Reply),
}

/// One operation on its way.
#[derive(Clone, Debug)]
struct Job {
    operation: Operation,
    /// The request is on its way.
    requested: bool,
    server: Server,
    /// The server knows where the reply goes.
    attached: bool,
    /// The request came a second time while the first was executed.
    repeated: bool,
    reply: Option<Reply>,
    /// What a read must not miss: written, or seen by a read that returned, before this one began.
    floors: Floors,
    /// Holders and rights that were recalled for it.
    recalled: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Floors {
    written: Each<u64>,
    seen: Each<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    /// Lost, and the client does not know.
    Broken,
    Down,
}

/// A recall that is carried out, and what it took from the client.
#[derive(Clone, Copy, Debug)]
struct Duty {
    recall: Recall,
    taken: Rights,
    is_given_up: bool,
}

#[derive(Clone, Debug)]
struct Client {
    at: usize,
    dead: bool,
    /// The server ended the session.
    over: bool,
    /// The client knows.
    ended: bool,
    link: Link,
    breaks: u8,
    until: u64,
    holdings: [Holding; INODES.len()],
    kept: Each<Option<u64>>,
    order: Each<Issue>,
    dirty: Each<Option<u64>>,
    jobs: Vec<Job>,
    leaving: [Leaving; INODES.len()],
    duties: Vec<Duty>,
    /// On their way to the client.
    recalls: Vec<Recall>,
    /// On their way to the authority.
    given_up: Vec<Recall>,
}

#[derive(Clone, Debug)]
pub struct World<'a> {
    setting: &'a Setting,
    now: u64,
    authority: Authority,
    store: Each<u64>,
    /// With what is written and not yet written back.
    truth: Each<u64>,
    floors: Floors,
    clients: Vec<Client>,
}

fn session(client: usize) -> SessionId {
    SessionId(client as u64 + 1)
}

fn slot(inode: InodeId) -> usize {
    usize::from(inode == DIRECTORY)
}

type Step = Result<(), String>;

impl<'a> World<'a> {
    pub fn new(setting: &'a Setting) -> Self {
        let limits = Limits {
            renewal_ms: RENEWAL,
            recall_ms: RECALL,
            contended_recalls: setting.contended,
            ..Limits::default()
        };
        let mut authority = Authority::new(limits);
        (0..CLIENTS).for_each(|client| authority.enroll(session(client)));
        let start = [0, 0, setting.names];
        let client = |client| Client {
            at: 0,
            dead: false,
            over: false,
            ended: false,
            link: Link::Up,
            breaks: setting.breaks[client],
            until: TERM,
            holdings: Default::default(),
            kept: Default::default(),
            order: Default::default(),
            dirty: Default::default(),
            jobs: Vec::new(),
            leaving: Default::default(),
            duties: Vec::new(),
            recalls: Vec::new(),
            given_up: Vec::new(),
        };
        World {
            setting,
            now: 0,
            authority,
            store: start,
            truth: start,
            floors: Floors { written: start, seen: start },
            clients: (0..CLIENTS).map(client).collect(),
        }
    }

    fn breaks(&self, mutation: Mutation) -> bool {
        self.setting.broken == Some(mutation)
    }

    // ---- what may happen

    pub fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for client in 0..CLIENTS {
            self.messages(client, &mut actions);
            let state = &self.clients[client];
            if state.dead || state.ended {
                continue;
            }
            for duty in 0..state.duties.len() {
                if self.may_drop(client, duty) {
                    actions.push(Action::Drop(client, duty));
                }
            }
            for inode in INODES {
                if self.may_flush(client, inode) {
                    actions.push(Action::Flush(client, inode));
                }
            }
            if self.may_start(client) {
                actions.push(Action::Start(client));
            }
            match state.link {
                Link::Up if state.over => actions.push(Action::Notice(client)),
                Link::Up if state.breaks > 0 => actions.push(Action::Break(client)),
                Link::Up => {}
                Link::Broken => actions.push(Action::Notice(client)),
                Link::Down => actions.push(Action::Reconnect(client)),
            }
            if self.setting.mortal[client] {
                actions.push(Action::Die(client));
            }
            if self.setting.time && state.link == Link::Up && !state.over && self.may_renew(client) {
                actions.push(Action::Renew(client));
            }
        }
        if self.setting.time {
            if !self.overdue().is_empty() {
                actions.push(Action::Fence);
            }
            actions.push(Action::Tick);
        }
        actions
    }

    fn messages(&self, client: usize, actions: &mut Vec<Action>) {
        let state = &self.clients[client];
        for (index, job) in state.jobs.iter().enumerate() {
            let tried = matches!(job.server, Server::Waiting { woken: true, .. });
            if job.requested || tried {
                actions.push(Action::Serve(client, index));
            }
            if job.reply.is_some() && !state.dead {
                actions.push(Action::Answer(client, index));
            }
        }
        if !state.dead {
            actions.extend((0..state.recalls.len()).map(|index| Action::Recall(client, index)));
        }
        actions.extend((0..state.given_up.len()).map(|index| Action::Acknowledge(client, index)));
    }

    /// What lets operations complete, most urgent first: no fault, and no time unless somebody is dead.
    pub fn helpful(&self) -> Option<Action> {
        let useful = |action: &Action| !matches!(action, Action::Break(_) | Action::Die(_) | Action::Tick);
        if let Some(action) = self.actions().into_iter().find(useful) {
            return Some(action);
        }
        (self.setting.time && self.clients.iter().any(|client| client.dead)).then_some(Action::Tick)
    }

    /// Every operation of a client that lives and was not fenced is complete.
    pub fn is_complete(&self) -> bool {
        self.clients.iter().enumerate().all(|(index, client)| {
            let flushes = |job: &Job| matches!(job.operation, Operation::Flush(..));
            let idle = client.at == self.setting.scripts[index].len() && client.jobs.iter().all(flushes);
            client.dead || client.ended || idle
        })
    }

    /// What is unwritten is written back before. The kernel drops attributes and names without waiting.
    fn may_drop(&self, client: usize, duty: usize) -> bool {
        let state = &self.clients[client];
        let Duty { recall, taken, is_given_up } = state.duties[duty];
        let unwritten = THINGS.into_iter().any(|thing| {
            thing.inode() == recall.inode
                && recall.rights.overlaps(thing.writer())
                && state.dirty[thing as usize].is_some()
        });
        if unwritten && !is_given_up {
            return false;
        }
        let pages = |job: &Job| matches!(job.operation, Operation::Read | Operation::Write);
        let drops_pages = self.setting.page_locks && recall.inode == FILE && taken.overlaps(Rights::INODE);
        if drops_pages && state.jobs.iter().any(pages) {
            return false;
        }
        let locks = |job: &Job| matches!(job.operation, Operation::Create | Operation::Unlink | Operation::MoveAway);
        let locked = self.breaks(Mutation::NamesDropUnderTheDirectoryLock)
            && taken.overlaps(Rights::NAMES)
            && state.jobs.iter().any(locks);
        !locked
    }

    fn may_flush(&self, client: usize, inode: InodeId) -> bool {
        let state = &self.clients[client];
        let in_flight = |job: &Job| matches!(job.operation, Operation::Flush(flushed, _) if flushed == inode);
        THINGS.into_iter().any(|thing| thing.inode() == inode && state.dirty[thing as usize].is_some())
            && !state.jobs.iter().any(in_flight)
    }

    fn may_start(&self, client: usize) -> bool {
        let state = &self.clients[client];
        let Some(&operation) = self.setting.scripts[client].get(state.at) else { return false };
        let flushes = |job: &&Job| matches!(job.operation, Operation::Flush(..));
        let busy = state.jobs.len() - state.jobs.iter().filter(flushes).count();
        let is_clean = |things: &[Thing]| things.iter().all(|thing| state.dirty[*thing as usize].is_none());
        let clean = match operation {
            Operation::Read | Operation::Write => is_clean(&[Thing::File]),
            Operation::Stat | Operation::Change => is_clean(&[Thing::Directory]),
            Operation::Forget(FILE) => is_clean(&[Thing::File]),
            Operation::Forget(_) => is_clean(&[Thing::Directory, Thing::Names]),
            _ => is_clean(&THINGS),
        };
        busy < self.setting.in_flight[client] && (clean || self.local(client, operation).is_some())
    }

    fn may_renew(&self, client: usize) -> bool {
        let renewed = self.authority.may_renew(session(client), self.now);
        self.clients[client].until < self.now + TERM && (renewed || self.breaks(Mutation::RenewDespiteAnOldRecall))
    }

    // ---- actions

    pub fn act(&mut self, action: Action) -> Step {
        match action {
            Action::Start(client) => self.start(client)?,
            Action::Flush(client, inode) => {
                let of = |thing: Thing| self.clients[client].dirty[thing as usize].filter(|_| thing.inode() == inode);
                let values = THINGS.map(of);
                self.send(client, Operation::Flush(inode, values));
            }
            Action::Serve(client, job) => self.serve(client, job)?,
            Action::Answer(client, job) => self.answer(client, job)?,
            Action::Recall(client, index) => self.recall(client, index),
            Action::Drop(client, duty) => self.drop_kept(client, duty),
            Action::Acknowledge(client, index) => {
                let mut given_up = self.clients[client].given_up.remove(index);
                if self.clients[client].over {
                    return Ok(());
                }
                if self.breaks(Mutation::AcknowledgementsTakeLaterGrants) {
                    given_up.issue = Issue(u64::MAX);
                }
                let free = self.authority.acknowledge(session(client), &given_up, self.now);
                self.wake(&free);
            }
            Action::Break(client) => self.lose(client),
            Action::Notice(client) => self.notice(client),
            Action::Reconnect(client) => self.reconnect(client),
            Action::Renew(client) => self.clients[client].until = self.now + TERM,
            Action::Die(client) => self.clients[client].dead = true,
            Action::Fence => {
                for id in self.overdue() {
                    self.fence(id.0 as usize - 1);
                }
            }
            Action::Tick => self.now += 1,
        }
        self.check()
    }

    // ---- what must hold in every state

    fn check(&self) -> Step {
        for inode in INODES {
            let usable = |client: usize| match self.is_usable(client) && !self.clients[client].dead {
                true => self.clients[client].holdings[slot(inode)].rights(),
                false => Rights::NONE,
            };
            for client in 0..CLIENTS {
                let rights = usable(client);
                if !self.authority.rights(session(client), inode).contains(rights) {
                    return Err(format!("client {client} uses {rights} of {inode} without holding it"));
                }
                let others = (0..CLIENTS).filter(|other| *other != client);
                if let Some(other) = others.into_iter().find(|other| rights.excluded().overlaps(usable(*other))) {
                    return Err(format!("clients {client} and {other} use {inode} against each other"));
                }
            }
        }
        Ok(())
    }
}
