//! A real mount whose kernel may keep names and attributes: it does, until it is
//! told otherwise. Needs root and `/dev/fuse`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_client::{Answer, Kernel, OldName};
use atoll_fuse::{KernelCaches, Lifetimes, MountOptions, Mounted, NullRemote, Remote, VolumeFs};
use atoll_types::operation::{OpenFlags, WriteAt};
use atoll_types::{Caller, Errno, InodeId, Name, Operation, Outcome};
use bytes::Bytes;

/// Where it is told that the answer is ready, and then that it was given; and what lets it go.
type Held = (Sender<()>, Receiver<()>);

/// A tree whose next answer to a lookup can be held up.
#[derive(Clone)]
struct HeldUp {
    tree: Arc<NullRemote>,
    next_lookup: Arc<Mutex<Option<Held>>>,
}

impl Remote for HeldUp {
    fn submit(&self, id: u64, caller: Caller, operation: Operation, done: Box<dyn FnOnce(Answer) + Send>) {
        let held = match operation {
            Operation::Lookup { .. } => self.next_lookup.lock().unwrap().take(),
            _ => None,
        };
        let done: Box<dyn FnOnce(Answer) + Send> = match held {
            None => done,
            Some((ready, go)) => Box::new(move |answer| {
                ready.send(()).unwrap();
                go.recv().unwrap();
                done(answer);
                ready.send(()).unwrap();
            }),
        };
        self.tree.submit(id, caller, operation, done);
    }

    fn tell(&self, operation: Operation) {
        self.tree.tell(operation);
    }

    fn interrupt(&self, id: u64, is_killed: fn(u32) -> bool) -> bool {
        self.tree.interrupt(id, is_killed)
    }

    fn lost(&self, inode: InodeId) -> Option<Errno> {
        self.tree.lost(inode)
    }

    fn keeps_attributes(&self) -> bool {
        self.tree.keeps_attributes()
    }
}

struct Mount {
    directory: PathBuf,
    remote: HeldUp,
    mounted: Option<Mounted>,
    _folder: tempfile::TempDir,
}

impl Mount {
    fn new() -> Mount {
        let folder = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let tree = Arc::new(NullRemote::keeping(Lifetimes { entry: hour, attributes: hour }));
        let remote = HeldUp { tree, next_lookup: Arc::default() };
        let filesystem = VolumeFs::new(remote.clone());
        let options = MountOptions {
            directory: folder.path().to_owned(),
            source: "lifetimes".into(),
            threads: 2,
            ..MountOptions::default()
        };
        let mounted = atoll_fuse::mount(&options, Arc::new(filesystem)).expect("root and /dev/fuse");
        Mount { directory: folder.path().to_owned(), remote, mounted: Some(mounted), _folder: folder }
    }

    /// Change the tree behind the kernel's back.
    fn behind(&self, operation: Operation) -> Outcome {
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = move |answer: Answer| sender.send(answer.result).unwrap();
        self.remote.submit(0, Caller::default(), operation, Box::new(done));
        receiver.recv().unwrap().unwrap()
    }

    fn create(&self, text: &str) -> InodeId {
        let (name, flags) = (name(text), OpenFlags::default());
        let create = Operation::Create { parent: InodeId::ROOT, name, permissions: 0o644, umask: 0, flags };
        match self.behind(create) {
            Outcome::Created { attributes, .. } => attributes.inode,
            other => panic!("{other:?}"),
        }
    }

    fn make_directory(&self, text: &str) {
        let (parent, name) = (InodeId::ROOT, name(text));
        self.behind(Operation::MakeDirectory { parent, name, permissions: 0o755, umask: 0 });
    }

    fn rename(&self, from: &str, to: &str) {
        let (parent, new_parent, mode) = (InodeId::ROOT, InodeId::ROOT, Default::default());
        self.behind(Operation::Rename { parent, name: name(from), new_parent, new_name: name(to), mode });
    }

    fn inode(&self, name: &str) -> u64 {
        fs::metadata(self.directory.join(name)).unwrap().ino()
    }

    fn size(&self, name: &str) -> Option<u64> {
        fs::metadata(self.directory.join(name)).ok().map(|metadata| metadata.len())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        atoll_fuse::unmount(&self.directory).unwrap();
        self.mounted.take().unwrap().join();
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).unwrap()
}

#[test]
fn the_kernel_keeps_what_it_may_and_drops_what_it_is_told() {
    let mount = Mount::new();
    let notifier = mount.mounted.as_ref().unwrap().notifier();
    let inode = mount.create("f");
    assert_eq!(mount.size("f"), Some(0));
    let data = Bytes::from_static(b"grown");
    mount.behind(Operation::Write { inode, at: WriteAt::End, data, drop_privileges: false });
    assert_eq!(mount.size("f"), Some(0), "attributes are kept");
    notifier.inode(inode).unwrap();
    assert_eq!(mount.size("f"), Some(5));

    let parent = InodeId::ROOT;
    mount.rename("f", "g");
    assert_eq!(mount.size("f"), Some(5), "names are kept");
    notifier.entry(parent, &name("f")).unwrap();
    assert_eq!((mount.size("f"), mount.size("g")), (None, Some(5)));

    mount.behind(Operation::Unlink { parent, name: name("g") });
    notifier.deleted(parent, inode, &name("g")).unwrap();
    assert_eq!(mount.size("g"), None);
    notifier.inode(InodeId(999)).unwrap();
}

#[test]
fn a_listing_brings_the_attributes_along() {
    let mount = Mount::new();
    for at in 0..300 {
        mount.create(&format!("file{at}"));
    }
    let listed: Vec<_> = fs::read_dir(&mount.directory).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(listed.len(), 300);
    for entry in listed {
        assert_eq!(entry.metadata().unwrap().len(), 0);
    }
}

/// Run on the first processor alone, with a priority.
fn run_first(nice: i32) {
    let mut first = rustix::thread::CpuSet::new();
    first.set(0);
    rustix::thread::sched_setaffinity(None, &first).unwrap();
    rustix::process::setpriority_process(None, nice).unwrap();
}

/// The kernel takes what it is answered in when the asker runs: here, after the name was told to be old.
#[test]
fn a_lookup_that_is_taken_in_late_does_not_bring_an_old_name_back() {
    let mount = Mount::new();
    let caches = KernelCaches::new(mount.mounted.as_ref().unwrap().notifier());
    let drop_name = || {
        let names = vec![OldName { name: name("d"), is_directory: true }];
        caches.drop_names(InodeId::ROOT, names, false, false);
    };
    for round in 0..10 {
        mount.make_directory("d");
        let before = mount.inode("d");
        drop_name();
        let ((ready, is_ready), (go, goes)) = (mpsc::channel(), mpsc::channel());
        *mount.remote.next_lookup.lock().unwrap() = Some((ready, goes));
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let asker = scope.spawn(|| {
                run_first(19);
                mount.inode("d")
            });
            is_ready.recv().unwrap();
            let (runs, is_running) = mpsc::channel();
            let ends = &ends;
            scope.spawn(move || {
                run_first(-20);
                runs.send(()).unwrap();
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            is_running.recv().unwrap();
            go.send(()).unwrap();
            is_ready.recv().unwrap();
            mount.rename("d", &format!("old{round}"));
            mount.make_directory("d");
            drop_name();
            ends.store(true, Ordering::Relaxed);
            assert_eq!(asker.join().unwrap(), before);
        });
        assert_ne!(mount.inode("d"), before, "round {round}");
        mount.rename("d", &format!("new{round}"));
        drop_name();
    }
}

#[test]
fn a_directory_whose_name_is_old_keeps_its_path() {
    use std::os::fd::AsRawFd;
    let mount = Mount::new();
    let caches = KernelCaches::new(mount.mounted.as_ref().unwrap().notifier());
    mount.make_directory("d");
    let open = fs::File::open(mount.directory.join("d")).unwrap();
    let path = || fs::read_link(format!("/proc/self/fd/{}", open.as_raw_fd())).unwrap();
    caches.drop_names(InodeId::ROOT, vec![OldName { name: name("d"), is_directory: true }], false, false);
    assert_eq!(path(), mount.directory.join("d"));
    mount.rename("d", "e");
    assert!(fs::metadata(mount.directory.join("d")).is_err(), "it is looked up again");
}
