//! Layout of the data set of cartoon faces.

use std::collections::BTreeSet;

use crate::commands::dataset::output::{Manifest, Output};
use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde_json::Map;

use super::Args;
use super::face::Painter;
use super::labels;
use super::labels::Lines;
use super::style::{Attribute, Side, Style};
use crate::commands::dataset::output::Made;

/// Number of pictures per folder.
const PER_FOLDER: u32 = 1000;

/// One picture: its path, its seed, and the attribute that is forced with the side of the pair.
#[derive(Debug)]
struct Picture {
    name: String,
    seed: String,
    forced: Option<(&'static Attribute, Side)>,
}

pub(super) fn run(args: &Args) -> Result<Made> {
    let style = Style::of(args.style);
    let paired = paired(style, &args.pairs)?;
    ensure!(args.count > 0 || !paired.is_empty(), "neither pictures nor pairs are wanted");
    let painter = Painter::new(style, args.size)?;
    let manifest = manifest(args, style, &paired);
    let mut output = Output::new(&args.out, &manifest)?;
    output.file("LICENCE.txt", style.licence_page()?.as_bytes())?;

    let mut pictures: Vec<Picture> = (0..args.count).map(|idx| plain(&args.seed, idx)).collect();
    if !pictures.is_empty() {
        // Faces are drawn by lot twice rather than kept: there may be millions of them.
        let options = |picture: &Picture| -> Result<_> { Ok(painter.face(&picture.seed, &Map::new())?.options) };
        let of_face = |picture: &Picture| -> Result<_> { Ok(labels::choices(&options(picture)?)) };
        let choices = pictures.par_iter().map(of_face).try_reduce(BTreeSet::new, |a, b| Ok(&a | &b))?;
        let lines = |picture: &Picture| Lines::new(style, file_name(&picture.name), &options(picture)?, &choices);
        let rows: Vec<Lines> = pictures.par_iter().map(lines).collect::<Result<_>>()?;
        output.file("attributes.txt", labels::celeba(style, &rows).as_bytes())?;
        output.file("attributes.csv", labels::csv(style, &rows).as_bytes())?;
        output.file("options.csv", labels::options(&choices, &rows).as_bytes())?;
    }
    for &attribute in &paired {
        pictures.extend((0..args.pair_count).flat_map(|idx| pair(&args.seed, attribute, idx)));
        if args.others {
            let others = (0..args.pair_count).into_par_iter().map(|idx| other(&painter, (&args.seed, attribute), idx));
            pictures.extend(others.collect::<Result<Vec<_>>>()?.into_iter().flatten());
        }
    }
    let names: Vec<String> = pictures.iter().map(|picture| picture.name.clone()).collect();
    output.finish(&names, &manifest, |idx| {
        let Picture { seed, forced, .. } = &pictures[idx];
        let forced = forced.map(|(attribute, side)| attribute.forced(side)).unwrap_or_default();
        painter.png(&painter.face(seed, &forced)?)
    })
}

fn paired(style: &'static Style, names: &[String]) -> Result<Vec<&'static Attribute>> {
    if names.iter().any(|name| name == "all") {
        return Ok(style.attributes.iter().collect());
    }
    names.iter().map(|name| style.attribute(name)).collect()
}

fn manifest(args: &Args, style: &Style, paired: &[&Attribute]) -> Manifest {
    let mut made =
        format!("{} faces of style {}, seed {:?}, enlarged by {}", args.count, style.name, args.seed, style.scale);
    if !paired.is_empty() {
        let names: Vec<&str> = paired.iter().map(|attribute| attribute.name).collect();
        let others = if args.others { ", others too," } else { "" };
        made = format!("{made}; {} pairs{others} for each of {}", args.pair_count, names.join(", "));
    }
    Manifest {
        name: "toonheads",
        source: "DiceBear, crates dicebear-core and dicebear-styles, rendered by resvg",
        version: "10.7.0, 10.6.0, 0.49.0".to_owned(),
        licence: style.licence,
        made,
        image_size: args.size,
        originals: None,
    }
}

fn plain(seed: &str, idx: u32) -> Picture {
    let name = format!("images/{:03}/{idx:06}.png", idx.div_euclid(PER_FOLDER));
    Picture { name, seed: format!("{seed}-{idx}"), forced: None }
}

/// Returns the two pictures of a pair: without and with the attribute.
fn pair(seed: &str, attribute: &'static Attribute, idx: u32) -> [Picture; 2] {
    [(Side::Without, "without"), (Side::With, "with")].map(|(side, folder)| Picture {
        name: format!("pairs/{}/{folder}/{idx:06}.png", attribute.name),
        seed: format!("{seed}-{}-{idx}", attribute.name),
        forced: Some((attribute, side)),
    })
}

/// Returns the face of a pair as the seed draws it, unless that has the attribute, or is the one without.
fn other(painter: &Painter, (seed, attribute): (&str, &'static Attribute), idx: u32) -> Result<Option<Picture>> {
    let [without, _] = pair(seed, attribute, idx);
    let drawn = painter.face(&without.seed, &Map::new())?.options;
    let is_without = attribute.option.of(&drawn) == attribute.pair.0;
    let name = format!("pairs/{}/others/{idx:06}.png", attribute.name);
    Ok((!attribute.is_of(&drawn) && !is_without).then_some(Picture { name, seed: without.seed, forced: None }))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests;
