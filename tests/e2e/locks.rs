//! Advisory locks of processes on two mounts: who may hold what, whoever decides about it, and also when the server is
//! killed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::harness::*;

const KINDS: [&str; 3] = ["flock", "posix", "ofd"];

/// Long enough for whatever would happen wrongly to happen.
const A_WHILE: Duration = Duration::from_millis(300);

/// Takes and gives back one lock, as it is told.
const LOCKER: &str = "
import fcntl, os, struct, sys
path, kind = sys.argv[1:3]
fd = os.open(path, os.O_RDWR)
def lock(how, wait):
    if kind == 'flock':
        how = {'ex': fcntl.LOCK_EX, 'sh': fcntl.LOCK_SH, 'un': fcntl.LOCK_UN}[how]
        return fcntl.flock(fd, how | (0 if wait else fcntl.LOCK_NB))
    how = {'ex': fcntl.F_WRLCK, 'sh': fcntl.F_RDLCK, 'un': fcntl.F_UNLCK}[how]
    calls = {'posix': (fcntl.F_SETLK, fcntl.F_SETLKW), 'ofd': (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW)}[kind]
    fcntl.fcntl(fd, calls[wait], struct.pack('hhqqi4x', how, os.SEEK_SET, 0, 0, 0))
def add():
    count = int(os.pread(fd, 20, 0) or b'0') + 1
    os.pwrite(fd, b'%d' % count, 0)
for line in sys.stdin:
    words = line.split()
    try:
        if words[0] == 'read':
            print(os.pread(fd, 1000, 0).decode(), flush=True)
            continue
        if words[0] == 'write':
            os.pwrite(fd, words[1].encode(), 0)
        elif words[0] == 'add':
            for _ in range(int(words[1])):
                lock('ex', True)
                add()
                lock('un', True)
        else:
            lock(words[0], len(words) > 1)
        print('ok', flush=True)
    except BlockingIOError:
        print('busy', flush=True)
    except OSError as error:
        print('error %d' % error.errno, flush=True)
";

struct Locker {
    child: Child,
    input: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Locker {
    fn new(file: &Path, kind: &str) -> Locker {
        let mut child = Command::new("python3")
            .args(["-c", LOCKER])
            .arg(file)
            .arg(kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let (sender, answers) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Locker { input: child.stdin.take().unwrap(), child, answers }
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
    }

    #[track_caller]
    fn answer(&self) -> String {
        self.answers.recv_timeout(PATIENCE).expect("an answer in time")
    }

    #[track_caller]
    fn ask(&mut self, what: &str) -> String {
        self.tell(what);
        self.answer()
    }

    #[track_caller]
    fn must(&mut self, what: &str) {
        assert_eq!(self.ask(what), "ok", "{what}");
    }

    /// It waits, and goes on waiting.
    #[track_caller]
    fn must_wait(&mut self, what: &str) {
        self.tell(what);
        let early = self.answers.recv_timeout(A_WHILE);
        assert!(early.is_err(), "{what}: {early:?}");
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file(mount: &Path, name: &str) -> PathBuf {
    let path = mount.join(name);
    fs::write(&path, b"0").unwrap();
    path
}

#[test]
fn a_lock_passes_from_mount_to_mount_with_all_that_was_written_under_it() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for kind in KINDS {
        // Made on the first mount: it decides alone about its locks, until the other one asks.
        let path = file(&a, kind);
        let (mut one, mut two) = (Locker::new(&path, kind), Locker::new(&path, kind));
        one.must("ex");
        assert_eq!(two.ask("sh"), "busy");
        two.must_wait("ex wait");
        one.must("write first");
        let mut other = Locker::new(&b.join(kind), kind);
        assert_eq!(other.ask("sh"), "busy", "{kind}");
        other.must_wait("sh wait");
        one.must("write second");
        one.must("un");
        assert_eq!(two.answer(), "ok", "{kind}: it came first");
        assert_eq!(other.answers.try_recv(), Err(mpsc::TryRecvError::Empty));
        two.must("write thirds");
        two.must("un");
        assert_eq!(other.answer(), "ok");
        assert_eq!(other.ask("read"), "thirds", "{kind}");
        one.must("sh");
        assert_eq!(one.ask("ex"), "busy");
        // Who dies gives its lock back.
        one.must_wait("ex wait");
        drop(other);
        assert_eq!(one.answer(), "ok");
        drop((one, two));
        Locker::new(&b.join(kind), kind).must("ex");
    }
}

#[test]
fn counts_under_a_lock_are_exact_from_two_mounts() {
    const ROUNDS: u32 = 100;
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for kind in KINDS {
        let path = file(&a, kind);
        let mut alone: Vec<Locker> = (0..2).map(|_| Locker::new(&path, kind)).collect();
        let mut both: Vec<Locker> = (0..3).map(|_| Locker::new(&b.join(kind), kind)).collect();
        // The first mount by itself, and then both.
        alone.iter_mut().for_each(|locker| locker.tell(&format!("add {ROUNDS}")));
        alone.iter_mut().for_each(|locker| assert_eq!(locker.answer(), "ok"));
        both.append(&mut alone);
        both.iter_mut().for_each(|locker| locker.tell(&format!("add {ROUNDS}")));
        both.iter_mut().for_each(|locker| assert_eq!(locker.answer(), "ok"));
        assert_eq!(fs::read_to_string(b.join(kind)).unwrap(), (7 * ROUNDS).to_string(), "{kind}");
    }
}

#[test]
fn a_lock_of_a_file_that_one_mount_uses_costs_no_round_trip() {
    let mut site = Site::new();
    let a = site.mount("m1");
    let path = file(&a, "f");
    let mut locker = Locker::new(&path, "posix");
    locker.must("add 10");
    // A server that is frozen is asked for nothing.
    let frozen = site.freeze_server();
    let start = Instant::now();
    for _ in 0..100 {
        locker.must("ex");
        locker.must("un");
    }
    println!("lock and unlock: {:?}", start.elapsed() / 100);
    drop(frozen);
}

#[test]
fn locks_outlive_a_killed_server() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    for kind in KINDS {
        for is_shared in [false, true] {
            let name = format!("{kind}{is_shared}");
            let path = file(&a, &name);
            let mut holder = Locker::new(&path, kind);
            let mut waiter = Locker::new(&b.join(&name), kind);
            if is_shared {
                // Both use it: the server decides.
                waiter.must("ex");
                waiter.must("un");
            }
            holder.must("ex");
            holder.must("write one");
            site.kill();
            site.start();
            assert_eq!(waiter.ask("ex"), "busy", "{name}");
            assert_eq!(holder.ask("read"), "one");
            holder.must("write two");
            waiter.must_wait("ex wait");
            // Twice in a row.
            site.kill();
            site.start();
            site.kill();
            site.start();
            assert!(waiter.answers.recv_timeout(A_WHILE).is_err(), "{name}");
            holder.must("write six");
            holder.must("un");
            assert_eq!(waiter.answer(), "ok", "{name}");
            assert_eq!(waiter.ask("read"), "six");
            waiter.must("write ten");
        }
    }
    assert!(!site.server_log().contains("WARN"), "{}", site.server_log());
}

#[test]
fn a_lock_that_was_decided_alone_is_lost_with_a_fenced_session() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let path = file(&a, "f");
    let mut holder = Locker::new(&path, "posix");
    holder.must("ex");
    let frozen = Frozen::new(site.process_of(&a));
    let mut other = Locker::new(&b.join("f"), "posix");
    // Until the mount that does not answer is fenced.
    other.must("ex wait");
    other.must("write two");
    drop(frozen);
    eventually("the old owner is told", || holder.ask("write bad").starts_with("error"));
    assert_eq!(other.ask("read"), "two");
    drop(holder);
    eventually("the file can be used again", || fs::read(a.join("f")).is_ok_and(|bytes| bytes == b"two"));
}

/// Adds rows one by one, each in a transaction of its own, until its input ends; then says how many.
const WRITER: &str = "
import select, sqlite3, sys
path, who = sys.argv[1:3]
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute('pragma busy_timeout=60000')
count = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        db.execute('begin immediate')
        db.execute('insert into t values(?, ?)', (who, count))
        db.execute('commit')
    except sqlite3.OperationalError as error:
        if 'locked' not in str(error): raise
        if db.in_transaction: db.execute('rollback')
        continue
    count += 1
print(count)
";

#[test]
fn sqlite_on_two_mounts_loses_nothing_with_a_killed_server() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    run(&a, "sqlite3", &["db", "create table t(who, number)"]);
    let mut writers: Vec<Child> = [(&a, "a1"), (&a, "a2"), (&b, "b1"), (&b, "b2")]
        .into_iter()
        .map(|(mount, who)| {
            let mut writer = Command::new("python3");
            writer.args(["-c", WRITER]).arg(mount.join("db")).arg(who);
            writer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for kill in 0..5 {
        std::thread::sleep(Duration::from_millis(700 + 130 * kill));
        site.kill();
        site.start();
    }
    std::thread::sleep(Duration::from_millis(1000));
    writers.iter_mut().for_each(|writer| drop(writer.stdin.take()));
    let mut expected = 0;
    for writer in writers {
        let output = writer.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        expected += String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().unwrap();
    }
    println!("{expected} transactions");
    assert!(expected > 10);
    for mount in [&a, &b] {
        assert_eq!(run(mount, "sqlite3", &["db", "pragma integrity_check"]).trim(), "ok");
        assert_eq!(run(mount, "sqlite3", &["db", "select count(*) from t"]).trim(), expected.to_string());
    }
}
