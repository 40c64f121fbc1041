//! Reconstruction quality by number of decoding steps.

use std::collections::BTreeSet;
use std::ops::Range;

use candle_core::Tensor;
use diffae_data::{PictureSet, rgb_from_tensor};
use diffae_infer::{PipelineSettings, Settings, Sheet, StochasticCode, XTerminalSource};
use diffae_schedule::Sampler;
use image::RgbImage;

use super::lpips_pairs::{pairs_by_name, read_pair};
use super::{Measure, PerceptualNetwork};
use crate::error::{Error, Result, check_at_least, unsuitable};
use crate::evaluated_model::{EvaluatedModel, to_unit};
use crate::evaluation::{Evaluation, Stage, batches};
use crate::features::LpipsBackbone;
use crate::journal::{Journal, Values};
use crate::pixel_error::{mse, psnr};
use crate::plot::{Curve, Plot};
use crate::report::{Figure, Report};
use crate::ssim::{ms_ssim, ssim};

const NAME: &str = "recon";
const SHEET: &str = "recon.png";
/// Measures, in the order of the report.
const MEASURES: [&str; 6] = ["psnr", "ssim", "ms_ssim", "mse", "lpips", "ssim_of_rows"];
/// Number of pictures on the sheet.
const NUM_SHOWN: usize = 8;

/// An image and its reconstructions.
struct SheetRow {
    name: String,
    pictures: Vec<RgbImage>,
}

/// A method of reconstruction.
#[derive(Debug, Clone, Copy)]
struct Method {
    kind: XTerminalKind,
    steps: usize,
    invert_steps: usize,
}

impl Method {
    fn item(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.kind.name(), self.steps)
    }

    fn settings(self, model: &EvaluatedModel, sampler: Sampler, seed: u64) -> Result<PipelineSettings> {
        let Self { steps: num_steps, invert_steps: num_invert_steps, .. } = self;
        let of_paper = PipelineSettings::REFERENCE;
        let along =
            model.along_own_chain(PipelineSettings { num_steps, num_invert_steps, sampler, seed, ..of_paper })?;
        let is_endpoint = self.kind == XTerminalKind::Endpoint;
        let x_terminal = if is_endpoint { XTerminalSource::Endpoint } else { XTerminalSource::Random };
        Ok(PipelineSettings { x_terminal, ..along })
    }

    fn reconstruct(
        self,
        model: &EvaluatedModel,
        (x_0, z_sem): (&Tensor, Option<&Tensor>),
        batch: &Range<usize>,
        settings: &PipelineSettings,
        stage: &Stage<'_>,
    ) -> Result<Tensor> {
        let numbers = (batch.start, batch.len());
        let code = match self.kind {
            XTerminalKind::Inverted => model.pipeline().invert_batch(x_0, z_sem, settings, &mut stage.observer())?,
            XTerminalKind::Random | XTerminalKind::Endpoint => {
                StochasticCode { x_terminal: model.x_terminal(z_sem, numbers, settings)?, chain: None }
            }
        };
        model.decode_code((&code, z_sem), batch.start, settings, stage)
    }
}

/// Reconstruction quality by number of decoding steps, from inverted and from random `x_T`, and from those of the endpoint
/// network where there is one: PSNR, SSIM, MSE; MS-SSIM of
/// pictures with a side of 176 pixels or more, and LPIPS with its network.
#[derive(Debug)]
pub struct Recon<'a> {
    /// The model, or reconstructions of any program.
    pub subject: ReconSubject<'a>,
    /// Real pictures.
    pub pictures: &'a PictureSet,
    /// The network of LPIPS; `None` leaves LPIPS out.
    pub lpips: Option<&'a PerceptualNetwork>,
    /// Options.
    pub options: ReconOptions,
}

/// Subject of [`Recon`].
#[derive(Debug)]
pub enum ReconSubject<'a> {
    /// A model, which reconstructs the pictures.
    Model(&'a EvaluatedModel),
    /// Reconstructions of the same names, squares, of any program.
    Pictures {
        /// The reconstructions.
        pictures: &'a PictureSet,
        /// Source of their `x_T`; their number of steps is the first of the options.
        made_with: XTerminalKind,
    },
}

/// Source of `x_T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XTerminalKind {
    /// Inverted from the picture.
    Inverted,
    /// Random noise.
    Random,
    /// Endpoint: computed by the model's network.
    Endpoint,
}

impl XTerminalKind {
    const ALL: [Self; 3] = [Self::Inverted, Self::Random, Self::Endpoint];

    /// Returns the name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inverted => "inverted",
            Self::Random => "random",
            Self::Endpoint => "endpoint",
        }
    }
}

/// The way in which reconstructions are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReconProtocol {
    /// As tensors, without rounding.
    #[default]
    Exact,
    /// Protocol of Diffusion Bridge `AutoEncoders`, Kim et al. 2024 (arXiv:2405.17111), by the authors' `eval_reconstruction.py`:
    /// reconstructions are cut off to 8 bits, LPIPS is that of `AlexNet`, and a figure more, `ssim_of_rows`, is the SSIM that they
    /// report: arrays there have the axes `[N, H, W, C]`, so that rows count as channels, and the Gaussian window lies over columns
    /// and colors.
    Dbae,
}

impl ReconProtocol {
    /// Returns the name: `exact`, `dbae`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Dbae => "dbae",
        }
    }
}

/// Options of [`Recon`].
#[derive(Debug, Clone, PartialEq)]
pub struct ReconOptions {
    /// Numbers of decoding steps, one number or more. Default: 10, 20 and 50.
    pub steps: Vec<usize>,
    /// Inversion steps. Default: as many as decoding steps.
    pub invert_steps: Option<usize>,
    /// Sampler. Default: DDIM.
    pub sampler: Sampler,
    /// The way of measuring. Default: without rounding.
    pub protocol: ReconProtocol,
}

impl Default for ReconOptions {
    fn default() -> Self {
        Self { steps: vec![10, 20, 50], invert_steps: None, sampler: Sampler::DDIM, protocol: ReconProtocol::Exact }
    }
}

impl Measure for Recon<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        check_at_least("the count of numbers of steps", self.options.steps.len(), 1)?;
        let is_alex = self.lpips.is_some_and(|lpips| lpips.backbone() == LpipsBackbone::Alex);
        if self.options.protocol == ReconProtocol::Dbae && !is_alex {
            return Err(unsuitable("the protocol dbae has LPIPS of AlexNet: give its weights"));
        }
        match &self.subject {
            ReconSubject::Model(model) => {
                self.lpips.map_or(Ok(()), |_| model.check_is_of_photographs("LPIPS"))?;
                self.run_model(evaluation, model)
            }
            ReconSubject::Pictures { pictures, made_with } => self.run_pictures(evaluation, pictures, *made_with),
        }
    }
}

impl Recon<'_> {
    /// Returns the methods that are compared, by `x_T` and numbers of steps.
    fn methods(&self, model: &EvaluatedModel) -> Result<Vec<Method>> {
        let (options, is_distilled) = (&self.options, model.distilled().is_some());
        if is_distilled && options.invert_steps.is_some() {
            let problem = "--invert-steps is of DDIM in reverse, but a decoder with a chain of its own is inverted along its own chain";
            return Err(unsuitable(problem));
        }
        let is_one_shot = model.pipeline().is_one_shot();
        let steps: BTreeSet<usize> = if is_one_shot { [1].into() } else { options.steps.iter().copied().collect() };
        let of_kind = |kind| {
            steps.iter().map(move |&steps| {
                let is_inverted = kind == XTerminalKind::Inverted;
                let usual = steps + usize::from(is_distilled);
                let invert_steps = if is_inverted { options.invert_steps.unwrap_or(usual) } else { 0 };
                Method { kind, steps, invert_steps }
            })
        };
        let has_endpoint = model.model().config().endpoint().is_some();
        let kinds = XTerminalKind::ALL.into_iter().filter(|&kind| kind != XTerminalKind::Endpoint || has_endpoint);
        Ok(kinds.flat_map(of_kind).collect())
    }

    /// Reconstructs every picture by every method, and measures the results.
    fn run_model(&self, evaluation: &Evaluation<'_>, model: &EvaluatedModel) -> Result<Report> {
        let Self { pictures, lpips, options, .. } = self;
        let methods = self.methods(model)?;
        let steps: BTreeSet<usize> = methods.iter().map(|method| method.steps).collect();
        let (seed, sampler) = (evaluation.seed(), options.sampler);
        let mut settings = model.settings();
        settings.extend([
            ("data".to_owned(), pictures.fingerprint()?.into()),
            ("count".to_owned(), pictures.len().into()),
            ("steps".to_owned(), steps.iter().copied().collect::<Vec<_>>().into()),
            ("invert_steps".to_owned(), options.invert_steps.into()),
            ("seed".to_owned(), seed.into()),
        ]);
        settings.extend(options.protocol_settings());
        for method in &methods {
            let decoding = method.settings(model, sampler, seed)?;
            settings.extend(decoding.sampler_settings());
            settings.extend(model.endpoint_settings(&decoding)?);
            let is_distilled = model.distilled().is_some();
            settings.extend(is_distilled.then(|| ("inversion".to_owned(), decoding.inversion.to_string().into())));
        }
        settings.extend(lpips.map(PerceptualNetwork::settings).unwrap_or_default());
        let mut journal = Journal::of(evaluation, NAME, &settings)?;
        let calls = methods.iter().map(|method| method.steps + method.invert_steps).sum();
        let items = evaluation.items(pictures.len());
        let stage = evaluation.stage(NAME, items.len(), calls);
        let mut rows: Vec<SheetRow> = vec![];
        let names = |batch: Range<usize>| batch.map(|idx| pictures.name(idx)).collect::<Vec<_>>();
        // The pictures of the sheet are not in the journal: they are decoded again, unless there is nothing left to do.
        let is_known = |idx| methods.iter().all(|method| journal.get(&method.item(&pictures.name(idx))).is_some());
        let is_done = || evaluation.out().join(SHEET).is_file() && items.clone().all(is_known);
        let has_sheet = evaluation.shard().is_some() || is_done();
        for batch in batches(items.clone(), model.batch_size()) {
            let shown = batch.start < NUM_SHOWN && !has_sheet;
            let missing: Vec<Method> = methods
                .iter()
                .copied()
                .filter(|method| {
                    shown || batch.clone().any(|idx| journal.get(&method.item(&pictures.name(idx))).is_none())
                })
                .collect();
            let kept: usize = calls - missing.iter().map(|method| method.steps + method.invert_steps).sum::<usize>();
            stage.check(kept * batch.len())?;
            if missing.is_empty() {
                continue;
            }
            let x_0 = model.read(pictures, batch.clone())?;
            let z_sem = model.has_z_sem().then(|| model.model().encode_semantic(&x_0)).transpose()?;
            let mut columns = vec![x_0.clone()];
            for method in missing {
                let settings = method.settings(model, sampler, seed)?;
                let decoded = method.reconstruct(model, (&x_0, z_sem.as_ref()), &batch, &settings, &stage)?;
                for (idx, values) in
                    batch.clone().zip(measure(&to_unit(&x_0)?, &to_unit(&decoded)?, (*lpips, options.protocol))?)
                {
                    if journal.get(&method.item(&pictures.name(idx))).is_none() {
                        journal.add(method.item(&pictures.name(idx)), values)?;
                    }
                }
                columns.push(decoded);
            }
            if shown {
                rows.extend(sheet_rows(&columns, &names(batch))?);
            }
        }
        stage.finish();
        if let Some(shard) = evaluation.shard() {
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        rows.truncate(NUM_SHOWN);
        if !has_sheet {
            let titles = methods.iter().map(|method| format!("{} {}", method.kind.name(), method.steps));
            let columns: Vec<String> = ["original".to_owned()].into_iter().chain(titles).collect();
            evaluation.write_picture(SHEET, &sheet_of(&columns, rows).draw(), Some(model.model()))?;
        }
        let figures = figures(&methods, pictures, &journal, seed);
        self.write_plots(evaluation, &figures, model)?;
        Report::new(NAME, settings, figures).written(evaluation)
    }

    /// Draws the curves over the steps.
    fn write_plots(&self, evaluation: &Evaluation<'_>, figures: &[Figure], model: &EvaluatedModel) -> Result<()> {
        for (name, label) in [("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("lpips", "LPIPS")] {
            if name == "lpips" && self.lpips.is_none() {
                continue;
            }
            let curves = curves(figures, name);
            let plot = Plot { title: "Reconstructions", x_label: "decoding steps", y_label: label, curves: &curves };
            evaluation.write_picture(&format!("recon.{name}.png"), &plot.draw(), Some(model.model()))?;
        }
        Ok(())
    }

    /// Measures reconstructions that another program has generated.
    fn run_pictures(&self, evaluation: &Evaluation<'_>, made: &PictureSet, kind: XTerminalKind) -> Result<Report> {
        let &Self { pictures, lpips, ref options, .. } = self;
        let pairs = pairs_by_name(pictures, made)?;
        let method = Method { kind, steps: options.steps.first().copied().unwrap_or(0), invert_steps: 0 };
        let mut settings = Settings::from([
            ("pictures".to_owned(), made.fingerprint()?.into()),
            ("data".to_owned(), pictures.fingerprint()?.into()),
            ("count".to_owned(), pairs.len().into()),
            ("steps".to_owned(), method.steps.into()),
            ("made_with".to_owned(), method.kind.name().into()),
        ]);
        settings.extend(lpips.map(PerceptualNetwork::settings).unwrap_or_default());
        settings.extend(options.protocol_settings());
        let mut journal = Journal::of(evaluation, NAME, &settings)?;
        let items = evaluation.items(pairs.len());
        let stage = evaluation.stage(NAME, items.len(), 1);
        let mut rows = vec![];
        for place in items {
            let pair = pairs[place];
            stage.check(1)?;
            let item = method.item(&pictures.name(pair.0));
            let shown = place < NUM_SHOWN && evaluation.shard().is_none();
            if journal.get(&item).is_some() && !shown {
                continue;
            }
            let [x, y] = read_pair(pictures, made, pair)?;
            if journal.get(&item).is_none() {
                for values in measure(&x, &y, (lpips, options.protocol))? {
                    journal.add(item.clone(), values)?;
                }
            }
            if shown {
                rows.extend(sheet_rows(
                    &[x, y].map(|x| x.affine(2., -1.)).into_iter().collect::<candle_core::Result<Vec<_>>>()?,
                    &[pictures.name(pair.0)],
                )?);
            }
        }
        stage.finish();
        if let Some(shard) = evaluation.shard() {
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        let columns = ["original".to_owned(), format!("{} {}", method.kind.name(), method.steps)];
        evaluation.write_picture(SHEET, &sheet_of(&columns, rows).draw(), None)?;
        let figures = figures(&[method], pictures, &journal, evaluation.seed());
        Report::new(NAME, settings, figures).written(evaluation)
    }
}

impl ReconOptions {
    /// Returns the way of measuring as a setting, if it is not the usual one.
    fn protocol_settings(&self) -> Settings {
        let protocol = Some(self.protocol).filter(|&protocol| protocol != ReconProtocol::Exact);
        protocol.map(|protocol| ("protocol".to_owned(), protocol.name().into())).into_iter().collect()
    }
}

/// Measures each pair of pictures in `[0, 1]`, originals first.
fn measure(
    x: &Tensor,
    y: &Tensor,
    (lpips, protocol): (Option<&PerceptualNetwork>, ReconProtocol),
) -> Result<Vec<Values>> {
    let y = &match protocol {
        ReconProtocol::Exact => y.clone(),
        // Values of 8 bits stay what they are, whatever rounding does.
        ReconProtocol::Dbae => (((y * 255.)? + 1e-3)?.floor()? / 255.)?,
    };
    let rows_as_channels = |x: &Tensor| x.permute((0, 2, 3, 1))?.contiguous();
    let ssim_of_rows = match protocol {
        ReconProtocol::Exact => None,
        ReconProtocol::Dbae => Some(ssim(&rows_as_channels(x)?, &rows_as_channels(y)?)?),
    };
    let ms_ssim = ms_ssim(x, y);
    let measured = [
        ("psnr", Some(psnr(x, y)?)),
        ("ssim", Some(ssim(x, y)?)),
        ("mse", Some(mse(x, y)?)),
        ("ssim_of_rows", ssim_of_rows),
        ("lpips", lpips.map(|lpips| lpips.network().distance(x, y)).transpose()?),
        (
            "ms_ssim",
            match ms_ssim {
                // Small pictures have too few scales.
                Err(Error::TooSmall { .. }) => None,
                other => Some(other?),
            },
        ),
    ];
    let count = x.dim(0)?;
    let values_of = |idx: usize| {
        let value = |(name, values): &(&str, Option<Vec<f64>>)| {
            // A perfect copy has no finite PSNR, which JSON could not hold.
            let value = values.as_ref()?.get(idx).copied().filter(|value| value.is_finite())?;
            Some(((*name).to_owned(), value))
        };
        measured.iter().filter_map(value).collect()
    };
    Ok((0..count).map(values_of).collect())
}

/// Lays out a row per image: its name, the image, then each of its reconstructions.
fn sheet_rows(columns: &[Tensor], names: &[String]) -> Result<Vec<SheetRow>> {
    let row = |(idx, name): (usize, &String)| {
        let pictures = columns.iter().map(|x| Ok(rgb_from_tensor(&x.get(idx)?)?)).collect::<Result<_>>()?;
        Ok(SheetRow { name: name.clone(), pictures })
    };
    names.iter().enumerate().map(row).collect()
}

fn sheet_of(columns: &[String], rows: Vec<SheetRow>) -> Sheet {
    let mut sheet = Sheet::new().with_columns(columns);
    for SheetRow { name, pictures } in rows {
        sheet.push(name, pictures);
    }
    sheet
}

fn figures(methods: &[Method], pictures: &PictureSet, journal: &Journal, seed: u64) -> Vec<Figure> {
    let mut figures = vec![];
    for method in methods {
        for name in MEASURES {
            let value = |idx| journal.get(&method.item(&pictures.name(idx)))?.get(name).copied();
            let values: Vec<f64> = (0..pictures.len()).filter_map(value).collect();
            let of = [("x_T", method.kind.name()), ("steps", &method.steps.to_string())];
            figures.extend(Figure::mean(name, &of, &values, seed));
        }
    }
    figures
}

/// Returns the curves of a measure over the steps, one for each source of `x_T`.
fn curves(figures: &[Figure], name: &str) -> Vec<Curve> {
    let of_kind = |kind: &str| {
        let points =
            figures.iter().filter(|figure| figure.name == name && figure.of.get("x_T").is_some_and(|k| k == kind));
        points.filter_map(|figure| figure.point("steps")).collect()
    };
    let curves =
        XTerminalKind::ALL.map(|kind| Curve { name: format!("{} x_T", kind.name()), points: of_kind(kind.name()) });
    curves.into_iter().filter(|curve| !curve.points.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// SSIM of one plane by the formula: a Gaussian window of 11 x 11 with deviation 1.5, zeros beyond the border.
    fn ssim_of_plane(x: &[Vec<f64>], y: &[Vec<f64>]) -> f64 {
        let weight = |offset: i32| (-f64::from(offset * offset) / (2. * 1.5 * 1.5)).exp();
        let total: f64 = (-5..=5).map(weight).sum();
        let (height, width) = (x.len(), x[0].len());
        let mut sum = 0.;
        for row in 0..height {
            for column in 0..width {
                let mean = |value: &dyn Fn(usize, usize) -> f64| {
                    let mut mean = 0.;
                    for (down, across) in (-5..=5).flat_map(|down| (-5..=5).map(move |across| (down, across))) {
                        let at = |place: usize, offset: i32| i32::try_from(place).unwrap() + offset;
                        let (at_row, at_column) = (at(row, down), at(column, across));
                        let inside = |at: i32, side: usize| usize::try_from(at).ok().filter(|&at| at < side);
                        if let (Some(row), Some(column)) = (inside(at_row, height), inside(at_column, width)) {
                            mean += weight(down) * weight(across) / (total * total) * value(row, column);
                        }
                    }
                    mean
                };
                let (mx, my) = (mean(&|r, c| x[r][c]), mean(&|r, c| y[r][c]));
                let (xx, yy) = (mean(&|r, c| x[r][c] * x[r][c]), mean(&|r, c| y[r][c] * y[r][c]));
                let xy = mean(&|r, c| x[r][c] * y[r][c]);
                let structure = (2. * (xy - mx * my) + 9e-4) / (xx - mx * mx + yy - my * my + 9e-4);
                sum += (2. * mx * my + 1e-4) / (mx * mx + my * my + 1e-4) * structure;
            }
        }
        sum / (height * width) as f64
    }

    #[test]
    #[expect(clippy::cast_possible_truncation, reason = "pictures are f32")]
    fn the_ssim_of_rows_smooths_columns_and_colors() {
        let side = 12;
        let value = |seed: f64| {
            let values = (0..3 * side * side).map(|idx| (0.5 + 0.5 * (f64::from(idx) * seed).sin()) as f32);
            Tensor::from_iter(values, &Device::Cpu).unwrap().reshape((1, 3, 12, 12)).unwrap()
        };
        let (x, y) = (value(0.37), value(0.41));
        let measured = measure(&x, &y, (None, ReconProtocol::Dbae)).unwrap();
        let cut = (((&y * 255.).unwrap() + 1e-3).unwrap().floor().unwrap() / 255.).unwrap();
        let row = |tensor: &Tensor, row: usize| -> Vec<Vec<f64>> {
            let columns = tensor.get(0).unwrap().narrow(1, row, 1).unwrap().squeeze(1).unwrap().t().unwrap();
            let columns = columns.to_vec2::<f32>().unwrap();
            columns.iter().map(|colors| colors.iter().map(|&color| f64::from(color)).collect()).collect()
        };
        let expected: f64 = (0..12).map(|at| ssim_of_plane(&row(&x, at), &row(&cut, at))).sum::<f64>() / 12.;
        let got = measured[0]["ssim_of_rows"];
        assert!((got - expected).abs() < 1e-4, "{got}, expected {expected}");
        assert!((got - measured[0]["ssim"]).abs() > 0.01, "{measured:?}");
        assert!(!measure(&x, &y, (None, ReconProtocol::Exact)).unwrap()[0].contains_key("ssim_of_rows"));
    }
}
