//! Which bytes a reader will want next. Pure: reads in, ranges to fetch out.
//! Invariant: a range is asked for at most once while the reader keeps its pattern.

use atoll_types::ByteRange;

/// First window of a reader recognised as sequential.
pub const WINDOW_BYTES_MIN: u64 = 256 * 1024;
/// The window never grows beyond this.
pub const WINDOW_BYTES_MAX: u64 = 8 * 1024 * 1024;
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
    /// Takes note of a read and returns what to fetch now, if anything.
    pub fn observe(&mut self, start: u64, len: u64) -> Option<ByteRange> {
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
            return self.extend();
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
        Some(ByteRange::at(next, len.min(WINDOW_BYTES_MAX)))
    }

    /// Asks for more once less than half a window is left in front of the reader.
    fn extend(&mut self) -> Option<ByteRange> {
        let left = self.ahead.saturating_sub(self.front);
        if self.window != 0 && left > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let range = ByteRange::new(self.front.max(self.ahead), self.front.saturating_add(self.window));
        self.ahead = self.ahead.max(range.end);
        (!range.is_empty()).then_some(range)
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
            if let Some(range) = readahead.observe(start, 65_536) {
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
        readahead.observe(0, 131_072);
        for pair in 0..64u64 {
            let base = 131_072 + pair * 262_144;
            readahead.observe(base + 131_072, 131_072);
            readahead.observe(base, 131_072);
        }
        assert_eq!(readahead.window, WINDOW_BYTES_MAX);
    }

    #[test]
    fn strided_reader_gets_its_next_record_and_a_random_one_gets_nothing() {
        let mut readahead = Readahead::default();
        let stride = 10 << 20;
        assert_eq!(readahead.observe(stride, 4096), None);
        assert_eq!(readahead.observe(2 * stride, 4096), None);
        assert_eq!(readahead.observe(3 * stride, 4096), Some(ByteRange::at(4 * stride, 4096)));
        assert_eq!(readahead.observe(90 * stride, 4096), None);
        assert_eq!(readahead.observe(7 * stride, 4096), None);
        let mut backwards = Readahead::default();
        backwards.observe(30 * stride, 4096);
        backwards.observe(20 * stride, 4096);
        assert_eq!(backwards.observe(10 * stride, 4096), Some(ByteRange::at(0, 4096)));
        assert_eq!(backwards.observe(0, 4096), None);
        assert_eq!(Readahead::default().observe(u64::MAX, 4096), None);
    }
}
