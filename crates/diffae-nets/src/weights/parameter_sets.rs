//! The sets of parameters in a file: the moving average, and the online parameters.
//!
//! A set is found by the first convolution of its `UNet`, whatever stands before the name of that.

use std::path::Path;
use std::sync::Arc;

use super::source::TensorSource;
use super::weight_file::WeightFile;
use super::wrappers::Renamed;
use crate::error::{Error, Result};

/// Name of the first convolution of a `UNet` in released checkpoints.
const STEM: &str = "input_blocks.0.0.weight";
/// Parts of names that mark an average.
const AVERAGE_MARKS: [&str; 8] =
    ["ema_model", "ema", "ema_net", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema", "averaged_model"];
/// Part of a name that marks the online parameters within the wrapper that averages them.
const ONLINE_MARK: &str = "online_model";
/// Number of names that the error for a file of something else lists.
const NUM_LISTED_NAMES: usize = 6;

/// A choice among the sets of parameters of a training checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ParameterSet {
    /// The average where there is one, else the only set.
    #[default]
    Auto,
    /// The exponential moving average, which everything but training uses: `ema_model.*` in released checkpoints.
    Ema,
    /// The online parameters, which the optimizer works on: `model.*` in released checkpoints.
    Online,
}

/// A set of parameters, and its state dict.
#[derive(Debug)]
pub(super) struct FoundSet {
    /// Tensors of the state dict, without the names of wrappers.
    pub(super) state: Arc<dyn TensorSource>,
    /// Prefix of the names of the parameters.
    pub(super) prefix: String,
}

impl FoundSet {
    /// Finds a set in a file, and logs the choice.
    /// # Errors
    /// [`Error::NoNetwork`] if there is none, [`Error::NoSuchSet`] if there is only another one, [`Error::TwoSets`] if
    /// there are several; [`Error::CopiesDiffer`] if two tensors become one without the names of wrappers.
    pub(super) fn find(file: &WeightFile, set: ParameterSet) -> Result<Self> {
        let state: Arc<dyn TensorSource> = Arc::new(Renamed::unwrapped(Arc::clone(&file.state))?);
        let (mut averages, mut plain): (Vec<_>, Vec<_>) =
            prefixes(state.as_ref()).into_iter().partition(|prefix| is_average(prefix));
        let mut online_state = Arc::clone(&state);
        if let Some(current) = &file.online_state {
            // Lightning's `WeightAveraging` has put its average in the place of the parameters.
            online_state = Arc::new(Renamed::unwrapped(Arc::clone(current))?);
            if averages.is_empty() {
                averages = std::mem::take(&mut plain);
            }
            plain = prefixes(online_state.as_ref()).into_iter().filter(|prefix| !is_average(prefix)).collect();
        }
        let there = match (averages.first(), plain.first()) {
            (Some(prefix), _) | (None, Some(prefix)) => describe_prefix(prefix),
            (None, None) => return Err(Error::NoNetwork { path: file.path.clone(), found: describe(state.as_ref()) }),
        };
        let missing =
            |asked, instead| Error::NoSuchSet { path: file.path.clone(), asked, there: there.clone(), instead };
        let (state, prefixes) = match set {
            ParameterSet::Ema if averages.is_empty() => return Err(missing("average (ema_model.*)", "model")),
            ParameterSet::Online if plain.is_empty() => return Err(missing("parameters besides their average", "ema")),
            ParameterSet::Auto if averages.is_empty() => {
                tracing::warn!(
                    "{} does not say that its parameters ({there}) are an average (ema_model.*); they are taken as they are",
                    file.path.display()
                );
                (online_state, plain)
            }
            ParameterSet::Online => (online_state, plain),
            ParameterSet::Auto | ParameterSet::Ema => (state, averages),
        };
        let prefix = the_only(&file.path, prefixes)?;
        tracing::info!("{}: the parameters are {}", file.path.display(), describe_prefix(&prefix));
        Ok(Self { state, prefix })
    }
}

/// Formats the names of a set for messages.
fn describe_prefix(prefix: &str) -> String {
    if prefix.is_empty() { "names without prefix".to_owned() } else { format!("{prefix}*") }
}

/// Lists the prefixes of the names of the `UNet`s in a state dict, sorted.
fn prefixes(state: &dyn TensorSource) -> Vec<String> {
    let names = state.names();
    let prefixes = names.iter().filter_map(|name| name.strip_suffix(STEM));
    // An encoder begins like a UNet, and a model directory has names of its own.
    let is_unet = |prefix: &&str| {
        prefix.is_empty() || (prefix.ends_with('.') && *prefix != "unet." && last_part(prefix) != "encoder")
    };
    prefixes.filter(is_unet).map(str::to_owned).collect()
}

fn last_part(prefix: &str) -> &str {
    let parts = prefix.strip_suffix('.').unwrap_or(prefix);
    parts.rsplit('.').next().unwrap_or(parts)
}

fn is_average(prefix: &str) -> bool {
    let mut parts = prefix.split('.');
    parts.clone().all(|part| part != ONLINE_MARK) && parts.any(|part| AVERAGE_MARKS.contains(&part))
}

/// Returns the only prefix; the online parameters within an averaging wrapper are a copy and do not count.
fn the_only(path: &Path, mut prefixes: Vec<String>) -> Result<String> {
    if prefixes.len() > 1 {
        prefixes.retain(|prefix| prefix.split('.').all(|part| part != ONLINE_MARK));
    }
    let mut prefixes = prefixes.into_iter();
    match (prefixes.next(), prefixes.next()) {
        (Some(only), None) => Ok(only),
        (first, second) => {
            let [first, second] = [first, second].map(Option::unwrap_or_default);
            Err(Error::TwoSets { path: path.to_owned(), first, second })
        }
    }
}

/// Describes a file without a `UNet`, and its use.
fn describe(state: &dyn TensorSource) -> String {
    let names = state.names();
    let has = |part: &str| names.iter().any(|name| name.split('.').any(|own| own == part));
    if has("classifier") || has("ema_classifier") {
        return "it is an attribute classifier, which `diffae import` joins to a model with --classifier".to_owned();
    }
    if has("conds_mean") {
        return "it holds the statistics of z_sem, which `diffae import` joins to a model with --latent".to_owned();
    }
    if names.iter().any(|name| name.starts_with("unet.") || name.starts_with("decoder.conv")) {
        return "its tensors are those of a model directory, whose config.json must lie beside it".to_owned();
    }
    if names.is_empty() {
        return "it has no tensors by name".to_owned();
    }
    let listed: Vec<&str> = names.iter().take(NUM_LISTED_NAMES).map(String::as_str).collect();
    let more = if names.len() > listed.len() { ", .." } else { "" };
    let listed = super::torch::excerpt(listed.join(", "));
    if let [_] = names.as_slice() {
        return format!("its only tensor is {listed}");
    }
    format!("its {} tensors are {listed}{more}", names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_told_by_their_names() {
        for (prefix, expected) in [
            ("ema_model.", true),
            ("ema_model.model.", true),
            ("ema.ema_model.", true),
            ("state_dict_ema.", true),
            ("model.", false),
            ("", false),
            ("ema.online_model.", false),
            ("cinema.", false),
        ] {
            assert_eq!(is_average(prefix), expected, "{prefix}");
        }
    }
}
