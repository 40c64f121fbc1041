//! Aligned `CelebA` (Liu et al. 2015, arXiv:1411.7766) with the paper's crop.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use diffae_data::CELEBA_BOX;
use diffae_data::ResizeFilter;

use super::pictures::{About, Common, Cut, LabelFile, Originals, Owner, Picture, Recipe, Shape, make};
use crate::commands::dataset::output::Made;

const OWNER: Owner = Owner {
    advice: "download Img/img_align_celeba.zip, Anno/list_attr_celeba.txt and Eval/list_eval_partition.txt from \
             https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into one folder and name it by --from",
};
const LICENCE: &str = "non-commercial research only";
const LICENCE_PAGE: &str = "CelebA, Liu, Luo, Wang and Tang 2015, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html\n\
    For non-commercial research only; see the agreement on that page. The pictures may not be passed on.\n\
    These pictures are cropped and resized.\n";
const COUNT: usize = 202_599;
const FOLDER: &str = "img_align_celeba";
const ATTRIBUTES: &str = "list_attr_celeba.txt";
const PARTITION: &str = "list_eval_partition.txt";

/// Arguments of `diffae dataset celeba`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Part of the owner's partition
    #[arg(long, value_enum, default_value_t = Part::All)]
    split: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    All,
    Train,
    Validation,
    Test,
}

impl Part {
    /// Returns the number of the part in the file of the partition.
    fn number(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Train => Some("0"),
            Self::Validation => Some("1"),
            Self::Test => Some("2"),
        }
    }
}

/// Writes `images/NNN/NNNNNN.png`, or an LMDB, and `attributes.txt`.
pub(super) fn run(args: &Args) -> Result<Made> {
    let common = &args.common;
    let from = common.from(&OWNER)?;
    let originals = open(common)?;
    let mut found = originals.all_numbered(FOLDER, COUNT, &OWNER)?;
    let beside = |name: &str| {
        let text = originals.text(name, &["Anno", "Eval"])?;
        text.ok_or_else(|| OWNER.wrong(format!("there is no {name} with the pictures of {}", from.display())))
    };
    let (path, attributes) = beside(ATTRIBUTES)?;
    let labels = LabelFile::of_owner(&path, attributes)?;
    if let Some(part) = args.split.number() {
        let (path, partition) = beside(PARTITION)?;
        let parts: HashMap<&str, &str> = partition.lines().filter_map(|line| line.trim().split_once(' ')).collect();
        let part_of = |idx: usize| {
            let name = originals.name(idx).rsplit('/').next().unwrap_or_default();
            parts
                .get(name)
                .map(|part| part.trim())
                .with_context(|| format!("{} has no line for {name}", path.display()))
        };
        let all = found.into_iter().map(|(number, idx)| Ok((part_of(idx)? == part).then_some((number, idx))));
        found = all.filter_map(Result::transpose).collect::<Result<_>>()?;
    }
    let name = |number: u32| format!("{:03}/{number:06}", number.div_euclid(1000));
    let pictures = found.into_iter().map(|(number, original)| Picture { original, name: name(number) });
    let box_ = CELEBA_BOX;
    let about = About {
        name: "celeba",
        source: "Multimedia Laboratory, The Chinese University of Hong Kong, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        version: FOLDER.to_owned(),
        licence: LICENCE,
        made: format!(
            "split {}; rows {}..{}, columns {}..{}, antialiased bilinear",
            format!("{:?}", args.split).to_lowercase(),
            box_.top,
            box_.top + box_.height,
            box_.left,
            box_.left + box_.width
        ),
    };
    let recipe = Recipe {
        pictures: pictures.collect(),
        originals: &originals,
        // The reference stores the originals and resizes when it reads, which is bilinear.
        cut: Cut { shape: Shape::Exactly(178, 218), part: Some(CELEBA_BOX), filter: ResizeFilter::Bilinear },
        key_digits: 7,
        labels: Some(labels),
        licence: LICENCE_PAGE.to_owned(),
    };
    make(common, about, recipe)
}

/// Opens the pictures themselves, or the zip of them in the folder that was named.
fn open(common: &Common) -> Result<Originals> {
    let from = common.from(&OWNER)?;
    let zip = |folder: &str| from.join(folder).join(FOLDER).with_extension("zip");
    let zips: Vec<PathBuf> = ["", "Img"].map(zip).into_iter().filter(|path| path.is_file()).collect();
    let originals = common.originals(&OWNER)?;
    match zips.first() {
        Some(zip) if originals.numbered(FOLDER)?.is_empty() => Originals::open(zip),
        _ => Ok(originals),
    }
}

#[cfg(test)]
mod tests;
