//! Tests on synthetic files in the structure of CelebAMask-HQ.

use diffae_data::Labels;
use image::ImageFormat;

use crate::commands::dataset::pictures::made_up::{
    assert_near, colors, encoded, folder, gradient, names, run, snapshot, zip,
};

const ATTRIBUTES: &str = "4\nSmiling Young\n0.jpg  1 -1\n1.jpg -1  1\n2.jpg -1 -1\n10.jpg  1  1\n";

fn files() -> Vec<(String, Vec<u8>)> {
    let picture = |number: u8| {
        let name = format!("CelebAMask-HQ/CelebA-HQ-img/{number}.jpg");
        (name, encoded(&gradient(64, 64, 20 * number), ImageFormat::Jpeg))
    };
    let mask = ("CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/3.png", encoded(&gradient(64, 64, 0), ImageFormat::Png));
    let attributes = ("CelebAMask-HQ/CelebAMask-HQ-attribute-anno.txt", ATTRIBUTES.into());
    let others = [mask, attributes].map(|(name, bytes)| (name.to_owned(), bytes));
    [0, 1, 2, 10].map(picture).into_iter().chain(others).collect()
}

#[test]
fn pictures_are_in_order_of_their_numbers_and_attributes_have_their_names() {
    let root = tempfile::tempdir().unwrap();
    let (archive, tree) = (root.path().join("CelebAMask-HQ.zip"), root.path().join("tree"));
    zip(&archive, &files());
    folder(&tree, &files());
    let (out, database) = (root.path().join("out"), root.path().join("lmdb"));
    run("celebahq", &tree.join("CelebAMask-HQ/CelebA-HQ-img"), &out, "--size 32").unwrap();
    run("celebahq", &archive, &database, "--size 32 --format lmdb").unwrap();
    assert_eq!(names(&out.join("images")), ["00/00000.png", "00/00001.png", "00/00002.png", "00/00010.png"]);
    assert_eq!(names(&database), ["32-00000", "32-00001", "32-00002", "32-00003"]);
    for (data, name, labels) in [(out.join("images"), "00/00010.png", &out), (database.clone(), "32-00003", &database)]
    {
        assert_near(&colors(&data, 3, 32, &[(8, 20)]), &[[16.5, 40.5, 200.]], 4.);
        assert_near(&colors(&data, 2, 32, &[(8, 20)]), &[[16.5, 40.5, 40.]], 4.);
        let labels = Labels::from_file(&labels.join("attributes.txt")).unwrap();
        assert_eq!(labels.of(name), Some(&[true, true][..]));
    }
    let sources = std::fs::read_to_string(database.join("sources.csv")).unwrap();
    assert!(sources.contains("32-00003,CelebAMask-HQ/CelebA-HQ-img/10.jpg"), "{sources}");
    let before = snapshot(root.path());
    run("celebahq", &archive, &database, "--size 32 --format lmdb").unwrap();
    run("celebahq", &archive, &out, "--size 32").unwrap();
    assert!(snapshot(root.path()) == before, "the zip and the folder hold the same data set");
}

#[test]
fn without_attributes_the_page_is_named() {
    let root = tempfile::tempdir().unwrap();
    let archive = root.path().join("a.zip");
    zip(&archive, &files()[..4]);
    let error = run("celebahq", &archive, &root.path().join("out"), "--size 32").unwrap_err();
    assert!(error.contains("no CelebAMask-HQ-attribute-anno.txt with the pictures of"), "{error}");
    assert!(error.contains("https://github.com/switchablenorms/CelebAMask-HQ"), "{error}");
}
