//! What an object has beside its bytes, in requests and answers.

use atoll_types::Timestamp;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;

use super::failure::Failure;
use super::text;
use crate::{Headers, ObjectInfo, Version};

/// Put `headers` on a request that makes an object.
macro_rules! with_headers {
    ($request:expr, $headers:expr) => {{
        let headers: &crate::Headers = $headers;
        let metadata = headers.metadata.iter().map(|(name, value)| (name.clone(), super::text::header_value(value)));
        let (encryption, key) = headers.encryption.clone().unzip();
        $request
            .set_content_type(headers.content_type.clone())
            .set_content_encoding(headers.content_encoding.clone())
            .set_content_language(headers.content_language.clone())
            .set_content_disposition(headers.content_disposition.clone())
            .set_cache_control(headers.cache_control.clone())
            .set_storage_class(headers.storage_class.as_deref().map(Into::into))
            .set_server_side_encryption(encryption.as_deref().map(Into::into))
            .set_ssekms_key_id(key.flatten())
            .set_metadata(Some(metadata.collect()))
            .set_tagging(headers.tags.as_deref().filter(|tags| !tags.is_empty()).map(super::text::tagging))
    }};
}
pub(super) use with_headers;

/// As HEAD tells of it.
pub(super) fn info(output: HeadObjectOutput) -> Result<ObjectInfo, Failure> {
    let class = output.storage_class.as_ref().map(|class| class.as_str());
    // Intelligent tiering moves objects to archives of its own.
    let archived = (is_archive(class) && !is_restored(output.restore.as_deref())) || output.archive_status.is_some();
    Ok(ObjectInfo {
        size: size(output.content_length)?,
        modified: timestamp(output.last_modified),
        version: version(output.e_tag, output.version_id)?,
        archived,
        headers: Some(Headers {
            content_type: output.content_type,
            content_encoding: output.content_encoding,
            content_language: output.content_language,
            content_disposition: output.content_disposition,
            cache_control: output.cache_control,
            storage_class: class.map(str::to_owned),
            encryption: output.server_side_encryption.map(|kind| (kind.as_str().to_owned(), output.ssekms_key_id)),
            metadata: output
                .metadata
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), text::metadata_value(&value)))
                .collect(),
            tags: None,
        }),
    })
}

/// Whether objects of this class are restored before they are read.
pub(super) fn is_archive(class: Option<&str>) -> bool {
    matches!(class, Some("GLACIER" | "DEEP_ARCHIVE"))
}

/// The answer's word for an archived object of which there is a readable copy for a while.
fn is_restored(restore: Option<&str>) -> bool {
    restore.is_some_and(|restore| restore.contains("ongoing-request=\"false\""))
}

pub(super) fn size(length: Option<i64>) -> Result<u64, Failure> {
    length.and_then(|length| u64::try_from(length).ok()).ok_or_else(|| Failure::damaged("an object without a length"))
}

pub(super) fn timestamp(time: Option<DateTime>) -> Timestamp {
    time.map(|time| Timestamp { seconds: time.secs(), nanos: time.subsec_nanos() }).unwrap_or_default()
}

/// Some servers leave the quotes out in some answers; a version is the same with and without. `null` names whatever is written
/// while the bucket keeps no versions.
pub(super) fn version(etag: Option<String>, id: Option<String>) -> Result<Version, Failure> {
    let id = id.filter(|id| id != "null");
    match etag {
        Some(etag) if etag.contains('"') => Ok(Version { etag, id }),
        Some(etag) if !etag.is_empty() => Ok(Version { etag: format!("\"{etag}\""), id }),
        _ => Err(Failure::damaged("an object without an ETag")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> aws_sdk_s3::operation::head_object::builders::HeadObjectOutputBuilder {
        HeadObjectOutput::builder().content_length(1).e_tag("\"1\"")
    }

    #[test]
    fn an_archived_object_is_one_until_it_is_restored() {
        assert!(!info(head().build()).unwrap().archived);
        assert!(!info(head().storage_class("STANDARD_IA".into()).build()).unwrap().archived);
        let frozen = || head().storage_class("DEEP_ARCHIVE".into());
        assert!(info(frozen().build()).unwrap().archived);
        assert!(info(frozen().restore("ongoing-request=\"true\"").build()).unwrap().archived);
        assert!(!info(frozen().restore("ongoing-request=\"false\", expiry-date=\"…\"").build()).unwrap().archived);
        assert!(info(head().archive_status("ARCHIVE_ACCESS".into()).build()).unwrap().archived);
    }

    #[test]
    fn an_answer_without_a_length_or_version_is_none() {
        assert!(info(HeadObjectOutput::builder().content_length(1).build()).is_err());
        assert!(info(HeadObjectOutput::builder().e_tag("\"1\"").build()).is_err());
        assert_eq!(version(Some("1".into()), None).unwrap().etag, "\"1\"");
        assert_eq!(version(Some("1".into()), Some("null".into())).unwrap().id, None);
    }
}
