//! Absence of cards, in a build without the feature `cuda`.

use candle_core::{DType, Device, Result, Shape, Tensor};

use super::plan::Launch;

/// A card; there is none.
#[derive(Debug)]
pub(super) enum Card {}

impl Card {
    pub(super) fn of(_tensor: &Tensor) -> Option<Self> {
        None
    }

    pub(super) fn device(&self) -> &Device {
        match *self {}
    }

    pub(super) fn empty(&self, _shape: impl Into<Shape>, _dtype: DType) -> Result<Tensor> {
        match *self {}
    }

    pub(super) fn address(&self, _tensor: &Tensor) -> Result<i64> {
        match *self {}
    }

    pub(super) fn run(&self, _launches: &[Launch], _buffers: &[&Tensor]) -> Result<()> {
        match *self {}
    }
}
