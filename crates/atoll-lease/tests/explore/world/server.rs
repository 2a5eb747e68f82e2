//! What the server does with a request. It follows `leases.rs` of `atoll-volume`, and
//! `sessions.rs` of `atoll-server` for requests that come twice.

use super::*;

impl World<'_> {
    pub(super) fn serve(&mut self, client: usize, index: usize) -> Step {
        let over = self.clients[client].over;
        let job = &mut self.clients[client].jobs[index];
        if job.requested {
            job.requested = false;
            job.attached = !over;
            job.repeated = !matches!(job.server, Server::Idle);
            if over {
                return Ok(());
            }
        }
        let waiter = match &job.server {
            Server::Done(reply) => {
                let reply = reply.clone();
                self.reply(client, index, reply);
                return Ok(());
            }
            Server::Waiting { woken: false, .. } => return Ok(()),
            Server::Waiting { waiter, .. } => Some(*waiter),
            Server::Idle => None,
        };
        let operation = job.operation;
        let shape = shape(operation, self.store[Thing::Names as usize], self.setting.exclusive);
        let asks = if self.breaks(Mutation::WaitForOwnRecalls) { SessionId(99) } else { session(client) };
        if !self.authority.is_free(asks, &shape.claims) {
            let (waiter, notices) = self.authority.wait(asks, shape.claims, waiter, self.now);
            if self.breaks(Mutation::GrantWhatHoldsWaitersUp) {
                self.authority.withdraw(waiter);
            }
            self.clients[client].jobs[index].server = Server::Waiting { waiter, woken: false };
            return notices.into_iter().try_for_each(|notice| self.tell(client, index, notice));
        }
        let reply = self.execute(client, operation, &shape)?;
        if let Some(waiter) = waiter {
            self.authority.withdraw(waiter);
        }
        // Reads that are sent again are executed again.
        let done = if operation.mutates() { Server::Done(reply.clone()) } else { Server::Idle };
        self.clients[client].jobs[index].server = done;
        self.reply(client, index, reply);
        Ok(())
    }

    pub(super) fn reply(&mut self, client: usize, index: usize, mut reply: Reply) {
        let earns_nothing = self.breaks(Mutation::RepeatedAnswersEarnNothing);
        let job = &mut self.clients[client].jobs[index];
        if earns_nothing && job.repeated {
            (reply.grants, reply.order) = (Vec::new(), Issue(0));
        }
        job.reply = job.attached.then_some(reply);
    }

    /// A recall is sent for an operation.
    pub(super) fn tell(&mut self, client: usize, index: usize, Notice { session, recall }: Notice) -> Step {
        let holder = session.0 as usize - 1;
        for (bit, right) in
            [Rights::INODE, Rights::INODE_WRITER, Rights::NAMES, Rights::NAMES_WRITER].into_iter().enumerate()
        {
            let mark = 1 << (holder * 8 + slot(recall.inode) * 4 + bit);
            let job = &mut self.clients[client].jobs[index];
            if recall.rights.overlaps(right) && job.recalled & mark != 0 {
                let operation = job.operation;
                return Err(format!("{operation:?} of client {client} waits for client {holder} a second time"));
            }
            if recall.rights.overlaps(right) {
                job.recalled |= mark;
            }
        }
        if self.clients[holder].link == Link::Up {
            self.clients[holder].recalls.push(recall);
        }
        Ok(())
    }

    pub(super) fn execute(&mut self, client: usize, operation: Operation, shape: &Shape) -> Result<Reply, String> {
        let mut reply = Reply { read: [None; 3], wrote: [None; 3], grants: Vec::new(), order: Issue::default() };
        for thing in &shape.reads {
            reply.read[*thing as usize] = Some(self.store[*thing as usize]);
        }
        for thing in &shape.writes {
            let at = *thing as usize;
            if let Operation::Flush(_, values) = operation {
                let value = values[at].unwrap_or_default();
                if value <= self.store[at] {
                    return Err(format!("{thing:?} {} is overwritten with {value}, which is older", self.store[at]));
                }
                self.store[at] = value;
            } else {
                if self.store[at] != self.truth[at] {
                    return Err(format!("{thing:?} {} is lost: another write comes before it", self.truth[at]));
                }
                self.truth[at] += 1;
                self.store[at] = self.truth[at];
            }
            reply.wrote[at] = Some(self.store[at]);
        }
        let own = session(client);
        if !shape.writes.is_empty() {
            let changed = shape.claims.iter().filter(|claim| claim.excludes.contains(Rights::INODE_EXCLUSIVE));
            reply.grants.extend(changed.filter_map(|claim| self.authority.touch(own, claim.inode)));
            self.authority.progress(own, self.now);
        }
        for (inode, rights) in &shape.earns {
            reply.grants.extend(self.authority.grant(own, *inode, *rights, self.now));
        }
        reply.order = self.authority.stamp();
        Ok(reply)
    }

    pub(super) fn wake(&mut self, free: &[WaiterId]) {
        let all = self.breaks(Mutation::GrantWhatHoldsWaitersUp);
        for job in self.clients.iter_mut().flat_map(|client| &mut client.jobs) {
            if let Server::Waiting { waiter, woken } = &mut job.server {
                *woken |= all || free.contains(waiter);
            }
        }
    }
}
