//! `diffae reconstruct --model MODEL INPUT.. --out DIR`

use anyhow::{Context, Result};
use candle_core::Tensor;
use diffae_infer::{NoiseSource, Sheet, list_inputs, rgb_from_tensor};
use image::RgbImage;
use serde::Serialize;

use crate::args::{GlobalArgs, ReconstructArgs, ReconstructionNoise};
use crate::output::{PictureOutput, Provenance, say, say_json};
use crate::progress::Progress;
use crate::session::{Session, to_unit};

const SHEET: &str = "sheet";

/// How near a reconstruction is, both pictures in `[0, 1]`.
#[derive(Debug, Serialize)]
struct Measured {
    name: String,
    psnr: Option<f64>,
    ssim: f64,
    mse: f64,
}

/// Encodes and decodes pictures, shows both side by side, and measures the difference.
pub(crate) fn run(global: &GlobalArgs, args: &ReconstructArgs) -> Result<()> {
    let inputs = list_inputs(&args.pictures.input)?;
    let names: Vec<String> = inputs.iter().map(|input| input.name.clone()).collect();
    let planned: Vec<String> = names.iter().cloned().chain([SHEET.to_owned()]).collect();
    let mut output = PictureOutput::new(&args.out.out, &planned, args.out.force.overwrite())?;
    let session = Session::open(global, &args.model, &args.batch)?;
    let inverted = args.x_t == ReconstructionNoise::Inverted;
    let invert_steps = if inverted { args.inversion.invert_steps } else { 0 };
    session.check_steps("--steps", args.decoding.steps)?;
    if inverted {
        session.check_steps("--invert-steps", invert_steps)?;
    }
    let mut provenance = Provenance::new(session.model.fingerprint()).with("steps", &args.decoding.steps);
    provenance = if inverted {
        provenance.with("invert_steps", &invert_steps)
    } else {
        provenance.with("seed", &args.random.seed)
    };

    let progress = Progress::start("reconstruct", inputs.len(), args.decoding.steps + invert_steps);
    let mut sheet = Sheet::new().with_columns(["original", if inverted { "inverted x_T" } else { "random x_T" }]);
    let (mut measured, mut start) = (Vec::new(), 0);
    for batch in inputs.chunks(session.batch_size()) {
        let batch_names = &names[start..start + batch.len()];
        let x_0 = session.read(batch)?;
        let z_sem = session.encode_semantic(&x_0)?;
        let x_terminal = if inverted {
            session.invert(&x_0, z_sem.as_ref(), invert_steps, &progress)?
        } else {
            session.random_x_terminal(NoiseSource::new(args.random.seed), start as u64..(start + batch.len()) as u64)?
        };
        let decoded = session.decode(&x_terminal, z_sem.as_ref(), args.decoding.steps, &progress)?;
        measured.extend(measure(&x_0, &decoded, batch_names)?);
        output.write(&decoded, batch_names, &provenance)?;
        if output.has_sheet() {
            for (name, row) in batch_names.iter().zip(side_by_side(&x_0, &decoded)?) {
                sheet.push(name, row);
            }
        }
        start += batch.len();
    }
    progress.finish();
    output.write_sheet("sheet.png", &sheet.draw(), &provenance)?;
    output.commit(&provenance)?;
    if args.json { say_json(&measured) } else { say_table(&measured) }
}

fn measure(x_0: &Tensor, decoded: &Tensor, names: &[String]) -> Result<Vec<Measured>> {
    let (x, y) = (to_unit(x_0)?, to_unit(decoded)?);
    let psnr = diffae_eval::psnr(&x, &y).context("measuring PSNR")?;
    let ssim = diffae_eval::ssim(&x, &y).context("measuring SSIM")?;
    let mse = diffae_eval::mse(&x, &y).context("measuring MSE")?;
    let each = names.iter().zip(psnr).zip(ssim).zip(mse);
    // A perfect copy has no finite PSNR, which JSON could not hold.
    let finite = |value: f64| value.is_finite().then_some(value);
    Ok(each.map(|(((name, psnr), ssim), mse)| Measured { name: name.clone(), psnr: finite(psnr), ssim, mse }).collect())
}

fn side_by_side(x_0: &Tensor, decoded: &Tensor) -> Result<Vec<Vec<RgbImage>>> {
    let row = |idx| -> Result<_> { Ok(vec![rgb_from_tensor(&x_0.get(idx)?)?, rgb_from_tensor(&decoded.get(idx)?)?]) };
    (0..x_0.dim(0)?).map(row).collect()
}

fn say_table(measured: &[Measured]) -> Result<()> {
    let width = measured.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max("picture".len());
    let psnr = |value: Option<f64>| value.map_or("inf".to_owned(), |value| format!("{value:.2}"));
    say(&format!("{:width$}  PSNR dB    SSIM       MSE", "picture"))?;
    for Measured { name, psnr: value, ssim, mse } in measured {
        say(&format!("{name:width$}  {:>7}  {ssim:.4}  {mse:.2e}", psnr(*value)))?;
    }
    if measured.len() > 1 {
        let count = measured.len() as f64;
        let mean = |value: fn(&Measured) -> f64| measured.iter().map(value).sum::<f64>() / count;
        let (ssim, mse) = (mean(|row| row.ssim), mean(|row| row.mse));
        let mean_psnr = mean(|row| row.psnr.unwrap_or(f64::INFINITY));
        say(&format!("{:width$}  {mean_psnr:>7.2}  {ssim:.4}  {mse:.2e}", "mean"))?;
    }
    Ok(())
}
