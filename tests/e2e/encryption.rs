//! Encrypted volumes: nothing of them can be read where it is kept, and only the right key opens them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::*;

/// Stands in the bytes of files, and in nothing else.
const BYTES: &str = "Cassiopeia wrote this";
/// Stands in names, targets of symlinks and attributes.
const NAME: &str = "Andromeda";
/// Stands in the bytes of a plain volume, and in a name there.
const PLAIN: &str = "Pegasus flies over";

fn generate(site: &Site, name: &str) -> String {
    let path = site.path(name).to_str().unwrap().to_owned();
    site.atoll(["key", "generate", &path]).must_succeed();
    path
}

fn key_id(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
}

/// Whether some file below has these bytes, or a name with them.
fn shows(folder: &Path, what: &str) -> bool {
    let has = |bytes: &[u8]| bytes.windows(what.len()).any(|part| part == what.as_bytes());
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).any(|entry| {
        has(entry.file_name().as_bytes())
            || match entry.file_type().unwrap() {
                kind if kind.is_dir() => shows(&entry.path(), what),
                // A temporary file may be gone by now.
                kind if kind.is_file() => fs::read(entry.path()).is_ok_and(|bytes| has(&bytes)),
                _ => false,
            }
    })
}

/// Neither the data folder nor the store shows anything of encrypted volumes; of plain ones they do.
fn check_hidden(site: &Site) {
    let places: Vec<_> = ["data", "s3"].into_iter().map(|name| site.path(name)).filter(|path| path.exists()).collect();
    for secret in [BYTES, NAME] {
        for place in &places {
            assert!(!shows(place, secret), "`{secret}` can be read in {}", place.display());
        }
    }
    assert!(places.iter().any(|place| shows(place, PLAIN)), "what is readable is not found");
}

fn content(number: usize) -> Vec<u8> {
    format!("{number} {BYTES}\n").repeat(20 + number * 40).into_bytes()
}

fn fill(mount: &Path) {
    let folder = mount.join(format!("{NAME} folder"));
    fs::create_dir(&folder).unwrap();
    for number in 0..60 {
        let path = folder.join(format!("{NAME} {number}"));
        fs::write(&path, content(number)).unwrap();
        let value = format!("{NAME} value");
        let (attribute, flags) = (format!("user.{NAME}{number}"), rustix::fs::XattrFlags::empty());
        rustix::fs::setxattr(&path, attribute.as_str(), value.as_bytes(), flags).unwrap();
        std::os::unix::fs::symlink(format!("{NAME} target"), folder.join(format!("link {NAME} {number}"))).unwrap();
    }
    fs::File::open(folder).unwrap().sync_all().unwrap();
}

fn check(mount: &Path) {
    let folder = mount.join(format!("{NAME} folder"));
    eventually("the mount answers", || fs::metadata(&folder).is_ok());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 120);
    for number in 0..60 {
        let path = folder.join(format!("{NAME} {number}"));
        assert!(fs::read(&path).unwrap() == content(number), "{number}");
        let mut value = [0; 100];
        let length = rustix::fs::getxattr(&path, format!("user.{NAME}{number}").as_str(), &mut value[..]).unwrap();
        assert_eq!(&value[..length], format!("{NAME} value").as_bytes());
        let target = fs::read_link(folder.join(format!("link {NAME} {number}"))).unwrap();
        assert_eq!(target.as_os_str(), OsStr::new(&format!("{NAME} target")));
    }
}

fn show(site: &Site, volume: &str) -> serde_json::Value {
    let text = site.atoll(["--json", "volume", "show", volume]).must_succeed();
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON")[0].clone()
}

/// The server's further arguments: those it had without keys, and these keys.
fn with_keys(plain: &[String], keys: &[&str]) -> Vec<String> {
    let flags = keys.iter().flat_map(|key| ["--key-file".to_owned(), (*key).to_owned()]);
    plain.iter().cloned().chain(flags).collect()
}

fn lives_hidden(mut site: Site, durability: &str) {
    let plain = site.serve.clone();
    let first = generate(&site, "first");
    site.serve = with_keys(&plain, &[&first]);
    site.start();
    site.atoll(["volume", "create", "vol", "--encrypt", "--durability", durability]).must_succeed();
    site.atoll(["volume", "create", "plain", "--durability", durability]).must_succeed();
    let local = site.path("pegasus");
    fs::write(&local, PLAIN.repeat(1000)).unwrap();
    site.atoll(["put", local.to_str().unwrap(), &format!("plain:/{PLAIN}")]).must_succeed();
    let info = show(&site, "vol");
    assert_eq!(info["encryption"], "aes-256-gcm");
    assert_eq!(info["wrapping_key"], key_id(&first));
    assert_eq!(show(&site, "plain")["encryption"], serde_json::Value::Null);

    let mount = site.mount("m");
    fill(&mount);
    site.atoll(["snapshot", "create", "vol", "then"]).must_succeed();
    site.atoll(["volume", "clone", "vol@then", "copy"]).must_succeed();
    fs::write(mount.join(format!("{NAME} later")), BYTES.repeat(100_000)).unwrap();
    fs::remove_file(mount.join(format!("{NAME} folder/{NAME} 3"))).unwrap();
    site.kill();
    check_hidden(&site);
    site.start();
    eventually("the mount answers", || fs::metadata(mount.join(format!("{NAME} later"))).is_ok());
    assert!(fs::read(mount.join(format!("{NAME} later"))).unwrap() == BYTES.repeat(100_000).as_bytes());

    // With a new data key, while the volume is in use; the clone goes on with what it has.
    site.atoll(["volume", "rotate-key", "vol", "--data"]).must_succeed();
    fs::write(mount.join("after"), BYTES.repeat(50_000)).unwrap();
    let copy = site.mount_volume("copy", "copy", &[]);
    check(&copy);
    fs::write(copy.join(format!("{NAME} of the copy")), BYTES.repeat(1000)).unwrap();
    site.unmount(&copy);
    assert!(fs::read(mount.join("after")).unwrap() == BYTES.repeat(50_000).as_bytes());
    site.unmount(&mount);
    for volume in ["vol", "copy", "vol@then"] {
        assert!(site.atoll(["fsck", volume, "--read"]).must_succeed().contains("clean"), "{volume}");
    }
    site.stop();
    check_hidden(&site);

    // Another key wraps, the older one is still needed for the clone.
    let second = generate(&site, "second");
    site.serve = with_keys(&plain, &[&second, &first]);
    site.start();
    let rotated = site.atoll(["volume", "rotate-key", "vol"]).must_succeed();
    assert!(rotated.contains(&key_id(&second)), "{rotated}");
    site.stop();
    site.serve = with_keys(&plain, &[&second]);
    site.start();
    site.atoll(["snapshot", "restore", "vol", "then"]).must_succeed();
    let mount = site.mount("m");
    check(&mount);
    assert!(!mount.join("after").exists());
    let wanted = key_id(&first);
    site.atoll(["ls", "copy:/"]).must_fail_saying(&["copy", "encrypted", &wanted, &key_id(&second), "--key-file"]);
    site.atoll(["volume", "rotate-key", "copy"]).must_fail_saying(&[&wanted]);
    site.unmount(&mount);
    site.stop();
    site.serve = plain.clone();
    site.start();
    site.atoll(["ls", "vol:/"]).must_fail_saying(&["vol", &key_id(&second), "--key-file"]);
    assert!(site.atoll(["ls", "plain:/"]).must_succeed().contains(PLAIN), "a plain volume needs no key");
    site.stop();
    site.serve = with_keys(&plain, &[&second, &first]);
    site.start();
    let copy = site.mount_volume("copy", "copy", &[]);
    check(&copy);
    assert_eq!(fs::read(copy.join(format!("{NAME} of the copy"))).unwrap(), BYTES.repeat(1000).as_bytes());
    site.unmount(&copy);
    let mount = site.mount("m");
    check(&mount);
    site.stop();
    check_hidden(&site);
    site.start();
}

#[test]
fn an_encrypted_volume_lives_hidden_in_a_folder() {
    lives_hidden(Site::empty(), "local");
}

#[test]
fn an_encrypted_volume_lives_hidden_in_a_bucket() {
    for durability in ["object", "local"] {
        let mut site = Site::with_s3();
        site.serve = vec!["--store".into(), "s3://bucket/prefix".into()];
        lives_hidden(site, durability);
    }
}

#[test]
fn an_encrypted_volume_goes_on_elsewhere_for_who_has_the_key() {
    let mut site = Site::with_s3();
    let plain = vec!["--store".into(), "s3://bucket/prefix".into()];
    let key = generate(&site, "key");
    site.serve = with_keys(&plain, &[&key]);
    site.start();
    site.atoll(["volume", "create", "vol", "--encrypt", "--durability", "object"]).must_succeed();
    let mount = site.mount("m");
    fill(&mount);
    site.kill();
    fs::rename(site.path("data"), site.path("lost")).unwrap();
    site.serve = plain.clone();
    site.start();
    site.atoll(["volume", "attach", "vol"]).must_fail_saying(&[&key_id(&key), "--key-file"]);
    site.atoll(["volume", "show", "vol"]).must_fail_saying(&["no volume `vol` here"]);
    site.stop();
    let other = generate(&site, "other");
    site.serve = with_keys(&plain, &[&other]);
    site.start();
    site.atoll(["volume", "attach", "vol"]).must_fail_saying(&[&key_id(&key), &key_id(&other)]);
    site.stop();
    site.serve = with_keys(&plain, &[&other, &key]);
    site.start();
    site.atoll(["volume", "attach", "vol"]).must_succeed();
    check(&mount);
}

#[test]
fn a_server_without_a_usable_key_says_what_to_do() {
    let mut site = Site::empty();
    site.start();
    site.atoll(["volume", "create", "vol", "--encrypt"]).must_fail_saying(&["atoll key generate", "--key-file"]);
    // Nothing is left of the attempt.
    site.atoll(["volume", "create", "vol", "--compression", "gzip"]).must_fail_saying(&["zstd"]);
    site.atoll(["volume", "create", "vol", "--compression", "zstd"]).must_succeed();
    site.atoll(["volume", "rotate-key", "vol"]).must_fail_saying(&["not encrypted", "--encrypt"]);
    let mount = site.mount("m");
    fs::write(mount.join("f"), BYTES.repeat(100_000)).unwrap();
    site.unmount(&mount);
    site.stop();
    let key = generate(&site, "key");
    site.atoll(["key", "generate", &key]).must_fail_saying(&["exists"]);
    let data = site.path("data");
    let serve = |flag: &str, file: &str| site.atoll(["serve", "--data", data.to_str().unwrap(), flag, file]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    serve("--key-file", &key).must_fail_saying(&["others can read", "0640", "chmod 600"]);
    let wrong = site.path("wrong").to_str().unwrap().to_owned();
    fs::write(&wrong, "abcdef\n").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    serve("--key-file", &wrong).must_fail_saying(&["32 bytes", "atoll key generate"]);
    serve("--passphrase-file", &wrong).must_fail_saying(&["shorter than"]);
    serve("--key-file", "/nowhere/key").must_fail_saying(&["/nowhere/key"]);

    // A passphrase, and from it to a key.
    fs::write(&wrong, "a passphrase of some length\n").unwrap();
    site.serve = vec!["--passphrase-file".into(), wrong.clone()];
    site.start();
    site.atoll(["volume", "create", "phrase", "--encrypt", "--compression", "zstd"]).must_succeed();
    site.atoll(["cp", "vol:/f", site.path("f").to_str().unwrap()]).must_succeed();
    site.atoll(["put", site.path("f").to_str().unwrap(), "phrase:/f"]).must_succeed();
    site.stop();
    fs::write(&wrong, "some other passphrase\n").unwrap();
    site.start();
    site.atoll(["cat", "phrase:/f"]).must_fail_saying(&["passphrase", "--passphrase-file"]);
    site.stop();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&wrong, "some other passphrase\na passphrase of some length\n").unwrap();
    site.serve.extend(["--key-file".to_owned(), key.clone()]);
    site.start();
    site.atoll(["volume", "rotate-key", "phrase"]).must_succeed();
    site.stop();
    site.serve = with_keys(&[], &[&key]);
    site.start();
    assert_eq!(site.atoll(["cat", "phrase:/f"]).must_succeed(), BYTES.repeat(100_000));
}
