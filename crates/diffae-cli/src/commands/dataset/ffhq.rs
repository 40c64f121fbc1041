//! Flickr-Faces-HQ (Karras et al. 2019, arXiv:1812.04948) from its PNG files.

use anyhow::Result;
use diffae_data::ResizeFilter;

use super::pictures::{About, Common, Cut, Owner, Picture, Recipe, Shape, make};
use crate::commands::dataset::output::Made;

const OWNER: Owner = Owner {
    advice: "download the folder images1024x1024 (or thumbnails128x128) from https://github.com/NVlabs/ffhq-dataset \
             and name it, or a zip of it, by --from",
};
const LICENCE: &str = "CC BY-NC-SA 4.0";
const LICENCE_PAGE: &str = "Flickr-Faces-HQ (FFHQ), Karras, Laine and Aila 2019, https://github.com/NVlabs/ffhq-dataset\n\
    Licence of the data set: Creative Commons BY-NC-SA 4.0 by NVIDIA, https://creativecommons.org/licenses/by-nc-sa/4.0/\n\
    The photographs are under licences of their photographers, which the data set lists; these pictures are resized.\n";
const COUNT: usize = 70_000;
/// Folders as the owner names them, the better one first, and the side of the pictures in them.
const FOLDERS: [(&str, u32); 2] = [("images1024x1024", 1024), ("thumbnails128x128", 128)];

/// Writes `images/NN000/NNNNN.png` as the owner names them, or an LMDB.
pub(super) fn run(common: &Common) -> Result<Made> {
    let from = common.from(&OWNER)?;
    let originals = common.originals(&OWNER)?;
    let mut folder = FOLDERS[0];
    for other in FOLDERS {
        if !originals.numbered(other.0)?.is_empty() {
            folder = other;
            break;
        }
    }
    let (folder, side) = folder;
    if common.size > side {
        let found = format!("{} has pictures of {side} pixels, smaller than {}", from.display(), common.size);
        return Err(OWNER.wrong(found));
    }
    let found = originals.all_numbered(folder, COUNT, &OWNER)?;
    let name = |number: u32| format!("{:05}/{number:05}", number - number % 1000);
    let pictures = found.into_iter().map(|(number, original)| Picture { original, name: name(number) });
    let about = About {
        name: "ffhq",
        source: "NVIDIA, https://github.com/NVlabs/ffhq-dataset",
        version: folder.to_owned(),
        licence: LICENCE,
        made: "Lanczos".to_owned(),
    };
    let recipe = Recipe {
        pictures: pictures.collect(),
        originals: &originals,
        cut: Cut { shape: Shape::Square, part: None, filter: ResizeFilter::Lanczos },
        key_digits: 5,
        labels: None,
        licence: LICENCE_PAGE.to_owned(),
    };
    make(common, about, recipe)
}

#[cfg(test)]
mod tests;
