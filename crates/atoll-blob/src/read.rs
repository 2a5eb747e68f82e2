//! Reading pieces: from memory, from a file, or from the store through the
//! cache. Invariant: no byte is returned that was not checked against the
//! checksum of its location.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atoll_types::SegmentId;
use atoll_types::limits::EXTENT_BYTES_MAX;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use object_store::{GetOptions, GetResultPayload, ObjectStoreExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::blob::{Inner, PieceKey, blocking, count};
use crate::readahead::{STEP_BYTES, WINDOW_BYTES_MAX};
use crate::staging::failure;
use crate::state::{Kind, Source};
use crate::{Blob, BlobError, Location, Result, STORED_BYTES_MAX, pack};

/// Pieces of one segment are fetched together up to this many bytes, a step of reading ahead …
const GROUP_BYTES_MAX: u32 = (STEP_BYTES as usize / EXTENT_BYTES_MAX * STORED_BYTES_MAX) as u32;
/// … when no more than this lies unwanted between two of them.
const GAP_BYTES_MAX: u32 = 64 * 1024;
/// Pauses between attempts at a store that does not answer.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Groups of one call fetched at once.
const FETCH_CONCURRENCY: usize = 16;
/// Groups fetched ahead at once; hints beyond are dropped.
const PREFETCH_GROUPS_MAX: usize = 32;
/// Windows of readers for which the cache has room.
const CACHE_WINDOWS: u64 = 8;

/// A piece on its way from the store; everybody who wants it waits for the same request.
#[derive(Default)]
pub(crate) struct Flight {
    result: OnceLock<Result<Bytes>>,
    done: Notify,
}

impl Flight {
    async fn landed(&self) -> Result<Bytes> {
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if let Some(result) = self.result.get() {
                return result.clone();
            }
            done.await;
        }
    }
}

/// Flights of one group. Whoever waits is answered even when the fetching task is aborted.
struct Landing {
    inner: Arc<Inner>,
    flights: Vec<(Location, Arc<Flight>)>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.inner.flights.lock();
        for (location, flight) in &self.flights {
            flights.remove(&key(location));
            // Err only when it landed: then the result stands.
            let _ = flight.result.set(Err(BlobError::Closed));
            flight.done.notify_waiters();
        }
    }
}

fn key(location: &Location) -> PieceKey {
    (location.segment, location.offset)
}

fn end(location: &Location) -> u64 {
    u64::from(location.offset) + u64::from(location.stored)
}

/// Cuts pieces, sorted by segment and offset, into runs to fetch with one request each.
fn groups(sorted: &[Location]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (index, location) in sorted.iter().enumerate() {
        let joins = groups.last().is_some_and(|group| {
            let (first, last) = (&sorted[group.start], &sorted[index - 1]);
            first.segment == location.segment
                && u64::from(location.offset) <= end(last) + u64::from(GAP_BYTES_MAX)
                && end(location) - u64::from(first.offset) <= u64::from(GROUP_BYTES_MAX)
        });
        match groups.last_mut() {
            Some(group) if joins => group.end = index + 1,
            _ => groups.push(index..index + 1),
        }
    }
    groups
}

/// Nothing that a location says may make us reserve more than a piece can need.
fn check(location: &Location, skip: u32, take: u32) -> Result<()> {
    let sane = location.stored as usize <= STORED_BYTES_MAX
        && location.length as usize <= EXTENT_BYTES_MAX
        && end(location) <= u64::from(u32::MAX);
    if !sane {
        return Err(corrupt(location));
    }
    match skip.checked_add(take) {
        Some(end) if end <= location.length => Ok(()),
        _ => Err(BlobError::Io(format!("{skip}+{take} is outside of a piece of {} bytes", location.length))),
    }
}

fn corrupt(location: &Location) -> BlobError {
    BlobError::Corrupt { segment: location.segment, offset: location.offset, length: location.stored }
}

impl Blob {
    /// The bytes `skip..skip + take` of the piece at `location`, after unpacking.
    ///
    /// # Errors
    /// `Corrupt` when the piece fails its checksum, `Missing` when its object is gone,
    /// `Io` from disk or store, or when the range is outside of the piece.
    pub async fn read(&self, location: Location, skip: u32, take: u32) -> Result<Bytes> {
        let whole = match self.inner.memory(&location, skip, take)? {
            Some(piece) => piece,
            None => self.inner.pieces(vec![location]).await.remove(0)?,
        };
        Ok(whole.slice(skip as usize..(skip + take) as usize))
    }

    /// Several pieces, in the order asked for, with as few requests as their neighbourhood allows.
    ///
    /// # Errors
    /// As [`Blob::read`]: the first piece that fails.
    pub async fn read_many(&self, pieces: &[(Location, u32, u32)]) -> Result<Vec<Bytes>> {
        let mut found = Vec::with_capacity(pieces.len());
        for (location, skip, take) in pieces {
            found.push(self.inner.memory(location, *skip, *take)?);
        }
        let wanted: Vec<Location> = pieces
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|((location, ..), _)| *location)
            .collect();
        let mut fetched = self.inner.pieces(wanted).await.into_iter();
        let mut results = Vec::with_capacity(pieces.len());
        for ((_, skip, take), found) in pieces.iter().zip(found) {
            let whole = match found {
                Some(whole) => whole,
                None => fetched.next().unwrap_or(Err(BlobError::Closed))?,
            };
            results.push(whole.slice(*skip as usize..(*skip + *take) as usize));
        }
        Ok(results)
    }

    /// Read pieces from where they lie, not from the cache, and compare them with their checksums.
    pub async fn verify(&self, pieces: Vec<Location>) -> Vec<Result<()>> {
        let sane = pieces.iter().filter(|location| check(location, 0, 0).is_ok()).copied().collect();
        let mut read = self.inner.pieces(sane).await.into_iter();
        let verified = |location: &Location| {
            check(location, 0, 0)?;
            read.next().unwrap_or(Err(BlobError::Closed)).map(drop)
        };
        pieces.iter().map(verified).collect()
    }

    /// How far ahead one reader may be now: all of them share the cache, and the groups that are fetched ahead at once.
    pub fn window_bytes_max(&self) -> u64 {
        let busy = self.inner.prefetches.load(Ordering::Relaxed);
        let groups = PREFETCH_GROUPS_MAX.saturating_sub(busy) as u64 / 2;
        let window_max = (groups * STEP_BYTES).min(self.inner.config.cache_bytes_max / CACHE_WINDOWS);
        window_max.clamp(2 * STEP_BYTES, WINDOW_BYTES_MAX)
    }

    /// A hint: these pieces will be wanted soon. Returns at once; dropped when too much is under way.
    pub fn prefetch(&self, pieces: Vec<Location>) {
        let inner = &self.inner;
        let (mut files, mut remote) = (Vec::new(), Vec::new());
        {
            let state = inner.state.lock();
            for location in pieces.into_iter().filter(|location| check(location, 0, 0).is_ok()) {
                match state.source(&location) {
                    Source::Memory(_) => {}
                    Source::File => files.push(location),
                    Source::Store => remote.push(location),
                }
            }
        }
        if !remote.is_empty() {
            remote.retain(|location| !inner.cache.contains_key(&key(location)));
            inner.fly(remote, true);
        }
        if !files.is_empty() && inner.prefetches.fetch_add(1, Ordering::Relaxed) < PREFETCH_GROUPS_MAX {
            let shared = inner.clone();
            atoll_object::aside(move || {
                files.sort_by_key(key);
                for group in groups(&files) {
                    let (first, last) = (&files[group.start], &files[group.end - 1]);
                    if let Some(folder) = &shared.folder {
                        folder.advise(first.segment, first.offset, (end(last) - u64::from(first.offset)) as u32);
                    }
                }
                shared.prefetches.fetch_sub(1, Ordering::Relaxed);
            });
        } else if !files.is_empty() {
            inner.prefetches.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The bytes of an object, from a place on.
struct Arriving {
    chunks: BoxStream<'static, object_store::Result<Bytes>>,
    /// Has arrived, and begins at …
    chunk: Bytes,
    at: u64,
}

impl Arriving {
    /// The bytes of a piece that does not lie before those taken last. Fewer when the object ends before.
    async fn take(&mut self, inner: &Inner, location: &Location) -> Result<Bytes> {
        // In memory of its own: what arrived with it is not kept for as long as it is.
        let mut piece = BytesMut::with_capacity(location.stored as usize);
        while self.at < end(location) {
            let unwanted = u64::from(location.offset).saturating_sub(self.at).min(self.chunk.len() as u64);
            self.chunk.advance(unwanted as usize);
            self.at += unwanted;
            if self.chunk.is_empty() {
                match self.chunks.next().await {
                    Some(Ok(chunk)) => self.chunk = chunk,
                    Some(Err(error)) => return Err(BlobError::Io(error.to_string())),
                    None => break,
                }
                count(&inner.counters.get_bytes, self.chunk.len() as u64);
            } else {
                let wanted = (end(location) - self.at).min(self.chunk.len() as u64);
                piece.extend_from_slice(&self.chunk.split_to(wanted as usize));
                self.at += wanted;
            }
        }
        Ok(piece.freeze())
    }
}

impl Inner {
    /// The piece when no I/O is needed: it is in a rope or in the cache.
    fn memory(&self, location: &Location, skip: u32, take: u32) -> Result<Option<Bytes>> {
        check(location, skip, take)?;
        let source = self.state.lock().source(location);
        match source {
            Source::Memory(stored) => self.unpack(location, stored).map(Some),
            Source::File => Ok(None),
            Source::Store => {
                let hit = self.cache.get(&key(location)).filter(|piece| piece.len() == location.length as usize);
                count(if hit.is_some() { &self.counters.cache_hits } else { &self.counters.cache_misses }, 1);
                Ok(hit)
            }
        }
    }

    fn unpack(&self, location: &Location, stored: Bytes) -> Result<Bytes> {
        pack::unpack(location, stored, self.keys()).inspect_err(|error| {
            count(&self.counters.corrupt_pieces, 1);
            tracing::error!(segment = %location.segment, %error, "corrupt bytes");
        })
    }

    /// Whole pieces from file or store, in the order asked for.
    async fn pieces(self: &Arc<Self>, wanted: Vec<Location>) -> Vec<Result<Bytes>> {
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_by_key(|index| key(&wanted[*index]));
        let sorted: Vec<Location> = order.iter().map(|index| wanted[*index]).collect();
        let mut results: Vec<Option<Result<Bytes>>> = vec![None; wanted.len()];
        // A staged file may be forgotten between the look and the open: what is not
        // found there is looked for in the store.
        let (mut files, mut remote) = (Vec::new(), Vec::new());
        {
            let state = self.state.lock();
            for (index, location) in sorted.iter().enumerate() {
                match state.source(location) {
                    Source::Memory(stored) => results[order[index]] = Some(Ok(stored)),
                    Source::File => files.push(index),
                    Source::Store => remote.push(index),
                }
            }
        }
        for (result, location) in results.iter_mut().zip(&wanted) {
            if let Some(Ok(stored)) = result.take() {
                *result = Some(self.unpack(location, stored));
            }
        }
        let staged: Vec<Location> = files.iter().map(|index| sorted[*index]).collect();
        let fetches: Vec<_> = groups(&staged)
            .into_iter()
            .map(|group| {
                let members = staged[group.clone()].to_vec();
                async move { (group, self.from_file(&members).await) }
            })
            .collect();
        let mut fetches = stream::iter(fetches).buffer_unordered(FETCH_CONCURRENCY);
        while let Some((group, pieces)) = fetches.next().await {
            for (index, piece) in files[group].iter().zip(pieces) {
                match piece {
                    Err(BlobError::Missing(_)) if self.kind == Kind::Folder => remote.push(*index),
                    piece => results[order[*index]] = Some(piece),
                }
            }
        }
        drop(fetches);
        let flights = self.fly(remote.iter().map(|index| sorted[*index]).collect(), false);
        for (index, flight) in remote.into_iter().zip(flights) {
            let piece = flight.landed().await;
            // Two locations can only name one piece differently when one of them is wrong.
            let piece = piece.and_then(|piece| match piece.len() == sorted[index].length as usize {
                true => Ok(piece),
                false => Err(corrupt(&sorted[index])),
            });
            results[order[index]] = Some(piece);
        }
        results.into_iter().map(|result| result.unwrap_or(Err(BlobError::Closed))).collect()
    }

    /// Neighbouring pieces of one file.
    async fn from_file(self: &Arc<Self>, group: &[Location]) -> Vec<Result<Bytes>> {
        let (first, last) = (group[0], group[group.len() - 1]);
        let length = (end(&last) - u64::from(first.offset)) as u32;
        let Some(folder) = &self.folder else { return vec![Err(BlobError::Missing(first.segment)); group.len()] };
        let fail = move |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => BlobError::Missing(first.segment),
            _ => failure(&error),
        };
        let bytes = match folder.read_cached(first.segment, first.offset, length) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => {
                let shared = self.clone();
                blocking(move || match &shared.folder {
                    Some(folder) => folder.read(first.segment, first.offset, length).map_err(fail),
                    None => Err(BlobError::Missing(first.segment)),
                })
                .await
            }
            Err(error) => Err(fail(error)),
        };
        match bytes {
            Ok(bytes) => group.iter().map(|location| self.cut(&bytes, first.offset, location)).collect(),
            Err(error) => vec![Err(error); group.len()],
        }
    }

    /// One piece out of fetched bytes that begin at `start`; a short fetch is a corrupt piece.
    fn cut(&self, bytes: &Bytes, start: u32, location: &Location) -> Result<Bytes> {
        let from = (location.offset - start) as usize;
        let to = from + location.stored as usize;
        let stored = if to <= bytes.len() { bytes.slice(from..to) } else { Bytes::new() };
        self.unpack(location, stored)
    }

    /// Sends pieces on their way, unless they are already; sorted in, same order out.
    fn fly(self: &Arc<Self>, mut wanted: Vec<Location>, ahead: bool) -> Vec<Arc<Flight>> {
        if ahead {
            wanted.sort_by_key(key);
            // Before anybody can join these flights: what does not fit never starts.
            let room = PREFETCH_GROUPS_MAX.saturating_sub(self.prefetches.load(Ordering::Relaxed));
            let fitting = groups(&wanted).get(..room).and_then(<[_]>::last).map(|group| group.end);
            match (room, fitting) {
                (0, _) => wanted.clear(),
                (_, Some(end)) => wanted.truncate(end),
                (_, None) => {}
            }
        }
        let mut started = Vec::new();
        let all: Vec<Arc<Flight>> = {
            let mut flights = self.flights.lock();
            let mut join = |location: &Location| {
                let flight = flights.entry(key(location)).or_insert_with(|| {
                    let flight = Arc::new(Flight::default());
                    started.push((*location, flight.clone()));
                    flight
                });
                flight.clone()
            };
            wanted.iter().map(&mut join).collect()
        };
        started.sort_by_key(|(location, _)| key(location));
        let locations: Vec<Location> = started.iter().map(|(location, _)| *location).collect();
        for group in groups(&locations).into_iter().rev() {
            let landing = Landing { inner: self.clone(), flights: started.split_off(group.start) };
            if ahead {
                self.prefetches.fetch_add(1, Ordering::Relaxed);
            }
            self.spawn(async move {
                let inner = landing.inner.clone();
                inner.land(&landing).await;
                if ahead {
                    inner.prefetches.fetch_sub(1, Ordering::Relaxed);
                }
            });
        }
        all
    }

    /// Fetches a group from the store and answers everybody who waits for it.
    async fn land(&self, landing: &Landing) {
        let (first, last) = (landing.flights[0].0, landing.flights[landing.flights.len() - 1].0);
        let deadline = Instant::now() + self.config.store_patience;
        let mut arriving = self.get(first.segment, u64::from(first.offset)..end(&last)).await;
        for (location, flight) in &landing.flights {
            let mut stored = match &mut arriving {
                Ok(arriving) => arriving.take(self, location).await,
                Err(error) => Err(error.clone()),
            };
            if let Err(error @ BlobError::Io(_)) = &stored
                && Instant::now() < deadline
            {
                // The group may reach beyond a truncated object: its other pieces are still good.
                arriving = Err(error.clone());
                stored = self.get_alone(location, deadline).await;
                if stored.is_ok() && end(location) < end(&last) {
                    arriving = self.get(first.segment, end(location)..end(&last)).await;
                }
            }
            let piece = stored.and_then(|stored| self.unpack(location, stored));
            if let Ok(bytes) = &piece {
                self.cache.insert(key(location), bytes.clone());
            }
            // Only this task answers its flights.
            let _ = flight.result.set(piece);
            flight.done.notify_waiters();
        }
    }

    /// One piece, asked for again until the store answers.
    async fn get_alone(&self, location: &Location, deadline: Instant) -> Result<Bytes> {
        let mut pause = PAUSE_MIN;
        loop {
            let stored = match self.get(location.segment, u64::from(location.offset)..end(location)).await {
                Ok(mut alone) => alone.take(self, location).await,
                Err(error) => Err(error),
            };
            let Err(BlobError::Io(reason)) = &stored else { return stored };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_truncated(location).await {
                return stored;
            }
            tracing::info!(segment = %location.segment, reason, "cannot read; trying again");
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The store is there, and its object ends before the piece does: that does not pass.
    async fn is_truncated(&self, location: &Location) -> bool {
        let (objects, path) = self.place(location.segment);
        objects.head(&path).await.is_ok_and(|object| object.size < end(location))
    }

    async fn get(&self, segment: SegmentId, range: Range<u64>) -> Result<Arriving> {
        count(&self.counters.get_requests, 1);
        let (objects, path) = self.place(segment);
        let start = range.start;
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        let answer = objects.get_opts(&path, options).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => BlobError::Missing(segment),
            error => BlobError::Io(error.to_string()),
        })?;
        let chunks = match answer.payload {
            GetResultPayload::Stream(chunks) => chunks,
            GetResultPayload::File(..) => stream::once(answer.bytes()).boxed(),
        };
        Ok(Arriving { chunks, chunk: Bytes::new(), at: start })
    }
}
