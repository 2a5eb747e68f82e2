//! A socket between a mount and the server whose connections can be cut.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Lines {
    pairs: Vec<(UnixStream, UnixStream)>,
    is_over: bool,
}

pub struct Proxy {
    socket: PathBuf,
    lines: Arc<Mutex<Lines>>,
}

impl Proxy {
    /// Listen on `socket` and pass every connection on to `server`.
    pub fn start(socket: PathBuf, server: &Path) -> Proxy {
        let listener = UnixListener::bind(&socket).expect("the proxy's socket");
        let lines = Arc::new(Mutex::new(Lines::default()));
        let (server, accepted) = (server.to_owned(), lines.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                // A server that is away looks like a connection that breaks at once.
                let Ok(upstream) = UnixStream::connect(&server) else { continue };
                let mut lines = accepted.lock().expect("no panic with the lock held");
                if lines.is_over {
                    return;
                }
                if carry(&client, &upstream).and_then(|()| carry(&upstream, &client)).is_ok() {
                    lines.pairs.push((client, upstream));
                }
            }
        });
        Proxy { socket, lines }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Break every connection, whatever is under way on it.
    pub fn cut(&self) {
        let mut lines = self.lines.lock().expect("no panic with the lock held");
        for (client, upstream) in lines.pairs.drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = upstream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.lines.lock().expect("no panic with the lock held").is_over = true;
        // Wakes the listener, which sees that it is over.
        let _ = UnixStream::connect(&self.socket);
    }
}

/// A thread that carries bytes one way until either side ends.
fn carry(from: &UnixStream, to: &UnixStream) -> io::Result<()> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
    Ok(())
}
