//! The graph of one call of the `UNet`: `(x_t, timestep, z_sem) -> prediction`.

use diffae_nets::weights::Weights;
use diffae_nets::{ResPlan, Resample, UnetConfig};

use crate::error::Result;
use crate::graph::{Graph, GraphBuilder, Precision};
use crate::layers::Map;
use crate::res_block::Conditions;

/// Builds the graph from the weights below `unet.`.
pub(crate) fn unet(config: &UnetConfig, weights: &Weights, precision: Precision) -> Result<Graph> {
    let (channels, size) = (config.in_channels, config.image_size.width());
    let mut graph = GraphBuilder::new(weights, precision);
    let x_t = graph.input("x_t", &[channels, size, size]);
    let timestep = graph.input("timestep", &[]);
    let z_sem = config.has_z_sem().then(|| graph.input("z_sem", &[config.embed_channels]));
    let z_sem = z_sem.map(|z_sem| {
        let z_sem = graph.in_precision(&z_sem, "unet");
        let silu = graph.silu("unet", &z_sem);
        match config.z_levels.widths() {
            [] | [_] => vec![silu],
            widths => graph.split_all("unet.z_levels", &silu, (1, widths)),
        }
    });
    let z_sem = z_sem.unwrap_or_default();
    let time = graph.time_embedding("unet.time_embed", &timestep, config.model_channels)?;
    let conditions = Conditions { time, z_sem };
    let value = graph.in_precision(&x_t, "unet");
    let (h, skips) = descend(&mut graph, config, (Map { value, channels, size }, &conditions))?;
    let h = middle(&mut graph, config, (h, &conditions))?;
    let h = ascend(&mut graph, config, (h, skips), &conditions)?;
    let h = graph.group_norm("unet.out.0", &h)?;
    let h = h.with(graph.silu("unet.out.0", &h.value));
    let predicted = graph.conv("unet.out.2", &h)?;
    graph.output("prediction", &predicted.value, &[config.out_channels, size, size]);
    Ok(graph.finish("decoder_step"))
}

/// Adds the descending half; also returns the skip connections of each level.
fn descend(
    graph: &mut GraphBuilder<'_>,
    config: &UnetConfig,
    (x, conditions): (Map, &Conditions),
) -> Result<(Map, Vec<Vec<Map>>)> {
    let mut h = graph.conv("unet.input_blocks.0.0", &x)?;
    let mut skips = vec![vec![]; config.channel_mult.len()];
    skips[0].push(h.clone());
    for (number, stage) in (1..).zip(&config.input_plan().stages) {
        let path = format!("unet.input_blocks.{number}");
        h = graph.conditioned_block(&format!("{path}.0"), stage.res, (&h, conditions.at(stage.level)))?;
        if stage.attention {
            h = graph.attention(&format!("{path}.1"), config.num_heads, &h)?;
        }
        skips[stage.level].push(h.clone());
    }
    Ok((h, skips))
}

fn middle(graph: &mut GraphBuilder<'_>, config: &UnetConfig, (h, conditions): (Map, &Conditions)) -> Result<Map> {
    let keep = ResPlan { in_channels: h.channels, out_channels: h.channels, resample: Resample::Keep, axes: 2 };
    let conditions = conditions.at(config.channel_mult.len() - 1);
    let h = graph.conditioned_block("unet.middle_block.0", keep, (&h, conditions))?;
    let h = graph.attention("unet.middle_block.1", config.num_heads, &h)?;
    graph.conditioned_block("unet.middle_block.2", keep, (&h, conditions))
}

fn ascend(
    graph: &mut GraphBuilder<'_>,
    config: &UnetConfig,
    (mut h, mut skips): (Map, Vec<Vec<Map>>),
    conditions: &Conditions,
) -> Result<Map> {
    for (number, stage) in config.output_plan().into_iter().enumerate() {
        let path = format!("unet.output_blocks.{number}");
        if let Some(skip) = stage.skip.and_then(|level| skips[level].pop()) {
            let value = graph.concat(&path, &h.value, &skip.value);
            h = Map { value, channels: h.channels + skip.channels, ..h };
        }
        h = graph.conditioned_block(&format!("{path}.0"), stage.res, (&h, conditions.at(stage.level)))?;
        if stage.attention {
            h = graph.attention(&format!("{path}.1"), config.num_heads, &h)?;
        }
        if let Some(up) = stage.up {
            let place = if stage.attention { 2 } else { 1 };
            h = graph.conditioned_block(&format!("{path}.{place}"), up, (&h, conditions.at(stage.level - 1)))?;
        }
    }
    Ok(h)
}
