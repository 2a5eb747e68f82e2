//! Rules that the simulation breaks on purpose, to see that it finds out. Without the feature `mutations` nobody can.

/// A broken rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Others see a change that a crash could take, before the client that made it has heard of it.
    Unheard = 1,
    /// `fsync` is answered before anything is durable.
    EarlySync = 2,
    /// A mutation that is sent again is executed again.
    Repeated = 3,
    /// A wall clock that jumped ends no term.
    WallIgnored = 4,
    /// A server that stood still answers without asking whether the volume is still its own.
    Unasked = 5,
}

impl Mutation {
    pub const ALL: [Mutation; 5] =
        [Mutation::Unheard, Mutation::EarlySync, Mutation::Repeated, Mutation::WallIgnored, Mutation::Unasked];
}

#[cfg(feature = "mutations")]
static BROKEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Break a rule, for the whole process.
#[cfg(feature = "mutations")]
pub fn set_broken(mutation: Mutation) {
    BROKEN.store(mutation as u8, std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "mutations")]
pub fn is_broken(mutation: Mutation) -> bool {
    BROKEN.load(std::sync::atomic::Ordering::Relaxed) == mutation as u8
}

#[cfg(not(feature = "mutations"))]
pub const fn is_broken(_: Mutation) -> bool {
    false
}
