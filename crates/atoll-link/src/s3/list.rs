//! Pages of a listing.

use std::cmp::Ordering;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{EncodingType, OptionalObjectAttributes};

use super::failure::{Failure, Load, attempts};
use super::{S3Bucket, headers, text};
use crate::{Listed, ObjectInfo, ObjectKey, Page};

/// What a server lists at most in one answer.
const KEYS_MAX: usize = 1000;
/// How many answers without a new key are followed by another request.
const EMPTY_PAGES_MAX: u32 = 8;
/// The greatest character: nearly every key behind a `/` is less than the one with this behind it.
const GREATEST: char = char::MAX;

impl S3Bucket {
    pub(super) async fn page(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
        delimited: bool,
        max: usize,
    ) -> Result<Page, Failure> {
        let max = max.clamp(1, KEYS_MAX);
        let start = match after.map(|after| start(prefix.as_str(), after.as_str(), delimited)) {
            Some(Start::Nothing) => return Ok(Page { entries: Vec::new(), end: true }),
            Some(Start::After(key)) => Some(key),
            None | Some(Start::First) => None,
        };
        let mut token = None;
        for _ in 0..EMPTY_PAGES_MAX {
            let output = attempts(Load::Light, || async {
                Ok(self
                    .client()
                    .list_objects_v2()
                    .bucket(self.name())
                    .prefix(prefix.as_str())
                    .set_delimiter(delimited.then(|| "/".to_owned()))
                    .set_start_after(start.clone())
                    .set_continuation_token(token.clone())
                    .encoding_type(EncodingType::Url)
                    // Whether an archived object is restored; who does not know the word leaves it out.
                    .optional_object_attributes(OptionalObjectAttributes::RestoreStatus)
                    .max_keys(max as i32)
                    .send()
                    .await?)
            })
            .await?;
            token = output.next_continuation_token.clone();
            let page = page_of(output, prefix, after, max)?;
            if page.end || !page.entries.is_empty() {
                return Ok(page);
            }
            if token.is_none() {
                return Err(Failure::damaged("a listing that goes on, and no word of where"));
            }
        }
        Err(Failure::damaged(format!("{EMPTY_PAGES_MAX} pages of a listing without a new key")))
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Start {
    /// No key with the prefix is greater.
    Nothing,
    First,
    After(String),
}

/// What is sent so that a page brings something new. Servers that begin within a common prefix name it again for the keys behind;
/// so the listing begins behind all that it has.
fn start(prefix: &str, after: &str, delimited: bool) -> Start {
    let Some(rest) = after.strip_prefix(prefix) else {
        // Either all keys with the prefix are greater, or none is.
        return if after < prefix { Start::First } else { Start::Nothing };
    };
    match rest.find('/').filter(|_| delimited) {
        Some(slash) => {
            let group = &after[..prefix.len() + slash + 1];
            let fits = group.len() + GREATEST.len_utf8() <= ObjectKey::BYTES_MAX;
            Start::After(if fits { format!("{group}{GREATEST}") } else { after.to_owned() })
        }
        None if rest.is_empty() && prefix.is_empty() => Start::First,
        None => Start::After(after.to_owned()),
    }
}

fn page_of(
    output: ListObjectsV2Output,
    prefix: &ObjectKey,
    after: Option<&ObjectKey>,
    max: usize,
) -> Result<Page, Failure> {
    let encoded = output.encoding_type == Some(EncodingType::Url);
    let key = |text: Option<String>| -> Result<ObjectKey, Failure> {
        let text = text.ok_or_else(|| Failure::damaged("a listing with an entry without a key"))?;
        let key = if encoded { text::listed_key(&text) } else { Some(text) };
        key.and_then(ObjectKey::new)
            .filter(|key| key.as_str().starts_with(prefix.as_str()))
            .ok_or_else(|| Failure::damaged("a listing with a key that cannot be in it"))
    };
    let mut objects = Vec::new();
    for object in output.contents.unwrap_or_default() {
        let class = object.storage_class.as_ref().map(|class| class.as_str());
        let restored = object.restore_status.and_then(|status| status.restore_expiry_date).is_some();
        let info = ObjectInfo {
            size: headers::size(object.size)?,
            modified: headers::timestamp(object.last_modified),
            version: headers::version(object.e_tag, None)?,
            archived: headers::is_archive(class) && !restored,
            headers: None,
        };
        objects.push(Listed::Object(key(object.key)?, info));
    }
    let mut prefixes = Vec::new();
    for group in output.common_prefixes.unwrap_or_default() {
        prefixes.push(Listed::Prefix(key(group.prefix)?));
    }
    let ascending = |entries: &[Listed]| entries.is_sorted_by(|one, next| one.key() < next.key());
    if !ascending(&objects) || !ascending(&prefixes) {
        // Where the next page is to begin cannot be said then.
        return Err(Failure::damaged("a listing that is not in the order of its keys"));
    }
    let mut entries = prefixes;
    entries.append(&mut objects);
    entries.retain(|entry| after.is_none_or(|after| entry.key() > after));
    entries.sort_by(|one, other| match one.key().cmp(other.key()) {
        Ordering::Equal => matches!(one, Listed::Object(..)).cmp(&matches!(other, Listed::Object(..))),
        order => order,
    });
    entries.dedup_by(|later, earlier| later.key() == earlier.key());
    let end = !output.is_truncated.unwrap_or(false) && entries.len() <= max;
    entries.truncate(max);
    Ok(Page { entries, end })
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::types::{CommonPrefix, Object};

    use super::*;

    fn key(text: &str) -> ObjectKey {
        ObjectKey::new(text).unwrap()
    }

    fn answer(objects: &[&str], prefixes: &[&str]) -> ListObjectsV2Output {
        let object = |key: &&str| Object::builder().key(*key).size(1).e_tag("\"1\"").build();
        let prefix = |key: &&str| CommonPrefix::builder().prefix(*key).build();
        ListObjectsV2Output::builder()
            .set_contents(Some(objects.iter().map(object).collect()))
            .set_common_prefixes(Some(prefixes.iter().map(prefix).collect()))
            .encoding_type(EncodingType::Url)
            .build()
    }

    fn keys(page: &Page) -> Vec<&str> {
        page.entries.iter().map(|entry| entry.key().as_str()).collect()
    }

    #[test]
    fn a_listing_goes_on_behind_a_common_prefix() {
        assert_eq!(start("p/", "p/a/", true), Start::After("p/a/\u{10FFFF}".into()));
        assert_eq!(start("p/", "p/a/b/c", true), Start::After("p/a/\u{10FFFF}".into()));
        assert_eq!(start("p/", "p/a/", false), Start::After("p/a/".into()));
        assert_eq!(start("p/", "p/a", true), Start::After("p/a".into()));
        assert_eq!(start("p/", "p", true), Start::First);
        assert_eq!(start("", "", true), Start::First);
        assert_eq!(start("p/", "q", true), Start::Nothing);
        let long = format!("{}/", "x".repeat(ObjectKey::BYTES_MAX - 1));
        assert_eq!(start("", &long, true), Start::After(long.clone()));
    }

    #[test]
    fn objects_and_prefixes_of_a_page_are_one_order_and_only_what_is_behind() {
        let page = page_of(answer(&["p/a", "p/b", "p/d+e"], &["p/a/", "p/b%2B/"]), &key("p/"), Some(&key("p/a/")), 10);
        assert_eq!(keys(&page.unwrap()), ["p/b", "p/b+/", "p/d e"]);
    }

    #[test]
    fn a_page_is_no_longer_than_asked_for() {
        let page = page_of(answer(&["a", "b", "c"], &[]), &key(""), None, 2).unwrap();
        assert_eq!(keys(&page), ["a", "b"]);
        assert!(!page.end);
    }

    #[test]
    fn keys_out_of_order_or_outside_of_the_prefix_are_refused() {
        assert!(page_of(answer(&["b", "a"], &[]), &key(""), None, 10).is_err());
        assert!(page_of(answer(&["q/a"], &[]), &key("p/"), None, 10).is_err());
        assert!(page_of(answer(&["%FF"], &[]), &key(""), None, 10).is_err());
    }
}
