//! What the command line asks for: options of this program, and those of libtest,
//! which `cargo test` hands to every target and `cargo nextest` lists and selects
//! tests with.

use std::ffi::OsString;

use crate::faults::Kind;
use crate::scenario::Place;

/// Of libtest, without a meaning here.
const IGNORED_FLAGS: [&str; 7] =
    ["--nocapture", "--no-capture", "--show-output", "--quiet", "-q", "--test", "--include-ignored"];
/// The same, followed by a value.
const IGNORED_VALUES: [&str; 5] = ["--test-threads", "--color", "--format", "--logfile", "-Z"];

#[derive(Default, Debug)]
pub struct Options {
    pub steps: Option<u64>,
    pub seed: Option<u64>,
    pub mounts: Option<usize>,
    pub workers: Option<usize>,
    pub no_faults: bool,
    /// Of the long scenario: these instead of all.
    pub faults: Option<Vec<Kind>>,
    pub place: Option<Place>,
    pub alone: bool,
    pub may_lose_unflushed: bool,
    /// Name the cases instead of running them.
    pub is_list: bool,
    words: Vec<String>,
    skipped: Vec<String>,
    is_exact: bool,
    /// Only cases that are left out otherwise. There are none.
    only_ignored: bool,
}

impl Options {
    pub fn parse(arguments: &[OsString]) -> Result<Options, String> {
        let mut options = Options::default();
        let mut arguments = arguments.iter().map(|argument| argument.to_string_lossy());
        while let Some(argument) = arguments.next() {
            let (name, mut value) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with('-') => (name, Some(value.to_owned())),
                _ => (argument.as_ref(), None),
            };
            let mut text = || {
                let value = value.take().or_else(|| arguments.next().map(|value| value.into_owned()));
                value.ok_or_else(|| format!("{name} needs a value"))
            };
            let number = |text: String| text.parse::<u64>().map_err(|_| format!("{name} needs a number"));
            match name {
                "--steps" => options.steps = Some(number(text()?)?),
                "--seed" => options.seed = Some(number(text()?)?),
                "--mounts" => match number(text()?)? {
                    mounts @ 2..=4 => options.mounts = Some(mounts as usize),
                    other => return Err(format!("--mounts {other}: 2 to 4")),
                },
                "--workers" => match number(text()?)? {
                    workers @ 1..=4 => options.workers = Some(workers as usize),
                    other => return Err(format!("--workers {other}: 1 to 4 on each mount")),
                },
                "--no-faults" => options.no_faults = true,
                "--faults" => options.faults = Some(kinds(&text()?)?),
                "--s3" => options.place = Some(Place::S3),
                "--linked" => options.place = Some(Place::Link),
                "--alone" => options.alone = true,
                "--may-lose-unflushed" => options.may_lose_unflushed = true,
                "--list" => options.is_list = true,
                "--exact" => options.is_exact = true,
                "--ignored" => options.only_ignored = true,
                "--skip" => options.skipped.push(text()?),
                flag if IGNORED_FLAGS.contains(&flag) => {}
                flag if IGNORED_VALUES.contains(&flag) => drop(text()?),
                word if !word.starts_with('-') => options.words.push(argument.into_owned()),
                other => {
                    return Err(format!(
                        "no option {other}: there are --steps, --seed, --mounts, --workers, --no-faults, --faults, \
                         --s3, --linked, --alone, --may-lose-unflushed, and of libtest --list, --exact, --skip, words, and what says how to print"
                    ));
                }
            }
        }
        Ok(options)
    }

    /// Whether the case of this name is meant.
    pub fn selects(&self, name: &str) -> bool {
        let fits = |word: &String| if self.is_exact { name == word } else { name.contains(word) };
        !self.only_ignored && (self.words.is_empty() || self.words.iter().any(fits)) && !self.skipped.iter().any(fits)
    }
}

/// Kinds of faults, by their names.
fn kinds(names: &str) -> Result<Vec<Kind>, String> {
    let kind = |name: &str| Kind::ALL.into_iter().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(name));
    let known = || Kind::ALL.map(|kind| format!("{kind:?}")).join(", ");
    names.split(',').map(|name| kind(name).ok_or_else(|| format!("--faults {name}: one of {}", known()))).collect()
}

/// What must hold of this file.
pub const TESTS: [(&str, fn()); 1] = [("the options of libtest are understood", libtest)];

fn libtest() {
    let parse = |line: &[&str]| Options::parse(&line.iter().map(OsString::from).collect::<Vec<_>>());
    let selects = |line: &[&str], name: &str| parse(line).unwrap().selects(name);
    assert!(selects(&[], "two mounts"));
    assert!(selects(&["--nocapture", "--test-threads", "1", "--color=never"], "two mounts"));
    assert!(selects(&["mounts", "kills"], "two mounts"));
    assert!(!selects(&["kills"], "two mounts"));
    assert!(!selects(&["--skip", "mounts"], "two mounts") && selects(&["--skip", "kills"], "two mounts"));
    assert!(selects(&["two mounts", "--exact"], "two mounts") && !selects(&["mounts", "--exact"], "two mounts"));
    assert!(!selects(&["--ignored"], "two mounts") && selects(&["--include-ignored"], "two mounts"));
    assert!(parse(&["--list", "--format", "terse"]).unwrap().is_list);
    assert_eq!(parse(&["--steps=5", "--seed", "7"]).unwrap().seed, Some(7));
    assert_eq!(parse(&["--faults", "crash,Kill"]).unwrap().faults, Some(vec![Kind::Crash, Kind::Kill]));
    for wrong in [&["--faults", "rain"][..], &["--steps"], &["--steps", "many"], &["--mounts", "9"], &["--unheard-of"]]
    {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}
