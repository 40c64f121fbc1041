//! `diffae variations --model MODEL INPUT.. -n 8 --out DIR`

use anyhow::{Result, bail};
use diffae_infer::{NoiseSource, Sheet, list_inputs, rgb_from_tensor};

use crate::args::{GlobalArgs, VariationsArgs};
use crate::output::{PictureOutput, Provenance, say};
use crate::progress::Progress;
use crate::session::Session;

/// Decodes the `z_sem` of each picture with several random `x_T`.
pub(crate) fn run(global: &GlobalArgs, args: &VariationsArgs) -> Result<()> {
    let inputs = list_inputs(&args.pictures.input)?;
    let names = |name: &str| (0..args.count).map(|idx| format!("{name}_variation_{idx:03}")).collect::<Vec<_>>();
    let planned = inputs.iter().flat_map(|input| names(&input.name)).chain(["sheet".to_owned()]);
    let mut output = PictureOutput::new(&args.out.out, &planned.collect::<Vec<_>>(), args.out.force.overwrite())?;
    let session = Session::open(global, &args.model, &args.batch)?;
    if !session.has_z_sem() {
        bail!("{} is a plain DDPM, which has no semantic code", args.model.model.display())
    }
    session.check_steps("--steps", args.decoding.steps)?;
    let noise = NoiseSource::new(args.random.seed);
    let provenance = Provenance::new(session.model.fingerprint())
        .with("steps", &args.decoding.steps)
        .with("seed", &args.random.seed);
    let progress = Progress::start("variations", inputs.len() * args.count, args.decoding.steps);
    let titles = (0..args.count).map(|idx| format!("x_T {idx}"));
    let mut sheet = Sheet::new().with_columns(["original".to_owned()].into_iter().chain(titles));
    for (position, input) in inputs.iter().enumerate() {
        let x_0 = session.read(std::slice::from_ref(input))?;
        let z_sem = session.model.encode_semantic(&x_0)?;
        let is_shown = output.has_sheet() && !sheet.is_full();
        let mut row = if is_shown { vec![rgb_from_tensor(&x_0.get(0)?)?] } else { vec![] };
        let mut done = 0;
        for names in names(&input.name).chunks(session.batch_size()) {
            let first = (position * args.count + done) as u64;
            let x_terminal = session.random_x_terminal(noise, first..first + names.len() as u64)?;
            let z_sems = z_sem.repeat((names.len(), 1))?;
            let decoded = session.decode(&x_terminal, Some(&z_sems), args.decoding.steps, &progress)?;
            output.write(&decoded, names, &provenance)?;
            for idx in (0..names.len()).filter(|_| is_shown) {
                row.push(rgb_from_tensor(&decoded.get(idx)?)?);
            }
            done += names.len();
        }
        sheet.push(&input.name, row);
    }
    progress.finish();
    output.write_sheet("sheet.png", &sheet.draw(), &provenance)?;
    output.commit(&provenance)?;
    say(&format!("wrote {} variations to {}", inputs.len() * args.count, args.out.out.display()))
}
