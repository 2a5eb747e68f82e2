//! A real mount whose kernel may keep names and attributes: it does, until it is
//! told otherwise. Needs root and `/dev/fuse`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_client::Answer;
use atoll_fuse::{Lifetimes, MountOptions, Mounted, NullRemote, Remote, VolumeFs};
use atoll_types::operation::{OpenFlags, WriteAt};
use atoll_types::{Caller, InodeId, Name, Operation, Outcome};
use bytes::Bytes;

struct Mount {
    directory: PathBuf,
    remote: Arc<NullRemote>,
    mounted: Option<Mounted>,
    _folder: tempfile::TempDir,
}

impl Mount {
    fn new() -> Mount {
        let folder = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let remote = Arc::new(NullRemote::keeping(Lifetimes { entry: hour, attributes: hour }));
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

    let (parent, new_parent) = (InodeId::ROOT, InodeId::ROOT);
    mount.behind(Operation::Rename {
        parent,
        name: name("f"),
        new_parent,
        new_name: name("g"),
        mode: Default::default(),
    });
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
