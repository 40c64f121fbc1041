//! Trains a small model on a folder of pictures, or goes on: `cargo run --release --example train -- PICTURES RUN`

#![expect(clippy::print_stdout, reason = "this is what the example shows")]

use std::ops::ControlFlow;
use std::path::Path;

use diffae_train::{Notes, RunFolder, TrainOptions, presets, train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, folder] = &args[..] else { return Err("usage: train PICTURES RUN".into()) };
    let config = presets::config("small32", &["autoencoder.images=2000".to_owned()])?;
    let notes = Notes { data: data.into(), ..Notes::default() };
    let mut run = RunFolder::open_or_create(Path::new(folder), &config, &notes)?;
    train(&mut run, &TrainOptions::default(), &mut |report| {
        println!("{:?}: step {} of {}, loss {:.4}", report.stage, report.step, report.num_steps, report.loss);
        ControlFlow::Continue(()) // Break would write a checkpoint and stop
    })?;
    Ok(())
}
