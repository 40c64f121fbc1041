//! Medians, ratios and their ranges, as a table and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::machine;
use super::work::Work;

/// Measurements of one piece of work.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) ours_ms: Vec<f64>,
    /// Milliseconds of the runs of each peer.
    pub(crate) peers_ms: Vec<Vec<f64>>,
    /// Arithmetic of one run, as the plain algorithms count it.
    pub(crate) gflop: Option<f64>,
    /// Bytes of memory of ours and of the peer.
    pub(crate) memory: Option<(u64, Option<u64>)>,
}

/// One line of the report.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    work: String,
    ours_ms: f64,
    /// Median milliseconds of the faster peer.
    peer_ms: Option<f64>,
    /// Time of the peer over ours.
    ratio: Option<f64>,
    /// Smallest and largest ratio of a round.
    ratio_range: Option<[f64; 2]>,
    /// Rate: arithmetic of the plain algorithms over time.
    #[serde(default)]
    gflops: Option<f64>,
    ours_bytes: Option<u64>,
    peer_bytes: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    machine: String,
    threads: usize,
    peak_gflops: f64,
    rows: Vec<Row>,
}

/// Report of the rows, printed as they come.
pub(crate) struct Report {
    file: File,
    before: Option<File>,
}

impl Report {
    /// Measures the machine and prints the heading.
    pub(crate) fn new(threads: usize, before: Option<&Path>) -> Result<Self> {
        let read = |path: &Path| -> Result<File> {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} holds no rows", path.display()))
        };
        let (machine, peak_gflops) = (machine::processor(), machine::peak_gflops()?);
        println!("{machine}, {threads} threads, matrix product {peak_gflops:.0} GFLOP/s");
        println!(
            "{:<20} {:>10} {:>10} {:>7} {:>15} {:>8} {:>6}",
            "work", "ours ms", "peer ms", "ratio", "range", "GFLOP/s", "peak"
        );
        let file = File { machine, threads, peak_gflops, rows: vec![] };
        Ok(Self { file, before: before.map(read).transpose()? })
    }

    /// Prints and keeps a row.
    pub(crate) fn add(&mut self, work: &Work, measurement: &Measurement) {
        let row = Row::new(work, measurement);
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let range = row.ratio_range.map_or_else(|| "-".to_owned(), |[low, high]| format!("{low:.2} .. {high:.2}"));
        let (ours, peer, ratio) = (number(Some(row.ours_ms)), number(row.peer_ms), number(row.ratio));
        println!(
            "{:<20} {ours:>10} {peer:>10} {ratio:>7} {range:>15} {:>8} {:>6}{}",
            row.work,
            row.gflops.map_or_else(|| "-".to_owned(), |gflops| format!("{gflops:.0}")),
            row.gflops
                .map_or_else(|| "-".to_owned(), |gflops| format!("{:.0}%", 100. * gflops / self.file.peak_gflops)),
            self.change(&row)
        );
        if let Some(ours) = row.ours_bytes {
            let ratio = row.peer_bytes.map(|peer| peer as f64 / ours as f64);
            let mib = |bytes: Option<u64>| number(bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)));
            println!(
                "{:<20} {:>10} {:>10} {:>7}  MiB",
                "  peak memory",
                mib(Some(ours)),
                mib(row.peer_bytes),
                number(ratio)
            );
        }
        self.file.rows.push(row);
    }

    /// Describes how the row differs from that of an earlier run.
    fn change(&self, row: &Row) -> String {
        let earlier = self.before.iter().flat_map(|file| &file.rows).find(|earlier| earlier.work == row.work);
        earlier.map_or_else(String::new, |earlier| {
            format!("  {:.2} times as fast as before", earlier.ours_ms / row.ours_ms)
        })
    }

    /// Writes the rows to the file that was asked for, if any.
    pub(crate) fn conclude(self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let text = serde_json::to_string_pretty(&self.file).context("cannot write JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Row {
    fn new(work: &Work, measurement: &Measurement) -> Self {
        let ours_ms = median(&measurement.ours_ms);
        let fastest = measurement.peers_ms.iter().min_by(|a, b| median(a).total_cmp(&median(b)));
        let ratios: Option<Vec<f64>> =
            fastest.map(|peer| peer.iter().zip(&measurement.ours_ms).map(|(peer, ours)| peer / ours).collect());
        let range = |ratios: &Vec<f64>| {
            let (low, high) = (f64::INFINITY, 0f64);
            ratios.iter().fold([low, high], |[low, high], ratio| [low.min(*ratio), high.max(*ratio)])
        };
        let (ours_bytes, peer_bytes) = measurement.memory.unzip();
        Self {
            work: work.name.clone(),
            ours_ms,
            peer_ms: fastest.map(|peer| median(peer)),
            ratio: fastest.map(|peer| median(peer) / ours_ms),
            ratio_range: ratios.as_ref().map(range),
            gflops: measurement.gflop.map(|gflop| gflop / ours_ms * 1e3),
            ours_bytes,
            peer_bytes: peer_bytes.flatten(),
        }
    }
}

/// Returns the median.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() >> 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_medians_of_the_faster_peer() {
        let work = Work::all().remove(0);
        let measurement = Measurement {
            ours_ms: vec![2., 1., 4.],
            peers_ms: vec![vec![9., 9., 9.], vec![4., 6., 8.]],
            gflop: None,
            memory: None,
        };
        let row = Row::new(&work, &measurement);
        assert_eq!(row.ratio, Some(3.));
        assert_eq!(row.ratio_range, Some([2., 6.]));
    }
}
