//! Tests on synthetic folders and zips of pictures.

use diffae_data::{Crop, Labels, Pictures};
use image::ImageFormat;

use crate::commands::dataset::pictures::made_up::{
    assert_near, colors, encoded, folder, gradient, names, run, snapshot, zip,
};

fn files(top: &str) -> Vec<(String, Vec<u8>)> {
    let picture = |name: &str, blue, format| (format!("{top}{name}"), encoded(&gradient(80, 40, blue), format));
    vec![
        picture("cat/a.jpg", 30, ImageFormat::Jpeg),
        picture("cat/a.png", 60, ImageFormat::Png),
        picture("dog/b.webp", 90, ImageFormat::WebP),
        (format!("{top}dog/notes.txt"), b"text".to_vec()),
    ]
}

#[test]
fn folders_stay_and_can_be_classes() {
    let root = tempfile::tempdir().unwrap();
    let (tree, archive) = (root.path().join("tree"), root.path().join("pets.zip"));
    folder(&tree, &files(""));
    zip(&archive, &files("pets/all/"));
    let (out, zipped, database) = (root.path().join("out"), root.path().join("zipped"), root.path().join("lmdb"));
    run("folder", &tree, &out, "--size 20").unwrap();
    run("folder", &archive, &zipped, "--size 20").unwrap();
    run("folder", &archive, &database, "--size 20 --format lmdb").unwrap();
    for images in [out.join("images"), zipped.join("images")] {
        assert_eq!(names(&images), ["cat/a.jpg.png", "cat/a.png.png", "dog/b.png"]);
        assert_near(&colors(&images, 1, 20, &[(5, 5)]), &[[30.5, 10.5, 60.]], 0.75);
        let labels = Labels::from_folders(&[&Pictures::all(&images, Crop::Center).unwrap()]).unwrap();
        assert_eq!(labels.of("dog/b.png"), Some(&[false, true][..]));
    }
    assert_eq!(names(&database), ["20-00000", "20-00001", "20-00002"]);
    let labels = Labels::from_file(&database.join("attributes.csv")).unwrap();
    assert_eq!(
        (labels.names.as_slice(), labels.of("20-00002")),
        (&["cat", "dog"].map(str::to_owned)[..], Some(&[false, true][..]))
    );
    let before = snapshot(root.path());
    run("folder", &tree, &out, "--size 20").unwrap();
    run("folder", &archive, &database, "--size 20 --format lmdb").unwrap();
    assert!(snapshot(root.path()) == before);
}

#[test]
fn labels_get_the_new_names_and_must_name_pictures() {
    let root = tempfile::tempdir().unwrap();
    let (tree, out, labels) = (root.path().join("tree"), root.path().join("out"), root.path().join("labels.csv"));
    folder(&tree, &files(""));
    let options = format!("--size 20 --labels {}", labels.display());
    for (text, found) in [
        ("file,Small\nc.jpg,1\n", "labels.csv names c.jpg, which is not among the pictures"),
        ("file,Small\na.jpg,maybe\n", "\"maybe\""),
    ] {
        std::fs::write(&labels, text).unwrap();
        let error = run("folder", &tree, &out, &options).unwrap_err();
        assert!(error.contains(found), "{error}");
    }
    std::fs::write(&labels, "file,Small\ndog/b.webp,0\na.jpg,1\n").unwrap();
    run("folder", &tree, &out, &options).unwrap();
    let made = std::fs::read_to_string(out.join("attributes.csv")).unwrap();
    assert_eq!(made, "file,Small\nb.png,0\na.jpg.png,1\n");
    let pictures = Pictures::all(&out.join("images"), Crop::Center).unwrap();
    let read = Labels::of_pictures(&out.join("attributes.csv"), &[&pictures]).unwrap();
    assert_eq!(read.of("cat/a.jpg.png"), Some(&[true][..]));

    folder(&tree, &[("fox/b.webp".to_owned(), encoded(&gradient(20, 20, 0), ImageFormat::WebP))]);
    std::fs::write(&labels, "2\nSmall\nfox/b.webp 1\ndog/b.webp -1\n").unwrap();
    let more = root.path().join("more");
    run("folder", &tree, &more, &options).unwrap();
    let made = std::fs::read_to_string(more.join("attributes.txt")).unwrap();
    assert_eq!(made, "2\nSmall\nfox/b.png 1\ndog/b.png -1\n", "file names do not tell them apart, paths do");
    std::fs::write(&labels, "file,Small\nb.webp,1\n").unwrap();
    let error = run("folder", &tree, &root.path().join("unclear"), &options).unwrap_err();
    assert!(error.contains("b.webp, of which there are several"), "{error}");
}
