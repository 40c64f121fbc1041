//! Measures reconstructions of a model, and how much of them `z_sem` decides:
//! `cargo run --release --example evaluate -- toonheads PICTURES OUT`

#![expect(clippy::print_stdout, reason = "this is what the example shows")]

use std::ops::ControlFlow;
use std::path::Path;

use diffae_data::{Crop, PictureSet};
use diffae_eval::measures::{Recon, ReconOptions, ReconSubject, ZUsage, ZUsageOptions};
use diffae_eval::{EvaluatedModel, Evaluation, EvaluationEvent, Measure};
use diffae_infer::LoadOptions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, out] = &args[..] else { return Err("usage: evaluate MODEL PICTURES OUT".into()) };
    let model = &EvaluatedModel::open(Path::new(model), &LoadOptions::cpu(), None)?;
    let pictures = &PictureSet::first(Path::new(data), Crop::Center, Some(16))?;
    let options = ReconOptions { steps: vec![10, 20], ..ReconOptions::default() };
    let recon = Recon { subject: ReconSubject::Model(model), pictures, lpips: None, options };
    let z_usage = ZUsage { model, pictures, options: ZUsageOptions::default() };
    let evaluation = Evaluation::new(Path::new(out), |event: &EvaluationEvent| {
        if let EvaluationEvent::Begin { stage, num_items, .. } = event {
            eprintln!("{stage}: {num_items} pictures");
        }
        ControlFlow::Continue(()) // Break would stop; the next evaluation goes on there
    });
    let measures: [&dyn Measure; 2] = [&recon, &z_usage];
    for measure in measures {
        let report = measure.run(&evaluation.within(measure.name()))?;
        println!("{}\n", report.table());
    }
    Ok(())
}
