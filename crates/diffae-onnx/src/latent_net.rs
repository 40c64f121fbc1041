//! The graph of the latent net: `(z_t, timestep) -> prediction`, in normalized codes.

use diffae_nets::LatentNetConfig;
use diffae_nets::weights::Weights;

use crate::error::Result;
use crate::graph::{Graph, GraphBuilder, Precision, Value};

/// Builds the graph from the weights below `latent_net.`.
pub(crate) fn latent_net(config: &LatentNetConfig, weights: &Weights, precision: Precision) -> Result<Graph> {
    let mut graph = GraphBuilder::new(weights, precision);
    let z_t = graph.input("z_t", &[config.z_channels]);
    let timestep = graph.input("timestep", &[]);
    let time = graph.time_embedding("latent_net.time_embed", &timestep, config.time_embed_channels)?;
    let z = graph.in_precision(&z_t, "latent_net");
    let layer_input = |graph: &mut GraphBuilder<'_>, layer: usize, h: &Value| {
        let is_skip = config.skip_layers.contains(&layer);
        if is_skip { graph.concat(&format!("latent_net.layers.{layer}"), h, &z) } else { h.clone() }
    };
    let last = config.num_layers.saturating_sub(1);
    let mut h = z.clone();
    for layer in 0..last {
        let path = format!("latent_net.layers.{layer}");
        let input = layer_input(&mut graph, layer, &h);
        let y = graph.linear(&format!("{path}.linear"), &input)?;
        let scale = graph.linear(&format!("{path}.linear_emb"), &time)?;
        let gain = graph.one_plus(&path, &scale)?;
        let scaled = graph.node(&path, "Mul", &[&y, &gain], vec![]);
        let normalized = graph.layer_norm(&format!("{path}.norm"), &scaled)?;
        h = graph.silu(&path, &normalized);
    }
    let input = layer_input(&mut graph, last, &h);
    let predicted = graph.linear(&format!("latent_net.layers.{last}.linear"), &input)?;
    graph.output("prediction", &predicted, &[config.z_channels]);
    Ok(graph.finish("latent"))
}
