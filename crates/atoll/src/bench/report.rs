//! The results as a table for people and as JSON for machines.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::measure::Scale;
use super::results::{Problem, Results, Site, Summary};
use super::rows::{Better, Goal, Row};
use super::sites::Sites;
use crate::arguments::Bench;

pub struct Report<'a> {
    pub options: &'a Bench,
    pub scale: &'a Scale,
    pub rows: &'a [&'static Row],
    pub results: &'a Results,
    pub sites: &'a Sites,
    pub seconds: f64,
}

const OTHERS: [Site; 3] = [Site::Null, Site::NullInfinite, Site::Local];

impl Report<'_> {
    pub fn json(&self) -> Value {
        let problems = |problems: &[Problem]| -> Vec<Value> {
            let one =
                |p: &Problem| json!({"row": p.row, "site": p.site.map(Site::key), "what": p.what, "count": p.count});
            problems.iter().map(one).collect()
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "durability": self.sites.durability,
            "two_mounts": self.options.second.is_some(),
            "quick": self.options.quick,
            "runs": self.options.runs,
            "directory_entries": self.scale.directory_entries,
            "processors": processors(),
            "seconds": self.seconds,
            "rows": self.rows.iter().map(|row| self.row_json(row)).collect::<Vec<_>>(),
            "faults": problems(&self.results.faults),
            "errors": problems(&self.results.errors),
            "notes": self.results.notes,
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        let mut object = Map::new();
        let better = if row.better == Better::Higher { "higher" } else { "lower" };
        let faults: u64 = self.results.faults.iter().filter(|fault| fault.row == row.name).map(|f| f.count).sum();
        for (key, value) in [
            ("name", json!(row.name)),
            ("what", json!(row.what)),
            ("unit", json!(row.unit)),
            ("better", json!(better)),
            ("durability", json!(self.sites.durability)),
            ("faults", json!(faults)),
        ] {
            object.insert(key.into(), value);
        }
        for site in Site::ALL {
            let values: Vec<f64> = self.results.samples(row.name, site).map(|(_, value)| value).collect();
            let summary = Summary::of(values.iter().copied());
            let value = summary.map(|s| json!({"median": s.median, "min": s.min, "max": s.max, "values": values}));
            object.insert(site.key().into(), value.unwrap_or_default());
        }
        let ratios: Map<String, Value> = OTHERS
            .into_iter()
            .filter_map(|site| {
                let ratio = self.results.ratio(row.name, site)?;
                Some((site.key().into(), json!({"median": ratio.median, "min": ratio.min, "max": ratio.max})))
            })
            .collect();
        object.insert("ratio".into(), ratios.into());
        let verdict = row.verdict(self.results, &self.sites.durability, self.scale.directory_entries);
        object.insert("goal".into(), if row.goal_text.is_empty() { Value::Null } else { json!(row.goal_text) });
        object.insert("target".into(), json!(verdict.as_ref().map(|verdict| verdict.target)));
        object.insert("reached".into(), json!(verdict.and_then(|verdict| verdict.reached)));
        object.into()
    }

    pub fn table(&self) -> String {
        let mut text = String::new();
        let mounts = if self.options.second.is_some() { "two mounts" } else { "one mount" };
        let size = if self.options.quick { ", quick" } else { "" };
        let _ = writeln!(
            text,
            "atoll {}: durability {}, {mounts}, runs: {}{size}, median (min–max), {} processors, {:.0} s\n",
            env!("CARGO_PKG_VERSION"),
            self.sites.durability,
            self.options.runs,
            processors(),
            self.seconds
        );
        let heading = ["row", "unit", "better", "volume", "null", "null∞", "local", "× null", "× null∞", "× local"];
        let mut lines: Vec<Vec<String>> = vec![heading.map(str::to_owned).to_vec()];
        lines[0].extend(["goal".to_owned(), "reached".to_owned()]);
        lines.extend(self.rows.iter().map(|row| self.line(row)));
        text.push_str(&align(&lines));
        for (title, problems) in [("FAULTS", &self.results.faults), ("ERRORS", &self.results.errors)] {
            if !problems.is_empty() {
                let _ = writeln!(text, "\n{title}");
            }
            for problem in problems {
                let site = problem.site.map_or("-", Site::title);
                let _ = writeln!(text, "  {} on {site}: {} ({}×)", problem.row, problem.what, problem.count);
            }
        }
        for note in &self.results.notes {
            let _ = writeln!(text, "\nnote: {note}");
        }
        if self.results.verdict().is_ok() {
            text.push_str("\nNo faults, no errors.\n");
        }
        text
    }

    fn line(&self, row: &Row) -> Vec<String> {
        let several = self.options.runs > 1;
        let spread = |summary: Summary| {
            let Summary { median, min, max } = summary;
            let range = if several { format!(" ({}–{})", number(min), number(max)) } else { String::new() };
            format!("{}{range}", number(median))
        };
        let value = |site| self.results.summary(row.name, site);
        let ratio = |site| {
            let ratio = self.results.ratio(row.name, site);
            // The range goes with the ratio that the goal is about.
            let about = matches!(row.goal, Goal::Times(_, other) if other == site);
            ratio.map_or(String::new(), |ratio| if about { spread(ratio) } else { number(ratio.median) })
        };
        let verdict = row.verdict(self.results, &self.sites.durability, self.scale.directory_entries);
        let reached = match verdict {
            None => "",
            Some(verdict) => match verdict.reached {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "open",
            },
        };
        let better = if row.better == Better::Higher { "higher" } else { "lower" };
        let mut line = vec![row.name.to_owned(), row.unit.to_owned(), better.to_owned()];
        line.push(value(Site::Volume).map_or(String::new(), spread));
        line.extend(OTHERS.map(|site| value(site).map_or(String::new(), |value| number(value.median))));
        line.extend(OTHERS.map(ratio));
        line.extend([row.goal_text.to_owned(), reached.to_owned()]);
        line
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// About three digits that matter; whole from 100, with commas from 1,000.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size < 0.1 => format!("{value:.4}"),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let grouped: Vec<&str> =
                digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or("")).collect();
            grouped.join(",")
        }
    }
}

/// Columns as wide as their widest cell, figures to the right.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut shown = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let _ = match column {
                3..=9 => write!(shown, "{cell:>width$}  "),
                _ => write!(shown, "{cell:<width$}  "),
            };
        }
        let _ = writeln!(text, "{}", shown.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        let shown = [0.0, 0.01234, 0.123, 1.5, 12.34, 123.4, 1234.5, 1_234_567.0].map(number);
        assert_eq!(shown, ["0", "0.0123", "0.123", "1.50", "12.3", "123", "1,234", "1,234,567"]);
    }
}
