//! Pictures and labels on disk: finding, reading, cropping and writing them.
//!
//! | | |
//! |---|---|
//! | [`Pictures`] | the pictures of a data set by number: of a folder, `.tar` archives, Parquet files or an LMDB |
//! | [`Source`] | anything else that has encoded pictures by number, for [`Pictures::from_source`] |
//! | [`Labels`], [`LabelTable`] | attributes of pictures: `CelebA` files, CSV, a class per folder |
//! | [`Loader`] | batches of pictures, read ahead by threads in an order that the caller decides |
//! | [`list_inputs`] | the pictures that a command line names |
//! | [`read_image`], [`picture_from_bytes`], [`png_bytes`] | picture files and tensors `[C, H, W]` in `[-1, 1]` |
//! | [`align_face`] | faces cropped from photographs as in FFHQ |
//! | [`write_atomically`] | atomic file writes |
//!
//! ```
//! use std::path::Path;
//! use diffae_data::{Crop, PictureFormat, Pictures};
//!
//! let pictures = Pictures::all(Path::new("../../tests/fixtures/photographs"), Crop::Center)?;
//! assert!(!pictures.is_empty());
//! assert_eq!(pictures.read(0, PictureFormat::new(3, 64))?.dims(), [3, 64, 64]); // [C, H, W], in [-1, 1]
//! # Ok::<(), diffae_data::Error>(())
//! ```
//!
//! # Features
//! - `dicom`: DICOM files and series.
//! - `parquet`: pictures in Parquet files, as Hugging Face data sets store them.

mod align;
mod archives;
mod attribute_names;
mod attribute_pairs;
mod code_table;
mod error;
mod file_kind;
mod files;
mod fingerprint;
mod format;
mod found;
mod geometry;
mod image_io;
mod inputs;
mod label_table;
mod labels;
mod left_out;
mod listing;
mod lmdb;
mod loader;
mod names;
mod notices;
mod npy;
mod numbers_file;
mod picture_file;
mod picture_folder;
mod picture_set;
mod pictures;
mod raster;
mod resample;
mod samples;
mod search;
mod series;
mod shard;
mod source;
mod tables;
mod tar_members;
mod tensors;
mod unreadable;
mod views;
mod walk;

pub use align::{AlignedFace, FaceBox, FaceBoxes, FaceCrop, FacePlace, ShapePredictor, align_face};
pub use attribute_names::is_same_attribute;
pub use attribute_pairs::{AttributePairs, OtherPictures};
pub use code_table::{CodeRows, is_code_table, write_code_table};
pub use error::{Error, Result};
pub use files::{
    Overwrite, PARTIAL_PREFIX, check_writable, is_stale_file, same_owner, write_atomically, write_atomically_with,
    write_together,
};
pub use fingerprint::Fingerprint;
pub use format::{MAX_CHANNELS, PictureFormat, Window};
pub use geometry::Geometry;
pub use image_io::{
    CropBox, ResizeFilter, picture_from_bytes, picture_with_geometry, png_bytes, read_image, read_rgb, rgb_from_bytes,
    square_from_bytes, tensor_from_pixels, tensor_from_rgb,
};
pub use inputs::{
    BrokenInput, Input, broken_inputs, file_names, inputs_fingerprint, list_inputs, list_inputs_with, read_batch,
};
pub use label_table::{LabelForm, LabelRow, LabelTable};
pub use labels::{FOLDER_LABELS, Labels, Strangers};
pub use lmdb::{Lmdb, LmdbWriter};
pub use loader::{Batch, Drawn, Loader, LoaderSettings};
pub use names::is_picture_name;
pub use notices::warn_once;
pub use npy::{Array, NpzFile, npy_bytes};
pub use numbers_file::{ARRAY_ENDING, VOLUME_ENDING};
pub use picture_folder::{no_pictures, picture_files};
pub use picture_set::PictureSet;
pub use pictures::{CELEBA_BOX, Crop, FindSettings, Pictures, Split, is_validation};
pub use shard::Shard;
pub use source::{Source, stamp};
pub use tensors::read_tensor;
pub use unreadable::Unreadable;
pub use views::rgb_from_tensor;
