//! Keys in addresses and listings, and metadata in headers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// All but what RFC 3986 calls unreserved.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &VALUE.remove(b'/');

/// Where a copy comes from, as its header says it.
pub(super) fn copy_source(bucket: &str, key: &str, version: Option<&str>) -> String {
    let mut source = format!("{bucket}/{}", utf8_percent_encode(key, PATH));
    if let Some(version) = version {
        source.push_str("?versionId=");
        source.extend(utf8_percent_encode(version, VALUE));
    }
    source
}

/// Tags as their header has them.
pub(super) fn tagging(tags: &[(String, String)]) -> String {
    let pair = |(name, value): &(String, String)| {
        format!("{}={}", utf8_percent_encode(name, VALUE), utf8_percent_encode(value, VALUE))
    };
    tags.iter().map(pair).collect::<Vec<_>>().join("&")
}

/// A key of a listing with `encoding-type=url`, where a space is a `+` as in forms. `None`: not UTF-8.
pub(super) fn listed_key(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}

/// A metadata value as a header can carry it: as it is, or as RFC 2047 has it, which S3 also answers with. What looks like that
/// already is encoded, too, so that it comes back.
pub(super) fn header_value(value: &str) -> String {
    let plain = value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && value.trim() == value;
    if plain && !value.contains("=?") { value.to_owned() } else { format!("=?UTF-8?B?{}?=", BASE64.encode(value)) }
}

/// What [`header_value`], or another one who follows RFC 2047, encoded; any other text is itself.
pub(super) fn metadata_value(header: &str) -> String {
    encoded_words(header).unwrap_or_else(|| header.to_owned())
}

/// Text that consists of encoded words alone. The bytes of all of them are put together first: some writers cut words inside a
/// character.
fn encoded_words(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut fields = word.strip_prefix("=?")?.strip_suffix("?=")?.splitn(3, '?');
        let charset = fields.next()?;
        if !charset.eq_ignore_ascii_case("UTF-8") {
            return None;
        }
        match (fields.next()?, fields.next()?) {
            ("B" | "b", body) => bytes.extend(BASE64.decode(body).ok()?),
            ("Q" | "q", body) => {
                let spaced = body.replace('%', "%25").replace('_', " ").replace('=', "%");
                bytes.extend(percent_decode_str(&spaced));
            }
            _ => return None,
        }
    }
    (!text.is_empty()).then_some(())?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_comes_back() {
        for value in ["", "plain", "é ☃", " x", "x ", "a\nb", "\u{1}", "=?UTF-8?Q?x?=", "50% =?", "a  b"] {
            let header = header_value(value);
            assert!(header.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{header}");
            assert_eq!(metadata_value(&header), value);
        }
    }

    #[test]
    fn metadata_of_others_is_understood_or_left_alone() {
        assert_eq!(metadata_value("=?UTF-8?Q?caf=C3=A9_50%?="), "café 50%");
        assert_eq!(metadata_value("=?utf-8?b?w6k=?= =?utf-8?b?w6k=?="), "éé");
        for plain in ["=?ISO-8859-1?Q?=E9?=", "=?UTF-8?B?!?=", "=?UTF-8?Q?=FF?=", "a =?UTF-8?Q?b?=", "=?"] {
            assert_eq!(metadata_value(plain), plain);
        }
    }

    #[test]
    fn keys_are_encoded_for_copies_and_decoded_from_listings() {
        assert_eq!(copy_source("b", "a//b c+é?#/..", Some("1=")), "b/a//b%20c%2B%C3%A9%3F%23/..?versionId=1%3D");
        assert_eq!(listed_key("a//b+c%2B%C3%A9%01").as_deref(), Some("a//b c+é\u{1}"));
        assert_eq!(listed_key("%FF"), None);
        assert_eq!(tagging(&[("a b".into(), "c&d".into()), ("e".into(), String::new())]), "a%20b=c%26d&e=");
    }
}
