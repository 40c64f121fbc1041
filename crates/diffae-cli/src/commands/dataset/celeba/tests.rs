//! Tests on synthetic files in the structure of CelebA.

use std::path::Path;

use diffae_data::{Crop, Labels, Pictures, Strangers};
use image::ImageFormat;

use crate::commands::dataset::pictures::made_up::{
    assert_near, colors, encoded, folder, gradient, manifest, names, overshoots, run, snapshot, step, zip,
};

const ATTRIBUTES: &str = "4\nSmiling Young \n000001.jpg  1 -1\n000002.jpg -1  1\n000003.jpg -1 -1\n000004.jpg  1  1\n";
const PARTITION: &str = "000001.jpg 0\n000002.jpg 1\n000003.jpg 0\n000004.jpg 2\n";

fn pictures() -> Vec<(String, Vec<u8>)> {
    let name = |number: u8| format!("img_align_celeba/{number:06}.jpg");
    let file = |number: u8| (name(number), encoded(&gradient(178, 218, 50 * number), ImageFormat::Jpeg));
    (1..=4).map(file).collect()
}

/// Writes the files as downloaded: a zip and two text files, each in its folder.
fn downloaded(root: &Path) {
    folder(
        root,
        &[
            ("Anno/list_attr_celeba.txt".to_owned(), ATTRIBUTES.into()),
            ("Eval/list_eval_partition.txt".to_owned(), PARTITION.into()),
        ],
    );
    std::fs::create_dir(root.join("Img")).unwrap();
    zip(&root.join("Img/img_align_celeba.zip"), &pictures());
}

#[test]
fn the_crop_is_that_of_the_paper_and_attributes_go_with_their_pictures() {
    let root = tempfile::tempdir().unwrap();
    let (from, out) = (root.path().join("CelebA"), root.path().join("out"));
    downloaded(&from);
    run("celeba", &from, &out, "--size 64").unwrap();
    let images = out.join("images");
    assert_eq!(names(&images), ["000/000001.png", "000/000002.png", "000/000003.png", "000/000004.png"]);
    let corners = colors(&images, 1, 64, &[(0, 0), (63, 63)]);
    assert_near(&corners, &[[25.5, 57.5, 100.], [151.5, 183.5, 100.]], 3.);
    let all: Vec<(usize, usize)> = (0..64).flat_map(|y| (0..64).map(move |x| (x, y))).collect();
    let sum = colors(&images, 1, 64, &all).iter().fold([0.; 2], |sum, color| [sum[0] + color[0], sum[1] + color[1]]);
    // The average of columns 25 to 152 and rows 57 to 184, where halves are rounded up.
    assert!((sum[0] / 4096. - 89.).abs() < 0.4 && (sum[1] / 4096. - 121.).abs() < 0.4, "{sum:?}");

    let labels = Labels::from_file(&out.join("attributes.txt")).unwrap();
    let found = Pictures::all(&images, Crop::Center).unwrap();
    Labels::matched(&out.join("attributes.txt"), &[&found], Strangers::Refuse).unwrap();
    assert_eq!(labels.names, ["Smiling", "Young"]);
    assert_eq!(labels.of("000/000002.png"), Some(&[false, true][..]));
    let before = snapshot(&out);
    run("celeba", &from, &out, "--size 64").unwrap();
    assert!(snapshot(&out) == before);

    let unzipped = root.path().join("unzipped");
    folder(&unzipped, &pictures());
    folder(&unzipped, &[("list_attr_celeba.txt".to_owned(), ATTRIBUTES.into())]);
    let edge = encoded(&step(178, 218), ImageFormat::Png);
    folder(&unzipped, &[("img_align_celeba/000004.jpg".to_owned(), edge)]);
    let again = root.path().join("again");
    run("celeba", &unzipped.join("img_align_celeba"), &again, "--size 64").unwrap();
    for name in ["images/000/000003.png", "attributes.txt"] {
        assert_eq!(std::fs::read(again.join(name)).unwrap(), std::fs::read(out.join(name)).unwrap());
    }
    assert!(!overshoots(&again.join("images/000/000004.png")), "it is resized as the reference does when it reads");
}

#[test]
fn a_split_is_that_of_the_owner() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("CelebA");
    downloaded(&from);
    for (split, expected, smiling) in [
        ("train", &["64-0000000", "64-0000001"][..], &[true, false][..]),
        ("validation", &["64-0000000"], &[false]),
        ("test", &["64-0000000"], &[true]),
    ] {
        let out = root.path().join(split);
        run("celeba", &from, &out, &format!("--size 64 --format lmdb --split {split}")).unwrap();
        assert_eq!(names(&out), expected);
        let labels = Labels::from_file(&out.join("attributes.txt")).unwrap();
        let got: Vec<bool> = expected.iter().map(|key| labels.of(key).unwrap()[0]).collect();
        assert_eq!(got, smiling, "{split}");
        assert!(manifest(&out)["made"].as_str().unwrap().contains(&format!("split {split}; rows 57..185")));
    }
    assert_near(&colors(&root.path().join("train"), 1, 64, &[(0, 0)]), &[[25.5, 57.5, 150.]], 4.);
}

#[test]
fn missing_attributes_and_pictures_that_are_not_aligned_are_named() {
    let root = tempfile::tempdir().unwrap();
    let (from, out) = (root.path().join("a/b/CelebA"), root.path().join("out"));
    folder(&from, &pictures());
    let error = run("celeba", &from, &out, "--size 64").unwrap_err();
    assert!(error.contains("no list_attr_celeba.txt") && error.contains("mmlab.ie.cuhk.edu.hk"), "{error}");
    let more = ATTRIBUTES.replace('4', "5") + "000009.jpg 1 1\n";
    folder(&from, &[("list_attr_celeba.txt".to_owned(), more.replace("000005", "000004").into())]);
    let part = root.path().join("part");
    run("celeba", &from, &part, "--size 64").unwrap();
    let labels = Labels::from_file(&part.join("attributes.txt")).unwrap();
    assert!(labels.of("000004.png").is_some() && labels.of("000009.png").is_none(), "a part of the pictures is enough");
    let others = ATTRIBUTES.replace("00000", "00001");
    folder(&from, &[("list_attr_celeba.txt".to_owned(), others.into())]);
    let error = run("celeba", &from, &out, "--size 64").unwrap_err();
    assert!(error.contains("labels none of the pictures"), "{error}");
    folder(&from, &[("list_attr_celeba.txt".to_owned(), ATTRIBUTES.into())]);
    let wild = encoded(&gradient(200, 218, 0), ImageFormat::Jpeg);
    folder(&from, &[("img_align_celeba/000002.jpg".to_owned(), wild)]);
    let error = run("celeba", &from, &out, "--size 64").unwrap_err();
    assert!(error.contains("000002.jpg: it has 200x218 pixels, expected 178x218"), "{error}");
}
