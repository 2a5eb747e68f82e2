//! Which name of a directory stands for which key: a bijection that can be computed both ways without asking the bucket.
//!
//! A key is cut at its `/` into components, and a component is the name of a file, or of a directory when a `/` follows. Nearly
//! all are names as they are. For those that cannot be, a name that begins with [`ESCAPE`] stands, and so that these are never
//! mistaken, a component that begins so itself is written with one, too. `docs/links-names.md` has the table.
//!
//! Invariants, each with a property test: every key below a prefix is shown exactly once ([`shown`]), at its own path, which leads
//! back to it ([`object_key`], [`directory_prefix`]); and what is shown stands in the bucket's order ([`position`]).
//!
//! What has no name of its own is the object `a` while there is also a directory `a`, since keys continue with `a/`: which of its two names
//! it has, `a` or [`beside`] of it, depends on whether that directory is there. Both lead to its key.

use atoll_types::limits::NAME_BYTES_MAX;
use atoll_types::{InodeId, Name};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::quoting::{quoted, quoted_len, unquoted};
use crate::{Listed, ObjectKey};

/// Begins each name that stands for something else than itself.
pub const ESCAPE: &str = "%@";

/// The empty component.
const EMPTY: &str = "%@e";
/// `.` and `..`, which every directory has already.
const DOT: &str = "%@d";
const DOT_DOT: &str = "%@dd";
/// Before the name of an object that has a directory of its name beside it.
const BESIDE: &str = "%@f";
/// Before a component that the volume's root has for something else.
const HIDDEN: &str = "%@h";
/// Before a component, quoted, that begins with [`ESCAPE`] or has a NUL in it.
const QUOTED: &str = "%@q";
/// Before a beginning, quoted, of components that are too long for a name: a directory that holds how they go on.
const LONG: &str = "%@l";
/// Before the end, quoted, of a component that is too long.
const LAST: &str = "%@z";
/// In a key, not in a name: before the bytes, as hexadecimal digits, of a name that is not UTF-8.
const BYTES: &str = "%@x";

/// Room for the two characters of [`ESCAPE`] and the one that follows.
const MARK_BYTES: usize = BESIDE.len();
/// Directories with longer names have no prefix: so that the object beside one always has a name.
pub const DIRECTORY_NAME_BYTES_MAX: usize = NAME_BYTES_MAX - MARK_BYTES;
/// Of a name that begins with [`LONG`], behind that.
const CHUNK_BYTES_MAX: usize = NAME_BYTES_MAX - MARK_BYTES;

/// What the keys below a linked directory begin with.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Prefix {
    /// Anything; it ends with `/` unless it is where a link begins, or `begun`.
    pub key: ObjectKey,
    /// How many bytes at the end of `key` are the beginning of components that are too long for a name. 0 but in the directories that
    /// `%@l…` names, and those show such components alone.
    pub begun: u16,
    /// The directory is its volume's root, which has names that no listing shows.
    pub root: bool,
}

impl Prefix {
    /// Of any directory but the volume's root.
    pub fn new(key: ObjectKey) -> Prefix {
        Prefix { key, begun: 0, root: false }
    }

    pub fn volume_root(key: ObjectKey) -> Prefix {
        Prefix { key, begun: 0, root: true }
    }

    /// The beginning of the components below.
    fn beginning(&self) -> &str {
        let key = self.key.as_str();
        key.get(key.len().saturating_sub(usize::from(self.begun))..).unwrap_or_default()
    }

    fn join(&self, tail: &str, end: &str) -> Result<ObjectKey, Unmappable> {
        ObjectKey::new([self.key.as_str(), tail, end].concat()).ok_or(Unmappable::TooLong)
    }
}

/// Why a name stands for no key: what it names stays in the volume alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unmappable {
    #[error("its key would be longer than the 1,024 bytes that S3 allows")]
    TooLong,
    #[error("it begins with %@, and stands for no key")]
    Escape,
    #[error("a directory in a bucket has a name of at most 252 bytes")]
    LongDirectory,
    #[error("its directory holds only the ends of keys that are too long for a name")]
    Begun,
    #[error("the root of a volume has this name for something else")]
    Hidden,
    #[error("it is no name of a file")]
    NoName,
    /// Of a listing's entry: the bucket answered something else than was asked.
    #[error("the key is not below the prefix that was listed")]
    Outside,
}

/// The name under which an entry of a listing is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shown {
    /// The name is [`beside`] of this one while the directory has a [`Shown::Directory`] of this name.
    File(Name),
    /// Several entries may show the same one when it begins with `%@l`.
    Directory(Name),
    /// The object of the directory itself, without bytes: it is there so that the directory is.
    Marker,
    /// Not an entry of this directory, but of the one from which it was begun.
    Elsewhere,
}

/// A name on the way to a component. Most have one, those that are too long have several.
struct Step {
    /// Bytes of the component before what this name stands for.
    before: usize,
    name: Vec<u8>,
    /// The component goes on in a directory of this name.
    goes_on: bool,
}

/// The key of the file `name` in the directory of `prefix`.
pub fn object_key(prefix: &Prefix, name: &[u8]) -> Result<ObjectKey, Unmappable> {
    let name = match name.strip_prefix(BESIDE.as_bytes()) {
        Some(inner) if inner.starts_with(BESIDE.as_bytes()) || inner.len() > DIRECTORY_NAME_BYTES_MAX => {
            return Err(Unmappable::Escape);
        }
        Some(inner) => inner,
        None => name,
    };
    let key = prefix.join(&tail(prefix, name, NAME_BYTES_MAX)?, "")?;
    // The one key that S3 does not allow.
    if key.as_str().is_empty() { Err(Unmappable::Escape) } else { Ok(key) }
}

/// The prefix of the directory `name` in the directory of `prefix`.
pub fn directory_prefix(prefix: &Prefix, name: &[u8]) -> Result<Prefix, Unmappable> {
    let Some(chunk) = name.strip_prefix(LONG.as_bytes()) else {
        return prefix.join(&tail(prefix, name, DIRECTORY_NAME_BYTES_MAX)?, "/").map(Prefix::new);
    };
    let chunk = std::str::from_utf8(chunk).ok().and_then(unquoted).ok_or(Unmappable::Escape)?;
    // It is there for some key if it is for one that goes on with the widest of characters.
    let widest = "\u{10ffff}".repeat(NAME_BYTES_MAX);
    let component = [prefix.beginning(), &chunk, &widest].concat();
    match step_at(prefix, &component, NAME_BYTES_MAX) {
        Some(step) if step.name == name && step.goes_on => {
            let begun = prefix.begun + chunk.len() as u16;
            Ok(Prefix { key: prefix.join(&chunk, "")?, begun, root: false })
        }
        _ => Err(Unmappable::Escape),
    }
}

/// What a listing of `prefix` shows with this entry. It need not be delimited: what lies deeper shows the directory.
pub fn shown(prefix: &Prefix, listed: &Listed) -> Result<Shown, Unmappable> {
    let rest = listed.key().as_str().strip_prefix(prefix.key.as_str()).ok_or(Unmappable::Outside)?;
    let (tail, is_directory) = match (rest.split_once('/'), listed) {
        (Some((tail, _)), _) => (tail, true),
        (None, Listed::Object(_, object)) if rest.is_empty() && prefix.begun == 0 && object.size == 0 => {
            return Ok(Shown::Marker);
        }
        (None, Listed::Object(..)) => (rest, false),
        (None, Listed::Prefix(_)) => return Err(Unmappable::Outside),
    };
    let longest = if is_directory { DIRECTORY_NAME_BYTES_MAX } else { NAME_BYTES_MAX };
    let Some(step) = step_at(prefix, &[prefix.beginning(), tail].concat(), longest) else {
        return Ok(Shown::Elsewhere);
    };
    let name = Name::new(step.name).map_err(|_| Unmappable::NoName)?;
    Ok(if is_directory || step.goes_on { Shown::Directory(name) } else { Shown::File(name) })
}

/// The name of the object `name` while there is a directory `name`. Every directory that a listing shows has one for the object of its name.
pub fn beside(name: &Name) -> Result<Name, Unmappable> {
    let bytes = name.as_bytes();
    if bytes.len() > DIRECTORY_NAME_BYTES_MAX {
        return Err(Unmappable::LongDirectory);
    }
    if bytes.starts_with(BESIDE.as_bytes()) || bytes.starts_with(LONG.as_bytes()) {
        return Err(Unmappable::Escape);
    }
    Name::new([BESIDE.as_bytes(), bytes].concat()).map_err(|_| Unmappable::NoName)
}

/// Where an entry stands among the bucket's keys: the key that a listing has for it. All keys that show a directory `%@l…` come
/// before its position, and begin with what stands before its last byte. What has no key stands where it might have one.
pub fn position(prefix: &Prefix, name: &[u8], is_directory: bool) -> Bytes {
    /// Bytes that no UTF-8 has: these positions are no keys, and follow those that begin so.
    const BEHIND_CHUNK: &[u8] = &[0xff];
    const UNMAPPABLE: &[u8] = &[0xfe];
    let key = if is_directory {
        directory_prefix(prefix, name)
            .map(|prefix| (prefix.key, if prefix.begun == 0 { &[][..] } else { BEHIND_CHUNK }))
    } else {
        object_key(prefix, name).map(|key| (key, &[][..]))
    };
    match key {
        Ok((key, end)) => [key.as_str().as_bytes(), end].concat().into(),
        Err(_) => [prefix.key.as_str().as_bytes(), name, UNMAPPABLE].concat().into(),
    }
}

/// The part of a component, behind the prefix's key, that ends with what `name` stands for. `longest` is what a name may have in
/// bytes.
fn tail(prefix: &Prefix, name: &[u8], longest: usize) -> Result<String, Unmappable> {
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(Unmappable::NoName);
    }
    if prefix.begun != 0 && !name.starts_with(LAST.as_bytes()) {
        return Err(Unmappable::Begun);
    }
    let tail = meant(name).ok_or(Unmappable::Escape)?;
    // No two names for one key: only the name that a listing shows is one.
    match step_at(prefix, &[prefix.beginning(), &tail].concat(), longest) {
        Some(step) if step.name == name && !step.goes_on => Ok(tail),
        _ if name.starts_with(ESCAPE.as_bytes()) => Err(Unmappable::Escape),
        _ if name.len() > NAME_BYTES_MAX => Err(Unmappable::NoName),
        _ if name.len() > longest => Err(Unmappable::LongDirectory),
        _ => Err(Unmappable::Hidden),
    }
}

/// The text that a name stands for, if it does.
fn meant(name: &[u8]) -> Option<String> {
    let Ok(text) = std::str::from_utf8(name) else {
        return (!name.starts_with(ESCAPE.as_bytes())).then(|| [BYTES, &hex::encode(name)].concat());
    };
    if !text.starts_with(ESCAPE) {
        return Some(text.to_owned());
    }
    match text {
        EMPTY => Some(String::new()),
        DOT => Some(".".to_owned()),
        DOT_DOT => Some("..".to_owned()),
        _ => match text.split_at_checked(MARK_BYTES)? {
            (HIDDEN, component) => Some(component.to_owned()),
            (QUOTED | LAST, component) => unquoted(component),
            _ => None,
        },
    }
}

/// The step to `component` that is an entry of the directory of `prefix`.
fn step_at(prefix: &Prefix, component: &str, longest: usize) -> Option<Step> {
    steps(component, prefix.root, longest).into_iter().find(|step| step.before == usize::from(prefix.begun))
}

/// The names on the way to `component`, where the last one may have `longest` bytes.
fn steps(component: &str, root: bool, longest: usize) -> Vec<Step> {
    let name = single(component, root);
    if name.len() <= longest {
        return vec![Step { before: 0, name, goes_on: false }];
    }
    let mut steps = Vec::new();
    let mut before = 0;
    loop {
        let rest = &component[before..];
        if LAST.len() + quoted_len(rest) <= longest {
            steps.push(Step { before, name: [LAST, &quoted(rest)].concat().into(), goes_on: false });
            return steps;
        }
        let chunk = chunk(rest);
        steps.push(Step { before, name: [LONG, &quoted(chunk)].concat().into(), goes_on: true });
        before += chunk.len();
    }
}

/// The longest beginning of `text` that a name can hold.
fn chunk(text: &str) -> &str {
    let ends = text.char_indices().map(|(start, character)| start + character.len_utf8());
    let end = ends.take_while(|&end| quoted_len(&text[..end]) <= CHUNK_BYTES_MAX).last();
    &text[..end.unwrap_or(0)]
}

/// The name of `component`, however long.
fn single(component: &str, root: bool) -> Vec<u8> {
    match component {
        "" => EMPTY.into(),
        "." => DOT.into(),
        ".." => DOT_DOT.into(),
        _ if root && is_hidden(component) => [HIDDEN, component].concat().into(),
        _ => match not_utf8(component) {
            Some(bytes) => bytes,
            None if component.starts_with(ESCAPE) || component.contains('\0') => {
                [QUOTED, &quoted(component)].concat().into()
            }
            None => component.into(),
        },
    }
}

fn is_hidden(component: &str) -> bool {
    Name::new(component.as_bytes().to_vec()).is_ok_and(|name| name.is_hidden(InodeId::ROOT))
}

/// The bytes of a name that is not UTF-8, where `component` is what [`meant`] makes of one.
fn not_utf8(component: &str) -> Option<Vec<u8>> {
    let digits = component.strip_prefix(BYTES)?;
    let bytes = hex::decode(digits).ok()?;
    let name = Name::new(bytes).ok()?;
    (meant(name.as_bytes()).as_deref() == Some(component) && std::str::from_utf8(name.as_bytes()).is_err())
        .then(|| name.as_bytes().to_vec())
}

#[cfg(test)]
mod tests;
