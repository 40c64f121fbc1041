//! Tests of the whole data set.

use std::fs;
use std::path::Path;

use image::RgbImage;

use super::*;
use crate::commands::dataset::toonheads::Drawing;

const DRAWINGS: [Drawing; 3] = [Drawing::ToonHead, Drawing::OpenPeeps, Drawing::PixelArt];

fn args(out: &Path, drawing: Drawing, count: u32, pairs: &[&str]) -> Args {
    let pairs = pairs.iter().map(|&name| name.to_owned()).collect();
    Args {
        out: out.to_owned(),
        count,
        size: 64,
        seed: "test".to_owned(),
        style: drawing,
        pairs,
        pair_count: 3,
        others: false,
    }
}

fn rendered(painter: &Painter, attribute: &Attribute, idx: u32) -> [RgbImage; 2] {
    [Side::Without, Side::With].map(|side| {
        let face = painter.face(&format!("{idx}"), &attribute.forced(side)).unwrap();
        painter.render(&face).unwrap()
    })
}

#[test]
fn the_same_command_gives_the_same_files() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for folder in &folders {
        run(&args(folder.path(), Drawing::ToonHead, 20, &["Beard"])).unwrap();
    }
    let names =
        ["manifest.json", "attributes.txt", "options.csv", "images/000/000019.png", "pairs/Beard/with/000002.png"];
    for name in names {
        let [first, second] = folders.each_ref().map(|folder| fs::read(folder.path().join(name)).unwrap());
        assert_eq!(first, second, "{name}");
    }
}

#[test]
fn labels_are_those_that_training_reads_and_no_attribute_is_constant() {
    for drawing in DRAWINGS {
        let folder = tempfile::tempdir().unwrap();
        run(&args(folder.path(), drawing, 300, &[])).unwrap();
        let labels = ["attributes.txt", "attributes.csv"]
            .map(|name| diffae_data::Labels::from_file(&folder.path().join(name)).unwrap());
        assert_eq!(labels[0], labels[1]);
        for (idx, name) in labels[0].names.iter().enumerate() {
            let seen = |present| (0..300).any(|face| labels[0].of(&format!("{face:06}.png")).unwrap()[idx] == present);
            assert!(seen(true) && seen(false), "{drawing:?} {name}");
        }
    }
}

#[test]
fn forced_attributes_are_there_or_not() {
    for drawing in DRAWINGS {
        let style = Style::of(drawing);
        let painter = Painter::new(style, 64).unwrap();
        for attribute in style.attributes {
            for side in [Side::Without, Side::With] {
                let face = painter.face("x", &attribute.forced(side)).unwrap();
                let is_there = attribute.is_of(&face.options);
                assert_eq!(is_there, side == Side::With, "{drawing:?} {} {:?}", attribute.name, face.options);
            }
        }
    }
}

#[test]
fn others_lack_the_attribute_in_another_way() {
    for drawing in DRAWINGS {
        let style = Style::of(drawing);
        let painter = Painter::new(style, 64).unwrap();
        for attribute in style.attributes {
            let others = (0..60).filter_map(|idx| other(&painter, ("test", attribute), idx).unwrap());
            let options = others.map(|picture| {
                assert!(picture.forced.is_none() && picture.seed.starts_with(&format!("test-{}-", attribute.name)));
                painter.face(&picture.seed, &Map::new()).unwrap().options
            });
            let lacking: BTreeSet<Option<String>> =
                options.map(|options| attribute.option.of(&options).map(str::to_owned)).collect();
            let has = |value: &Option<String>| value.as_deref().is_some_and(|value| attribute.present.contains(&value));
            assert!(!lacking.iter().any(has), "{drawing:?} {}: {lacking:?}", attribute.name);
            assert!(!lacking.contains(&attribute.pair.0.map(str::to_owned)), "{drawing:?} {}", attribute.name);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let wanted = Args { others: true, pair_count: 30, ..args(folder.path(), Drawing::ToonHead, 0, &["Spiky_Hair"]) };
    run(&wanted).unwrap();
    let names = |side: &str| -> BTreeSet<std::ffi::OsString> {
        let files = fs::read_dir(folder.path().join("pairs/Spiky_Hair").join(side)).unwrap();
        files.map(|file| file.unwrap().file_name()).collect()
    };
    let (others, with) = (names("others"), names("with"));
    assert!(others.is_subset(&with) && (8..25).contains(&others.len()), "{}", others.len());
}

/// Places of mouth and eyes in the style, in pixels of its own 768, without the enlargement.
#[test]
fn a_pair_differs_only_inside_the_part_that_changed() {
    let style = Style::of(Drawing::ToonHead);
    let painter = Painter::new(style, 64).unwrap();
    let boxes = [("Smiling", [326.0, 487.0, 443.0, 539.0]), ("Winking", [253.0, 367.0, 514.2, 440.5])];
    for (name, [left, top, right, bottom]) in boxes {
        let attribute = style.attribute(name).unwrap();
        let inside = |at: u32, low: f64, high: f64| {
            let place = |edge: f64| ((edge - 384.0) * style.scale + 384.0) / 12.0;
            f64::from(at) + 1.0 > place(low) && f64::from(at) < place(high)
        };
        for idx in 0..20 {
            let [without, with] = rendered(&painter, attribute, idx);
            assert_ne!(without, with, "{name} {idx}");
            for (x, y, pixel) in without.enumerate_pixels().filter(|(x, y, pixel)| **pixel != *with.get_pixel(*x, *y)) {
                assert!(inside(x, left, right) && inside(y, top, bottom), "{name} {idx}: {x} {y} {pixel:?}");
            }
        }
    }
}

#[test]
fn an_attribute_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = run(&args(folder.path(), Drawing::ToonHead, 1, &["Hat"])).unwrap_err().to_string();
    assert!(error.contains("no attribute Hat") && error.contains("Smiling, Mouth_Open"), "{error}");
    let error = run(&args(folder.path(), Drawing::ToonHead, 0, &[])).unwrap_err().to_string();
    assert!(error.contains("neither pictures nor pairs"), "{error}");
}
