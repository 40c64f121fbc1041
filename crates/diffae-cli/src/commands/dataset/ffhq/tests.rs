//! Tests on synthetic folders and zips in the structure of FFHQ.

use image::ImageFormat;

use crate::commands::dataset::pictures::made_up::{
    assert_near, colors, encoded, folder, gradient, manifest, names, overshoots, run, snapshot, step, zip,
};

/// Creates pictures `FOLDER/00000/00000.png` and so on, with the given blue.
fn files(top: &str, numbers: &[u32], blue: u8) -> Vec<(String, Vec<u8>)> {
    let name = |number: u32| format!("{top}{:05}/{number:05}.png", number - number % 1000);
    let file = |&number: &u32| (name(number), encoded(&gradient(64, 64, blue), ImageFormat::Png));
    numbers.iter().map(file).collect()
}

#[test]
fn the_large_pictures_keep_their_numbers_and_a_second_run_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (from, out) = (root.path().join("ffhq"), root.path().join("out"));
    folder(&from, &files("images1024x1024/", &[1000, 0, 1], 200));
    folder(&from, &files("thumbnails128x128/", &[0, 1], 90));
    let edge = encoded(&step(64, 64), ImageFormat::Png);
    folder(&from, &[("images1024x1024/00000/00001.png".to_owned(), edge)]);
    run("ffhq", &from, &out, "--size 32").unwrap();
    assert_eq!(names(&out.join("images")), ["00000/00000.png", "00000/00001.png", "01000/01000.png"]);
    let got = colors(&out.join("images"), 2, 32, &[(8, 20), (20, 8)]);
    assert_near(&got, &[[16.5, 40.5, 200.], [40.5, 16.5, 200.]], 0.75);

    let by_lanczos = overshoots(&out.join("images/00000/00001.png"));
    assert!(by_lanczos && !overshoots(&from.join("images1024x1024/00000/00001.png")));
    let manifest = manifest(&out);
    assert_eq!(manifest["licence"], "CC BY-NC-SA 4.0");
    assert_eq!((&manifest["version"], &manifest["image_size"]), (&"images1024x1024".into(), &32.into()));
    assert_eq!((&manifest["counts"]["images/00000"], &manifest["originals"]["count"]), (&2.into(), &3.into()));
    let before = snapshot(&out);
    assert_eq!(before.len(), 3 + 3, "pictures, manifest, licence, sources");
    run("ffhq", &from, &out, "--size 32").unwrap();
    assert!(snapshot(&out) == before);
    let error = run("ffhq", &from, &out, "--size 16").unwrap_err();
    assert!(error.contains("another data set") && error.contains("32 pixels, PNG files"), "{error}");
}

#[test]
fn a_zip_of_thumbnails_becomes_a_database_in_the_released_layout() {
    let root = tempfile::tempdir().unwrap();
    let (from, out) = (root.path().join("thumbnails128x128.zip"), root.path().join("out"));
    zip(&from, &files("", &[2, 0, 1], 90));
    run("ffhq", &from, &out, "--size 32 --format lmdb --limit 2").unwrap();
    assert_eq!(names(&out), ["32-00000", "32-00001"]);
    assert_near(&colors(&out, 1, 32, &[(8, 20)]), &[[16.5, 40.5, 90.]], 3.);
    let sources = std::fs::read_to_string(out.join("sources.csv")).unwrap();
    assert_eq!(sources, "file,original\n32-00000,00000/00000.png\n32-00001,00000/00001.png\n");
    let database = diffae_data::Lmdb::open(&out).unwrap();
    assert_eq!((database.get("length").unwrap().unwrap(), database.keys().unwrap().len()), (b"2".to_vec(), 2));
    drop(database);
    let permissions = |name| std::fs::metadata(out.join(name)).unwrap().permissions();
    assert_eq!(permissions("data.mdb"), permissions("manifest.json"));
    let before = snapshot(&out);
    run("ffhq", &from, &out, "--size 32 --format lmdb --limit 2").unwrap();
    assert!(snapshot(&out) == before);
    let error = run("ffhq", &from, &root.path().join("large"), "--size 256").unwrap_err();
    assert!(error.contains("128 pixels, smaller than 256") && error.contains("NVlabs/ffhq-dataset"), "{error}");
}

#[test]
fn where_to_get_the_files_is_said() {
    let root = tempfile::tempdir().unwrap();
    let (empty, text) = (root.path().join("empty"), root.path().join("a.txt"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::write(&text, "text").unwrap();
    let out = root.path().join("out");
    for (from, found) in [
        (root.path().join("nowhere"), "nowhere is not there"),
        (empty, "holds no pictures with numbers for names in a folder images1024x1024"),
        (text, "is no zip archive"),
    ] {
        let error = run("ffhq", &from, &out, "--size 64").unwrap_err();
        assert!(error.contains(found), "{error}");
        assert!(
            error.contains("download the folder images1024x1024") && error.contains("NVlabs/ffhq-dataset"),
            "{error}"
        );
    }
    assert!(!out.exists());
}

#[test]
fn what_is_no_square_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("images1024x1024");
    folder(&from, &[("00000/00000.png".to_owned(), encoded(&gradient(64, 48, 0), ImageFormat::Png))]);
    let error = run("ffhq", &from, &root.path().join("out"), "--size 32").unwrap_err();
    assert!(error.contains("00000.png: it has 64x48 pixels, expected a square of 32 or more"), "{error}");
}
