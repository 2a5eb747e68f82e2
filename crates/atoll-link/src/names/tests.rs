//! Names against a bucket in memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{Bucket, MemoryBucket, ObjectInfo, Version};

fn key(text: impl Into<String>) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn name(text: impl AsRef<[u8]>) -> Name {
    Name::new(text.as_ref().to_vec()).unwrap()
}

fn object(at: ObjectKey, size: u64) -> Listed {
    let version = Version { etag: String::new(), id: None };
    Listed::Object(at, ObjectInfo { size, modified: Default::default(), version, archived: false, headers: None })
}

/// One that is not the volume's root.
fn below(text: &str) -> Prefix {
    Prefix::new(key(text))
}

/// An entry of a directory, as a volume would have it.
#[derive(Default)]
struct Directory {
    files: BTreeMap<Name, ObjectKey>,
    directories: BTreeSet<Name>,
    marker: bool,
}

fn list(bucket: &MemoryBucket, prefix: &Prefix, page: usize) -> Directory {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut directory = Directory::default();
    let mut positions: BTreeMap<Bytes, Name> = BTreeMap::new();
    let mut after = None;
    loop {
        let page = runtime.block_on(bucket.list(&prefix.key, after.as_ref(), true, page)).unwrap();
        for entry in &page.entries {
            let listed = entry.key().as_str().as_bytes();
            let (name, position) = match shown(prefix, entry).unwrap() {
                Shown::File(name) => {
                    let position = position(prefix, name.as_bytes(), false);
                    assert_eq!(position, listed, "position of {name:?}");
                    assert!(directory.files.insert(name.clone(), entry.key().clone()).is_none(), "{name:?} twice");
                    (name, position)
                }
                Shown::Directory(name) => {
                    let position = position(prefix, name.as_bytes(), true);
                    let begins = listed.starts_with(&position[..position.len() - 1]) && listed < &position[..];
                    let long = name.as_bytes().starts_with(LONG.as_bytes());
                    assert!(if long { begins } else { listed == position }, "position of {name:?}: {position:?}");
                    assert!(directory.directories.insert(name.clone()) || long, "{name:?} twice");
                    (name, position)
                }
                Shown::Marker => {
                    assert_eq!(entry.key(), &prefix.key);
                    directory.marker = true;
                    continue;
                }
                Shown::Elsewhere => continue,
            };
            let there = positions.insert(position, name.clone());
            assert!(there.is_none_or(|other| other == name), "two names in one place: {name:?}");
        }
        after = page.entries.last().map(|entry| entry.key().clone());
        if page.end {
            break;
        }
    }
    let both: Vec<Name> =
        directory.files.keys().filter(|name| directory.directories.contains(*name)).cloned().collect();
    for name in both {
        let key = directory.files.remove(&name).unwrap();
        let moved = beside(&name).unwrap();
        assert!(!directory.directories.contains(&moved));
        assert!(directory.files.insert(moved, key).is_none());
    }
    directory
}

/// Every object below `prefix`, by its path.
fn walk(
    bucket: &MemoryBucket,
    prefix: &Prefix,
    path: &mut Vec<Name>,
    page: usize,
    found: &mut BTreeMap<Vec<Name>, ObjectKey>,
) {
    let directory = list(bucket, prefix, page);
    if directory.marker {
        found.insert(path.clone(), prefix.key.clone());
    }
    for (name, key) in directory.files {
        assert_eq!(object_key(prefix, name.as_bytes()), Ok(key.clone()));
        path.push(name);
        assert!(found.insert(path.clone(), key).is_none(), "{path:?} twice");
        path.pop();
    }
    for name in directory.directories {
        let inner = directory_prefix(prefix, name.as_bytes()).unwrap();
        path.push(name);
        walk(bucket, &inner, path, page, found);
        path.pop();
    }
}

fn components() -> impl Strategy<Value = String> {
    let odd = [
        "",
        ".",
        "..",
        "...",
        "a",
        "a",
        "a!",
        "b",
        "%",
        "%@",
        "%@e",
        "%@d",
        "%@dd",
        "%@fa",
        "%@f%@fa",
        "%@q",
        "%@q%@@a",
        "%@l",
        "%@z",
        "%@xff",
        "%@xFF",
        "%@x66",
        "%@x2fff",
        "%@x00ff",
        "%@x254066ff",
        "%@x",
        "\0",
        "a\0%@0",
        "%@\0",
        ".trash",
        ".snapshots",
        "%@h.trash",
        "%@ha",
        "é",
    ];
    let tails = ["", "x", "é", "\u{10ffff}", "xyz", "\0", "%@", "%", "@", ".", "xxxxxxxxxx", "éééééé"];
    let tails = proptest::collection::vec(proptest::sample::select(tails.to_vec()), 0..4);
    let begin = prop_oneof![Just("l"), Just("%@"), Just("\0"), Just("%@xff")];
    let long = (begin, 245..257_usize, tails).prop_map(|(begin, count, tails)| {
        let mut component = begin.repeat(count.div_ceil(begin.len()));
        component.push_str(&tails.concat());
        component
    });
    let very_long = (250..900_usize, "[lé]{1,3}").prop_map(|(count, end)| "l".repeat(count) + &end);
    prop_oneof![
        6 => proptest::sample::select(odd.to_vec()).prop_map(str::to_owned),
        2 => long,
        1 => very_long,
        1 => "[a%@\0é.]{0,5}",
    ]
}

fn prefixes() -> impl Strategy<Value = Prefix> {
    let prefix = proptest::sample::select(vec!["", "p/", "p", "p//", "/"]).prop_map(key);
    (prefix, any::<bool>()).prop_map(|(key, root)| if root { Prefix::volume_root(key) } else { Prefix::new(key) })
}

/// What is left of `text` when it must fit behind `prefix`.
fn cut(prefix: &Prefix, text: &str) -> ObjectKey {
    let text = [prefix.key.as_str(), text].concat();
    key(&text[..text.floor_char_boundary(ObjectKey::BYTES_MAX)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_key_is_shown_once_and_its_path_leads_back(
        prefix in prefixes(),
        keys in proptest::collection::vec((proptest::collection::vec(components(), 1..4), any::<bool>()), 1..12),
        page in 1..5_usize,
    ) {
        let bucket = MemoryBucket::new("b");
        for (components, empty) in keys {
            let key = cut(&prefix, &components.join("/"));
            if !key.as_str().is_empty() {
                bucket.put_object(&key, if empty { "" } else { "bytes" });
            }
        }
        let mut found = BTreeMap::new();
        walk(&bucket, &prefix, &mut Vec::new(), page, &mut found);
        let mut shown: Vec<ObjectKey> = found.into_values().collect();
        shown.sort();
        prop_assert_eq!(shown, bucket.objects().into_keys().collect::<Vec<_>>());
    }

    #[test]
    fn a_name_that_has_a_key_is_the_one_that_is_shown(
        prefix in prefixes(),
        long in proptest::option::of((248..253_usize, "[lé]{0,2}")),
        text in prop_oneof![
            components().prop_map(String::into_bytes),
            components().prop_map(|component| [b"%@q", component.as_bytes()].concat()),
            components().prop_map(|component| [b"%@z", component.as_bytes()].concat()),
            components().prop_map(|component| [b"%@l", component.as_bytes()].concat()),
            components().prop_map(|component| [b"%@f", component.as_bytes()].concat()),
            proptest::collection::vec(any::<u8>(), 1..6),
            (components(), 128..255_u8).prop_map(|(component, byte)| [component.as_bytes(), &[byte]].concat()),
        ],
    ) {
        let prefix = match long {
            None => prefix,
            Some((count, end)) => {
                let name = [LONG, &"l".repeat(count), &end].concat();
                let Ok(prefix) = directory_prefix(&prefix, name.as_bytes()) else { return Ok(()) };
                prefix
            }
        };
        if let Ok(at) = object_key(&prefix, &text) {
            let Shown::File(shown) = shown(&prefix, &object(at, 1)).unwrap() else { panic!("{text:?} is no file") };
            prop_assert!(shown.as_bytes() == text || beside(&shown).unwrap().as_bytes() == text, "{:?}", shown);
        }
        if let Ok(inner) = directory_prefix(&prefix, &text) {
            let deeper = if inner.begun == 0 { "x".to_owned() } else { "\u{10ffff}".repeat(90) };
            if let Some(at) = ObjectKey::new([inner.key.as_str(), &deeper].concat()) {
                prop_assert_eq!(shown(&prefix, &object(at.clone(), 1)), Ok(Shown::Directory(name(&text))));
                let there = shown(&inner, &object(at, 1)).unwrap();
                prop_assert!(matches!(there, Shown::File(_) | Shown::Directory(_)), "{:?}", there);
            }
        }
    }

    #[test]
    fn positions_tell_any_two_names_apart(prefix in prefixes(), names in proptest::collection::btree_set(components(), 2)) {
        let names: Vec<String> = names.into_iter().collect();
        let [one, other] = &names[..] else { unreachable!() };
        // Two names for one object are never there together.
        let key_of = |name: &str| object_key(&prefix, name.as_bytes());
        prop_assume!(key_of(one).is_err() || key_of(one) != key_of(other));
        for (one_is, other_is) in [(false, false), (false, true), (true, true)] {
            let positions = [(one, one_is), (other, other_is)].map(|(name, is)| position(&prefix, name.as_bytes(), is));
            prop_assert_ne!(&positions[0], &positions[1]);
        }
    }

    #[test]
    fn nothing_panics_whatever_it_is_asked(
        text in "[a%@/\0é]{0,40}",
        begun in prop_oneof![0..12_u16, any::<u16>()],
        root: bool,
        name in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            "%@[defhqlzx][0-9a-f%@]{0,300}".prop_map(String::into_bytes),
        ],
        listed in "[a%@/\0é]{0,40}",
        size in 0..2_u64,
    ) {
        let prefix = Prefix { key: key(text.clone()), begun, root };
        let _ = object_key(&prefix, &name);
        let _ = directory_prefix(&prefix, &name);
        position(&prefix, &name, root);
        for listed in [listed.clone(), text + &listed] {
            let _ = shown(&prefix, &object(key(listed.clone()), size));
            let _ = shown(&prefix, &Listed::Prefix(key(listed)));
        }
        if let Ok(name) = Name::new(name) {
            let _ = beside(&name);
        }
    }

    #[test]
    fn plain_names_are_their_own(name in "[^/\0%]{1,60}") {
        prop_assume!(name != "." && name != "..");
        let prefix = below("p/");
        prop_assert_eq!(object_key(&prefix, name.as_bytes()), Ok(key(format!("p/{name}"))));
        prop_assert_eq!(directory_prefix(&prefix, name.as_bytes()), Ok(below(&format!("p/{name}/"))));
    }
}

/// The table of `docs/links-names.md`.
#[test]
fn odd_keys_have_the_names_that_are_documented() {
    let prefix = below("p/");
    for (component, expected) in [
        ("", "%@e"),
        (".", "%@d"),
        ("..", "%@dd"),
        ("%@e", "%@q%@@e"),
        ("a\0b", "%@qa%@0b"),
        ("100%", "100%"),
        (".trash", ".trash"),
    ] {
        let at = key(format!("p/{component}"));
        assert_eq!(object_key(&prefix, expected.as_bytes()), Ok(at.clone()));
        assert_eq!(shown(&prefix, &object(at, 1)), Ok(Shown::File(name(expected))));
        let inner = key(format!("p/{component}/"));
        assert_eq!(shown(&prefix, &Listed::Prefix(inner.clone())), Ok(Shown::Directory(name(expected))));
        assert_eq!(directory_prefix(&prefix, expected.as_bytes()), Ok(Prefix::new(inner)));
    }
    assert_eq!(object_key(&prefix, b"a\xff"), Ok(key("p/%@x61ff")));
    assert_eq!(shown(&prefix, &object(key("p/%@x61ff"), 1)), Ok(Shown::File(name(b"a\xff"))));
    assert_eq!(shown(&prefix, &object(key("p/%@x61"), 1)), Ok(Shown::File(name("%@q%@@x61"))));
    assert_eq!(shown(&prefix, &object(key("p/"), 0)), Ok(Shown::Marker));
    assert_eq!(shown(&prefix, &object(key("p/"), 1)), Ok(Shown::File(name("%@e"))));
    let root = Prefix::volume_root(key("p/"));
    assert_eq!(shown(&root, &object(key("p/.trash"), 1)), Ok(Shown::File(name("%@h.trash"))));
    assert_eq!(object_key(&root, b".trash"), Err(Unmappable::Hidden));
}

#[test]
fn an_object_beside_a_directory_of_its_name_has_two_names_and_one_key() {
    let prefix = below("p/");
    assert_eq!(beside(&name("a")), Ok(name("%@fa")));
    assert_eq!(object_key(&prefix, b"%@fa"), object_key(&prefix, b"a"));
    assert_eq!(object_key(&prefix, b"%@f%@d"), Ok(key("p/.")));
    assert_eq!(beside(&name("%@fa")), Err(Unmappable::Escape));
    assert_eq!(directory_prefix(&prefix, b"%@fa"), Err(Unmappable::Escape));
}

#[test]
fn components_that_are_too_long_are_names_in_names() {
    let prefix = below("p/");
    let component = "l".repeat(252) + &"m".repeat(252) + "n";
    let first = name([LONG, &"l".repeat(252)].concat());
    let second = name([LONG, &"m".repeat(252)].concat());
    let listed = object(key(format!("p/{component}")), 1);
    assert_eq!(shown(&prefix, &listed), Ok(Shown::Directory(first.clone())));
    let prefix = directory_prefix(&prefix, first.as_bytes()).unwrap();
    assert_eq!(shown(&prefix, &listed), Ok(Shown::Directory(second.clone())));
    let prefix = directory_prefix(&prefix, second.as_bytes()).unwrap();
    assert_eq!(prefix.begun, 504);
    assert_eq!(shown(&prefix, &listed), Ok(Shown::File(name("%@zn"))));
    assert_eq!(object_key(&prefix, b"%@zn").as_ref(), Ok(listed.key()));
    // A component that fits is in the directory that it is named in, and not here.
    assert_eq!(object_key(&prefix, b"n"), Err(Unmappable::Begun));
    let plain = directory_prefix(&below("p/"), first.as_bytes()).unwrap();
    assert_eq!(shown(&plain, &object(key(format!("p/{}", "l".repeat(255))), 1)), Ok(Shown::Elsewhere));
}

#[test]
fn names_that_have_no_key_say_why() {
    let prefix = below(&"p".repeat(1000));
    assert_eq!(object_key(&prefix, &[b'a'; 25]), Err(Unmappable::TooLong));
    assert_eq!(directory_prefix(&prefix, &[b'a'; 24]), Err(Unmappable::TooLong));
    let prefix = below("");
    assert_eq!(object_key(&prefix, b"%@e"), Err(Unmappable::Escape));
    assert_eq!(object_key(&prefix, b"%@y"), Err(Unmappable::Escape));
    assert_eq!(object_key(&prefix, b"%@qa"), Err(Unmappable::Escape));
    assert_eq!(object_key(&prefix, b"%@\xff"), Err(Unmappable::Escape));
    assert_eq!(object_key(&prefix, &[b'a'; 256]), Err(Unmappable::NoName));
    assert_eq!(directory_prefix(&prefix, &[b'a'; 253]), Err(Unmappable::LongDirectory));
    assert_eq!(shown(&prefix, &Listed::Prefix(key("a"))), Err(Unmappable::Outside));
    assert_eq!(shown(&below("p/"), &object(key("q"), 1)), Err(Unmappable::Outside));
}
