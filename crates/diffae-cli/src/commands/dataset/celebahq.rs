//! CelebA-HQ (Karras et al. 2018, arXiv:1710.10196) as `CelebAMask-HQ` (Lee et al. 2020, arXiv:1907.11922) has it.

use anyhow::Result;
use diffae_data::ResizeFilter;

use super::pictures::{About, Common, Cut, LabelFile, Owner, Picture, Recipe, Shape, make};
use crate::commands::dataset::output::Made;

const OWNER: Owner = Owner {
    advice: "download CelebAMask-HQ.zip from https://github.com/switchablenorms/CelebAMask-HQ and name it, or its \
             folder with CelebA-HQ-img and CelebAMask-HQ-attribute-anno.txt, by --from",
};
const LICENCE: &str = "non-commercial research and education only";
const LICENCE_PAGE: &str = "CelebAMask-HQ, Lee, Liu, Wu and Luo 2020, https://github.com/switchablenorms/CelebAMask-HQ\n\
    For non-commercial research and education only; see the terms on that page and those of CelebA.\n\
    These pictures are resized.\n";
const COUNT: usize = 30_000;
const FOLDER: &str = "CelebA-HQ-img";
const ATTRIBUTES: &str = "CelebAMask-HQ-attribute-anno.txt";

/// Writes `images/NN/NNNNN.png`, or an LMDB, and `attributes.txt`.
pub(super) fn run(common: &Common) -> Result<Made> {
    let from = common.from(&OWNER)?;
    let originals = common.originals(&OWNER)?;
    let found = originals.all_numbered(FOLDER, COUNT, &OWNER)?;
    let Some((path, attributes)) = originals.text(ATTRIBUTES, &[])? else {
        return Err(OWNER.wrong(format!("there is no {ATTRIBUTES} with the pictures of {}", from.display())));
    };
    let labels = LabelFile::of_owner(&path, attributes)?;
    let name = |number: u32| format!("{:02}/{number:05}", number.div_euclid(1000));
    let pictures = found.into_iter().map(|(number, original)| Picture { original, name: name(number) });
    let about = About {
        name: "celebahq",
        source: "CelebAMask-HQ, https://github.com/switchablenorms/CelebAMask-HQ",
        version: FOLDER.to_owned(),
        licence: LICENCE,
        made: "Lanczos".to_owned(),
    };
    let recipe = Recipe {
        pictures: pictures.collect(),
        originals: &originals,
        cut: Cut { shape: Shape::Square, part: None, filter: ResizeFilter::Lanczos },
        key_digits: 5,
        labels: Some(labels),
        licence: LICENCE_PAGE.to_owned(),
    };
    make(common, about, recipe)
}

#[cfg(test)]
mod tests;
