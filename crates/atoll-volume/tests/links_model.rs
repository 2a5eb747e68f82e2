//! Random changes on both sides of a link, beside a plain map: whoever asks, is told the newest, and in the end both sides are the same; also when
//! answers of the bucket are lost, and the authority is killed.

mod linked;

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_link::{Fault, Freshness, MemoryBucket, RECHECK_SECONDS_MAX, RequestKind};
use atoll_types::operation::{OpenFlags, RenameMode};
use atoll_types::{Errno, FileKind, Operation};
use atoll_volume::Volume;
use proptest::prelude::*;

use linked::way::is_below;
use linked::*;

/// Paths: directories are never called as files are, since not every bucket can have both.
const PATHS: [&str; 10] = ["a", "b", "a-b", "d/a", "d/b", "e/a", "e/b", "d/f/a", "d/f/b", "e/g/a"];

/// Of a request, in milliseconds: what was sent before a restart arrives within a second.
const DELAY_MAX: u64 = 500;

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    /// Written beside, and renamed over it.
    Replace(usize),
    Put(usize),
    Delete(usize),
    Unlink(usize),
    Rename(usize, usize),
    Exchange(usize, usize),
    MoveDirectory {
        to_e: bool,
    },
    List,
    Settle,
    Restart,
    /// Changes of the bucket have their effect and no answer, for so many.
    LoseAnswers(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let path = 0..PATHS.len();
    prop_oneof![
        4 => path.clone().prop_map(Step::Write),
        2 => path.clone().prop_map(Step::Replace),
        4 => path.clone().prop_map(Step::Put),
        2 => path.clone().prop_map(Step::Delete),
        2 => path.clone().prop_map(Step::Unlink),
        3 => (path.clone(), path.clone()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (path.clone(), path).prop_map(|(one, other)| Step::Exchange(one, other)),
        1 => any::<bool>().prop_map(|to_e| Step::MoveDirectory { to_e }),
        2 => Just(Step::List),
        2 => Just(Step::Settle),
        1 => Just(Step::Restart),
        1 => (1u8..4).prop_map(Step::LoseAnswers),
    ]
}

struct World {
    site: Site,
    volume: Volume,
    /// The bucket tells of each change that another one makes, and nothing is asked because of the time.
    tells: bool,
    files: BTreeMap<String, String>,
    written: u64,
}

impl World {
    fn content(&mut self) -> String {
        self.written += 1;
        format!("#{}", self.written)
    }

    fn tell(&self, path: &str) {
        if self.tells {
            assert_eq!(self.volume.hint("data", Some(&key(path))), 1);
        }
    }

    /// The directory of a path, made if it is not there, and the name in it.
    async fn parent<'p>(&self, path: &'p str) -> (atoll_types::InodeId, &'p str) {
        let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = ROOT;
        for part in directories.split('/').filter(|part| !part.is_empty()) {
            at = match lookup(&self.volume, at, part).await {
                Ok(found) => found.inode,
                Err(Errno::ENOENT) => make_directory(&self.volume, at, part).await,
                Err(errno) => panic!("{path}: {errno}"),
            };
        }
        (at, name)
    }

    async fn write(&mut self, path: &str) {
        let content = self.content();
        let (parent, name) = self.parent(path).await;
        let inode = match lookup(&self.volume, parent, name).await {
            Ok(found) => {
                let flags = OpenFlags { truncate: true, ..OpenFlags::default() };
                ask(&self.volume, Operation::Open { inode: found.inode, flags }).await.unwrap();
                put(&self.volume, found.inode, 0, &content).await;
                found.inode
            }
            Err(Errno::ENOENT) => create(&self.volume, parent, name, &content).await,
            Err(errno) => panic!("{path}: {errno}"),
        };
        ask(&self.volume, Operation::Release { inode }).await.unwrap();
        self.files.insert(path.into(), content);
    }

    /// What the volume shows below a directory.
    async fn shown(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut directories = vec![(String::new(), ROOT)];
        while let Some((path, inode)) = directories.pop() {
            for entry in list_in(&self.volume, inode, 3).await {
                let name = String::from_utf8(entry.name.as_bytes().to_vec()).unwrap();
                let path = format!("{path}{name}");
                if entry.kind == FileKind::Directory {
                    directories.push((format!("{path}/"), entry.inode));
                } else {
                    let content = read(&self.volume, entry.inode).await.unwrap();
                    assert!(found.insert(path.clone(), content).is_none(), "{path} is listed twice");
                }
            }
        }
        found
    }

    async fn look(&self, path: &str) {
        let found = match read_path(&self.volume, path).await {
            Ok(content) => Some(content),
            Err(Errno::ENOENT) => None,
            Err(errno) => panic!("{path}: {errno}"),
        };
        assert_eq!(found.as_ref(), self.files.get(path), "{path}");
    }

    fn is_refused(&self, path: &str) -> bool {
        self.site.refused.is_some_and(|refused| is_below(path, refused))
    }

    async fn settled(&self) {
        let mut there = self.files.clone();
        there.retain(|path, _| !self.is_refused(path));
        settle_but(&self.volume, self.files.len() - there.len()).await;
        assert_eq!(self.site.objects(), there, "in the bucket");
        self.is_sound().await;
    }

    async fn is_sound(&self) {
        let report = self.volume.check(false, &|_| ()).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(at) => {
                self.write(PATHS[at]).await;
                self.look(PATHS[at]).await;
            }
            Step::Replace(at) => {
                let content = self.content();
                let (parent, name) = self.parent(PATHS[at]).await;
                let inode = create(&self.volume, parent, "tmp", &content).await;
                rename(&self.volume, parent, "tmp", parent, name, RenameMode::Replace).await;
                ask(&self.volume, Operation::Release { inode }).await.unwrap();
                self.files.insert(PATHS[at].into(), content);
                self.look(PATHS[at]).await;
            }
            // Nobody can make or delete what the bucket has no place for.
            Step::Put(at) | Step::Delete(at) if self.is_refused(PATHS[at]) => {}
            // What is not published yet would be a conflict.
            Step::Put(at) => {
                self.settled().await;
                let content = self.content();
                self.site.put(PATHS[at], &content);
                self.tell(PATHS[at]);
                self.files.insert(PATHS[at].into(), content);
                self.look(PATHS[at]).await;
            }
            Step::Delete(at) => {
                self.settled().await;
                self.site.bucket.delete_object(&key(PATHS[at]));
                self.tell(PATHS[at]);
                self.files.remove(PATHS[at]);
                self.look(PATHS[at]).await;
            }
            Step::Unlink(at) if self.files.contains_key(PATHS[at]) => {
                let (parent, name) = self.parent(PATHS[at]).await;
                lookup(&self.volume, parent, name).await.unwrap();
                unlink(&self.volume, parent, name).await;
                self.files.remove(PATHS[at]);
                self.look(PATHS[at]).await;
            }
            Step::Rename(from, to) if from != to && self.files.contains_key(PATHS[from]) => {
                let (parent, name) = self.parent(PATHS[from]).await;
                let (new_parent, new_name) = self.parent(PATHS[to]).await;
                lookup(&self.volume, parent, name).await.unwrap();
                let _ = lookup(&self.volume, new_parent, new_name).await;
                rename(&self.volume, parent, name, new_parent, new_name, RenameMode::Replace).await;
                let content = self.files.remove(PATHS[from]).unwrap();
                self.files.insert(PATHS[to].into(), content);
                self.look(PATHS[from]).await;
                self.look(PATHS[to]).await;
            }
            Step::Exchange(one, other) if one != other => {
                let (Some(first), Some(second)) = (self.files.get(PATHS[one]), self.files.get(PATHS[other])) else {
                    return;
                };
                let (first, second) = (first.clone(), second.clone());
                let (parent, name) = self.parent(PATHS[one]).await;
                let (new_parent, new_name) = self.parent(PATHS[other]).await;
                lookup(&self.volume, parent, name).await.unwrap();
                lookup(&self.volume, new_parent, new_name).await.unwrap();
                rename(&self.volume, parent, name, new_parent, new_name, RenameMode::Exchange).await;
                self.files.insert(PATHS[one].into(), second);
                self.files.insert(PATHS[other].into(), first);
                self.look(PATHS[one]).await;
                self.look(PATHS[other]).await;
            }
            Step::MoveDirectory { to_e } => {
                let (from, to) = if to_e { ("d", "e") } else { ("e", "d") };
                let Ok(_) = lookup(&self.volume, ROOT, from).await else { return };
                let mode = match lookup(&self.volume, ROOT, to).await {
                    Ok(_) => RenameMode::Exchange,
                    Err(_) => RenameMode::NoReplace,
                };
                rename(&self.volume, ROOT, from, ROOT, to, mode).await;
                let swapped = std::mem::take(&mut self.files).into_iter().map(|(path, content)| {
                    let moved = match path.split_once('/') {
                        Some((top, rest)) if top == from => format!("{to}/{rest}"),
                        Some((top, rest)) if top == to => format!("{from}/{rest}"),
                        _ => path,
                    };
                    (moved, content)
                });
                self.files = swapped.collect();
                assert_eq!(self.shown().await, self.files);
            }
            Step::List => assert_eq!(self.shown().await, self.files),
            Step::Settle => self.settled().await,
            Step::Restart => {
                ask(&self.volume, Operation::Sync).await.unwrap();
                // Like one that is killed: what it has sent may still reach the bucket.
                self.site.cut();
                let next = self.site.open().await;
                drop(std::mem::replace(&mut self.volume, next));
                self.is_sound().await;
                assert_eq!(self.shown().await, self.files);
            }
            Step::LoseAnswers(count) => {
                let left = std::sync::atomic::AtomicU8::new(count);
                self.site.bucket.set_faults(move |request| {
                    let changes = matches!(request.kind, RequestKind::Put | RequestKind::Copy | RequestKind::Delete);
                    let relaxed = std::sync::atomic::Ordering::Relaxed;
                    if changes && left.fetch_update(relaxed, relaxed, |left| left.checked_sub(1)).is_ok() {
                        Fault::LostAnswer
                    } else {
                        Fault::None
                    }
                });
            }
            Step::Unlink(_) | Step::Rename(..) | Step::Exchange(..) => {}
        }
    }
}

/// `delay`: of each request to the bucket, in milliseconds.
fn run(delay: u64, steps: &[Step]) {
    run_with(Freshness::Strong, delay, steps);
}

fn run_with(freshness: Freshness, delay: u64, steps: &[Step]) {
    run_refusing(None, freshness, delay, steps);
}

/// The bucket has no place for keys of which `refused` is a component.
fn run_refusing(refused: Option<&'static str>, freshness: Freshness, delay: u64, steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let bucket = MemoryBucket::new("data").with_delay(Duration::from_millis(delay));
        let mut site = Site::with(bucket).await;
        site.refused = refused;
        let volume = site.linked_with(freshness).await;
        let tells = freshness != Freshness::Strong;
        let mut world = World { site, volume, tells, files: BTreeMap::new(), written: 0 };
        for step in steps {
            world.step(step).await;
        }
        assert_eq!(world.shown().await, world.files);
        world.settled().await;
        assert_eq!(world.shown().await, world.files);
        assert_eq!(world.volume.links().await[0].conflicts, 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_of_a_link_show_the_same(
        delay in prop_oneof![Just(0), 1..DELAY_MAX],
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        run(delay, &steps);
    }

    #[test]
    fn so_they_do_when_the_bucket_tells_of_changes_and_is_not_asked(
        delay in prop_oneof![Just(0), 1..DELAY_MAX],
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        run_with(Freshness::Events { recheck_seconds: RECHECK_SECONDS_MAX }, delay, &steps);
    }

    #[test]
    fn what_the_bucket_has_no_place_for_is_in_the_volume_alone(
        refused in prop_oneof![Just("b"), Just("e"), Just("f")],
        delay in prop_oneof![Just(0), 1..DELAY_MAX],
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        run_refusing(Some(refused), Freshness::Strong, delay, &steps);
    }
}

#[test]
fn a_file_whose_answer_was_lost_comes_back_to_its_place_while_its_directory_is_moved() {
    let steps =
        [Step::Write(5), Step::LoseAnswers(2), Step::Restart, Step::MoveDirectory { to_e: false }, Step::Rename(3, 5)];
    run(0, &steps);
}

#[test]
fn a_file_that_is_written_while_its_directory_makes_room_holds_nobody_up() {
    run(0, &[Step::Replace(4), Step::Put(6), Step::MoveDirectory { to_e: false }, Step::Write(6), Step::Write(0)]);
}

#[test]
fn a_copy_that_was_under_way_is_not_shown_where_another_directory_leaves() {
    let steps = [
        Step::Write(6),
        Step::Replace(3),
        Step::Put(1),
        Step::List,
        Step::Exchange(1, 3),
        Step::Rename(6, 5),
        Step::Rename(5, 3),
        Step::MoveDirectory { to_e: false },
    ];
    run(1, &steps);
}

#[test]
fn a_listing_goes_on_where_it_was_when_its_directory_is_moved() {
    let steps = [
        Step::Put(4),
        Step::Write(9),
        Step::Write(0),
        Step::Write(3),
        Step::Rename(3, 1),
        Step::MoveDirectory { to_e: false },
        Step::Write(4),
        Step::Put(3),
        Step::Rename(0, 7),
        Step::MoveDirectory { to_e: false },
    ];
    run(333, &steps);
}

#[test]
fn directories_that_change_places_twice_leave_nothing_behind() {
    let change_places = || Step::MoveDirectory { to_e: true };
    run(1, &[Step::Put(7), Step::Put(5), Step::Put(4), change_places(), change_places()]);
    run(1, &[Step::Put(7), Step::Write(5), change_places(), change_places()]);
}

#[test]
fn a_file_whose_bytes_come_home_while_it_is_copied_is_in_no_conflict() {
    let steps = [
        Step::Put(5),
        Step::Put(4),
        Step::Write(1),
        Step::MoveDirectory { to_e: false },
        Step::Rename(1, 4),
        Step::Write(0),
    ];
    run(201, &steps);
}

#[test]
fn an_object_goes_whose_file_moves_to_where_the_bucket_has_no_place() {
    let steps = [Step::Replace(0), Step::Replace(3), Step::MoveDirectory { to_e: true }];
    run_refusing(Some("e"), Freshness::Strong, 1, &steps);
}
