//! Text of a key inside of a name: `%@` as `%@@`, and NUL as `%@0`.

const MARK: &str = "%@";
const QUOTED_MARK: &str = "%@@";
const QUOTED_NUL: &str = "%@0";

pub(crate) fn quoted(text: &str) -> String {
    text.replace(MARK, QUOTED_MARK).replace('\0', QUOTED_NUL)
}

pub(crate) fn quoted_len(text: &str) -> usize {
    let marks = text.matches(MARK).count() * (QUOTED_MARK.len() - MARK.len());
    let nuls = text.bytes().filter(|&byte| byte == 0).count() * (QUOTED_NUL.len() - 1);
    text.len() + marks + nuls
}

/// `None` for what [`quoted`] never returns.
pub(crate) fn unquoted(name: &str) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((plain, behind)) = rest.split_once(MARK) {
        text.push_str(plain);
        let mut characters = behind.chars();
        match characters.next()? {
            '@' => text.push_str(MARK),
            '0' => text.push('\0'),
            _ => return None,
        }
        rest = characters.as_str();
    }
    text.push_str(rest);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_quoted_has_no_nul_and_reads_back(text in "[%@0\0aß]{0,12}") {
            let name = quoted(&text);
            prop_assert!(!name.contains('\0'));
            prop_assert_eq!(name.len(), quoted_len(&text));
            prop_assert_eq!(unquoted(&name), Some(text));
        }

        #[test]
        fn one_text_has_one_quoted_form(name in "[%@0aß]{0,12}") {
            if let Some(text) = unquoted(&name) {
                prop_assert_eq!(quoted(&text), name);
            }
        }
    }
}
