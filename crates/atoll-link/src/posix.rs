//! Modes, owners and times in the metadata of objects.
//!
//! Written are the keys of the AWS file services: File Gateway, DataSync and FSx for Lustre share them (the FSx guide's page "POSIX metadata support for
//! data repositories" defines them, with symlinks as objects that hold their target). Read are also those of s3fs, geesefs and
//! `rclone --metadata`, which are called the same and written in different forms, and those of `gsutil -P`.
//!
//! A key of another tool that is there is brought up to date by [`write()`], never added: a stale `mtime` would make `rclone sync` take a new object for
//! the old one. So when it differs from ours, the other tool changed it since, and its word counts.

use atoll_types::{Attributes, FileKind, Mode, Timestamp};

use crate::Headers;

const PERMISSIONS: &str = "file-permissions";
const OWNER: &str = "file-owner";
const GROUP: &str = "file-group";
const MODIFIED: &str = "file-mtime";
const ACCESSED: &str = "file-atime";

/// Where others have what we have under the keys above.
const FOREIGN_MODE: [&str; 2] = ["mode", "goog-reserved-posix-mode"];
const FOREIGN_OWNER: [&str; 2] = ["uid", "goog-reserved-posix-uid"];
const FOREIGN_GROUP: [&str; 2] = ["gid", "goog-reserved-posix-gid"];
const FOREIGN_MODIFIED: [&str; 2] = ["mtime", "goog-reserved-file-mtime"];
const FOREIGN_ACCESSED: [&str; 2] = ["atime", "goog-reserved-file-atime"];

/// What an object's metadata says of the file that it is. Where it says nothing, the link's defaults hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Posix {
    /// [`FileKind::Symlink`]: the object's bytes are the target. Never a device, a FIFO or a socket: a bucket makes none.
    pub kind: FileKind,
    /// Without set-uid and set-gid: whoever may write into a bucket is not thereby root on a machine that mounts it.
    pub permissions: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub modified: Option<Timestamp>,
    pub accessed: Option<Timestamp>,
}

/// Unknown and malformed values are ignored.
pub fn read(headers: &Headers) -> Posix {
    let mode = first(headers, &FOREIGN_MODE, |text| foreign_mode(text).map(|(mode, _)| mode))
        .or_else(|| own(headers, PERMISSIONS, octal));
    let kind = match mode.and_then(Mode::kind) {
        Some(kind @ (FileKind::Symlink | FileKind::Directory)) => kind,
        _ => FileKind::Regular,
    };
    let permissions = mode.map(|mode| Mode::new(kind, mode.0).without_privileges().permissions() as u16);
    let owners = has_foreign_owners(headers);
    let id =
        |foreign: &[&str], key| owners.then(|| first(headers, foreign, id)).flatten().or_else(|| own(headers, key, id));
    Posix {
        kind,
        permissions,
        uid: id(&FOREIGN_OWNER, OWNER),
        gid: id(&FOREIGN_GROUP, GROUP),
        modified: when(headers, &FOREIGN_MODIFIED, MODIFIED),
        accessed: when(headers, &FOREIGN_ACCESSED, ACCESSED),
    }
}

/// Set what the attributes say, and keep everything else.
pub fn write(headers: &mut Headers, attributes: &Attributes) {
    if has_foreign_owners(headers) {
        update(headers, &FOREIGN_OWNER, |text| id(text).map(|_| attributes.uid.to_string()));
        update(headers, &FOREIGN_GROUP, |text| id(text).map(|_| attributes.gid.to_string()));
    }
    update(headers, &FOREIGN_MODE, |text| {
        foreign_mode(text).map(|(_, form)| match form {
            Form::Decimal => attributes.mode.0.to_string(),
            Form::Octal => format!("{:o}", attributes.mode.0),
        })
    });
    update(headers, &FOREIGN_MODIFIED, |text| seconds(text).map(|(_, form)| as_seconds(attributes.modified, form)));
    update(headers, &FOREIGN_ACCESSED, |text| seconds(text).map(|(_, form)| as_seconds(attributes.accessed, form)));
    let ours = [
        (PERMISSIONS, format!("0{:o}", attributes.mode.0)),
        (OWNER, attributes.uid.to_string()),
        (GROUP, attributes.gid.to_string()),
        (MODIFIED, as_service_time(attributes.modified)),
        (ACCESSED, as_service_time(attributes.accessed)),
    ];
    headers.metadata.extend(ours.map(|(key, value)| (key.to_owned(), value)));
}

/// For a new file, by the end of its name.
pub fn guess_content_type(name: &[u8]) -> Option<&'static str> {
    let name = std::str::from_utf8(name).ok()?;
    let (stem, extension) = name.rsplit_once('.')?;
    if stem.is_empty() { None } else { mime_guess::from_ext(extension).first_raw() }
}

fn own<T>(headers: &Headers, key: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    headers.metadata.get(key).and_then(|text| parse(text))
}

fn first<T>(headers: &Headers, keys: &[&str], parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    keys.iter().find_map(|key| own(headers, key, &parse))
}

fn update(headers: &mut Headers, keys: &[&str], change: impl Fn(&str) -> Option<String>) {
    for &key in keys {
        if let Some(text) = headers.metadata.get_mut(key)
            && let Some(changed) = change(text)
        {
            *text = changed;
        }
    }
}

/// `uid` alone may be anybody's: it is an owner where there is also a mode or a time of the same tools.
fn has_foreign_owners(headers: &Headers) -> bool {
    first(headers, &FOREIGN_MODE, foreign_mode).is_some() || first(headers, &FOREIGN_MODIFIED, seconds).is_some()
}

enum Form {
    Decimal,
    Octal,
}

/// s3fs and geesefs write decimal digits, rclone and gsutil octal ones. No number is a file, a directory or a symlink in both.
fn foreign_mode(text: &str) -> Option<(Mode, Form)> {
    let decimal = || digits(text)?.parse().ok().map(Mode).filter(|mode| typed(*mode));
    if !text.starts_with('0')
        && let Some(mode) = decimal()
    {
        return Some((mode, Form::Decimal));
    }
    octal(text).map(|mode| (mode, Form::Octal))
}

/// With a type, or permissions alone.
fn octal(text: &str) -> Option<Mode> {
    let mode = Mode(u32::from_str_radix(digits(text)?, 8).ok()?);
    (typed(mode) || mode.0 <= Mode::PERMISSION_MASK).then_some(mode)
}

fn typed(mode: Mode) -> bool {
    mode.kind().is_some() && mode.0 & !(Mode::TYPE_MASK | Mode::PERMISSION_MASK) == 0
}

/// The largest number means "leave it" in `chown`: nobody has it.
fn id(text: &str) -> Option<u32> {
    digits(text)?.parse().ok().filter(|&id| id != u32::MAX)
}

/// Without the sign that `parse` would take.
fn digits(text: &str) -> Option<&str> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text)
}

const NANOS_PER_SECOND: i128 = Timestamp::NANOS_PER_SECOND as i128;
const NANOS_PER_MILLISECOND: i128 = NANOS_PER_SECOND / 1000;

/// Nanoseconds when it ends with `ns`, else milliseconds.
fn service_time(text: &str) -> Option<Timestamp> {
    match text.strip_suffix("ns") {
        Some(nanos) => time(nanos, 1),
        None => time(text, NANOS_PER_MILLISECOND),
    }
}

fn as_service_time(at: Timestamp) -> String {
    format!("{}ns", nanos(at))
}

/// geesefs reads whole seconds only, rclone writes a fraction.
enum Precision {
    Whole,
    Fraction,
}

fn seconds(text: &str) -> Option<(Timestamp, Precision)> {
    let precision = if text.contains('.') { Precision::Fraction } else { Precision::Whole };
    Some((time(text, NANOS_PER_SECOND)?, precision))
}

fn as_seconds(at: Timestamp, precision: Precision) -> String {
    let nanos = nanos(at);
    let sign = if nanos < 0 { "-" } else { "" };
    let (seconds, fraction) = (nanos.abs() / NANOS_PER_SECOND, nanos.abs() % NANOS_PER_SECOND);
    match precision {
        Precision::Whole => at.seconds.to_string(),
        Precision::Fraction => format!("{sign}{seconds}.{fraction:09}"),
    }
}

/// The other tool's time, but for ours when that is the same second and the other tool has no room for the rest.
fn when(headers: &Headers, foreign: &[&str], key: &str) -> Option<Timestamp> {
    let ours = own(headers, key, service_time);
    match first(headers, foreign, seconds) {
        Some((theirs, Precision::Whole)) => Some(ours.filter(|ours| ours.seconds == theirs.seconds).unwrap_or(theirs)),
        Some((theirs, Precision::Fraction)) => Some(theirs),
        None => ours,
    }
}

fn nanos(at: Timestamp) -> i128 {
    i128::from(at.seconds) * NANOS_PER_SECOND + i128::from(at.nanos)
}

/// A decimal number of units of so many nanoseconds. What is finer than a nanosecond is cut off.
fn time(text: &str, unit: i128) -> Option<Timestamp> {
    const FRACTION_DIGITS: usize = 9;
    let (sign, number) = text.strip_prefix('-').map_or((1, text), |number| (-1, number));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() {
        return None;
    }
    let whole: i128 = digits(whole)?.parse().ok()?;
    let fraction: i128 = format!("{:0<9.9}", digits(fraction)?).parse().ok()?;
    let fraction = fraction.checked_mul(unit)? / 10_i128.pow(FRACTION_DIGITS as u32);
    let nanos = whole.checked_mul(unit)?.checked_add(fraction)?.checked_mul(sign)?;
    let seconds = nanos.div_euclid(NANOS_PER_SECOND).try_into().ok()?;
    Some(Timestamp { seconds, nanos: nanos.rem_euclid(NANOS_PER_SECOND) as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_types::InodeId;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let metadata = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Headers { metadata, ..Headers::default() }
    }

    fn at(seconds: i64, nanos: u32) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos })
    }

    #[test]
    fn metadata_of_aws_file_services_is_read() {
        let posix = read(&headers(&[
            ("file-permissions", "0120777"),
            ("file-owner", "1000"),
            ("file-group", "0"),
            ("file-mtime", "1595002920000000001ns"),
            ("file-atime", "1595002920123"),
            ("user-agent", "aws-fsx-lustre"),
        ]));
        let expected = Posix {
            kind: FileKind::Symlink,
            permissions: Some(0o777),
            uid: Some(1000),
            gid: Some(0),
            modified: at(1_595_002_920, 1),
            accessed: at(1_595_002_920, 123_000_000),
        };
        assert_eq!(posix, expected);
    }

    #[test]
    fn metadata_of_s3fs_rclone_and_gsutil_is_read() {
        let s3fs = read(&headers(&[("mode", "33188"), ("uid", "7"), ("gid", "8"), ("mtime", "1700000000")]));
        assert_eq!((s3fs.permissions, s3fs.uid, s3fs.gid), (Some(0o644), Some(7), Some(8)));
        assert_eq!(s3fs.modified, at(1_700_000_000, 0));
        let rclone = read(&headers(&[("mode", "100664"), ("mtime", "1700000000.123456789")]));
        assert_eq!((rclone.permissions, rclone.modified), (Some(0o664), at(1_700_000_000, 123_456_789)));
        let gsutil = read(&headers(&[("goog-reserved-posix-mode", "750"), ("goog-reserved-posix-gid", "9")]));
        assert_eq!((gsutil.permissions, gsutil.gid), (Some(0o750), Some(9)));
        assert_eq!(read(&headers(&[("mode", "41471")])).kind, FileKind::Symlink);
    }

    #[test]
    fn what_another_tool_changed_since_counts() {
        let ours = [("file-permissions", "0100600"), ("file-mtime", "7000000001ns")];
        let read_with = |theirs: &[(&str, &str)]| read(&headers(&[&ours[..], theirs].concat()));
        assert_eq!(read_with(&[("mode", "33188")]).permissions, Some(0o644));
        assert_eq!(read_with(&[("mtime", "7")]).modified, at(7, 1));
        assert_eq!(read_with(&[("mtime", "7.0")]).modified, at(7, 0));
        assert_eq!(read_with(&[("mtime", "8")]).modified, at(8, 0));
    }

    #[test]
    fn what_makes_no_sense_is_ignored() {
        let nothing = read(&Headers::default());
        let pairs = [
            ("mode", "dark"),
            ("file-permissions", "0999"),
            ("uid", "12"),
            ("file-owner", "4294967295"),
            ("file-group", "+5"),
            ("mtime", "1e9"),
            ("file-mtime", ".5ns"),
            ("atime", "2006-01-02T15:04:05Z"),
        ];
        assert_eq!(read(&headers(&pairs)), nothing);
        let enormous = "9".repeat(400);
        assert_eq!(read(&headers(&[("mtime", &enormous), ("mode", &enormous), ("file-atime", &enormous)])), nothing);
    }

    #[test]
    fn a_bucket_gives_no_privileges_and_makes_no_devices() {
        let setuid = read(&headers(&[("file-permissions", "0106755"), ("file-owner", "0")]));
        assert_eq!(setuid.permissions, Some(0o755));
        let device = read(&headers(&[("file-permissions", "0020666")]));
        assert_eq!((device.kind, device.permissions), (FileKind::Regular, Some(0o666)));
    }

    #[test]
    fn content_types_follow_the_end_of_the_name() {
        assert_eq!(guess_content_type(b"a.b.JSON"), Some("application/json"));
        assert_eq!(guess_content_type("höhe.html".as_bytes()), Some("text/html"));
        for unknown in [&b".html"[..], b"html", b"a.", b"a.nosuchtype", b"\xff.html", b""] {
            assert_eq!(guess_content_type(unknown), None, "{unknown:?}");
        }
    }

    fn times() -> impl Strategy<Value = Timestamp> {
        (any::<i64>(), 0..Timestamp::NANOS_PER_SECOND).prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
    }

    prop_compose! {
        fn attributes()(
            kind in prop_oneof![Just(FileKind::Regular), Just(FileKind::Symlink), Just(FileKind::Directory)],
            permissions in 0..0o1000_u32,
            uid in 0..u32::MAX,
            gid in 0..u32::MAX,
            accessed in times(),
            modified in times(),
        ) -> Attributes {
            Attributes {
                inode: InodeId::ROOT,
                mode: Mode::new(kind, permissions),
                links: 1,
                uid,
                gid,
                device: 0,
                size: 0,
                allocated: 0,
                accessed,
                modified,
                changed: modified,
                created: modified,
                quota_root: InodeId::NONE,
            }
        }
    }

    /// Of our own and of other tools, well and badly formed.
    fn metadata() -> impl Strategy<Value = Vec<(String, String)>> {
        let keys =
            [PERMISSIONS, OWNER, MODIFIED, "mode", "uid", "gid", "mtime", "atime", "goog-reserved-posix-mode", "x"];
        let values = prop_oneof![
            "[0-9]{1,20}",
            "-?[0-9]{1,12}\\.[0-9]{0,12}",
            "0?1[02]0[0-7]{3}",
            Just("33188".to_owned()),
            ".{0,8}",
        ];
        proptest::collection::vec((proptest::sample::select(keys.to_vec()).prop_map(str::to_owned), values), 0..8)
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_whatever_other_tools_left(attributes in attributes(), left in metadata()) {
            let mut headers = Headers { content_type: Some("a/b".to_owned()), ..Headers::default() };
            headers.metadata.extend(left);
            let before = headers.clone();
            write(&mut headers, &attributes);
            let expected = Posix {
                kind: attributes.kind(),
                permissions: Some(attributes.mode.permissions() as u16),
                uid: Some(attributes.uid),
                gid: Some(attributes.gid),
                modified: Some(attributes.modified),
                accessed: Some(attributes.accessed),
            };
            prop_assert_eq!(read(&headers), expected);
            prop_assert_eq!(headers.metadata.get("x"), before.metadata.get("x"));
            for (key, value) in &headers.metadata {
                prop_assert!(before.metadata.contains_key(key) || key.starts_with("file-"), "{} = {}", key, value);
            }
            headers.metadata = before.metadata.clone();
            prop_assert_eq!(headers, before);
        }

        #[test]
        fn no_metadata_and_no_name_panics(pairs in proptest::collection::btree_map(".{0,12}|mode|uid|mtime|file-mtime", ".{0,40}", 0..6), name: Vec<u8>) {
            read(&Headers { metadata: pairs, ..Headers::default() });
            guess_content_type(&name);
        }
    }
}
