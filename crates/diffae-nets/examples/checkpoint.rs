//! Lists the networks and tensors in a file of weights: `cargo run --release --example checkpoint -- last.ckpt`

#![expect(clippy::print_stdout, reason = "this is what the example shows")]

use std::path::Path;

use diffae_nets::weights::{ArchitectureHints, Checkpoint, ParameterSet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: checkpoint FILE (.ckpt, .pt or .safetensors)")?;
    let Checkpoint { architecture, weights, latent_moments } =
        Checkpoint::open(Path::new(&path), ParameterSet::Auto, &ArchitectureHints::default())?;
    println!("{architecture:#?}");
    let tensors = weights.source();
    let mut count = 0;
    for name in tensors.names() {
        let shape = tensors.shape(&name).unwrap_or_default();
        count += shape.iter().product::<usize>();
        println!("{name}  {shape:?}");
    }
    println!("{count} parameters");
    if let Some(moments) = latent_moments {
        println!("statistics of z_sem over {} dimensions", moments.mean.elem_count());
    }
    Ok(())
}
