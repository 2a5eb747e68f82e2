//! Which bytes a reader will want next. Pure: reads in, ranges to fetch out.
//! Invariant: a range is asked for at most once while the reader keeps its pattern.

use atoll_types::ByteRange;

/// First window of a reader recognised as sequential.
pub const WINDOW_BYTES_MIN: u64 = 256 * 1024;
/// The window never grows beyond this. It is several requests to the store, side by side.
pub const WINDOW_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// A full window is filled up in steps of this, so that its requests end one after another, not together.
pub const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// A read that starts this near to where the last one ended still counts as
/// sequential: the kernel sends the parts of one large read in any order.
const SLACK_BYTES: u64 = 512 * 1024;

/// State of one open file.
#[derive(Clone, Debug, Default)]
pub struct Readahead {
    last_start: u64,
    /// Where the reads seen so far end.
    front: u64,
    /// Up to here bytes were asked for.
    ahead: u64,
    window: u64,
    /// Distance between the starts of the last two reads, when they were not sequential.
    stride: i128,
    /// Reads seen; the pattern is unknown before the second.
    reads: u64,
}

impl Readahead {
    /// Takes note of a read and returns what to fetch now, if anything, in a window of at most `window_max` bytes.
    pub fn observe(&mut self, start: u64, len: u64, window_max: u64) -> Option<ByteRange> {
        let end = start.saturating_add(len);
        let first = self.reads == 0;
        self.reads += 1;
        let stride = i128::from(start) - i128::from(self.last_start);
        let sequential = if first {
            start == 0
        } else {
            start.saturating_add(SLACK_BYTES) >= self.front && start <= self.front.saturating_add(len)
        };
        self.last_start = start;
        if sequential {
            self.front = self.front.max(end);
            self.stride = 0;
            return self.extend(window_max.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX));
        }
        let strided = !first && stride != 0 && stride == self.stride;
        self.stride = if first { 0 } else { stride };
        self.front = end;
        self.ahead = end;
        self.window = 0;
        if !strided {
            return None;
        }
        let next = u64::try_from(i128::from(start) + stride).ok()?;
        Some(ByteRange::at(next, len.min(STEP_BYTES)))
    }

    /// Whether the last read followed the ones before, or began at the start.
    pub fn is_sequential(&self) -> bool {
        self.window > 0
    }

    /// Asks for more once less than half a window is left in front of the reader, or a step is missing in a full one.
    fn extend(&mut self, window_max: u64) -> Option<ByteRange> {
        let left = self.ahead.saturating_sub(self.front);
        let is_full = self.window >= window_max;
        let enough = if is_full { window_max.saturating_sub(STEP_BYTES).max(window_max / 2) } else { self.window / 2 };
        if self.window != 0 && left > enough {
            return None;
        }
        self.window = (self.window * 2).clamp(WINDOW_BYTES_MIN, window_max);
        let start = self.front.max(self.ahead);
        let mut length = self.front.saturating_add(self.window).saturating_sub(start);
        if length > STEP_BYTES {
            // What remains would be a small request of its own.
            length -= length % STEP_BYTES;
        }
        self.ahead = self.ahead.max(start + length);
        (length > 0).then(|| ByteRange::at(start, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_reader_is_always_served_ahead_without_asking_twice() {
        let mut readahead = Readahead::default();
        let (mut fetched, mut asked) = (0, 0);
        for index in 0..2048 {
            let start = index * 65_536;
            if let Some(range) = readahead.observe(start, 65_536, WINDOW_BYTES_MAX) {
                assert!(range.start >= fetched && range.len() <= WINDOW_BYTES_MAX);
                assert!(index == 0 || range.start == fetched, "no gap");
                fetched = range.end;
                asked += 1;
            }
            assert!(fetched >= start + 65_536);
        }
        assert!((10..200).contains(&asked), "{asked}");
    }

    #[test]
    fn parts_out_of_order_are_still_sequential() {
        let mut readahead = Readahead::default();
        readahead.observe(0, 131_072, WINDOW_BYTES_MAX);
        for pair in 0..128u64 {
            let base = 131_072 + pair * 262_144;
            readahead.observe(base + 131_072, 131_072, WINDOW_BYTES_MAX);
            readahead.observe(base, 131_072, WINDOW_BYTES_MAX);
        }
        assert_eq!(readahead.window, WINDOW_BYTES_MAX);
    }

    #[test]
    fn strided_reader_gets_its_next_record_and_a_random_one_gets_nothing() {
        let mut readahead = Readahead::default();
        let stride = 10 << 20;
        let all = WINDOW_BYTES_MAX;
        assert_eq!(readahead.observe(stride, 4096, all), None);
        assert_eq!(readahead.observe(2 * stride, 4096, all), None);
        assert_eq!(readahead.observe(3 * stride, 4096, all), Some(ByteRange::at(4 * stride, 4096)));
        assert_eq!(readahead.observe(90 * stride, 4096, all), None);
        assert_eq!(readahead.observe(7 * stride, 4096, all), None);
        let mut backwards = Readahead::default();
        backwards.observe(30 * stride, 4096, all);
        backwards.observe(20 * stride, 4096, all);
        assert_eq!(backwards.observe(10 * stride, 4096, all), Some(ByteRange::at(0, 4096)));
        assert_eq!(backwards.observe(0, 4096, all), None);
        assert_eq!(Readahead::default().observe(u64::MAX, 4096, all), None);
    }

    /// Ranges that a sequential reader of 64 MiB is served with, in a window of at most `window_max`.
    fn served(readahead: &mut Readahead, from: u64, window_max: u64) -> Vec<(u64, ByteRange)> {
        let starts = (from..from + (64 << 20)).step_by(131_072);
        starts.filter_map(|start| Some((start + 131_072, readahead.observe(start, 131_072, window_max)?))).collect()
    }

    #[test]
    fn a_full_window_is_filled_up_step_by_step_and_a_smaller_one_is_kept_to() {
        let mut readahead = Readahead::default();
        let full: Vec<_> = served(&mut readahead, 0, WINDOW_BYTES_MAX).split_off(10);
        assert!(full.len() > 4);
        for (front, range) in full {
            assert_eq!(range.len(), STEP_BYTES);
            assert!(range.end <= front + WINDOW_BYTES_MAX && range.end > front + WINDOW_BYTES_MAX - STEP_BYTES);
        }
        let small = 2 * STEP_BYTES;
        for (front, range) in served(&mut readahead, 64 << 20, small) {
            assert_eq!(range.len(), STEP_BYTES);
            assert!(range.start <= front + small / 2 && range.end <= front + small);
        }
    }
}
