//! Pages of a listing.

use std::collections::BTreeMap;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{EncodingType, OptionalObjectAttributes};

use super::failure::{Failure, Kind, Load, attempts};
use super::{S3Bucket, headers, text};
use crate::{Listed, ObjectInfo, ObjectKey, Page};

/// What a server lists at most in one answer.
const KEYS_MAX: usize = 1000;
/// How many answers without a new key are followed by another request.
const EMPTY_PAGES_MAX: u32 = 8;
/// The greatest character: nearly every key behind a `/` is less than the one with this behind it.
const GREATEST: char = char::MAX;

/// How far a server that does not list in order is followed: [`KEYS_MAX`] keys each.
const UNORDERED_PAGES_MAX: u32 = 1000;

/// What a server answered.
pub(super) struct Answer {
    /// In the order of their keys.
    pub entries: Vec<Listed>,
    /// Whether the server had them in that order.
    pub in_order: bool,
    /// Whether there is more; where it goes on.
    more: bool,
    token: Option<String>,
}

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
        match self.capabilities().ordered_listing {
            true => self.page_in_order(prefix, after, start, delimited, max).await,
            false => self.page_of_all(prefix, after, delimited, max).await,
        }
    }

    async fn page_in_order(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
        start: Option<String>,
        delimited: bool,
        max: usize,
    ) -> Result<Page, Failure> {
        let mut token = None;
        for _ in 0..EMPTY_PAGES_MAX {
            let mut answer = self.answer(prefix, start.clone(), token, delimited, max).await?;
            if !answer.in_order {
                return Err(Failure::damaged("a listing that is not in the order of its keys"));
            }
            answer.entries.retain(|entry| after.is_none_or(|after| entry.key() > after));
            let end = !answer.more && answer.entries.len() <= max;
            answer.entries.truncate(max);
            if end || !answer.entries.is_empty() {
                return Ok(Page { entries: answer.entries, end });
            }
            token = answer.token;
        }
        Err(Failure::damaged(format!("{EMPTY_PAGES_MAX} pages of a listing without a new key")))
    }

    /// Where the server does not list in order, the next keys may be in any of its pages.
    async fn page_of_all(
        &self,
        prefix: &ObjectKey,
        after: Option<&ObjectKey>,
        delimited: bool,
        max: usize,
    ) -> Result<Page, Failure> {
        let mut least = BTreeMap::new();
        let mut end = true;
        let mut token = None;
        for _ in 0..UNORDERED_PAGES_MAX {
            let answer = self.answer(prefix, None, token, delimited, KEYS_MAX).await?;
            for entry in answer.entries.into_iter().filter(|entry| after.is_none_or(|after| entry.key() > after)) {
                least.insert(entry.key().clone(), entry);
                if least.len() > max {
                    least.pop_last();
                    end = false;
                }
            }
            if !answer.more {
                return Ok(Page { entries: least.into_values().collect(), end });
            }
            token = answer.token;
        }
        let keys = UNORDERED_PAGES_MAX as usize * KEYS_MAX;
        Err(Failure::new(Kind::Unsupported, format!("a listing of more than {keys} keys that is not in their order")))
    }

    pub(super) async fn answer(
        &self,
        prefix: &ObjectKey,
        start: Option<String>,
        token: Option<String>,
        delimited: bool,
        max: usize,
    ) -> Result<Answer, Failure> {
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
        });
        answer_of(output.await?, prefix)
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

fn answer_of(output: ListObjectsV2Output, prefix: &ObjectKey) -> Result<Answer, Failure> {
    let (more, token) = (output.is_truncated.unwrap_or(false), output.next_continuation_token);
    if more && token.is_none() {
        return Err(Failure::damaged("a listing that goes on, and no word of where"));
    }
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
    let in_order = ascending(&objects) && ascending(&prefixes);
    let mut entries = objects;
    entries.append(&mut prefixes);
    // Stable: of two with one key the prefix stays, which some servers also have as an object.
    entries.sort_by(|one, other| one.key().cmp(other.key()));
    entries.dedup_by(|later, earlier| {
        let same = later.key() == earlier.key();
        if same {
            std::mem::swap(later, earlier);
        }
        same
    });
    Ok(Answer { entries, in_order, more, token })
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::types::{CommonPrefix, Object};

    use super::*;

    fn key(text: &str) -> ObjectKey {
        ObjectKey::new(text).unwrap()
    }

    fn output(objects: &[&str], prefixes: &[&str]) -> ListObjectsV2Output {
        let object = |key: &&str| Object::builder().key(*key).size(1).e_tag("\"1\"").build();
        let prefix = |key: &&str| CommonPrefix::builder().prefix(*key).build();
        ListObjectsV2Output::builder()
            .set_contents(Some(objects.iter().map(object).collect()))
            .set_common_prefixes(Some(prefixes.iter().map(prefix).collect()))
            .encoding_type(EncodingType::Url)
            .build()
    }

    fn keys(answer: &Answer) -> Vec<&str> {
        answer.entries.iter().map(|entry| entry.key().as_str()).collect()
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
    fn objects_and_prefixes_of_an_answer_are_one_order() {
        let answer = answer_of(output(&["p/b", "p/d+e"], &["p/a/", "p/b%2B/"]), &key("p/")).unwrap();
        assert_eq!(keys(&answer), ["p/a/", "p/b", "p/b+/", "p/d e"]);
        assert!(answer.in_order);
        let answer = answer_of(output(&["a/", "b"], &["a/"]), &key("")).unwrap();
        assert_eq!(keys(&answer), ["a/", "b"]);
        assert!(matches!(answer.entries[0], Listed::Prefix(_)));
    }

    #[test]
    fn it_is_noticed_when_a_server_has_another_order() {
        let answer = answer_of(output(&["b/c", "b-"], &[]), &key("")).unwrap();
        assert_eq!(keys(&answer), ["b-", "b/c"]);
        assert!(!answer.in_order);
    }

    #[test]
    fn keys_outside_of_the_prefix_or_of_utf8_are_refused() {
        assert!(answer_of(output(&["q/a"], &[]), &key("p/")).is_err());
        assert!(answer_of(output(&["%FF"], &[]), &key("")).is_err());
    }
}
