//! What one client did alone, one step after the other: after its end there is a beginning of that, which
//! holds everything that it had synced.
//!
//! Step `2 n` makes the file `n`, step `2 n + 1` writes it. So what is there tells how far the chain got.

use atoll_types::Name;

#[derive(Clone, Debug)]
pub struct Chain {
    pub client: usize,
    /// The client's processes of one round have chains of their own.
    pub generation: usize,
    /// Steps that were answered.
    pub steps: u64,
    /// A step was called and not answered.
    pub is_open: bool,
    /// So many steps had been answered before a sync began that was answered.
    pub synced: u64,
    /// The process ended, or its session did: then the end may be lost.
    pub may_lose: bool,
    /// Nothing is known of how its changes mix with others of the same process.
    pub is_void: bool,
}

impl Chain {
    pub fn new(client: usize, generation: usize) -> Chain {
        Chain { client, generation, steps: 0, is_open: false, synced: 0, may_lose: false, is_void: false }
    }

    pub fn name(&self, file: u64) -> Name {
        Name::new(format!("g{}-{file}", self.generation).into_bytes()).expect("a good name")
    }

    pub fn content(&self, file: u64) -> Vec<u8> {
        let length = [8, 100, 5_000][(file % 3) as usize];
        format!("{}.{}.{file};", self.client, self.generation).into_bytes().repeat(length / 8 + 1)
    }

    /// What is wrong with what is there of it: of each file whether it exists, and how much of it is right.
    pub fn judge(&self, found: &[Option<Vec<u8>>]) -> Result<(), String> {
        if self.is_void {
            return Ok(());
        }
        let mut there = 0;
        for (file, found) in (0..).zip(found) {
            match found {
                None => break,
                Some(bytes) if bytes.is_empty() => {
                    there = 2 * file + 1;
                    break;
                }
                Some(bytes) if *bytes == self.content(file) => there = 2 * file + 2,
                Some(bytes) => return Err(format!("{self:?}: file {file} has {} wrong bytes", bytes.len())),
            }
        }
        let beyond = (there as usize).div_ceil(2);
        if let Some(file) = (beyond..found.len()).find(|&file| found[file].is_some()) {
            return Err(format!("{self:?}: file {file} is there, and step {there} is not: no beginning"));
        }
        let least = if self.may_lose { self.synced } else { self.steps };
        let most = self.steps + u64::from(self.is_open);
        if there < least {
            return Err(format!("{self:?}: only {there} steps are there"));
        }
        if there > most {
            return Err(format!("{self:?}: {there} steps are there"));
        }
        Ok(())
    }
}
