//! Checking, mending and cleaning a volume with the commands.

use std::fs;

use crate::harness::*;

fn checked(site: &Site, arguments: &[&str]) -> (bool, serde_json::Value) {
    let output = site.atoll([&["--json", "fsck", "vol"], arguments].concat()).0;
    (output.status.success(), serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// The object of the only segment.
fn segment(site: &Site) -> std::path::PathBuf {
    let folder = site.path("data/objects/volumes/vol/segments");
    let mut objects: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(objects.len(), 1, "{objects:?}");
    objects.remove(0)
}

#[test]
fn a_missing_object_is_told_with_the_paths_that_need_it() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::create_dir(mount.join("folder")).unwrap();
    fs::write(mount.join("folder/file"), words(10_000)).unwrap();
    let (clean, report) = checked(&site, &["--read"]);
    assert!(clean, "{report}");
    assert_eq!((&report["inodes"], &report["bytes"]), (&3.into(), &40_000.into()));
    site.unmount(&mount);
    site.stop();

    let object = segment(&site);
    let aside = site.path("aside");
    fs::rename(&object, &aside).unwrap();
    site.start();
    let (clean, report) = checked(&site, &[]);
    assert!(!clean);
    assert_eq!(report["problems"], serde_json::json!({"object-missing": 1}));
    assert_eq!(report["findings"][0]["path"], "/folder/file");
    site.atoll(["fsck", "vol", "--repair"]).must_fail_saying(&["1 problems that cannot be mended", "docs/fsck.md"]);
    fs::rename(&aside, &object).unwrap();
    let (clean, report) = checked(&site, &["--read"]);
    assert!(clean, "{report}");

    // One byte is wrong: only reading shows it.
    let whole = fs::read(&object).unwrap();
    let mut wrong = whole.clone();
    wrong[0] ^= 1;
    fs::write(&object, wrong).unwrap();
    assert!(checked(&site, &[]).0);
    let (clean, report) = checked(&site, &["--read"]);
    assert!(!clean);
    assert!(report["problems"]["data"].as_u64() > Some(0), "{report}");
    fs::write(&object, whole).unwrap();
}

#[test]
fn a_repair_needs_the_volume_for_itself_and_a_check_without_a_server_the_data_folder() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::write(mount.join("file"), "text").unwrap();
    site.atoll(["fsck", "vol", "--repair"]).must_fail_saying(&["in use", "unmount"]);
    site.unmount(&mount);
    site.atoll(["fsck", "vol", "--repair"]).must_succeed();
    let data = site.path("data");
    let offline = ["fsck", "vol", "--data", data.to_str().unwrap()];
    site.atoll(offline).must_fail_saying(&["another server"]);
    site.stop();
    assert!(site.atoll(offline).must_succeed().contains("clean"));
    site.atoll(["fsck", "vol", "--data", "/nowhere"]).must_fail_saying(&["/nowhere"]);
    site.start();
    site.atoll(["fsck", "nothing"]).must_fail_saying(&["no volume `nothing`"]);
    let mount = site.mount("m");
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "text");
}

#[test]
fn objects_that_nothing_refers_to_are_deleted() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fs::write(mount.join("file"), words(10_000)).unwrap();
    site.unmount(&mount);
    // Its next life: objects of this one may be about to be referred to.
    site.stop();
    let stray = segment(&site).with_file_name("00000001ffffffff");
    fs::write(&stray, "stray").unwrap();
    site.start();
    assert_eq!(checked(&site, &[]).1["garbage_objects"], 1);
    assert!(site.atoll(["gc", "vol", "--dry-run"]).must_succeed().contains("1 objects of 5 bytes would be deleted"));
    assert!(stray.exists());
    let told: serde_json::Value = serde_json::from_str(&site.atoll(["--json", "gc", "vol"]).must_succeed()).unwrap();
    assert_eq!(told, serde_json::json!({"objects": 1, "bytes": 5, "deleted": true}));
    assert!(!stray.exists());
    let mount = site.mount("m");
    assert!(fs::read(mount.join("file")).unwrap() == words(10_000));
}
