//! What is fixed of a link between a directory and a bucket.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{ObjectKey, QueueUrl};

/// How soon what others change in a bucket is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freshness {
    /// Every lookup and listing asks the bucket.
    #[default]
    Strong,
    /// Nobody else changes it: what was seen stays as it was.
    Frozen,
    /// What was seen stays as it was, until a notification names it or it was confirmed so long ago.
    Events { recheck_seconds: u32 },
}

/// Bounds of [`Freshness::Events`]' time.
pub const RECHECK_SECONDS_MIN: u32 = 1;
pub const RECHECK_SECONDS_MAX: u32 = 24 * 60 * 60;
pub const RECHECK_SECONDS_DEFAULT: u32 = 60;

impl Freshness {
    pub const NAMES: &[&str] = &["strong", "events", "frozen"];

    pub fn name(self) -> &'static str {
        match self {
            Freshness::Strong => "strong",
            Freshness::Events { .. } => "events",
            Freshness::Frozen => "frozen",
        }
    }

    /// By name, and with how many seconds of belief, which only `events` has.
    pub fn parse(name: &str, recheck_seconds: Option<u32>) -> Result<Freshness, String> {
        let freshness = match name {
            "strong" => Freshness::Strong,
            "events" => Freshness::Events { recheck_seconds: recheck_seconds.unwrap_or(RECHECK_SECONDS_DEFAULT) },
            "frozen" => Freshness::Frozen,
            _ => return Err(format!("--freshness: `{name}` is none of {}", Freshness::NAMES.join(", "))),
        };
        match (freshness, recheck_seconds) {
            (Freshness::Events { recheck_seconds }, _)
                if !(RECHECK_SECONDS_MIN..=RECHECK_SECONDS_MAX).contains(&recheck_seconds) =>
            {
                Err(format!("--recheck: give {RECHECK_SECONDS_MIN} to {RECHECK_SECONDS_MAX} seconds"))
            }
            (Freshness::Strong | Freshness::Frozen, Some(_)) => {
                Err(format!("--recheck is for --freshness events, and this link is {name}"))
            }
            _ => Ok(freshness),
        }
    }

    pub fn recheck_seconds(self) -> Option<u32> {
        match self {
            Freshness::Events { recheck_seconds } => Some(recheck_seconds),
            Freshness::Strong | Freshness::Frozen => None,
        }
    }
}

/// When what was written becomes an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publish {
    /// When the last writer has closed the file, or has not written for 30 s.
    #[default]
    OnClose,
    /// Also before `fsync` returns.
    Fsync,
    /// When it was not changed for 5 s, open or not.
    Idle,
    /// When it is asked for.
    Manual,
}

/// What becomes of a file that was changed here and there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnConflict {
    /// The bucket's version keeps the name; ours goes to `.atoll/conflicts/`, and is published there.
    #[default]
    KeepBoth,
    /// Ours replaces the bucket's.
    VolumeWins,
    /// Ours is dropped.
    BucketWins,
    /// Ours stays unpublished until somebody decides.
    Fail,
}

macro_rules! named {
    ($type:ident: $($variant:ident = $name:literal),+) => {
        impl $type {
            pub const NAMES: &[&str] = &[$($name),+];

            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok($type::$variant),)+
                    _ => Err(format!("`{text}` is none of {}", Self::NAMES.join(", "))),
                }
            }
        }
    };
}

named!(Publish: OnClose = "on-close", Fsync = "fsync", Idle = "idle", Manual = "manual");
named!(OnConflict: KeepBoth = "keep-both", VolumeWins = "volume-wins", BucketWins = "bucket-wins", Fail = "fail");

/// A link as it is stored. It holds no secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkSettings {
    pub bucket: String,
    /// Empty, or ends with `/`.
    pub prefix: ObjectKey,
    /// Of an S3 server other than the server's own setting.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// The name of credentials that the server keeps; `None`: those of its environment.
    pub credentials: Option<String>,
    pub freshness: Freshness,
    pub publish: Publish,
    pub on_conflict: OnConflict,
    /// Where notifications of the bucket are read, of a link that hears hints.
    pub queue: Option<QueueUrl>,
    /// How many bytes of a file may be sent within ten minutes beyond what was written to it; `None`: any number.
    pub budget: Option<u64>,
}

/// Of a link that names none.
pub const BUDGET_DEFAULT: u64 = 1 << 30;

impl LinkSettings {
    /// Of `s3://bucket/prefix`, everything else by default.
    pub fn parse(url: &str) -> Result<LinkSettings, String> {
        let refused = || format!("`{url}` is not a bucket: use s3://BUCKET or s3://BUCKET/PREFIX");
        let rest = url.strip_prefix("s3://").ok_or_else(refused)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(refused());
        }
        let prefix = if prefix.is_empty() || prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") };
        let prefix =
            ObjectKey::new(prefix).ok_or_else(|| format!("`{url}`: the prefix is longer than a key can be"))?;
        Ok(LinkSettings {
            bucket: bucket.to_owned(),
            prefix,
            endpoint: None,
            region: None,
            credentials: None,
            freshness: Freshness::default(),
            publish: Publish::default(),
            on_conflict: OnConflict::default(),
            queue: None,
            budget: Some(BUDGET_DEFAULT),
        })
    }

    pub fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_a_bucket_and_the_beginning_of_keys() {
        let url = |text| LinkSettings::parse(text).map(|settings| settings.url());
        assert_eq!(url("s3://data").unwrap(), "s3://data/");
        assert_eq!(url("s3://data/a/b").unwrap(), "s3://data/a/b/");
        assert_eq!(url("s3://data/a/b/").unwrap(), "s3://data/a/b/");
        assert!(url("data/a").is_err());
        assert!(url("s3:///a").is_err());
        assert_eq!(Freshness::parse("events", None), Ok(Freshness::Events { recheck_seconds: 60 }));
        assert_eq!(Freshness::parse("events", Some(5)).unwrap().recheck_seconds(), Some(5));
        for (name, recheck_seconds) in
            [("soon", None), ("strong", Some(5)), ("events", Some(0)), ("events", Some(86_401))]
        {
            assert!(Freshness::parse(name, recheck_seconds).is_err(), "{name} {recheck_seconds:?}");
        }
        assert_eq!("keep-both".parse(), Ok(OnConflict::KeepBoth));
        assert!("keep".parse::<OnConflict>().is_err());
    }
}
