//! Mapping from parameter names of the released checkpoints to ours.
//!
//! Ours are theirs below the part that a parameter belongs to: `encoder.`, `latent_net.` and, where the released names
//! have no prefix, `unet.`. The doubled `time_embed.time_embed.` of the autoencoder is written once.

/// Returns our name of the released parameter `name` (without its `ema_model.` or `model.`).
///
/// `latent_net.layers.k.cond_layers.1.*` is a second copy of `latent_net.layers.k.linear_emb.*` and has its name.
#[must_use]
pub fn name_from_pytorch(name: &str) -> String {
    if name.starts_with("latent_net.") {
        return name.replace(".cond_layers.1.", ".linear_emb.");
    }
    if name.starts_with("encoder.") {
        return name.to_owned();
    }
    match name.strip_prefix("time_embed.time_embed.") {
        Some(rest) => format!("unet.time_embed.{rest}"),
        None => format!("unet.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_prefix() {
        for (released, ours) in [
            ("encoder.out.3.weight", "encoder.out.3.weight"),
            ("time_embed.time_embed.0.bias", "unet.time_embed.0.bias"),
            ("time_embed.0.bias", "unet.time_embed.0.bias"),
            ("output_blocks.2.1.qkv.weight", "unet.output_blocks.2.1.qkv.weight"),
            ("latent_net.layers.3.cond_layers.1.bias", "latent_net.layers.3.linear_emb.bias"),
        ] {
            assert_eq!(name_from_pytorch(released), ours);
        }
    }
}
