//! What is fixed of a link between a directory and a bucket.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ObjectKey;

/// How soon what others change in a bucket is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freshness {
    /// Every lookup and listing asks the bucket.
    #[default]
    Strong,
    /// Nobody else changes it: what was seen stays as it was.
    Frozen,
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

named!(Freshness: Strong = "strong", Frozen = "frozen");
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
}

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
        assert_eq!("keep-both".parse(), Ok(OnConflict::KeepBoth));
        assert!("keep".parse::<OnConflict>().is_err());
    }
}
