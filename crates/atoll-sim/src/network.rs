//! Streams between processes: bytes arrive late, in order, in other pieces than they were sent; connections break, each
//! end learns of it when it does; a link can be down for a while, as TCP bears it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use atoll_client::Halves;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::history::Random;
use crate::life::Life;
use crate::trace::{self, Trace, now};

/// Most bytes on their way in one direction of a connection.
const IN_FLIGHT_MAX: usize = 256 << 10;
/// Longest until an end learns that its connection is broken, for the most part and seldom, in ms.
const NOTICED_MS: u64 = 50;
const NOTICED_SELDOM_MS: u64 = 2_000;

/// How the network behaves for now.
#[derive(Clone, Copy)]
pub struct Delay {
    pub usual_ms: u64,
    pub seldom_ms: u64,
}

#[derive(Default)]
struct Link {
    /// Nothing gets through to the client, to the server.
    is_down: [bool; 2],
    waiting: Vec<Waker>,
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    /// When it arrives; the end of the stream is empty.
    pieces: VecDeque<(Duration, Bytes)>,
    bytes: usize,
    arrives: Duration,
    is_finished: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Wire {
    number: u64,
    client: usize,
    /// By who writes: the client, the server.
    pipes: [Pipe; 2],
    is_broken: bool,
    /// When an end learns that it is broken.
    noticed: [Duration; 2],
}

impl Wire {
    fn wake(&mut self) {
        for pipe in &mut self.pipes {
            pipe.reader.take().into_iter().chain(pipe.writer.take()).for_each(Waker::wake);
        }
    }
}

type Connecting = mpsc::UnboundedSender<End>;

pub struct Network {
    random: Mutex<Random>,
    delay: Mutex<Delay>,
    links: Vec<Mutex<Link>>,
    wires: Mutex<Vec<Arc<Mutex<Wire>>>>,
    made: Mutex<u64>,
    listener: Mutex<Option<(Connecting, Life)>>,
    trace: Arc<Trace>,
}

impl Network {
    pub fn new(seed: u64, clients: usize, trace: Arc<Trace>) -> Arc<Network> {
        Arc::new(Network {
            random: Mutex::new(Random::new(seed)),
            delay: Mutex::new(Delay { usual_ms: 2, seldom_ms: 10 }),
            links: (0..clients).map(|_| Mutex::default()).collect(),
            wires: Mutex::default(),
            made: Mutex::default(),
            listener: Mutex::default(),
            trace,
        })
    }

    pub fn turn(&self, delay: Delay) {
        *self.delay.lock() = delay;
    }

    fn delay(&self) -> Duration {
        let Delay { usual_ms, seldom_ms } = *self.delay.lock();
        let mut random = self.random.lock();
        let most = if random.below(20) == 0 { seldom_ms } else { usual_ms };
        Duration::from_millis(random.below(most + 1))
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.lock().below(bound)
    }

    /// Connections go there from now on.
    pub fn listen(&self, life: Life) -> mpsc::UnboundedReceiver<End> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.listener.lock() = Some((sender, life));
        receiver
    }

    pub async fn dial(self: Arc<Self>, client: usize, life: Life) -> io::Result<Halves> {
        tokio::time::sleep(self.delay()).await;
        while self.links[client].lock().is_down != [false; 2] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        life.thawed().await;
        if !life.acts() {
            return std::future::pending().await;
        }
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (listener, server) =
            self.listener.lock().clone().filter(|(_, life)| !life.is_over()).ok_or_else(refused)?;
        let number = {
            let mut made = self.made.lock();
            *made += 1;
            *made
        };
        let wire = Arc::new(Mutex::new(Wire {
            number,
            client,
            pipes: Default::default(),
            is_broken: false,
            noticed: [Duration::MAX; 2],
        }));
        self.trace.note(format_args!("net {number} opens for client {client}"));
        let end = |side, life| End { network: self.clone(), wire: wire.clone(), side, life, sleep: None };
        let (ours, theirs) = (end(0, life), end(1, server));
        {
            let mut wires = self.wires.lock();
            wires.retain(|wire| Arc::strong_count(wire) > 1);
            wires.push(wire.clone());
        }
        listener.send(theirs).map_err(|_| refused())?;
        let (reader, writer) = tokio::io::split(ours);
        Ok((Box::new(reader), Box::new(writer)))
    }

    /// Break connections of a client: all, or one of them.
    pub fn cut(&self, client: usize, all: bool) {
        let wires: Vec<_> = self.wires.lock().iter().filter(|wire| wire.lock().client == client).cloned().collect();
        if wires.is_empty() {
            return;
        }
        let only = self.below(wires.len() as u64) as usize;
        for (number, wire) in wires.into_iter().enumerate() {
            if all || number == only {
                self.break_wire(&wire);
            }
        }
    }

    fn break_wire(&self, wire: &Mutex<Wire>) {
        let now = now();
        let mut wire = wire.lock();
        if wire.is_broken {
            return;
        }
        wire.is_broken = true;
        for side in 0..2 {
            let most = if self.below(4) == 0 { NOTICED_SELDOM_MS } else { NOTICED_MS };
            wire.noticed[side] = now + Duration::from_millis(self.below(most));
            // What has not arrived never does.
            let pipe = &mut wire.pipes[side];
            pipe.pieces.retain(|(arrives, _)| *arrives <= now);
            pipe.bytes = pipe.pieces.iter().map(|(_, piece)| piece.len()).sum();
        }
        self.trace.note(format_args!("net {} breaks", wire.number));
        wire.wake();
    }

    /// By direction: to the client, to the server.
    pub fn set_link(&self, client: usize, is_down: [bool; 2]) {
        self.trace.note(format_args!("net link of client {client} down: {is_down:?}"));
        let mut link = self.links[client].lock();
        link.is_down = is_down;
        if is_down == [false; 2] {
            std::mem::take(&mut link.waiting).into_iter().for_each(Waker::wake);
        }
    }
}

/// One end of a connection.
pub struct End {
    network: Arc<Network>,
    wire: Arc<Mutex<Wire>>,
    side: usize,
    life: Life,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.life.is_over() {
                return Poll::Pending;
            }
            ready!(this.life.poll_thawed(cx));
            let until = {
                let mut wire = this.wire.lock();
                let (now, client, noticed) = (now(), wire.client, wire.noticed[this.side]);
                let pipe = &mut wire.pipes[1 - this.side];
                pipe.reader = Some(cx.waker().clone());
                {
                    let mut link = this.network.links[client].lock();
                    if link.is_down[this.side] {
                        link.waiting.push(cx.waker().clone());
                        return Poll::Pending;
                    }
                }
                if let Some((arrives, piece)) = pipe.pieces.front_mut()
                    && *arrives <= now
                {
                    if piece.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    let length = piece.len().min(buffer.remaining());
                    buffer.put_slice(&piece.split_to(length));
                    if piece.is_empty() {
                        pipe.pieces.pop_front();
                    }
                    pipe.bytes -= length;
                    pipe.writer.take().into_iter().for_each(Waker::wake);
                    return Poll::Ready(Ok(()));
                }
                if noticed <= now {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                let next = pipe.pieces.front().map_or(noticed, |(arrives, _)| noticed.min(*arrives));
                (next != Duration::MAX).then(|| next - now)
            };
            let Some(until) = until else { return Poll::Pending };
            let sleep = this.sleep.insert(Box::pin(tokio::time::sleep(until)));
            ready!(sleep.as_mut().poll(cx));
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.life.poll_thawed(cx));
        let mut wire = self.wire.lock();
        if wire.is_broken {
            let is_known = wire.noticed[self.side] <= now();
            return Poll::Ready(if is_known { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) });
        }
        let pipe = &mut wire.pipes[self.side];
        if pipe.bytes >= IN_FLIGHT_MAX {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !self.life.acts() {
            return Poll::Pending;
        }
        let length = bytes.len().min(IN_FLIGHT_MAX);
        let whole = Bytes::copy_from_slice(&bytes[..length]);
        let cut = self.network.below(length as u64 + 1) as usize;
        for piece in [whole.slice(..cut), whole.slice(cut..)] {
            if !piece.is_empty() {
                pipe.arrives = pipe.arrives.max(now() + self.network.delay());
                pipe.pieces.push_back((pipe.arrives, piece));
            }
        }
        pipe.bytes += length;
        pipe.reader.take().into_iter().for_each(Waker::wake);
        let (number, sum) = (wire.number, trace::hash(&whole));
        self.network.trace.note(format_args!("net {number} {} writes {length} {sum:x}", self.side));
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl End {
    fn finish(&self) {
        let mut wire = self.wire.lock();
        let pipe = &mut wire.pipes[self.side];
        if !std::mem::replace(&mut pipe.is_finished, true) {
            pipe.arrives = pipe.arrives.max(now() + self.network.delay());
            pipe.pieces.push_back((pipe.arrives, Bytes::new()));
            pipe.reader.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.life.is_over() {
            // The machine is gone: the other end learns of it by and by.
            self.network.break_wire(&self.wire);
        } else {
            self.finish();
            // What comes from there has no reader: whoever writes it learns that the connection is over.
            let mut wire = self.wire.lock();
            wire.is_broken = true;
            wire.noticed[1 - self.side] = wire.pipes[self.side].arrives;
            wire.wake();
        }
    }
}
