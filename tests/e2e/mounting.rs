//! Ways to mount, and what signals do.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::*;

/// A user without rights; every Debian has it.
const NOBODY: u32 = 65534;

#[test]
fn the_helper_mounts_as_fstab_asks_and_says_nothing() {
    let mut site = Site::new();
    let helper = site.path("mount.fuse.atoll");
    symlink(BINARY, &helper).unwrap();
    let mount = site.mount("m");
    fs::write(mount.join("f"), b"there").unwrap();
    let second = site.path("second");
    fs::create_dir(&second).unwrap();
    let options =
        format!("rw,noatime,nosuid,nodev,_netdev,x-systemd.automount,server=unix:{}", site.socket().display());
    let output = Command::new(&helper)
        .args(["vol", second.to_str().unwrap(), "-o", &options])
        .env("XDG_RUNTIME_DIR", site.folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    assert_eq!(fs::read(second.join("f")).unwrap(), b"there");
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(second.to_str().unwrap())).unwrap();
    for option in ["vol ", "fuse.atoll", "nosuid", "nodev", "noatime"] {
        assert!(line.contains(option), "{option} is not in {line}");
    }
    site.unmount(&second);
    let bad = Command::new(&helper).args(["vol", second.to_str().unwrap(), "-o", "colour=red"]).output().unwrap();
    Ran(bad).must_fail_saying(&["colour=red", "reply_timeout"]);
}

#[test]
fn a_user_without_rights_serves_and_mounts_through_fusermount3() {
    let device = fs::metadata("/dev/fuse").unwrap().mode();
    assert_eq!(device & 0o666, 0o666, "/dev/fuse must be open to all users, as udev makes it: chmod 666 /dev/fuse");
    let site = Site::empty();
    let home = site.path("home");
    for folder in [site.folder.path().to_owned(), home.clone()] {
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let binary = site.path("atoll");
    fs::copy(BINARY, &binary).unwrap();
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let directory = home.join("m");
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .uid(NOBODY)
            .gid(NOBODY)
            .env("HOME", &home)
            .env("XDG_RUNTIME_DIR", &home)
            .env("ATOLL_SERVER", format!("unix:{}", home.join("sock").display()))
            .stdin(Stdio::null());
        command
    };
    let (data, sock) = (home.join("data"), home.join("sock"));
    let mut server = command(&["serve", "--data", data.to_str().unwrap(), "--socket", sock.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(first_line(&mut server).starts_with("ready"));
    Ran(command(&["volume", "create", "vol"]).output().unwrap()).must_succeed();
    let made = Command::new("mkdir").arg(&directory).uid(NOBODY).gid(NOBODY).status().unwrap();
    assert!(made.success());
    Ran(command(&["mount", "vol", directory.to_str().unwrap()]).output().unwrap()).must_succeed();
    let script = "echo mine > f && cat f && stat -c %u f";
    let output = Command::new("sh")
        .args(["-c", &format!("cd {} && {script}", directory.display())])
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("mine\n{NOBODY}\n"));
    Ran(command(&["umount", directory.to_str().unwrap()]).output().unwrap()).must_succeed();
    assert!(!is_mounted(&directory));
    signal(&server, rustix::process::Signal::TERM);
    assert!(wait_bounded(&mut server).expect("the server stops").success());
}

#[test]
fn a_killed_process_ends_at_once_while_the_server_is_away() {
    let mut site = Site::new();
    // Calls wait for 30 s here; a killed process must not.
    let mount = site.mount("m");
    fs::write(mount.join("f"), b"f").unwrap();
    fs::File::open(mount.join("f")).unwrap().sync_all().unwrap();
    site.kill();
    let mut waiting = Command::new("cat").arg(mount.join("f")).stderr(Stdio::null()).spawn().unwrap();
    let state = format!("/proc/{}/wchan", waiting.id());
    eventually("cat waits for the server", || {
        fs::read_to_string(&state).is_ok_and(|at| at.contains("request_wait_answer"))
    });
    let killed = Instant::now();
    waiting.kill().unwrap();
    assert!(wait_bounded(&mut waiting).is_some());
    assert!(killed.elapsed() < Duration::from_secs(15), "it took {:?}", killed.elapsed());
    site.start();
    eventually("the mount reconnects", || fs::read(mount.join("f")).is_ok());
}

#[test]
fn a_signal_ends_the_wait_for_a_lock_and_the_lock_stays_free() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    fs::write(a.join("f"), b"").unwrap();
    let held = fs::File::open(a.join("f")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut waiting = Command::new("flock").arg(b.join("f")).arg("true").spawn().unwrap();
    let state = format!("/proc/{}/wchan", waiting.id());
    eventually("flock waits", || fs::read_to_string(&state).is_ok_and(|at| at.contains("request_wait_answer")));
    signal(&waiting, rustix::process::Signal::TERM);
    assert!(!wait_bounded(&mut waiting).expect("a signal ends the wait").success());
    rustix::fs::flock(&held, rustix::fs::FlockOperation::Unlock).unwrap();
    let other = fs::File::open(b.join("f")).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn signals_that_a_process_handles_disturb_no_call() {
    let mut site = Site::new();
    let mount = site.mount("m");
    // Calls that Python does not repeat after EINTR, under a timer that fires all the time.
    let script = "
import os, signal, time
fired = 0
def handler(*_):
    global fired
    fired += 1
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
end = time.monotonic() + 2
open('f', 'w').close()
while time.monotonic() < end:
    os.link('f', 'g'); os.stat('g'); os.setxattr('g', 'user.a', b'x'); os.rename('g', 'h'); os.unlink('h')
signal.setitimer(signal.ITIMER_REAL, 0)
assert fired > 100, fired
";
    run(&mount, "python3", &["-c", script]);
}

#[test]
fn an_unmounted_volume_can_be_deleted_at_once() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::write(mount.join("f"), b"f").unwrap();
    site.atoll(["volume", "delete", "vol"]).must_fail_saying(&["vol", "in use"]);
    site.unmount(&mount);
    site.atoll(["volume", "delete", "vol"]).must_succeed();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    assert_eq!(fs::read_dir(site.mount("m")).unwrap().count(), 0);
}

#[test]
fn stat_shows_the_time_of_birth() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::write(mount.join("f"), b"f").unwrap();
    let metadata = fs::metadata(mount.join("f")).unwrap();
    let born = metadata.created().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(born.as_secs().abs_diff(metadata.mtime() as u64) <= 2);
}

#[test]
fn null_fuse_serves_a_tree() {
    let site = Site::empty();
    let mount = site.path("null");
    fs::create_dir(&mount).unwrap();
    let mut child =
        Command::new(BINARY).args(["bench", "--null-fuse"]).arg(&mount).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(first_line(&mut child).trim(), "ready");
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/f"), vec![7; 300_000]).unwrap();
    fs::rename(mount.join("d/f"), mount.join("g")).unwrap();
    assert!(fs::read(mount.join("g")).unwrap() == vec![7; 300_000]);
    let names: Vec<_> = fs::read_dir(&mount).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["d", "g"]);
    site.atoll(["umount", mount.to_str().unwrap()]).must_succeed();
    assert!(wait_bounded(&mut child).expect("it ends").success());
}

#[test]
fn status_lists_the_mounts_of_this_machine() {
    let mut site = Site::new();
    let mount = site.mount("m");
    let status: serde_json::Value = serde_json::from_str(&site.atoll(["status", "--json"]).must_succeed()).unwrap();
    let listed = &status["mounts"][0];
    assert_eq!((listed["dir"].as_str(), listed["volume"].as_str()), (mount.to_str(), Some("vol")));
    let command = fs::File::open(format!("/proc/{}/cmdline", listed["pid"])).unwrap();
    let command = BufReader::new(command).split(0).next().unwrap().unwrap();
    assert!(String::from_utf8_lossy(&command).ends_with("atoll"));
}

#[test]
fn a_directory_of_a_volume_is_mounted_by_itself_and_stays_that_when_it_is_renamed() {
    let mut site = Site::new();
    let whole = site.mount("m");
    fs::create_dir_all(whole.join("a/b c/inside")).unwrap();
    fs::write(whole.join("a/b c/f"), "there").unwrap();
    fs::write(whole.join("a/file"), "").unwrap();
    let source = "vol:/a/b c";
    let part = site.mount_volume(source, "part", &[]);
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&part), ["f", "inside"]);
    assert_eq!(fs::read(part.join("f")).unwrap(), b"there");
    let number = |path: std::path::PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(number(part.clone()), number(whole.join("a/b c")), "inode numbers are the volume's");
    assert_eq!(number(part.join("inside/..")), number(part.clone()));
    assert_eq!(number(part.join("..")), number(site.path(".")), "nothing of the volume is above");
    let status = site.atoll(["status"]).must_succeed();
    assert!(status.contains(source), "{status}");

    // Each sees at once what the other one does, in the root of the mount, too.
    for round in 0..20 {
        let name = format!("new-{round}");
        fs::write(whole.join("a/b c").join(&name), &name).unwrap();
        assert_eq!(fs::read(part.join(&name)).unwrap(), name.as_bytes());
        fs::rename(part.join(&name), part.join("inside").join(&name)).unwrap();
        assert!(!whole.join("a/b c").join(&name).exists());
        assert!(whole.join("a/b c/inside").join(&name).exists());
        fs::set_permissions(whole.join("a/b c"), fs::Permissions::from_mode(0o700 + round % 8)).unwrap();
        assert_eq!(fs::metadata(&part).unwrap().mode() & 0o777, 0o700 + round % 8);
        assert_eq!(names(&part), names(&whole.join("a/b c")));
    }

    fs::rename(whole.join("a"), whole.join("z")).unwrap();
    fs::rename(whole.join("z/b c"), whole.join("moved")).unwrap();
    fs::write(part.join("later"), "later").unwrap();
    assert_eq!(fs::read(whole.join("moved/later")).unwrap(), b"later");
    // Neither a new program nor a new process looks for the path again.
    let open = fs::File::open(part.join("f")).unwrap();
    site.atoll(["mount", "--replace", source, part.to_str().unwrap()]).must_succeed();
    assert_eq!(fs::read(part.join("later")).unwrap(), b"later");
    let process = site.process_of(&part);
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    eventually("another process serves the mount", || site.find_process_of(&part).is_some_and(|now| now != process));
    fs::write(part.join("f"), "by another process").unwrap();
    assert_eq!(fs::read(whole.join("moved/f")).unwrap(), b"by another process");
    assert_eq!(std::io::read_to_string(open).unwrap(), "by another process");

    fs::remove_dir_all(whole.join("moved")).unwrap();
    let gone = fs::write(part.join("f"), "").unwrap_err().raw_os_error().unwrap();
    assert!(
        [rustix::io::Errno::NOENT, rustix::io::Errno::STALE].map(|errno| errno.raw_os_error()).contains(&gone),
        "{gone}"
    );

    let at = site.path("part");
    site.unmount(&at);
    let at = at.to_str().unwrap();
    site.atoll(["mount", "vol:/nothing/here", at]).must_fail_saying(&["vol:/nothing/here", "no `nothing`"]);
    site.atoll(["mount", "vol:/z/file", at]).must_fail_saying(&["`file` is not a directory"]);
    site.atoll(["mount", "vol:z", at]).must_fail_saying(&["VOLUME:/path"]);
}
