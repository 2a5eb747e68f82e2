//! What a bucket, or whoever stands for it, tells of changes: documents of S3 event notifications.
//!
//! Nothing of them is believed but that something may have happened at a key. So what kind of event it is does not matter, and a key
//! that can be read in several ways is read in all of them.

use percent_encoding::percent_decode;
use serde::Deserialize;

use crate::ObjectKey;

/// Something may have happened in a bucket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hint {
    pub bucket: String,
    /// Where; `None`: the key cannot be read, it may be any one.
    pub key: Option<ObjectKey>,
}

/// A document that is no notification.
#[derive(Debug, thiserror::Error)]
#[error("this is no S3 event notification: {0}")]
pub struct NotANotification(String);

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Records")]
    records: Option<Vec<Record>>,
    /// Of what is sent when notifications are set up.
    #[serde(rename = "Event")]
    event: Option<String>,
    /// Of what SNS passes on.
    #[serde(rename = "Type")]
    kind: Option<String>,
    #[serde(rename = "Message")]
    message: Option<String>,
}

#[derive(Deserialize)]
struct Record {
    s3: Subject,
}

#[derive(Deserialize)]
struct Subject {
    bucket: Bucket,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Deserialize)]
struct Object {
    key: String,
}

/// The hints of a document, plain or as SNS wraps it. A test event has none.
pub fn read(document: &[u8]) -> Result<Vec<Hint>, NotANotification> {
    let parse = |text: &[u8]| serde_json::from_slice(text).map_err(|error| NotANotification(error.to_string()));
    let mut document: Document = parse(document)?;
    if document.kind.as_deref() == Some("Notification")
        && let Some(message) = &document.message
    {
        document = parse(message.as_bytes())?;
    }
    match document {
        Document { records: Some(records), .. } => Ok(records.into_iter().flat_map(hints).collect()),
        Document { event: Some(event), .. } if event == "s3:TestEvent" => Ok(Vec::new()),
        _ => Err(NotANotification("it has no `Records`".into())),
    }
}

/// S3 encodes keys like fields of a form; other servers do like paths, or tell them as they are.
fn hints(record: Record) -> impl Iterator<Item = Hint> {
    let Subject { bucket: Bucket { name: bucket }, object: Object { key: told } } = record.s3;
    let read = |encoded: &str| {
        let key = percent_decode(encoded.as_bytes()).decode_utf8().ok()?;
        ObjectKey::new(key.into_owned())
    };
    let mut readings = vec![read(&told.replace('+', " "))];
    for other in [read(&told), ObjectKey::new(told)] {
        if other.is_some() && !readings.contains(&other) {
            readings.push(other);
        }
    }
    readings.into_iter().map(move |key| Hint { bucket: bucket.clone(), key })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document(key: &str) -> String {
        let key = serde_json::to_string(key).unwrap();
        format!(
            r#"{{"Records":[{{"eventVersion":"2.2","eventName":"ObjectCreated:Put",
                "s3":{{"bucket":{{"name":"b","arn":"x"}},"object":{{"key":{key},"size":3,"eTag":null}}}}}}]}}"#
        )
    }

    fn keys(document: &str) -> Vec<Option<String>> {
        let hints = read(document.as_bytes()).unwrap();
        assert!(hints.iter().all(|hint| hint.bucket == "b"));
        hints.into_iter().map(|hint| hint.key.map(String::from)).collect()
    }

    #[test]
    fn keys_are_read_as_forms_encode_them_and_as_they_are() {
        let some = |key: &str| Some(key.to_owned());
        assert_eq!(keys(&document("a/b")), [some("a/b")]);
        assert_eq!(keys(&document("a%2Fb+c%2B")), [some("a/b c+"), some("a/b+c+"), some("a%2Fb+c%2B")]);
        assert_eq!(keys(&document("a+b")), [some("a b"), some("a+b")]);
        assert_eq!(keys(&document("%C3%9F")), [some("ß"), some("%C3%9F")]);
        assert_eq!(keys(&document("100%")), [some("100%")]);
        assert_eq!(keys(&document("")), [some("")]);
        // No key that there can be: it may be any.
        assert_eq!(keys(&document("%ff")), [None, some("%ff")]);
        assert_eq!(keys(&document(&"a".repeat(1025))), [None]);
    }

    #[test]
    fn a_document_is_read_plain_and_wrapped_and_a_test_event_says_nothing() {
        let wrapped = |kind: &str, message: &str| {
            format!(r#"{{"Type":"{kind}","Message":{}}}"#, serde_json::to_string(message).unwrap())
        };
        assert_eq!(keys(&wrapped("Notification", &document("a"))), [Some("a".to_owned())]);
        let test = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"b"}"#;
        assert!(keys(test).is_empty());
        assert!(keys(&wrapped("Notification", test)).is_empty());
        assert!(keys(r#"{"Records":[]}"#).is_empty());
        let twice = wrapped("Notification", &wrapped("Notification", &document("a")));
        for bad in ["", "null", "[]", "{}", "{\"Records\":[{}]}", "{\"Records\":3}", &twice, &wrapped("Other", "a")] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(read(&[b'['; 100_000]).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_read_or_refused(
            cut in 0..300_usize,
            at in 0..300_usize,
            byte in any::<u8>(),
            key in "[a%+0-9f/ß\0\"]{0,20}",
        ) {
            let sound = document(&key).into_bytes();
            prop_assert!(!read(&sound).unwrap().is_empty());
            let mut bad = sound;
            if let Some(place) = bad.get_mut(at) {
                *place = byte;
            }
            bad.truncate(cut);
            let _ = read(&bad);
        }

        #[test]
        fn an_encoded_key_is_among_the_readings(key in "\\PC{0,40}") {
            let encoded = percent_encoding::utf8_percent_encode(&key, percent_encoding::NON_ALPHANUMERIC).to_string();
            for told in [encoded.replace("%20", "+"), key.clone()] {
                prop_assert!(keys(&document(&told)).contains(&Some(key.clone())), "{told}");
            }
        }
    }
}
