//! Time of a forward pass by batch, picture size and threads.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use diffae_kernels::num_multiply_adds;
use plotters::prelude::*;

use super::PAUSE;
use super::ours::Prepared;
use super::report::median;
use super::work::{Kind, Work};

/// Name of the work that is measured on one thread, too.
const THREADED: &str = "unet-64-b4";

/// One measured size.
struct Point {
    name: String,
    image_size: usize,
    batch: usize,
    ms: f64,
    gflop: f64,
}

/// Measures, prints and draws how the time grows.
pub(crate) fn run(path: &Path, threads: usize, rounds: usize) -> Result<()> {
    let works = Work::all().into_iter().filter(|work| work.kind == Kind::Unet);
    let mut points = vec![];
    println!("{:<18} {:>10} {:>10} {:>14} {:>10}", "work", "ms", "GFLOP", "ms a picture", "GFLOP/s");
    for work in works {
        let point = measure(&work, rounds)?;
        let (ms, gflop) = (point.ms, point.gflop);
        println!(
            "{:<18} {ms:>10.2} {gflop:>10.2} {:>14.2} {:>10.0}",
            point.name,
            ms / work.batch as f64,
            gflop / ms * 1e3
        );
        points.push(point);
    }
    draw(path, &points)?;
    let many = points.iter().find(|point| point.name == THREADED).map(|point| point.ms);
    let (many, one) = (many.context("nothing was measured")?, in_a_process_of_one_thread(rounds)?);
    println!("{THREADED}: {many:.2} ms on {threads} threads, {one:.2} ms on one: {:.2} times as fast", one / many);
    Ok(())
}

fn measure(work: &Work, rounds: usize) -> Result<Point> {
    let mut prepared = Prepared::new(work)?;
    let first_ms = prepared.run_ms(1)?;
    let repeats = if first_ms < 100. { 4 } else { 1 };
    let before = num_multiply_adds();
    let mut all = vec![];
    for _ in 0..rounds {
        std::thread::sleep(PAUSE);
        all.push(prepared.run_ms(repeats)?);
    }
    let gflop = 2e-9 * (num_multiply_adds() - before) as f64 / (rounds * repeats).max(1) as f64;
    let (image_size, batch) = (work.preset.image_size, work.batch);
    Ok(Point { name: work.name.clone(), image_size, batch, ms: median(&all), gflop })
}

/// Returns the median time of the same work in a process with one thread.
fn in_a_process_of_one_thread(rounds: usize) -> Result<f64> {
    let json = std::env::temp_dir().join(format!("diffae-scaling-{}.json", std::process::id()));
    let program = std::env::current_exe().context("cannot find this program")?;
    let rounds = rounds.to_string();
    let arguments = ["bench", "--threads", "1", "--only", THREADED, "--rounds", &rounds, "--json"];
    let output = Command::new(program)
        .args(arguments)
        .arg(&json)
        .args(super::exact_flag())
        .output()
        .context("cannot start this program again")?;
    if !output.status.success() {
        bail!("the process of one thread failed: {}", String::from_utf8_lossy(&output.stderr).trim())
    }
    let text = std::fs::read_to_string(&json).context("the process of one thread wrote nothing")?;
    std::fs::remove_file(&json).context("cannot remove a temporary file")?;
    let rows: serde_json::Value = serde_json::from_str(&text).context("the process of one thread wrote no rows")?;
    rows["rows"][0]["ours_ms"].as_f64().context("the process of one thread measured nothing")
}

/// Draws time over arithmetic, both logarithmic; a line of constant rate through the largest point.
fn draw(path: &Path, points: &[Point]) -> Result<()> {
    crate::font::load()?;
    let root = SVGBackend::new(path, (720, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let range = |value: fn(&Point) -> f64| {
        let (low, high) = (f64::INFINITY, 0f64);
        let (low, high) = points.iter().map(value).fold((low, high), |(l, h), v| (l.min(v), h.max(v)));
        low * 0.5..high * 2.
    };
    let mut chart = ChartBuilder::on(&root)
        .caption("A UNet forward: time over arithmetic", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(range(|p| p.gflop).log_scale(), range(|p| p.ms).log_scale())?;
    chart.configure_mesh().x_desc("GFLOP").y_desc("ms").draw()?;
    if let Some(largest) = points.iter().max_by(|a, b| a.gflop.total_cmp(&b.gflop)) {
        let rate = largest.ms / largest.gflop;
        let ends = range(|p| p.gflop);
        let line = [ends.start, ends.end].map(|gflop| (gflop, gflop * rate));
        chart.draw_series(LineSeries::new(line, BLACK.mix(0.4)))?;
    }
    let colors = [(32, BLUE), (64, RED), (128, GREEN), (256, MAGENTA)];
    for (size, color) in colors {
        let of_size = points.iter().filter(|point| point.image_size == size);
        let dots = of_size.clone().map(|point| Circle::new((point.gflop, point.ms), 4, color.filled()));
        let legend = format!("{size} pixels");
        let series = chart.draw_series(dots)?.label(legend);
        series.legend(move |(x, y)| Circle::new((x, y), 4, color.filled()));
        let labels = of_size
            .map(|point| Text::new(format!("b{}", point.batch), (point.gflop * 1.08, point.ms), ("sans-serif", 12)));
        chart.draw_series(labels)?;
    }
    chart.configure_series_labels().border_style(BLACK.mix(0.3)).position(SeriesLabelPosition::UpperLeft).draw()?;
    root.present().context("cannot write the drawing")
}
