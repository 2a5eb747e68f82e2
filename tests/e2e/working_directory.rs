//! Who works in a directory, or has mounted something on it, is left alone by changes beside it.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::harness::*;
use crate::links::linked_site;

/// An open directory: the kernel tells its path as it does for a working directory.
struct Within(fs::File);

impl Within {
    fn new(directory: &Path) -> Within {
        Within(fs::File::open(directory).unwrap())
    }

    fn path(&self) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd())).unwrap()
    }
}

/// A file system in memory, mounted on a directory.
struct Memory<'a>(&'a Path);

impl Memory<'_> {
    fn mount(directory: &Path) -> Memory<'_> {
        mount("memory", directory, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(directory.join("within"), b"memory").unwrap();
        Memory(directory)
    }

    fn is_mounted(&self) -> bool {
        fs::read(self.0.join("within")).is_ok_and(|bytes| bytes == b"memory")
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn changes_of_another_mount_beside_a_directory_leave_its_path_and_what_is_mounted_on_it() {
    let mut site = Site::new();
    let (a, b) = (site.mount("m1"), site.mount("m2"));
    let (works, mounts) = (a.join("p/works/deep"), a.join("p/mounts"));
    fs::create_dir_all(&works).unwrap();
    fs::create_dir_all(&mounts).unwrap();
    let within = [Within::new(&works), Within::new(works.parent().unwrap())];
    let paths = within.each_ref().map(Within::path);
    assert_eq!(paths[0], works);
    let memory = Memory::mount(&mounts);
    for round in 0..100 {
        let [name, new] = ["x", "y"].map(|text| format!("p/{text}{round}"));
        fs::write(b.join(&name), b"x").unwrap();
        assert!(memory.is_mounted() && a.join(&name).exists(), "round {round}");
        assert_eq!(within.each_ref().map(Within::path), paths, "made in round {round}");
        fs::rename(b.join(&name), b.join(&new)).unwrap();
        assert_eq!(within.each_ref().map(Within::path), paths, "renamed in round {round}");
        assert!(a.join(&new).exists() && !a.join(&name).exists() && works.exists());
        fs::remove_file(b.join(&new)).unwrap();
        assert_eq!(within.each_ref().map(Within::path), paths, "removed in round {round}");
        assert!(memory.is_mounted() && !a.join(&new).exists(), "round {round}");
    }
}

#[test]
fn changes_in_a_linked_directory_leave_its_path() {
    let (mut site, _bucket) = linked_site();
    let directory = site.mount("m1").join("data/works");
    fs::create_dir(&directory).unwrap();
    let within = Within::new(&directory);
    for round in 0..20 {
        let [name, new] = ["x", "y"].map(|text| directory.join(format!("{text}{round}")));
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                fs::write(&name, b"x").unwrap();
                fs::rename(&name, &new).unwrap();
                fs::remove_file(&new).unwrap();
            });
            while !changes.is_finished() {
                assert_eq!(within.path(), directory, "round {round}");
            }
        });
    }
}
