//! The graph of the semantic encoder: `x_0 -> z_sem`.

use diffae_nets::weights::Weights;
use diffae_nets::{EncoderConfig, ResPlan, Resample};

use crate::error::Result;
use crate::graph::{Graph, GraphBuilder, Precision, Value, integer};
use crate::layers::Map;

/// Builds the graph from the weights below `encoder.`.
pub(crate) fn encoder(config: &EncoderConfig, weights: &Weights, precision: Precision) -> Result<Graph> {
    let (channels, size) = (config.in_channels, config.image_size.width());
    let mut graph = GraphBuilder::new(weights, precision);
    let x_0 = graph.input("x_0", &[channels, size, size]);
    let value = graph.in_precision(&x_0, "encoder");
    let mut h = graph.conv("encoder.input_blocks.0.0", &Map { value, channels, size })?;
    let plan = config.input_plan();
    let mut parts = vec![];
    for (number, stage) in (1..).zip(&plan.stages) {
        let path = format!("encoder.input_blocks.{number}");
        h = graph.plain_block(&format!("{path}.0"), stage.res, &h)?;
        if stage.attention {
            h = graph.attention(&format!("{path}.1"), config.num_heads, &h)?;
        }
        // A level ends before the block that halves the resolution.
        let ends_level = plan.stages.get(number).is_some_and(|next| next.level > stage.level);
        if ends_level && config.z_levels.widths().get(stage.level).is_some_and(|&width| width > 0) {
            parts.push(head(&mut graph, &format!("encoder.z_levels.{}", stage.level), &h)?);
        }
    }
    let channels = plan.last_channels();
    let keep = ResPlan { in_channels: channels, out_channels: channels, resample: Resample::Keep, axes: 2 };
    h = graph.plain_block("encoder.middle_block.0", keep, &h)?;
    h = graph.attention("encoder.middle_block.1", config.num_heads, &h)?;
    h = graph.plain_block("encoder.middle_block.2", keep, &h)?;
    parts.push(head(&mut graph, "encoder.out", &h)?);
    let [first, others @ ..] = &parts[..] else { return Ok(graph.finish("encoder")) };
    let z_sem = others.iter().fold(first.clone(), |z_sem, part| graph.concat("encoder.out", &z_sem, part));
    graph.output("z_sem", &z_sem, &[config.out_channels]);
    Ok(graph.finish("encoder"))
}

/// `conv(mean(SiLU(GN(h))))`, the mean over all pixels: all of `z_sem`, or a part.
fn head(graph: &mut GraphBuilder<'_>, path: &str, h: &Map) -> Result<Value> {
    let norm = format!("{path}.0");
    let h = graph.group_norm(&norm, h)?;
    let h = h.with(graph.silu(&norm, &h.value));
    let value = graph.node(path, "GlobalAveragePool", &[&h.value], vec![]);
    let h = graph.conv(&format!("{path}.3"), &Map { value, size: 1, ..h })?;
    Ok(graph.node(path, "Flatten", &[&h.value], vec![integer("axis", 1)]))
}
