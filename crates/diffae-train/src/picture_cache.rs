//! Results of networks that are not trained, for pictures that were seen before.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};
use diffae_data::Fingerprint;
use diffae_nets::weights::float_bytes;

use crate::error::Result;

/// Results of a network whose parameters are constants, by picture.
///
/// Pictures come again in each pass over the data, and their results are always the same, so that they are computed once. When
/// no more fit, those that are there stay: as all pictures come equally often, no other choice would serve more of them.
#[derive(Debug)]
pub(crate) struct PictureCache {
    /// Maximum number of bytes of results.
    max_bytes: usize,
    kept: Mutex<Kept>,
}

/// Results by the checksum of their picture.
#[derive(Debug, Default)]
struct Kept {
    by_picture: BTreeMap<String, Tensor>,
    num_bytes: usize,
}

impl PictureCache {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, kept: Mutex::default() }
    }

    /// Returns the results for pictures, `[N, C, H, W]`: `[N, ..]`. `compute` computes them, for each picture as if it were alone.
    pub(crate) fn results(
        &self,
        x_0: &Tensor,
        compute: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        // On a card a network is faster than the way to the processor and back.
        if self.max_bytes == 0 || !x_0.device().is_cpu() || x_0.dtype() != DType::F32 {
            return Ok(compute(x_0)?);
        }
        let pictures = (0..x_0.dim(0)?).map(|item| Ok(x_0.get(item)?)).collect::<Result<Vec<_>>>()?;
        let keys = pictures.iter().map(checksum).collect::<Result<Vec<_>>>()?;
        let mut found: Vec<Option<Tensor>> = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            keys.iter().map(|key| kept.by_picture.get(key).cloned()).collect()
        };
        let missing: Vec<usize> = (0..found.len()).filter(|&item| found[item].is_none()).collect();
        if !missing.is_empty() {
            let unknown = missing.iter().map(|&item| &pictures[item]).collect::<Vec<_>>();
            let computed = compute(&Tensor::stack(&unknown, 0)?)?;
            for (place, &item) in missing.iter().enumerate() {
                let result = computed.get(place)?;
                self.keep(&keys[item], &result)?;
                found[item] = Some(result);
            }
        }
        Ok(Tensor::stack(&found.into_iter().flatten().collect::<Vec<_>>(), 0)?)
    }

    /// Keeps a result if there is room for it.
    fn keep(&self, key: &str, result: &Tensor) -> Result<()> {
        let num_bytes = result.elem_count() * result.dtype().size_in_bytes();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.num_bytes + num_bytes <= self.max_bytes && !kept.by_picture.contains_key(key) {
            // A view would keep the whole batch, and so would a `copy` of it.
            kept.by_picture.insert(key.to_owned(), result.force_contiguous()?);
            kept.num_bytes += num_bytes;
        }
        Ok(())
    }
}

/// Returns the checksum of a picture.
fn checksum(picture: &Tensor) -> Result<String> {
    let values = picture.flatten_all()?.to_vec1::<f32>()?;
    Ok(Fingerprint::of(&float_bytes(&values)))
}

/// Returns how many of `num_images` pictures in the order of training are computed, where `num_pictures` different ones are seen
/// equally often, and the results of `num_kept` are kept.
pub(crate) fn num_computed(num_images: usize, num_pictures: usize, num_kept: usize) -> f64 {
    let num_pictures = num_pictures.max(1);
    let num_kept = num_kept.min(num_pictures);
    let later = num_images.saturating_sub(num_pictures) as f64;
    let share_of_others = (num_pictures - num_kept) as f64 / num_pictures as f64;
    num_images.min(num_pictures) as f64 + later * share_of_others
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;
    use diffae_nets::SpatialAutoencoder;

    use super::*;
    use crate::compute::Compute;
    use crate::{presets, spatial};

    fn net() -> SpatialAutoencoder {
        let sizes = presets::config("smoke_latent", &[]).unwrap().spatial_config().unwrap().unwrap();
        let compute = Compute::from(&Device::Cpu);
        spatial::constant(&sizes, HashMap::new(), (1, &compute)).unwrap().0.unwrap()
    }

    fn pictures(first: usize, count: usize) -> Tensor {
        let values: Vec<f32> = (first * 768..(first + count) * 768).map(|idx| (idx as f32 * 0.037).sin()).collect();
        Tensor::from_vec(values, (count, 3, 16, 16), &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn latents_are_the_same_bits_whether_they_were_kept_or_not() {
        let (net, with, without) = (net(), PictureCache::new(1 << 20), PictureCache::new(0));
        // Some of each batch are new.
        for (first, count) in [(0, 3), (1, 4), (0, 5), (4, 1)] {
            let x_0 = pictures(first, count);
            let latents = [&with, &without].map(|cache| values(&cache.results(&x_0, |x_0| net.latents(x_0)).unwrap()));
            assert_eq!(latents[0], latents[1], "{first}");
        }
        assert_eq!(with.kept.lock().unwrap().by_picture.len(), 5);
        assert!(without.kept.lock().unwrap().by_picture.is_empty());
    }

    #[test]
    fn what_is_kept_is_not_computed_again_and_no_more_is_kept_than_there_is_room_for() {
        // 4 channels of 8x8 values each.
        let (net, cache, computed) = (net(), PictureCache::new(2 * 1024 + 1000), std::cell::Cell::new(0));
        let latents = |first, count| {
            let latents = cache.results(&pictures(first, count), |x_0| {
                computed.set(computed.get() + x_0.dim(0)?);
                net.latents(x_0)
            });
            values(&latents.unwrap())
        };
        let first = latents(0, 3);
        assert_eq!((latents(0, 3), computed.get()), (first, 4), "the last one again");
        let kept = cache.kept.lock().unwrap();
        assert_eq!((kept.by_picture.len(), kept.num_bytes), (2, 2048));
        // Of the batch of three that they come from, nothing else is in memory.
        for result in kept.by_picture.values() {
            let (storage, _) = result.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*storage else { panic!("not on the CPU") };
            assert_eq!(storage.as_slice::<f32>().unwrap().len(), 256);
        }
    }

    #[test]
    fn pictures_that_are_not_kept_are_computed_each_time() {
        assert!((num_computed(1000, 100, 200) - 100.).abs() < 1e-9);
        assert!((num_computed(1000, 100, 0) - 1000.).abs() < 1e-9);
        assert!((num_computed(1000, 100, 50) - 550.).abs() < 1e-9);
        assert!((num_computed(50, 100, 100) - 50.).abs() < 1e-9);
    }
}
