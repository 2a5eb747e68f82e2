//! A proxy before a real S3 server that passes requests on, or does what networks and stores do on bad days.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What becomes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    None,
    /// Connections are closed at once.
    Away,
    /// 503 for all.
    Unavailable,
    /// 403 for all: somebody has taken the rights on the bucket away.
    Forbidden,
    /// 507 for all that is written.
    Full,
    /// Each of them 300 ms later.
    Slow,
    /// Of three requests one is answered with 503, one is done and its answer is cut off, one is good.
    Flaky,
    /// Every other request is done, and its connection closed without an answer.
    Lossy,
    /// Of three requests one is not done, one is done, each with a connection that is reset, and one is good.
    Reset,
    /// The last bit of what is read is wrong.
    WrongBytes,
    /// Half of what is read is missing, and its length says that this is all.
    Truncated,
    /// Connections are closed instead of deleting messages of a queue.
    Undeleted,
    /// 20 ms later, and of four equal requests one is answered with 503, and one is done with a connection that is reset: no request has bad
    /// luck twice.
    Moody,
}

const FAULTS: [Fault; 13] = [
    Fault::None,
    Fault::Away,
    Fault::Unavailable,
    Fault::Forbidden,
    Fault::Full,
    Fault::Slow,
    Fault::Flaky,
    Fault::Lossy,
    Fault::Reset,
    Fault::WrongBytes,
    Fault::Truncated,
    Fault::Undeleted,
    Fault::Moody,
];

/// Ends with the process; it holds nothing.
pub struct Proxy {
    pub port: u16,
    fault: Arc<AtomicU8>,
    requests: Arc<AtomicU64>,
}

impl Proxy {
    pub fn start(upstream: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let (fault, requests) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU64::new(0)));
        let proxy = Proxy { port, fault: fault.clone(), requests: requests.clone() };
        let equal = Arc::<Equal>::default();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (fault, requests, equal) = (fault.clone(), requests.clone(), equal.clone());
                std::thread::spawn(move || {
                    let current = || FAULTS[fault.load(Ordering::Acquire) as usize];
                    // An error is a peer that went away.
                    let _ = serve(client, upstream, &current, &requests, &equal);
                });
            }
        });
        proxy
    }

    pub fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Release);
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Acquire)
    }
}

/// How often a request was made.
type Equal = Mutex<HashMap<String, u64>>;

/// A message of HTTP as it came: start line and headers, then the body.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(':'));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// `None` at the end of the connection.
    fn read(reader: &mut impl BufRead, of_head: bool) -> std::io::Result<Option<Message>> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(None);
            }
        }
        let mut message = Message { head, body: Vec::new() };
        if of_head {
            return Ok(Some(message));
        }
        match message.header("content-length").and_then(|length| length.parse().ok()) {
            Some(length) => {
                message.body = vec![0; length];
                std::io::Read::read_exact(reader, &mut message.body)?;
            }
            None if message.header("transfer-encoding").is_some() => loop {
                let mut size = String::new();
                reader.read_line(&mut size)?;
                let length = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
                let mut chunk = vec![0; length + 2];
                std::io::Read::read_exact(reader, &mut chunk)?;
                message.body.extend(size.bytes().chain(chunk));
                if length == 0 {
                    break;
                }
            },
            None => {}
        }
        Ok(Some(message))
    }

    fn is_read(&self) -> bool {
        ["GET ", "HEAD "].iter().any(|method| self.head.starts_with(method))
    }

    /// Keep the first half of the body, as if that were all.
    fn halve(&mut self) {
        let half = self.body.len() / 2;
        let is_length = |line: &&str| line.to_ascii_lowercase().starts_with("content-length:");
        let Some(line) = self.head.lines().find(is_length).map(str::to_owned) else { return };
        self.body.truncate(half);
        self.head = self.head.replace(&line, &format!("Content-Length: {half}"));
    }

    fn write(&self, to: &mut TcpStream, body: usize) -> std::io::Result<()> {
        to.write_all(self.head.as_bytes())?;
        to.write_all(&self.body[..body])
    }
}

/// The peer learns that there is no connection any more, not that it has ended.
fn reset(client: &TcpStream) -> std::io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO))?)
}

fn serve(
    mut client: TcpStream,
    upstream: u16,
    current: &dyn Fn() -> Fault,
    requests: &AtomicU64,
    equal: &Equal,
) -> std::io::Result<()> {
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    let mut from_server = BufReader::new(server.try_clone()?);
    loop {
        if current() == Fault::Away {
            return Ok(());
        }
        let Some(request) = Message::read(&mut from_client, false)? else { return Ok(()) };
        let number = requests.fetch_add(1, Ordering::AcqRel);
        let fault = match current() {
            Fault::Away => return Ok(()),
            Fault::Flaky if number.is_multiple_of(3) => Fault::Unavailable,
            fault => fault,
        };
        let mut is_lost = false;
        let fault = match fault {
            Fault::Moody => {
                std::thread::sleep(Duration::from_millis(20));
                let line = request.head.lines().next().unwrap_or_default().to_owned();
                let mut equal = equal.lock().unwrap();
                let count = equal.entry(line).or_default();
                *count += 1;
                is_lost = *count % 4 == 3;
                if *count % 4 == 1 { Fault::Unavailable } else { Fault::None }
            }
            fault => fault,
        };
        let refusal = match fault {
            Fault::Unavailable => Some(("503 Slow Down", "SlowDown")),
            Fault::Forbidden => Some(("403 Forbidden", "AccessDenied")),
            Fault::Full if !request.is_read() => Some(("507 Insufficient Storage", "InsufficientStorage")),
            _ => None,
        };
        if let Some((status, code)) = refusal {
            let body = format!("<Error><Code>{code}</Code></Error>");
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            client.write_all((head + &body).as_bytes())?;
            continue;
        }
        match fault {
            Fault::Slow => std::thread::sleep(Duration::from_millis(300)),
            Fault::Reset if number.is_multiple_of(3) => return reset(&client),
            Fault::Undeleted if request.header("x-amz-target").is_some_and(|what| what.contains("Delete")) => {
                return Ok(());
            }
            _ => {}
        }
        request.write(&mut server, request.body.len())?;
        let of_head = request.head.starts_with("HEAD ");
        let Some(mut answer) = Message::read(&mut from_server, of_head)? else { return Ok(()) };
        if fault == Fault::Lossy && number.is_multiple_of(2) {
            return Ok(());
        }
        if is_lost || (fault == Fault::Reset && number % 3 == 1) {
            return reset(&client);
        }
        // Objects, not lists of them.
        let is_found = answer.head.starts_with("HTTP/1.1 20");
        if is_found && request.head.starts_with("GET ") && !request.head.contains("list-type=") {
            match fault {
                Fault::WrongBytes => answer.body.last_mut().into_iter().for_each(|byte| *byte ^= 1),
                Fault::Truncated => answer.halve(),
                _ => {}
            }
        }
        if fault == Fault::Flaky && number % 3 == 1 {
            let cut = answer.body.len() / 2;
            answer.write(&mut client, cut)?;
            return Ok(());
        }
        answer.write(&mut client, answer.body.len())?;
    }
}
