//! Databases on mounts go on while the server is killed again and again: no error, nothing lost, and a short stall.
//!
//! `ATOLL_KILLS` is how often the server is killed beside each of them; 2 without it, and 100 in `docs/durability.md`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::*;

/// After a kill, something goes on within this time, …
const RESUMES_WITHIN: Duration = Duration::from_secs(5);
/// … or this: a start needs more requests of S3 than some of these servers live for, and the next one begins anew.
const RESUMES_IN_S3_WITHIN: Duration = Duration::from_secs(25);
/// Longest from a start of the server to the next kill, in ms.
const LIVES_MS_MAX: u64 = 2_000;

fn kills() -> u64 {
    from_environment("ATOLL_KILLS").unwrap_or(2)
}

/// A volume `vol` that is durable in a real S3 server.
fn in_s3() -> Site {
    let mut site = Site::with_s3();
    site.serve = vec!["--store".into(), "s3://bucket/kills".into()];
    site.start();
    site.atoll(["volume", "create", "vol", "--durability", "object"]).must_succeed();
    site
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time of day").as_secs_f64()
}

/// Kill the server so often, and start it again each time. Answers when it was killed, in seconds since 1970. `done` tells
/// how much was done by now, and panics when what is to go on has ended.
fn kill(site: &mut Site, mut done: impl FnMut() -> usize) -> Vec<f64> {
    let mut random = Random(kills());
    let mut killed = Vec::new();
    for _ in 0..kills() {
        std::thread::sleep(Duration::from_millis(200 + random.below(LIVES_MS_MAX - 200)));
        done();
        killed.push(now());
        site.kill();
        site.start();
    }
    let before = done();
    eventually("something goes on", || done() > before);
    killed
}

/// The longest time from a kill to the first of these moments after it.
fn longest_stall(killed: &[f64], mut moments: Vec<f64>) -> Duration {
    moments.sort_by(f64::total_cmp);
    let stalls = killed.iter().map(|at| {
        let next = moments.get(moments.partition_point(|moment| moment < at));
        next.expect("something went on after the last kill") - at
    });
    Duration::from_secs_f64(stalls.fold(0.0, f64::max))
}

/// Writers move money, count what they have done, and say when each commit returned and how long its statements waited at most, in seconds.
/// SQLite asks for a lock ten times a second and is not fair: beside another writer it may wait for long.
const WRITE: &str = "import os, random, sqlite3, sys, time
db, who, said, stop = sys.argv[1], sys.argv[2], open(sys.argv[3], 'w', buffering=1), sys.argv[4]
c = sqlite3.connect(db, timeout=600, isolation_level=None)
c.execute('pragma synchronous=full')
n = 0
while not os.path.exists(stop):
    a, b, amount = random.randrange(100), random.randrange(100), random.randrange(100)
    waited = 0
    def do(words, values=()):
        global waited
        start = time.monotonic()
        try:
            return c.execute(words, values).fetchone()
        except sqlite3.Error as error:
            sys.exit(f'{time.time()} {words}: {error}, {error.sqlite_errorname} after {time.monotonic() - start:.1f} s')
        finally:
            waited = max(waited, time.monotonic() - start)
    do('begin immediate')
    do('update accounts set balance = balance - ? where id = ?', (amount, a))
    do('update accounts set balance = balance + ? where id = ?', (amount, b))
    do('insert into log values(?, ?, ?)', (who, n, 'x' * random.randrange(2000)))
    do('commit')
    n += 1
    said.write(f'{time.time()} {waited}\\n')
    assert do('select count(*), max(n) + 1 from log where who = ?', (who,)) == (n, n)
";

const MAKE: &str = "import sqlite3, sys
c = sqlite3.connect(sys.argv[1])
c.execute(f'pragma journal_mode={sys.argv[2]}')
c.execute('create table accounts(id integer primary key, balance)')
c.execute('create table log(who, n, filler, primary key(who, n))')
c.executemany('insert into accounts values(?, 1000)', ((i,) for i in range(100)))
c.commit()
";

const CHECK: &str = "import sqlite3, sys
c = sqlite3.connect(sys.argv[1])
assert c.execute('pragma integrity_check').fetchone()[0] == 'ok'
assert c.execute('select sum(balance) from accounts').fetchone()[0] == 100000
for word in sys.argv[2:]:
    who, n = word.split('=')
    found = c.execute('select count(*), max(n) + 1 from log where who = ?', (who,)).fetchone()
    assert found == (int(n), int(n)), (who, n, found)
";

struct Writer {
    database: &'static str,
    who: &'static str,
    process: Child,
    said: PathBuf,
    errors: PathBuf,
}

impl Writer {
    fn start(site: &Site, mount: &Path, database: &'static str, who: &'static str) -> Writer {
        let (said, errors) = (site.path(&format!("said-{who}")), site.path(&format!("errors-{who}")));
        let process = Command::new("timeout")
            .args(["--kill-after=5", "3600", "python3", "-c", WRITE, database, who])
            .args([&said, &site.path("stop")])
            .current_dir(mount)
            .stdin(Stdio::null())
            .stderr(fs::File::create(&errors).expect("a file"))
            .spawn()
            .expect("python3");
        Writer { database, who, process, said, errors }
    }

    /// How many commits there are by now.
    fn must_go_on(&mut self) -> usize {
        let ended = self.process.try_wait().expect("a process");
        assert!(ended.is_none(), "{} has ended: {ended:?}: {}", self.who, self.errors());
        fs::read_to_string(&self.said).map_or(0, |said| said.lines().count())
    }

    fn errors(&self) -> String {
        fs::read_to_string(&self.errors).expect("what it complained of")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        signal(&self.process, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

fn sqlite(mut site: Site, resumes_within: Duration) {
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    // A log that is written ahead needs shared memory, so one mount; a rollback journal does with two.
    run(&a, "python3", &["-c", MAKE, "both.db", "delete"]);
    run(&a, "python3", &["-c", MAKE, "wal.db", "wal"]);
    let mut writers = [
        Writer::start(&site, &a, "both.db", "a"),
        Writer::start(&site, &b, "both.db", "b"),
        Writer::start(&site, &a, "wal.db", "c"),
        Writer::start(&site, &a, "wal.db", "d"),
    ];
    let killed = kill(&mut site, || writers.iter_mut().map(Writer::must_go_on).sum());
    fs::write(site.path("stop"), b"").expect("the word to stop");
    let (mut moments, mut done) = (Vec::new(), Vec::new());
    for mut writer in writers {
        let status = wait_bounded(&mut writer.process).expect("the writer stops");
        let who = writer.who;
        assert!(status.success(), "{who}: {status}: {}", writer.errors());
        let said = fs::read_to_string(&writer.said).expect("what it said");
        let number = |word: &str| word.parse::<f64>().expect("a number");
        let commits = said.lines().map(|line| line.split_once(' ').expect("two numbers"));
        let (ended, waited): (Vec<f64>, Vec<f64>) = commits.map(|(a, b)| (number(a), number(b))).unzip();
        println!("{who}: {} commits, longest wait {:.1} s", ended.len(), waited.into_iter().fold(0.0, f64::max));
        done.push((writer.database, format!("{who}={}", ended.len())));
        moments.extend(ended);
    }
    for (mount, database) in [(&a, "both.db"), (&b, "both.db"), (&a, "wal.db")] {
        let mut arguments = vec!["-c", CHECK, database];
        arguments.extend(done.iter().filter(|(of, _)| *of == database).map(|(_, words)| words.as_str()));
        run(mount, "python3", &arguments);
    }
    let (commits, stall) = (moments.len(), longest_stall(&killed, moments));
    println!("SQLite, {:?}: {} kills, {commits} commits, longest stall {stall:.2?}", site.serve, killed.len());
    assert!(stall < resumes_within);
}

#[test]
fn sqlite_goes_on_while_the_server_is_killed() {
    sqlite(Site::new(), RESUMES_WITHIN);
}

#[test]
fn sqlite_goes_on_while_the_server_of_a_volume_in_s3_is_killed() {
    sqlite(in_s3(), RESUMES_IN_S3_WITHIN);
}

/// A cluster in a directory of a mount, of the user `postgres`. It is stopped when this is dropped.
struct Cluster {
    programs: PathBuf,
    data: PathBuf,
    /// On the local disk: its socket, its log.
    folder: PathBuf,
}

impl Cluster {
    fn make(site: &Site, mount: &Path) -> Cluster {
        let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
            .expect("PostgreSQL, for this test: apt-get install postgresql")
            .map(|entry| entry.expect("a version").path().join("bin"))
            .collect();
        versions.sort();
        let cluster = Cluster {
            programs: versions.pop().expect("a version"),
            data: mount.join("cluster"),
            folder: site.path("postgres"),
        };
        run(site.folder.path(), "chmod", &["755", "."]);
        for folder in [&cluster.data, &cluster.folder] {
            fs::create_dir(folder).expect("a folder");
            run(folder, "chown", &["postgres", "."]);
        }
        cluster.run("initdb", &["--auth=trust", "--no-sync", "--data-checksums", "-D", cluster.data()]);
        cluster
    }

    fn data(&self) -> &str {
        self.data.to_str().expect("a path that can be read")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .arg(self.programs.join(program))
            .current_dir(&self.folder)
            .env("PGHOST", &self.folder)
            .env("PGDATABASE", "postgres")
            .stdin(Stdio::null());
        command
    }

    /// For what programs say. A file: a server that one of them starts would keep a pipe open.
    fn log(&self) -> fs::File {
        fs::File::options().append(true).create(true).open(self.folder.join("said")).expect("a log")
    }

    /// What its programs and the cluster complained of.
    fn said(&self) -> String {
        ["said", "log"].map(|name| fs::read_to_string(self.folder.join(name)).unwrap_or_default()).concat()
    }

    /// What pgbench has logged.
    fn transactions(&self) -> impl Iterator<Item = String> {
        let files = fs::read_dir(&self.folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let is_log =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("transactions."));
        let logs = files.filter(is_log);
        logs.flat_map(|path| {
            BufReader::new(fs::File::open(path).expect("a log")).lines().map(|line| line.expect("text"))
        })
    }

    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = self.command(program);
        command.args(arguments).stderr(self.log());
        if program == "pg_ctl" {
            command.stdout(self.log());
        }
        let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program} {arguments:?}: {}\n{}", output.status, self.said());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn start(&self) {
        // Little memory of its own, so that it reads and writes its files.
        let options = format!("-k {} -c listen_addresses='' -c shared_buffers=16MB", self.folder.display());
        let log = self.folder.join("log");
        let log = log.to_str().expect("a path that can be read");
        self.run("pg_ctl", &["-D", self.data(), "-w", "-t", "120", "-l", log, "-o", &options, "start"]);
    }

    fn stop(&self) {
        self.run("pg_ctl", &["-D", self.data(), "-w", "-t", "120", "-m", "fast", "stop"]);
    }

    fn ask(&self, question: &str) -> String {
        self.run("psql", &["--no-psqlrc", "-Atqc", question])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            let _ = self.command("pg_ctl").args(["-D", self.data(), "-m", "immediate", "stop"]).status();
        }
    }
}

fn postgresql(mut site: Site, resumes_within: Duration) {
    let mount = site.mount("m");
    let cluster = Cluster::make(&site, &mount);
    cluster.start();
    cluster.run("pgbench", &["-i", "-q", "-s", "1"]);
    cluster.ask("create extension amcheck");
    // Until its alarm, which is given to it before; each transaction with its time.
    let mut bench = cluster
        .command("pgbench")
        .args(["-n", "-c", "4", "-j", "2", "-T", "3600", "--log", "--log-prefix", "transactions"])
        .stdout(Stdio::piped())
        .stderr(cluster.log())
        .spawn()
        .expect("pgbench");
    let killed = kill(&mut site, || {
        let ended = bench.try_wait().expect("a process");
        assert!(ended.is_none(), "pgbench has ended: {ended:?}: {}", cluster.said());
        cluster.transactions().count()
    });
    signal(&bench, rustix::process::Signal::ALARM);
    let output = bench.wait_with_output().expect("pgbench");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("number of failed transactions: 0 "), "{said}");
    // The client, its count, how long it took, the script, when it ended in s and µs.
    let ended = |line: String| {
        let words: Vec<f64> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
        words[4] + words[5] / 1e6
    };
    let moments: Vec<f64> = cluster.transactions().map(ended).collect();
    let transactions = moments.len();
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
        and (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches)
        and (select sum(delta) from pgbench_history) = (select sum(bbalance) from pgbench_branches),
        (select count(*) from pgbench_history)";
    assert_eq!(cluster.ask(sums), format!("t|{transactions}"));
    cluster.run("pg_amcheck", &["-d", "postgres", "--heapallindexed"]);
    cluster.stop();
    cluster.run("pg_checksums", &["--check", "-D", cluster.data()]);
    let log = fs::read_to_string(cluster.folder.join("log")).expect("its log");
    let complaint = log.lines().find(|line| ["PANIC", "FATAL", "ERROR"].iter().any(|word| line.contains(word)));
    assert_eq!(complaint, None, "{log}");
    let stall = longest_stall(&killed, moments);
    println!(
        "PostgreSQL, {:?}: {} kills, {transactions} transactions, longest stall {stall:.2?}",
        site.serve,
        killed.len()
    );
    assert!(stall < resumes_within);
}

#[test]
fn postgresql_goes_on_while_the_server_is_killed() {
    postgresql(Site::new(), RESUMES_WITHIN);
}

#[test]
fn postgresql_goes_on_while_the_server_of_a_volume_in_s3_is_killed() {
    postgresql(in_s3(), RESUMES_IN_S3_WITHIN);
}
