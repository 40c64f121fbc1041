//! The graph of the semantic encoder: `x_0 -> z_sem`.

use diffae_nets::weights::Weights;
use diffae_nets::{EncoderConfig, ResPlan, Resample};

use crate::error::Result;
use crate::graph::{Graph, GraphBuilder, Precision, integer};
use crate::layers::Map;

/// Builds the graph from the weights below `encoder.`.
pub(crate) fn encoder(config: &EncoderConfig, weights: &Weights, precision: Precision) -> Result<Graph> {
    let (channels, size) = (config.in_channels, config.image_size.width());
    let mut graph = GraphBuilder::new(weights, precision);
    let x_0 = graph.input("x_0", &[channels, size, size]);
    let value = graph.in_precision(&x_0, "encoder");
    let mut h = graph.conv("encoder.input_blocks.0.0", &Map { value, channels, size })?;
    let plan = config.input_plan();
    for (number, stage) in (1..).zip(&plan.stages) {
        let path = format!("encoder.input_blocks.{number}");
        h = graph.plain_block(&format!("{path}.0"), stage.res, &h)?;
        if stage.attention {
            h = graph.attention(&format!("{path}.1"), config.num_heads, &h)?;
        }
    }
    let channels = plan.last_channels();
    let keep = ResPlan { in_channels: channels, out_channels: channels, resample: Resample::Keep, axes: 2 };
    h = graph.plain_block("encoder.middle_block.0", keep, &h)?;
    h = graph.attention("encoder.middle_block.1", config.num_heads, &h)?;
    h = graph.plain_block("encoder.middle_block.2", keep, &h)?;
    h = graph.group_norm("encoder.out.0", &h)?;
    let h = h.with(graph.silu("encoder.out.0", &h.value));
    let value = graph.node("encoder.out", "GlobalAveragePool", &[&h.value], vec![]);
    let h = graph.conv("encoder.out.3", &Map { value, size: 1, ..h })?;
    let z_sem = graph.node("encoder.out", "Flatten", &[&h.value], vec![integer("axis", 1)]);
    graph.output("z_sem", &z_sem, &[config.out_channels]);
    Ok(graph.finish("encoder"))
}
