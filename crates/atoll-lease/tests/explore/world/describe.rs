//! Worlds as numbers: equal for states that behave alike.

use atoll_lease::{Issue, Leaving, Recall, Rights, WaiterId};
use atoll_types::SessionId;

use super::{CLIENTS, Client, Job, Operation, Server, World};

impl World<'_> {
    pub fn describe(&self) -> Vec<u64> {
        let mut out = Vec::with_capacity(256);
        let mut live: [Vec<Issue>; CLIENTS] = Default::default();
        for (client, live) in self.clients.iter().zip(&mut live) {
            for job in &client.jobs {
                let done = if let Server::Done(reply) = &job.server { Some(reply) } else { None };
                for reply in done.into_iter().chain(&job.reply) {
                    live.push(reply.order);
                    live.extend(reply.grants.iter().map(|grant| grant.issue));
                }
            }
            live.extend(client.duties.iter().map(|duty| duty.recall.issue));
            live.extend(client.leaving.iter().flat_map(Leaving::recalls).map(|recall| recall.issue));
            live.extend(client.recalls.iter().chain(&client.given_up).map(|recall| recall.issue));
        }
        let waiter = |id: WaiterId| self.name(id);
        let mut collect = |session: SessionId, issue: Issue| {
            live[session.0 as usize - 1].push(issue);
            0
        };
        self.authority.describe(self.now, &mut collect, &waiter, &mut out);
        out.clear();
        for live in &mut live {
            live.sort_unstable();
            live.dedup();
        }
        // Only compared with what is on its way or held.
        let rank = |client: usize, issue: Issue| {
            let place = live[client].partition_point(|known| *known < issue);
            (2 * place + usize::from(live[client].get(place) == Some(&issue))) as u64
        };
        let mut issue = |session: SessionId, issue: Issue| rank(session.0 as usize - 1, issue);
        self.authority.describe(self.now, &mut issue, &waiter, &mut out);
        out.extend(self.store);
        out.extend(self.truth);
        out.extend(self.floors.written);
        out.extend(self.floors.seen);
        for (index, client) in self.clients.iter().enumerate() {
            client.describe(self.now, &mut |issue| rank(index, issue), &mut out);
        }
        out
    }

    /// A name for a waiter that does not depend on how many there were.
    fn name(&self, id: WaiterId) -> u64 {
        let is = |job: &Job| matches!(job.server, Server::Waiting { waiter, .. } if waiter == id);
        let place = |client: &Client| client.jobs.iter().position(is);
        let found = self.clients.iter().enumerate().find_map(|(at, client)| Some((at, place(client)?)));
        found.map_or(u64::MAX, |(client, job)| (client * 16 + job) as u64)
    }
}

fn optional(value: Option<u64>) -> u64 {
    value.map_or(0, |value| value + 1)
}

impl Client {
    fn describe(&self, now: u64, issue: &mut dyn FnMut(Issue) -> u64, out: &mut Vec<u64>) {
        let flags = [self.dead, self.over, self.ended].iter().fold(0, |all, flag| all << 1 | u64::from(*flag));
        out.extend([self.at as u64, flags, self.link as u64, self.breaks as u64, self.until.saturating_sub(now)]);
        self.holdings.iter().for_each(|holding| holding.describe(issue, out));
        out.extend(self.kept.iter().chain(&self.dirty).map(|value| optional(*value)));
        out.extend(self.order.map(&mut *issue));
        let mut duties: Vec<_> = self.duties.iter().map(|duty| (duty.recall, duty.taken, duty.is_given_up)).collect();
        let key = |recall: &Recall| (recall.inode, recall.issue, number(recall.rights));
        duties.sort_unstable_by_key(|(recall, ..)| key(recall));
        out.push(duties.len() as u64);
        for (recall, taken, is_given_up) in duties {
            out.extend([recall.inode.0, number(recall.rights), issue(recall.issue)]);
            out.extend([number(taken), is_given_up.into()]);
        }
        for messages in [&self.recalls[..], &self.given_up, self.leaving[0].recalls(), self.leaving[1].recalls()] {
            let mut messages = messages.to_vec();
            messages.sort_unstable_by_key(key);
            out.push(messages.len() as u64);
            for recall in messages {
                out.extend([recall.inode.0, number(recall.rights), issue(recall.issue)]);
            }
        }
        out.push(self.jobs.len() as u64);
        for job in &self.jobs {
            job.describe(issue, out);
        }
    }
}

impl Job {
    fn describe(&self, issue: &mut dyn FnMut(Issue) -> u64, out: &mut Vec<u64>) {
        match self.operation {
            Operation::Read => out.push(0),
            Operation::Write => out.push(1),
            Operation::Stat => out.push(2),
            Operation::Lookup => out.push(3),
            Operation::Create => out.push(4),
            Operation::Unlink => out.push(5),
            Operation::MoveAway => out.push(6),
            Operation::Change => out.push(50),
            Operation::Forget(inode) => out.push(7 + inode.0),
            Operation::Flush(inode, values) => {
                out.push(100 + inode.0);
                out.extend(values.map(optional));
            }
        }
        out.extend([u64::from(self.requested), u64::from(self.attached), self.repeated.into(), self.recalled.into()]);
        out.extend(self.floors.written);
        out.extend(self.floors.seen);
        let done = match &self.server {
            Server::Idle => None,
            Server::Waiting { woken, .. } => {
                out.push(1 + u64::from(*woken));
                None
            }
            Server::Done(reply) => Some(reply),
        };
        for reply in [done, self.reply.as_ref()] {
            let Some(reply) = reply else {
                out.push(9);
                continue;
            };
            out.push(8);
            out.extend(reply.read.iter().chain(&reply.wrote).map(|value| optional(*value)));
            out.push(issue(reply.order));
            out.push(reply.grants.len() as u64);
            for grant in &reply.grants {
                out.extend([grant.inode.0, number(grant.rights), issue(grant.issue)]);
            }
        }
    }
}

fn number(rights: Rights) -> u64 {
    let halves = [Rights::INODE, Rights::INODE_WRITER, Rights::NAMES, Rights::NAMES_WRITER];
    halves.iter().enumerate().map(|(bit, half)| u64::from(rights.overlaps(*half)) << bit).sum()
}
