//! Names of volumes and snapshots.

use atoll_types::limits::VOLUME_NAME_BYTES_MAX;
pub(crate) use atoll_wire::volume_parts as parts;

/// Why `name` cannot be that of a volume or a snapshot, if it cannot.
pub(crate) fn check(what: &str, name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > VOLUME_NAME_BYTES_MAX || !name.chars().all(good) || name.starts_with('.') {
        return Err(format!(
            "`{name}` is no name for a {what}: use 1 to {VOLUME_NAME_BYTES_MAX} letters, digits, `-`, `_`, `.`"
        ));
    }
    Ok(())
}
