//! Draws the log of a training run, as `cargo xtask curves`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;
use serde::Deserialize;

/// Arguments of `cargo xtask curves`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the run
    run: PathBuf,
    /// File to draw into
    #[arg(long, short, value_name = "FILE.svg")]
    out: PathBuf,
}

/// Fields of a line of `metrics.jsonl`, as far as they are drawn.
#[derive(Debug, Deserialize)]
struct Line {
    stage: String,
    images: usize,
    loss: Option<f64>,
    validation_loss: Option<f64>,
    z_usage: Option<f64>,
}

/// A curve: its name, and points of pictures seen and value.
type Curve = (&'static str, Vec<(f64, f64)>);

/// Number of values that a point of the smoothed training loss is the mean of.
const SMOOTHED: usize = 5;

/// Draws the losses of the first stage, and below them how much `z_sem` matters.
pub(crate) fn run(args: &Args) -> Result<()> {
    crate::font::load()?;
    let path = args.run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: Vec<Line> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("a line of {} is damaged", path.display())))
        .collect::<Result<_>>()?;
    let lines: Vec<Line> = lines.into_iter().filter(|line| line.stage == "autoencoder").collect();
    let points = |value: fn(&Line) -> Option<f64>| -> Vec<(f64, f64)> {
        lines.iter().filter_map(|line| Some((line.images as f64, value(line)?))).collect()
    };
    let losses: [Curve; 2] = [
        ("training loss, smoothed", smoothed(&points(|line| line.loss))),
        ("validation loss", points(|line| line.validation_loss)),
    ];
    ensure!(!losses[0].1.is_empty(), "{} has no lines of the autoencoder stage", path.display());
    let root = SVGBackend::new(&args.out, (720, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(340);
    draw(&above, "Loss", &losses)?;
    draw(
        &below,
        "z_usage: rise of the loss with the codes of other pictures",
        &[("z_usage", points(|line| line.z_usage))],
    )?;
    root.present().context("cannot write the drawing")
}

/// Returns the means of the last [`SMOOTHED`] values.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |(last, &(x, _)): (usize, &(f64, f64))| {
        let some = &points[(last + 1).saturating_sub(SMOOTHED)..=last];
        (x, some.iter().map(|point| point.1).sum::<f64>() / some.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

fn draw(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, title: &str, curves: &[Curve]) -> Result<()> {
    let all = || curves.iter().flat_map(|(_, points)| points);
    let last = all().map(|point| point.0).fold(1., f64::max);
    // The first steps of an untrained network would hide everything else.
    let settled = all().filter(|point| point.0 > 0.08 * last).map(|point| point.1);
    let (low, high) = settled.fold((0f64, 1e-6f64), |(low, high), value| (low.min(value), high.max(value)));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0. ..last, low..high * 1.1)?;
    chart.configure_mesh().x_desc("pictures").draw()?;
    for ((name, points), color) in curves.iter().zip([BLUE, RED]) {
        let inside = points.iter().copied().filter(|point| point.1 <= high * 1.1);
        let series = chart.draw_series(LineSeries::new(inside, color.stroke_width(2)))?.label(*name);
        series.legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    if curves.len() > 1 {
        chart.configure_series_labels().border_style(BLACK.mix(0.3)).draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_is_the_mean_of_the_last_values() {
        let points: Vec<(f64, f64)> = (0..7u32).map(|i| (f64::from(i), f64::from(i))).collect();
        let means: Vec<f64> = smoothed(&points).into_iter().map(|point| point.1).collect();
        assert_eq!(means, [0., 0.5, 1., 1.5, 2., 3., 4.]);
    }

    #[test]
    fn a_run_is_drawn_and_one_without_a_first_stage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let args = Args { run: folder.path().to_owned(), out: folder.path().join("a.svg") };
        let log = folder.path().join("metrics.jsonl");
        std::fs::write(&log, "{\"stage\":\"latent\",\"images\":1,\"loss\":1.0}\n").unwrap();
        assert!(run(&args).unwrap_err().to_string().contains("no lines"));
        let lines = (1..9u32).map(|i| format!("{{\"stage\":\"autoencoder\",\"images\":{i},\"loss\":0.{i}}}\n"));
        std::fs::write(&log, lines.collect::<String>()).unwrap();
        run(&args).unwrap();
        assert!(std::fs::read_to_string(&args.out).unwrap().contains("</svg>"));
    }
}
