//! Bad input gets a clear error and loses nothing.

use std::fs;
use std::process::Command;

use crate::harness::*;

#[test]
fn an_unknown_volume_is_named_in_the_error() {
    let site = Site::new();
    let mount = site.path("m");
    fs::create_dir(&mount).unwrap();
    site.atoll(["mount", "nothere", mount.to_str().unwrap()]).must_fail_saying(&["nothere"]);
    site.atoll(["volume", "info", "nothere"]).must_fail_saying(&["nothere"]);
    site.atoll(["volume", "create", "vol"]).must_fail_saying(&["vol", "exists"]);
    site.atoll(["volume", "create", "../x"]).must_fail_saying(&["name"]);
    assert!(!is_mounted(&mount));
}

#[test]
fn a_server_that_is_not_there_is_said_so() {
    let site = Site::empty();
    site.atoll(["status"]).must_fail_saying(&["sock"]);
}

#[test]
fn a_mount_point_that_is_not_a_directory_is_refused() {
    let site = Site::new();
    fs::write(site.path("file"), b"").unwrap();
    site.atoll(["mount", "vol", site.path("file").to_str().unwrap()]).must_fail_saying(&["file"]);
    site.atoll(["mount", "vol", site.path("absent").to_str().unwrap()]).must_fail_saying(&["absent"]);
}

#[test]
fn a_second_server_on_one_data_folder_refuses() {
    let site = Site::new();
    let second = Command::new(BINARY)
        .args(["serve", "--data"])
        .arg(site.path("data"))
        .arg("--socket")
        .arg(site.path("sock2"))
        .output()
        .unwrap();
    Ran(second).must_fail_saying(&["data"]);
    site.atoll(["status"]).must_succeed();
}

#[test]
fn a_taken_port_is_said_so() {
    let site = Site::empty();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output =
        Command::new(BINARY).args(["serve", "--listen", &address, "--data"]).arg(site.path("data")).output().unwrap();
    Ran(output).must_fail_saying(&[&address]);
}

#[test]
fn a_wrong_token_is_refused_and_a_right_one_is_scoped() {
    let mut site = Site::empty();
    let mut server = Command::new(BINARY)
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(site.path("data"))
        .arg("--socket")
        .arg(site.socket())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let ready = first_line(&mut server);
    let address =
        ready.split_whitespace().find(|word| word.starts_with("tcp://")).expect("the ready line has the address");
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let with_token = |token: &str, arguments: &[&str]| {
        Ran(site.command(arguments).env("ATOLL_SERVER", address).env("ATOLL_TOKEN", token).output().unwrap())
    };
    with_token("wrong", &["ls", "vol:/"]).must_fail_saying(&["token"]);
    let made = site.atoll(["token", "create", "--volume", "vol", "--read-only", "--json"]).must_succeed();
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let secret = made["secret"].as_str().expect("the secret is shown once");
    with_token(secret, &["ls", "vol:/"]).must_succeed();
    let local = site.path("local");
    fs::write(&local, b"x").unwrap();
    with_token(secret, &["put", local.to_str().unwrap(), "vol:/x"]).must_fail_saying(&["read-only"]);
    let stored = fs::read_to_string(site.path("data/tokens.json")).unwrap();
    assert!(!stored.contains(secret), "the secret is not kept");
    signal(&server, rustix::process::Signal::TERM);
    assert!(wait_bounded(&mut server).is_some());
    site.start();
}

#[test]
fn a_corrupt_segment_gives_eio_on_its_range_and_the_rest_stays_readable() {
    let mut site = Site::new();
    let mount = site.mount("m");
    let bytes = words(1_000_000);
    fs::write(mount.join("f"), &bytes).unwrap();
    site.unmount(&mount);
    site.stop();
    let segments =
        run(site.folder.path(), "find", &["data/objects", "-path", "*segments*", "-type", "f", "-size", "+1M"]);
    let segment = site.path(segments.lines().next().expect("a segment object"));
    let mut content = fs::read(&segment).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 0xff;
    fs::write(&segment, &content).unwrap();
    site.damaged = true;
    site.start();
    let mount = site.mount("m");
    let error = fs::read(mount.join("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    let file = fs::File::open(mount.join("f")).unwrap();
    let mut start = vec![0; 65536];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut start, 0).unwrap();
    assert!(start == bytes[..65536]);
    eventually("the log names the segment", || site.server_log().contains("segment"));
}
