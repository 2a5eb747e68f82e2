//! What can be seen of the threads whose requests the kernel passes on.

/// What the kernel calls every thread that this process cannot see: it lives in another process namespace.
pub(crate) const UNSEEN: u32 = 0;

/// For how long a thread has run in all.
pub(crate) fn run_nanos(thread: u32) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?.split(' ').next()?.parse().ok()
}

/// Whether a thread that was woken waits for something again, or is gone: it has run since.
pub(crate) fn is_idle(thread: u32) -> bool {
    let Some(id) = i32::try_from(thread).ok().and_then(rustix::process::Pid::from_raw) else { return false };
    match std::fs::read_to_string(format!("/proc/{thread}/stat")) {
        // The name before it may hold anything.
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('R')),
        Err(_) => rustix::process::test_kill_process(id) == Err(rustix::io::Errno::SRCH),
    }
}

#[cfg(test)]
pub(crate) fn own_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}
