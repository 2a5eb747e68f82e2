//! Stores, settings and what a server shows.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;

use crate::harness::*;

#[test]
fn a_volume_in_s3_keeps_its_files_with_either_durability() {
    let mut site = Site::with_s3();
    site.serve = vec!["--store".into(), "s3://bucket/some/prefix".into()];
    site.start();
    let content = words(500_000);
    site.atoll(["volume", "create", "vol", "--durability", "object"]).must_succeed();
    site.atoll(["volume", "create", "quick", "--durability", "local"]).must_succeed();
    let mount = site.mount("m");
    fs::write(mount.join("f"), &content).unwrap();
    fs::File::open(mount.join("f")).unwrap().sync_all().unwrap();
    // Durable in the bucket: the server may vanish with its disk's caches.
    site.kill();
    site.start();
    eventually("the mount reconnects", || fs::metadata(mount.join("f")).is_ok());
    assert!(fs::read(mount.join("f")).unwrap() == content);
    site.unmount(&mount);
    let local = site.path("local");
    fs::write(&local, &content).unwrap();
    site.atoll(["put", local.to_str().unwrap(), "quick:/f"]).must_succeed();
    site.stop();
    site.start();
    let back = site.path("back");
    site.atoll(["get", "quick:/f", back.to_str().unwrap()]).must_succeed();
    assert!(fs::read(back).unwrap() == content);
}

#[test]
fn a_volume_whose_server_and_disk_are_lost_goes_on_elsewhere() {
    let mut site = Site::with_s3();
    site.serve = vec!["--store".into(), "s3://bucket/prefix".into()];
    site.start();
    site.atoll(["volume", "create", "vol", "--durability", "object"]).must_succeed();
    site.atoll(["volume", "create", "quick"]).must_succeed();
    let mount = site.mount("m");
    fs::write(mount.join("synced"), words(50_000)).unwrap();
    fs::File::open(mount.join("synced")).unwrap().sync_all().unwrap();
    fs::write(mount.join("told"), words(1000)).unwrap();
    site.kill();
    fs::rename(site.path("data"), site.path("lost")).unwrap();
    site.start();
    site.atoll(["volume", "info", "vol"]).must_fail_saying(&["no volume `vol` here"]);
    site.atoll(["volume", "create", "vol"]).must_fail_saying(&["exists already", "another server"]);
    site.atoll(["volume", "attach", "quick"]).must_fail_saying(&["local", "data folder"]);
    site.atoll(["volume", "attach", "nothing"]).must_fail_saying(&["no volume `nothing`"]);
    site.atoll(["volume", "attach", "vol"]).must_succeed();
    site.atoll(["volume", "attach", "vol"]).must_fail_saying(&["here already"]);
    // The mount lives on, with what only it knew.
    eventually("the mount reconnects", || fs::metadata(mount.join("synced")).is_ok());
    assert!(fs::read(mount.join("synced")).unwrap() == words(50_000));
    assert!(fs::read(mount.join("told")).unwrap() == words(1000));
    fs::write(mount.join("after"), b"after").unwrap();
}

#[test]
fn a_bucket_that_is_missing_or_forbidden_is_said_so() {
    let mut site = Site::with_s3();
    site.serve = vec!["--store".into(), "s3://nothere/prefix".into()];
    site.start();
    site.atoll(["volume", "create", "vol"]).must_fail_saying(&["s3://nothere", "bucket"]);
    site.stop();
    site.serve = vec!["--store".into(), "s3://bucket/prefix".into()];
    site.environment.retain(|(name, _)| *name != "AWS_SECRET_ACCESS_KEY");
    site.environment.push(("AWS_SECRET_ACCESS_KEY", "wrong".into()));
    site.start();
    site.atoll(["volume", "create", "vol"]).must_fail_saying(&["s3://bucket", "AWS_"]);
    assert!(site.atoll(["volume", "list"]).must_succeed().is_empty());
}

#[test]
fn a_folder_that_cannot_be_written_or_is_no_folder_is_said_so() {
    let site = Site::empty();
    let file = site.path("file");
    fs::write(&file, b"").unwrap();
    let serve = |arguments: &[&str]| Ran(Command::new(BINARY).arg("serve").args(arguments).output().unwrap());
    serve(&["--data", file.to_str().unwrap()]).must_fail_saying(&["file"]);
    serve(&["--data", "/proc/nothere"]).must_fail_saying(&["/proc/nothere"]);
    let data = site.path("data");
    serve(&["--data", data.to_str().unwrap(), "--store", "gs://x"]).must_fail_saying(&["gs://x", "s3://"]);
    serve(&[]).must_fail_saying(&["--data"]);
}

#[test]
fn plain_tcp_off_loopback_needs_a_word() {
    let site = Site::empty();
    let data = site.path("data");
    let output = Command::new(BINARY).args(["serve", "--listen", "0.0.0.0:0", "--data"]).arg(&data).output().unwrap();
    Ran(output).must_fail_saying(&["--tls-cert", "--insecure"]);
}

#[test]
fn a_full_disk_refuses_writes_and_keeps_what_was_synced() {
    let mut site = Site::empty();
    let data = site.path("data");
    fs::create_dir(&data).unwrap();
    run(site.folder.path(), "mount", &["-t", "tmpfs", "-o", "size=24m,mode=700", "none", data.to_str().unwrap()]);
    let _unmount = Unmount(data.clone());
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let mount = site.mount("m");
    let kept = words(250_000);
    fs::write(mount.join("kept"), &kept).unwrap();
    fs::File::open(mount.join("kept")).unwrap().sync_all().unwrap();
    let filler = fs::File::create(mount.join("filler")).unwrap();
    let mut error = None;
    for chunk in 0..60u64 {
        let mut state = chunk + 1;
        let random: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u8
        })
        .take(1 << 20)
        .collect();
        if let Err(refused) = filler.write_all_at(&random, chunk << 20).and_then(|()| filler.sync_data()) {
            error = Some(refused);
            break;
        }
    }
    let error = error.expect("60 MiB do not fit 24 MiB");
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    assert!(fs::read(mount.join("kept")).unwrap() == kept);
    drop(filler);
    // Small files, until the log does not fit either.
    let mut synced = Vec::new();
    let refused = loop {
        let name = format!("small{}", synced.len());
        let made = fs::File::create(mount.join(&name))
            .and_then(|mut file| file.write_all(&words(4_000)).and_then(|()| file.sync_all()));
        match made {
            Ok(()) if synced.len() < 1000 => synced.push(name),
            made => break made,
        }
    };
    assert_eq!(refused.expect_err("a full log").raw_os_error(), Some(28));
    let is_there = |name: &String| fs::read(mount.join(name)).unwrap() == words(4_000);
    assert!(synced.iter().all(is_there));
    // With more room everything goes on, without a restart.
    let resize = |size: &str| {
        run(site.folder.path(), "mount", &["-o", &format!("remount,size={size}"), data.to_str().unwrap()]);
    };
    resize("60m");
    let write = |name: &str| {
        let mut file = fs::File::create(mount.join(name))?;
        file.write_all(&words(4_000)).and_then(|()| file.sync_all())
    };
    eventually("writes go on", || write("after").is_ok());
    synced.push("after".into());
    // A crash keeps what was synced.
    resize("200m");
    site.kill();
    site.start();
    assert!(synced.iter().all(is_there));
    eventually("the mount reconnects", || fs::metadata(mount.join("kept")).is_ok());
    assert!(fs::read(mount.join("kept")).unwrap() == kept);
    fs::write(mount.join("more"), b"more").unwrap();
    fs::File::open(mount.join("more")).unwrap().sync_all().unwrap();
}

/// The log lies elsewhere: only what is to go into objects has no room.
#[test]
fn a_full_store_in_a_folder_refuses_fsyncs_and_goes_on_when_there_is_room() {
    for durability in ["local", "object"] {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        fs::create_dir(&store).unwrap();
        let sized =
            |flags: &str| run(folder.path(), "mount", &["-t", "tmpfs", "-o", flags, "none", store.to_str().unwrap()]);
        sized("size=24m,mode=700");
        let _unmount = Unmount(store.clone());
        let mut site = Site::empty();
        let url = format!("file://{}", store.display());
        site.serve = ["--store", &url, "--store-patience", "3"].map(Into::into).to_vec();
        site.start();
        site.atoll(["volume", "create", "vol", "--durability", durability, "--compression", "none"]).must_succeed();
        let mount = site.mount("m");
        let write = |name: &str, count: u32| {
            let mut file = fs::File::create(mount.join(name))?;
            file.write_all(&words(count)).and_then(|()| file.sync_all())
        };
        let mut synced = 0;
        let refused = loop {
            match write(&format!("f{synced}"), 250_000) {
                Ok(()) if synced < 60 => synced += 1,
                refused => break refused,
            }
        };
        let errno = refused.expect_err("60 MB do not fit 24 MiB").raw_os_error();
        assert!(matches!(errno, Some(28 | 5)), "{durability}: {errno:?}");
        let is_there = |number| fs::read(mount.join(format!("f{number}"))).unwrap() == words(250_000);
        assert!(synced > 0 && (0..synced).all(is_there), "{durability}");
        sized("remount,size=400m");
        eventually("fsyncs go on", || write("after", 4_000).is_ok());
        site.kill();
        site.start();
        assert!((0..synced).all(is_there), "{durability}");
        assert!(fs::read(mount.join("after")).unwrap() == words(4_000), "{durability}");
    }
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn settings_come_from_a_file_the_environment_and_flags() {
    let mut site = Site::empty();
    let config = site.path("atoll.toml");
    fs::write(&config, "http = \"127.0.0.1:0\"\nlisten = \"127.0.0.1:1\"\ncache-mib = 16\n").unwrap();
    site.serve = vec!["--config".into(), config.display().to_string()];
    site.environment = vec![("ATOLL_LISTEN", "127.0.0.1:0".into())];
    site.start();
    let http_address = site.address("http://");
    let port: u16 = http_address.rsplit(':').next().unwrap().parse().unwrap();
    assert!(site.address("tcp://").starts_with("tcp://127.0.0.1:"));
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let mount = site.mount("m");
    fs::write(mount.join("f"), b"f").unwrap();
    fs::File::open(mount.join("f")).unwrap().sync_all().unwrap();
    assert!(http(port, "/healthz").unwrap().ends_with("ok\n"));
    let metrics = http(port, "/metrics").unwrap();
    for metric in
        ["atoll_operation_seconds_count{operation=\"write\"} 1", "atoll_volume{figure=\"inodes\",volume=\"vol\"} 2"]
    {
        assert!(metrics.contains(metric), "{metric} is not in\n{metrics}");
    }
    fs::write(&config, "colour = \"red\"\n").unwrap();
    let bad = Command::new(BINARY).args(["serve", "--config"]).arg(&config).output().unwrap();
    Ran(bad).must_fail_saying(&["atoll.toml", "colour"]);
}

#[test]
fn releases_that_do_not_fit_each_other_say_so() {
    use std::io::{Read, Write};
    let site = Site::new();
    let mut stream = std::os::unix::net::UnixStream::connect(site.socket()).unwrap();
    // A frame of 14 bytes: id 1, the magic, version 999.
    stream.write_all(&[14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    stream.write_all(b"ATOL\xe7\x03").unwrap();
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("protocol 999") && answer.contains("same release"), "{answer}");
}

#[test]
fn a_first_frame_that_is_too_long_ends_the_connection() {
    use std::io::{Read, Write};
    let site = Site::new();
    let mut stream = std::os::unix::net::UnixStream::connect(site.socket()).unwrap();
    stream.write_all(&[0, 0, 15, 0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    site.atoll(["status"]).must_succeed();
}

#[test]
fn a_revoked_token_stops_its_connections() {
    let mut site = Site::empty();
    site.serve = vec!["--listen".into(), "127.0.0.1:0".into()];
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let made = site.atoll(["token", "create", "--volume", "vol", "--json"]).must_succeed();
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let token = site.path("token");
    fs::write(&token, made["secret"].as_str().unwrap()).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let options = format!("reply_timeout=1,server={},token_file={}", site.address("tcp://"), token.display());
    let mount = site.mount_with("m", &["-o", &options]);
    fs::write(mount.join("f"), b"f").unwrap();
    site.atoll(["token", "revoke", made["id"].as_str().unwrap()]).must_succeed();
    eventually("the mount is locked out", || fs::metadata(mount.join("f")).is_err());
    site.atoll(["cat", "vol:/f"]).must_succeed();
}

#[test]
fn tls_needs_the_right_certificate() {
    let mut site = Site::empty();
    let folder = site.folder.path().to_owned();
    let subject = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    for name in ["right", "other"] {
        let (key, cert) = (format!("{name}.key"), format!("{name}.pem"));
        let arguments = [&request[..], &["-keyout", &key, "-out", &cert], &subject[..]].concat();
        run(&folder, "openssl", &arguments);
    }
    let path = |name: &str| folder.join(name).display().to_string();
    let flags = ["--listen", "127.0.0.1:0", "--tls-cert", &path("right.pem"), "--tls-key", &path("right.key")];
    site.serve = flags.map(str::to_owned).to_vec();
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let made = site.atoll(["token", "create"]).must_succeed();
    let secret = made.lines().next().unwrap();
    let with = |ca: &str| {
        let mut command = site.command(["--ca", &path(ca), "ls", "vol:/"]);
        Ran(command.env("ATOLL_SERVER", site.address("tls://")).env("ATOLL_TOKEN", secret).output().unwrap())
    };
    with("right.pem").must_succeed();
    with("other.pem").must_fail_saying(&["TLS"]);
}

#[test]
fn manual_pages_and_completions_are_written() {
    let site = Site::empty();
    let folder = site.path("man");
    site.atoll(["man", folder.to_str().unwrap()]).must_succeed();
    assert!(fs::read_to_string(folder.join("atoll-mount.1")).unwrap().contains("reply_timeout"));
    assert!(site.atoll(["completions", "bash"]).must_succeed().contains("_atoll"));
}

#[test]
fn logs_can_be_read_by_machines() {
    let mut site = Site::empty();
    site.serve = ["--log", "info", "--log-format", "json"].map(str::to_owned).to_vec();
    site.start();
    site.atoll(["ls", "nothere:/"]).must_fail_saying(&["nothere"]);
    let log = site.server_log();
    let line: serde_json::Value = serde_json::from_str(log.lines().last().expect("a line")).unwrap();
    assert_eq!(line["level"], "INFO");
}
