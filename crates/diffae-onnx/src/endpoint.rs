//! The graph of the endpoint network: `z_sem -> x_T`.

use diffae_nets::EndpointConfig;
use diffae_nets::weights::Weights;

use crate::error::Result;
use crate::graph::{Graph, GraphBuilder, Precision, signed};
use crate::layers::Map;

/// Builds the graph from the weights below `endpoint.`.
pub(crate) fn endpoint(config: &EndpointConfig, weights: &Weights, precision: Precision) -> Result<Graph> {
    let mut graph = GraphBuilder::new(weights, precision);
    let z_sem = graph.input("z_sem", &[config.z_channels]);
    let z_sem = graph.in_precision(&z_sem, "endpoint");
    let (size, channels) = config.levels().first().copied().unwrap_or_default();
    let flat = graph.linear("endpoint.first", &z_sem)?;
    let shape = graph.integers("endpoint", "shape", &[0, signed(channels), signed(size), signed(size)]);
    let mut h = Map { value: graph.node("endpoint", "Reshape", &[&flat, &shape], vec![]), channels, size };
    for (level, blocks) in config.blocks().into_iter().enumerate() {
        for (place, plan) in blocks.into_iter().enumerate() {
            h = graph.plain_block(&format!("endpoint.levels.{level}.{place}"), plan, &h)?;
        }
    }
    h = graph.group_norm("endpoint.out.0", &h)?;
    let h = h.with(graph.silu("endpoint.out.0", &h.value));
    let x_terminal = graph.conv("endpoint.out.2", &h)?;
    graph.output("x_T", &x_terminal.value, &[config.image_channels, config.image_size, config.image_size]);
    Ok(graph.finish("endpoint"))
}
