//! Exports and imports.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::harness::{Site, is_mounted, run, words};

/// A tree with something of everything that metadata can say.
fn fill(mount: &Path) {
    fs::create_dir(mount.join("folder")).unwrap();
    fs::write(mount.join("folder/large"), words(1_500_000)).unwrap();
    fs::hard_link(mount.join("folder/large"), mount.join("linked")).unwrap();
    for n in 0..300_u32 {
        fs::write(mount.join(format!("folder/small{n}")), words(n * 7)).unwrap();
    }
    symlink("folder/large", mount.join("symlink")).unwrap();
    fs::set_permissions(mount.join("folder/small1"), fs::Permissions::from_mode(0o4711)).unwrap();
    run(mount, "setfattr", &["-n", "user.colour", "-v", "blue", "folder/small2"]);
    run(mount, "chown", &["1234:4321", "folder/small3"]);
    run(mount, "truncate", &["-s", "5G", "sparse"]);
    run(mount, "mkfifo", &["fifo"]);
}

/// Names, contents and attributes of a whole tree.
fn listing(mount: &Path) -> String {
    let find = "find . -printf '%p %y %m %U:%G %s %n %l %T@\\n' | sort; find . -type f -size -1G -exec sha256sum {} + | sort; \
                getfattr -R -d . | grep -v '^$'";
    run(mount, "bash", &["-c", find])
}

#[test]
fn an_export_becomes_the_same_volume_at_another_server() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fill(&mount);
    let before = listing(&mount);
    site.atoll(["snapshot", "create", "vol", "moved"]).must_succeed();
    fs::remove_dir_all(mount.join("folder")).unwrap();
    let file = site.path("export");
    let file = file.to_str().unwrap();
    site.atoll(["volume", "export", "vol@moved", file]).must_succeed();
    site.atoll(["volume", "export", "vol@moved", file]).must_fail_saying(&["exists"]);
    site.atoll(["volume", "export", "vol@nothing", &format!("{file}2")]).must_fail_saying(&["no snapshot `nothing`"]);
    assert!(!Path::new(&format!("{file}2")).exists());

    // Another data folder and another store, another mode and another packing.
    let mut other = Site::empty();
    other.start();
    let wishes = ["--durability", "object", "--compression", "none"];
    let import = ["volume", "import", file, "vol"];
    other.atoll([&import[..], &wishes].concat()).must_succeed();
    other.atoll(import).must_fail_saying(&["volume `vol` exists already"]);
    // Nothing of the old one is needed any more.
    site.unmount(&mount);
    site.atoll(["snapshot", "delete", "vol", "moved"]).must_succeed();
    site.atoll(["volume", "delete", "vol"]).must_succeed();
    other.kill();
    other.start();
    let mount = other.mount("m");
    assert_eq!(listing(&mount), before);
    assert_eq!(fs::metadata(mount.join("linked")).unwrap().nlink(), 2);
    other.atoll(["fsck", "vol", "--read"]).must_succeed();
    // It goes on as any other, also with what it was before it came.
    fs::write(mount.join("folder/small9"), words(70_000)).unwrap();
    other.atoll(["snapshot", "create", "vol", "s"]).must_succeed();
    other.atoll(["volume", "clone", "vol@s", "clone"]).must_succeed();
    let clone = other.mount_volume("clone", "clone", &[]);
    assert_eq!(fs::read(clone.join("folder/small9")).unwrap(), words(70_000));
    assert_eq!(fs::read(clone.join("linked")).unwrap(), words(1_500_000));
    let json = other.atoll(["--json", "volume", "info", "vol"]).must_succeed();
    let info: serde_json::Value = serde_json::from_str(&json).unwrap();
    let info = if info.is_array() { info[0].clone() } else { info };
    assert_eq!((info["durability"].as_str(), info["compression"].as_str()), (Some("object"), Some("none")));
}

#[test]
fn a_clone_is_imported_beside_its_source_in_a_bucket() {
    let mut site = Site::with_s3();
    site.serve = vec!["--store".into(), "s3://bucket/prefix".into()];
    site.start();
    site.atoll(["volume", "create", "vol"]).must_succeed();
    let mount = site.mount("m");
    fill(&mount);
    site.atoll(["volume", "clone", "vol", "clone"]).must_succeed();
    let clone = site.mount_volume("clone", "clone", &[]);
    fs::write(clone.join("own"), words(90_000)).unwrap();
    let before = listing(&clone);
    let file = site.path("export");
    let file = file.to_str().unwrap();
    // Without a snapshot: of one that is gone afterwards.
    site.atoll(["volume", "export", "clone", file]).must_succeed();
    assert_eq!(site.atoll(["--json", "snapshot", "list", "clone"]).must_succeed().trim(), "[]");
    site.atoll(["volume", "import", file, "copy"]).must_succeed();
    let copy = site.mount_volume("copy", "copy", &[]);
    assert_eq!(listing(&copy), before);
    site.unmount(&clone);
    site.atoll(["volume", "delete", "clone"]).must_succeed();
    site.unmount(&mount);
    site.atoll(["volume", "delete", "vol"]).must_succeed();
    site.atoll(["fsck", "copy", "--read"]).must_succeed();
    assert!(is_mounted(&copy));
}

#[test]
fn an_import_whose_bytes_are_gone_or_whose_file_is_damaged_leaves_nothing() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fill(&mount);
    let file = site.path("export");
    let path = file.to_str().unwrap();
    site.atoll(["volume", "export", "vol", path]).must_succeed();
    let whole = fs::read(&file).unwrap();
    let cut = site.path("cut");
    for length in [0, 5, 40, whole.len() / 2, whole.len() - 1] {
        fs::write(&cut, &whole[..length]).unwrap();
        site.atoll(["volume", "import", cut.to_str().unwrap(), "copy"]).must_fail_saying(&["not a whole export"]);
    }
    site.atoll(["volume", "import", path, "copy", "--store", "file:///nothing/here"])
        .must_fail_saying(&["no such folder"]);
    // A store that has none of its bytes.
    let empty = format!("file://{}", site.folder.path().display());
    site.atoll(["volume", "import", path, "copy", "--store", &empty]).must_fail_saying(&["problems", "bytes"]);
    assert!(!site.atoll(["volume", "list"]).must_succeed().contains("copy"));
    // The name is free, and the file as good as before.
    site.atoll(["volume", "import", path, "copy"]).must_succeed();
    let copy = site.mount_volume("copy", "copy", &[]);
    assert_eq!(listing(&copy), listing(&mount));
}

#[test]
fn an_import_that_a_killed_server_cut_off_can_be_done_again() {
    let mut site = Site::new();
    let mount = site.mount("m");
    fill(&mount);
    let before = listing(&mount);
    let file = site.path("export");
    let path = file.to_str().unwrap();
    site.atoll(["volume", "export", "vol", path]).must_succeed();
    for round in 0..6_u64 {
        let mut import = site.command(["volume", "import", path, "copy"]);
        let mut import =
            import.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20 * round));
        site.kill();
        let _ = import.wait();
        site.start();
    }
    let listed = site.atoll(["volume", "list"]).must_succeed();
    if !listed.contains("copy") {
        site.atoll(["volume", "import", path, "copy"]).must_succeed();
    }
    let copy = site.mount_volume("copy", "copy", &[]);
    assert_eq!(listing(&copy), before);
    assert_eq!(listing(&mount), before);
}
