//! What the workloads found: samples by row, site and run, and everything that went wrong.

use std::collections::BTreeMap;

use crate::Result;

/// Where a workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// The directory under test.
    Volume,
    /// A tree in memory behind the same session loop; the kernel asks each time.
    Null,
    /// The same, but the kernel keeps all it was told.
    NullInfinite,
    /// A directory on a disk of this machine.
    Local,
}

impl Site {
    pub const ALL: [Site; 4] = [Site::Volume, Site::Null, Site::NullInfinite, Site::Local];

    /// The key in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Site::Volume => "volume",
            Site::Null => "null",
            Site::NullInfinite => "null_infinite",
            Site::Local => "local",
        }
    }

    /// The heading of a column.
    pub fn title(self) -> &'static str {
        match self {
            Site::NullInfinite => "null∞",
            site => site.key(),
        }
    }
}

/// Something that must not happen: a wrong answer, or a call that failed.
pub struct Problem {
    pub row: &'static str,
    pub site: Option<Site>,
    pub what: String,
    pub count: u64,
}

/// What one workload on one site found in one run.
#[derive(Default)]
pub struct Record {
    pub samples: Vec<(&'static str, f64)>,
    pub faults: Vec<(&'static str, String, u64)>,
    /// The workload that failed, and how.
    pub error: Option<(&'static str, String)>,
    pub notes: Vec<String>,
}

impl Record {
    pub fn sample(&mut self, row: &'static str, value: f64) {
        self.samples.push((row, value));
    }

    /// `count` wrong answers; none is no fault.
    pub fn fault(&mut self, row: &'static str, what: impl Into<String>, count: u64) {
        if count > 0 {
            self.faults.push((row, what.into(), count));
        }
    }
}

/// Median and range.
#[derive(Clone, Copy)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Summary {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Summary { median, min, max })
    }
}

/// All of it.
#[derive(Default)]
pub struct Results {
    samples: BTreeMap<(&'static str, Site), BTreeMap<u32, f64>>,
    pub faults: Vec<Problem>,
    pub errors: Vec<Problem>,
    pub notes: Vec<String>,
}

impl Results {
    pub fn add(&mut self, run: u32, site: Site, record: Record) {
        for (row, value) in record.samples {
            self.samples.entry((row, site)).or_default().insert(run, value);
        }
        for (row, what, count) in record.faults {
            merge(&mut self.faults, Problem { row, site: Some(site), what, count });
        }
        if let Some((row, what)) = record.error {
            merge(&mut self.errors, Problem { row, site: Some(site), what, count: 1 });
        }
        for note in record.notes {
            self.note(note);
        }
    }

    pub fn error(&mut self, row: &'static str, site: Option<Site>, what: String) {
        merge(&mut self.errors, Problem { row, site, what, count: 1 });
    }

    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The samples of a row on a site, by run.
    pub fn samples(&self, row: &str, site: Site) -> impl Iterator<Item = (u32, f64)> + '_ {
        let found = self.samples.iter().find(|((name, at), _)| *name == row && *at == site);
        found.into_iter().flat_map(|(_, runs)| runs.iter().map(|(run, value)| (*run, *value)))
    }

    pub fn sample(&self, row: &str, site: Site, run: u32) -> Option<f64> {
        self.samples(row, site).find(|(at, _)| *at == run).map(|(_, value)| value)
    }

    pub fn summary(&self, row: &str, site: Site) -> Option<Summary> {
        Summary::of(self.samples(row, site).map(|(_, value)| value))
    }

    /// The volume's value over another site's of the same run, for every run that has both.
    pub fn ratio(&self, row: &str, other: Site) -> Option<Summary> {
        let both = self.samples(row, Site::Volume).filter_map(|(run, value)| {
            let other = self.sample(row, other, run)?;
            Some(value / other)
        });
        Summary::of(both)
    }

    /// Good figures do not make up for a wrong answer.
    pub fn verdict(&self) -> Result<()> {
        let count = |problems: &[Problem]| problems.iter().map(|problem| problem.count).sum::<u64>();
        match (count(&self.faults), count(&self.errors)) {
            (0, 0) => Ok(()),
            (faults, errors) => Err(format!("{faults} faults, {errors} errors")),
        }
    }
}

/// The same problem in several runs is one line with a count.
fn merge(problems: &mut Vec<Problem>, new: Problem) {
    let same = |old: &&mut Problem| (old.row, old.site, &old.what) == (new.row, new.site, &new.what);
    match problems.iter_mut().find(same) {
        Some(old) => old.count += new.count,
        None => problems.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(row: &'static str, value: f64) -> Record {
        Record { samples: vec![(row, value)], ..Record::default() }
    }

    #[test]
    fn ratios_pair_the_values_of_one_run() {
        let mut results = Results::default();
        for (run, (volume, null)) in [(10.0, 20.0), (30.0, 30.0), (90.0, 60.0)].into_iter().enumerate() {
            results.add(run as u32, Site::Volume, record("stat", volume));
            results.add(run as u32, Site::Null, record("stat", null));
        }
        results.add(3, Site::Volume, record("stat", 1e9));
        let ratio = results.ratio("stat", Site::Null).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (1.0, 0.5, 1.5));
        assert!(results.ratio("stat", Site::Local).is_none());
    }

    #[test]
    fn a_fault_fails_the_benchmark_and_none_does_not() {
        let mut results = Results::default();
        let mut good = record("visible-p50", 1.0);
        good.fault("visible-p50", "stale", 0);
        results.add(0, Site::Volume, good);
        assert!(results.verdict().is_ok());
        for _ in 0..2 {
            let mut bad = Record::default();
            bad.fault("visible-p50", "stale", 3);
            results.add(0, Site::Volume, bad);
        }
        assert_eq!(results.verdict(), Err("6 faults, 0 errors".into()));
        assert_eq!(results.faults.len(), 1);
    }
}
