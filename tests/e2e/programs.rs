//! Programs that people run on a disk.

use std::fs;

use crate::harness::*;

#[test]
fn git_works_on_the_mount() {
    let mut site = Site::new();
    let mount = site.mount("m");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates");
    run(&mount, "cp", &["-a", source, "src"]);
    run(&mount, "diff", &["-r", source, "src"]);
    run(&mount.join("src"), "git", &["init", "-q", "."]);
    run(&mount.join("src"), "git", &["add", "-A"]);
    run(&mount.join("src"), "git", &["commit", "-qm", "one"]);
    run(&mount, "git", &["clone", "-q", "src", "clone"]);
    run(&mount.join("clone"), "git", &["gc", "-q"]);
    run(&mount.join("clone"), "git", &["fsck", "--full", "--strict"]);
    assert_eq!(run(&mount.join("clone"), "git", &["status", "--porcelain"]), "");
    run(&mount, "tar", &["cf", "all.tar", "src"]);
    fs::create_dir(mount.join("x")).unwrap();
    run(&mount, "tar", &["xf", "all.tar", "-C", "x"]);
    run(&mount, "diff", &["-r", "src", "x/src"]);
    run(&mount, "rm", &["-rf", "src", "clone", "x", "all.tar"]);
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0);
}

#[test]
fn sqlite_works_on_the_mount_in_both_journal_modes() {
    let mut site = Site::new();
    let mount = site.mount("m");
    let script = "import sqlite3, sys
for mode in ('delete', 'wal'):
    c = sqlite3.connect(mode + '.db')
    assert c.execute('pragma journal_mode=' + mode).fetchone()[0] == mode
    c.execute('create table t(a, b)')
    for batch in range(20):
        c.executemany('insert into t values(?, ?)', ((batch * 100 + i, 'x' * i) for i in range(100)))
        c.commit()
    assert c.execute('pragma integrity_check').fetchone()[0] == 'ok'
    assert c.execute('select count(*) from t').fetchone()[0] == 2000
    c.close()
";
    run(&mount, "python3", &["-c", script]);
}
