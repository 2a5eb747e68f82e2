//! The bytes of one file, a cell a byte.

/// `None` is a hole; what lies between the cells and `size` is a hole too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub size: u64,
    cells: Vec<Option<u8>>,
}

impl Content {
    fn reach(&mut self, end: usize) {
        if self.cells.len() < end {
            self.cells.resize(end, None);
        }
    }

    /// Bytes that are no hole.
    pub fn allocated(&self) -> u64 {
        self.cells.iter().flatten().count() as u64
    }

    pub fn read(&self, start: u64, end: u64) -> Vec<u8> {
        let end = end.min(self.size);
        (start..end.max(start)).map(|at| self.cells.get(at as usize).copied().flatten().unwrap_or(0)).collect()
    }

    pub fn write(&mut self, start: u64, bytes: &[u8]) {
        let (start, end) = (start as usize, start as usize + bytes.len());
        self.reach(end);
        for (cell, byte) in self.cells[start..end].iter_mut().zip(bytes) {
            *cell = Some(*byte);
        }
        self.size = self.size.max(end as u64);
    }

    pub fn resize(&mut self, size: u64) {
        self.cells.truncate(size.min(usize::MAX as u64) as usize);
        self.size = size;
    }

    pub fn punch(&mut self, start: u64, end: u64) {
        let known = self.cells.len() as u64;
        self.cells[start.min(known) as usize..end.min(known) as usize].fill(None);
    }

    pub fn collapse(&mut self, start: u64, end: u64) {
        let known = self.cells.len() as u64;
        self.cells.drain(start.min(known) as usize..end.min(known) as usize);
        self.size -= end - start;
    }

    pub fn insert(&mut self, start: u64, length: u64) {
        if start < self.cells.len() as u64 {
            let start = start as usize;
            self.cells.splice(start..start, std::iter::repeat_n(None, length as usize));
        }
        self.size += length;
    }

    /// The cells of a range that ends at or before the end of the file.
    pub fn copy(&self, start: u64, end: u64) -> Vec<Option<u8>> {
        (start..end).map(|at| self.cells.get(at as usize).copied().flatten()).collect()
    }

    pub fn paste(&mut self, start: u64, cells: &[Option<u8>]) {
        let (start, end) = (start as usize, start as usize + cells.len());
        self.reach(end);
        self.cells[start..end].copy_from_slice(cells);
        self.size = self.size.max(end as u64);
    }

    /// The first data or hole at or after `offset`; the end of the file is a hole.
    pub fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let known = (self.cells.len() as u64).min(self.size);
        let found = (offset..known).find(|&at| self.cells[at as usize].is_some() == data);
        match (found, data) {
            (Some(at), _) => Some(at),
            (None, true) => None,
            (None, false) => Some(if known == self.size { self.size } else { offset.max(known) }),
        }
    }
}
