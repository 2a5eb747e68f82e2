//! Lost connections and fences.

use super::*;

impl World<'_> {
    pub(super) fn lose(&mut self, client: usize) {
        let state = &mut self.clients[client];
        state.link = Link::Broken;
        state.breaks -= 1;
        state.recalls.clear();
        state.given_up.clear();
        for job in &mut state.jobs {
            (job.requested, job.attached, job.reply) = (false, false, None);
            // A change goes on in a task of its own.
            if !job.operation.mutates() {
                if let Server::Waiting { waiter, .. } = &job.server {
                    self.authority.withdraw(*waiter);
                }
                (job.server, job.recalled) = (Server::Idle, 0);
            }
        }
    }

    /// Nothing is kept any more. What is unwritten is kept until the session is over.
    pub(super) fn notice(&mut self, client: usize) {
        let state = &mut self.clients[client];
        state.link = Link::Down;
        state.until = 0;
        state.kept = [None; 3];
        state.order = Default::default();
        let floor = state.holdings.iter().map(Holding::newest).fold(Issue::default(), Issue::max);
        state.holdings = [Holding::since(floor); INODES.len()];
        if state.over {
            state.ended = true;
            state.jobs.clear();
            state.duties.clear();
            state.leaving = Default::default();
            state.dirty = [None; 3];
            state.recalls.clear();
            state.given_up.clear();
        }
    }

    pub(super) fn reconnect(&mut self, client: usize) {
        if self.clients[client].over {
            return self.notice(client);
        }
        let early = !self.setting.time || self.breaks(Mutation::TermBeginsWithTheConnection);
        let forgets = self.breaks(Mutation::ForgetUnansweredRecalls);
        let unanswered = self.authority.unanswered(session(client));
        let state = &mut self.clients[client];
        state.link = Link::Up;
        if early {
            state.until = self.now + TERM;
        }
        if !forgets {
            state.recalls.extend(unanswered);
        }
        state.jobs.iter_mut().for_each(|job| job.requested = true);
    }

    pub(super) fn overdue(&self) -> Vec<SessionId> {
        if !self.breaks(Mutation::FenceWithoutWaiting) {
            return self.authority.overdue(self.now);
        }
        let live = (0..CLIENTS).filter(|client| !self.clients[*client].over).map(session);
        live.filter(|id| !self.authority.unanswered(*id).is_empty()).collect()
    }

    pub(super) fn fence(&mut self, client: usize) {
        let free = self.authority.end_session(session(client));
        self.clients[client].over = true;
        for job in &mut self.clients[client].jobs {
            (job.server, job.attached) = (Server::Idle, false);
        }
        self.wake(&free);
        // What only this client had written is lost.
        for at in 0..THINGS.len() {
            if self.clients[client].dirty[at].is_some_and(|value| value > self.store[at]) {
                let least = self.store[at];
                self.truth[at] = least;
                let jobs = self.clients.iter_mut().flat_map(|client| client.jobs.iter_mut().map(|job| &mut job.floors));
                for floors in jobs.chain([&mut self.floors]) {
                    floors.written[at] = floors.written[at].min(least);
                    floors.seen[at] = floors.seen[at].min(least);
                }
            }
        }
    }
}
