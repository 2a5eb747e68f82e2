//! Every bound that a user or a peer can run into, by name.

/// Longest file name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symbolic link target, in bytes (`PATH_MAX` without its NUL).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Longest extended attribute name, in bytes, namespace prefix included.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest extended attribute value, in bytes (`XATTR_SIZE_MAX` of Linux).
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;
/// Most bytes of attribute names one inode may list (`XATTR_LIST_MAX` of Linux).
pub const XATTR_LIST_BYTES_MAX: usize = 65_536;
/// Most hard links of one file.
pub const LINKS_MAX: u32 = 1_000_000;
/// Largest file size, in bytes: `i64::MAX`, the largest offset Linux has.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// Most bytes one read or write operation may carry.
pub const IO_BYTES_MAX: usize = 1024 * 1024;
/// Largest extent, in bytes: the unit of checksum and compression.
pub const EXTENT_BYTES_MAX: usize = 128 * 1024;
/// Most bytes of directory entries in one listing reply.
pub const LISTING_BYTES_MAX: usize = 1024 * 1024;
/// Most operations of one compound request.
pub const COMPOUND_OPERATIONS_MAX: usize = 256;
/// Most advisory locks that one session holds on one inode.
pub const LOCKS_PER_FILE_MAX: usize = 4096;
/// Inode numbers that a client reserves at a time.
pub const INODES_RESERVED: u32 = 4096;
/// Most directories of a volume that have quotas.
pub const QUOTA_ROOTS_MAX: usize = 10_000;
/// Most directories with quotas inside of each other.
pub const QUOTA_DEPTH_MAX: usize = 8;
/// Longest volume name, in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 63;
/// Largest number of a snapshot, the upper 16 bits of an inode that is seen through it: clients keep a bit for themselves.
pub const SNAPSHOT_NUMBER_MAX: u16 = 0x7ffe;
