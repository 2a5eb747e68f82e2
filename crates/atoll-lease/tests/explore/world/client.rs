//! What a client does: it answers from what it keeps, takes replies, and gives up.
//! It follows `cache.rs` and `client.rs` of `atoll-client`.

use super::*;

impl World<'_> {
    pub(super) fn is_usable(&self, client: usize) -> bool {
        self.now < self.clients[client].until
    }

    pub(super) fn known(&self, client: usize, thing: Thing) -> Option<u64> {
        let state = &self.clients[client];
        state.dirty[thing as usize].or(state.kept[thing as usize]).filter(|_| self.is_usable(client))
    }

    /// What the operation does, when it can be done from what is held and kept.
    pub(super) fn local(&self, client: usize, operation: Operation) -> Option<Shape> {
        use Operation as O;
        let names = match operation {
            O::Lookup | O::Create | O::Unlink | O::MoveAway => self.known(client, Thing::Names)?,
            _ => 0,
        };
        let shape = shape(operation, names, self.setting.exclusive);
        let state = &self.clients[client];
        let holds = |thing: &Thing| state.holdings[slot(thing.inode())].rights().contains(thing.exclusive());
        let changing = |job: &Job| job.operation.mutates() && !matches!(job.operation, O::Flush(..));
        let can = match operation {
            O::Read | O::Stat | O::Lookup => true,
            O::Forget(_) | O::Flush(..) => false,
            _ => {
                !shape.writes.is_empty()
                    && self.is_usable(client)
                    && shape.writes.iter().all(holds)
                    && !state.jobs.iter().any(changing)
            }
        };
        let all = shape.reads.iter().all(|thing| self.known(client, *thing).is_some());
        (can && all).then_some(shape)
    }

    /// Reads may miss nothing that was written, or read, before they began; but a mount may still answer the
    /// older value while a change of its own is in flight.
    pub(super) fn check_read(&self, client: usize, thing: Thing, value: u64, floors: &Floors) -> Step {
        let at = thing as usize;
        if value < floors.written[at] {
            return Err(format!("client {client} read {thing:?} {value} after {} was written", floors.written[at]));
        }
        let newer = |job: &Job| match (&job.server, &job.reply) {
            (Server::Done(reply), _) | (_, Some(reply)) => reply.wrote[at].is_some_and(|wrote| wrote > value),
            _ => false,
        };
        let excused = !self.setting.strict && self.clients[client].jobs.iter().any(newer);
        if value < floors.seen[at] && !excused {
            return Err(format!("client {client} read {thing:?} {value} after {} was read", floors.seen[at]));
        }
        Ok(())
    }

    pub(super) fn start(&mut self, client: usize) -> Step {
        let operation = self.setting.scripts[client][self.clients[client].at];
        self.clients[client].at += 1;
        if let Operation::Forget(inode) = operation {
            let state = &mut self.clients[client];
            let things = THINGS.into_iter().filter(|thing| thing.inode() == inode);
            things.for_each(|thing| state.kept[thing as usize] = None);
            let given_up = state.holdings[slot(inode)].release(inode, Rights::ALL);
            if state.link == Link::Up && !given_up.rights.is_empty() {
                state.given_up.push(given_up);
            }
            return Ok(());
        }
        let Some(shape) = self.local(client, operation) else {
            self.send(client, operation);
            return Ok(());
        };
        let floors = self.floors;
        for thing in shape.reads {
            let value = self.known(client, thing).unwrap_or_default();
            self.check_read(client, thing, value, &floors)?;
            self.floors.seen[thing as usize] = self.floors.seen[thing as usize].max(value);
        }
        for thing in shape.writes {
            let at = thing as usize;
            self.truth[at] += 1;
            self.clients[client].dirty[at] = Some(self.truth[at]);
            self.floors.written[at] = self.truth[at];
        }
        Ok(())
    }

    pub(super) fn send(&mut self, client: usize, operation: Operation) {
        let floors = match operation {
            Operation::Write | Operation::Change | Operation::Flush(..) => Floors::default(),
            _ => self.floors,
        };
        let state = &mut self.clients[client];
        let requested = state.link == Link::Up;
        state.jobs.push(Job {
            operation,
            requested,
            server: Server::Idle,
            attached: false,
            repeated: false,
            reply: None,
            floors,
            recalled: 0,
        });
    }

    /// Follows `Cache::install`.
    pub(super) fn answer(&mut self, client: usize, index: usize) -> Step {
        let ignores = self.breaks(Mutation::IgnoreIssueNumbers);
        let Job { operation, reply: Some(reply), floors, .. } = self.clients[client].jobs.remove(index) else {
            return Err("no reply".into());
        };
        let state = &mut self.clients[client];
        let mut taken = [Rights::NONE; INODES.len()];
        for mut grant in reply.grants {
            if ignores {
                grant.issue = Issue(u64::MAX);
            }
            taken[slot(grant.inode)] |= state.holdings[slot(grant.inode)].grant(&grant);
            let attributes = if grant.inode == FILE { Thing::File } else { Thing::Directory } as usize;
            if operation.mutates() && reply.order > state.order[attributes] {
                state.order[attributes] = reply.order;
                state.kept[attributes] = None;
            }
        }
        // Of the things that an operation writes, its answer describes the file or the name it made.
        let described = match operation {
            Operation::Write | Operation::Flush(FILE, _) => Some(Thing::File),
            Operation::Change => Some(Thing::Directory),
            _ => None,
        };
        for thing in [Thing::File, Thing::Directory] {
            let at = thing as usize;
            let value = reply.read[at].or(reply.wrote[at].filter(|_| described == Some(thing)));
            let granted = taken[slot(thing.inode())].contains(Rights::INODE);
            if let (Some(value), true) = (value, granted && reply.order >= state.order[at]) {
                (state.kept[at], state.order[at]) = (Some(value), reply.order);
            }
        }
        let names = Thing::Names as usize;
        let granted = taken[slot(DIRECTORY)].contains(Rights::NAMES);
        let newest = reply.order >= state.order[names];
        let made = reply.wrote[names].or(reply.read[names].filter(|_| operation == Operation::Create));
        if let (Some(value), true) = (reply.read[names], operation == Operation::Lookup && granted && newest) {
            state.kept[names] = Some(value);
        }
        if let (Some(value), false) = (made, matches!(operation, Operation::Flush(..))) {
            let known = (granted && newest && operation != Operation::MoveAway).then_some(value);
            state.kept[names] = known;
            state.order[names] = state.order[names].max(reply.order);
        }
        if let Operation::Flush(_, values) = operation {
            for (at, value) in values.into_iter().enumerate() {
                if value.is_some() && state.dirty[at] == value {
                    state.dirty[at] = None;
                    let names =
                        at == Thing::Names as usize && state.holdings[slot(DIRECTORY)].rights().contains(Rights::NAMES);
                    state.kept[at] = if names { value } else { state.kept[at] };
                }
            }
            return Ok(());
        }
        for thing in THINGS {
            let at = thing as usize;
            if let Some(value) = reply.read[at] {
                self.check_read(client, thing, value, &floors)?;
                self.floors.seen[at] = self.floors.seen[at].max(value);
            }
            if let Some(value) = reply.wrote[at] {
                self.floors.written[at] = self.floors.written[at].max(value);
            }
        }
        Ok(())
    }

    /// The client stops using what is recalled; follows `Shared::recalled`.
    pub(super) fn recall(&mut self, client: usize, index: usize) {
        let early = self.breaks(Mutation::AcknowledgeBeforeTheKernelDropped);
        let unflushed = self.breaks(Mutation::AcknowledgeBeforeFlush);
        let alone = self.breaks(Mutation::AcknowledgeBeforeEarlierDuties);
        let state = &mut self.clients[client];
        let recall = state.recalls.remove(index);
        let taken = state.holdings[slot(recall.inode)].recall(&recall);
        let dirty = |thing: &Thing| thing.inode() == recall.inode && state.dirty[*thing as usize].is_some();
        let nothing_to_do = taken.is_empty() && !THINGS.iter().any(dirty);
        if early || unflushed || (alone && nothing_to_do) {
            state.given_up.push(recall);
        } else if !alone {
            state.given_up.extend(state.leaving[slot(recall.inode)].begin(recall, !nothing_to_do));
        }
        if !nothing_to_do {
            state.duties.push(Duty { recall, taken, is_given_up: early || unflushed });
        }
    }

    pub(super) fn drop_kept(&mut self, client: usize, duty: usize) {
        let alone = self.breaks(Mutation::AcknowledgeBeforeEarlierDuties);
        let state = &mut self.clients[client];
        let Duty { recall, taken, is_given_up } = state.duties.remove(duty);
        for thing in THINGS {
            if thing.inode() == recall.inode && taken.overlaps(thing.shared()) {
                state.kept[thing as usize] = None;
            }
        }
        let given_up = match is_given_up {
            true => Vec::new(),
            false if alone => vec![recall],
            false => state.leaving[slot(recall.inode)].done(),
        };
        if state.link == Link::Up {
            state.given_up.extend(given_up);
        }
    }
}
