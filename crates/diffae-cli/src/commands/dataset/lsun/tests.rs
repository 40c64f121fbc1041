//! Tests on synthetic databases in the structure of LSUN.

use image::ImageFormat;

use crate::commands::dataset::pictures::made_up::{
    assert_near, colors, database, encoded, gradient, manifest, names, run, snapshot, zip,
};

/// Returns values under meaningless keys, not in order.
fn entries() -> Vec<(String, Vec<u8>)> {
    let picture = |key: &str, blue| (key.to_owned(), encoded(&gradient(80, 40, blue), ImageFormat::WebP));
    vec![picture("ffe0a1", 30), picture("0b77c2", 60), picture("a90d3f", 90)]
}

#[test]
fn values_are_cut_to_the_center_in_order_of_their_keys() {
    let root = tempfile::tempdir().unwrap();
    let (from, out) = (root.path().join("horse_train_lmdb"), root.path().join("out"));
    database(&from, &entries());
    run("lsun", &from, &out, "--size 20 --format lmdb").unwrap();
    assert_eq!(names(&out), ["20-0000000", "20-0000001", "20-0000002"]);
    for (idx, blue) in [60., 90., 30.].into_iter().enumerate() {
        assert_near(&colors(&out, idx, 20, &[(5, 5), (14, 9)]), &[[30.5, 10.5, blue], [48.5, 18.5, blue]], 3.);
    }
    let manifest = manifest(&out);
    assert_eq!((&manifest["version"], &manifest["counts"][""]), (&"horse".into(), &3.into()));
    let before = snapshot(&out);
    run("lsun", &from, &out, "--size 20 --format lmdb").unwrap();
    assert!(snapshot(&out) == before);
    let error = run("lsun", &from, &out, "--size 20 --format lmdb --category church").unwrap_err();
    assert!(error.contains("another data set (category horse;"), "{error}");
}

#[test]
fn a_zip_is_unpacked_only_while_it_is_needed() {
    let root = tempfile::tempdir().unwrap();
    let (from, out) = (root.path().join("folder"), root.path().join("out"));
    database(&from, &entries());
    let archive = root.path().join("bedroom_val_lmdb.zip");
    let data = std::fs::read(from.join("data.mdb")).unwrap();
    zip(&archive, &[("bedroom_val_lmdb/data.mdb".to_owned(), data), ("bedroom_val_lmdb/lock.mdb".to_owned(), vec![])]);
    run("lsun", &archive, &out, "--size 20").unwrap();
    assert_eq!(manifest(&out)["version"], "bedroom");
    assert_eq!(names(&out.join("images")), ["0000/0000000.png", "0000/0000001.png", "0000/0000002.png"]);
    assert_near(&colors(&out.join("images"), 0, 20, &[(5, 5)]), &[[30.5, 10.5, 60.]], 0.75);
    assert!(!out.join("unpacked").exists());
    let before = snapshot(&out);
    run("lsun", &archive, &out, "--size 20").unwrap();
    run("lsun", &from, &out, "--size 20 --category bedroom").unwrap();
    assert!(snapshot(&out) == before, "the zip and the folder hold the same data set");
    std::fs::create_dir(out.join("unpacked")).unwrap();
    run("lsun", &archive, &out, "--size 20").unwrap();
    assert!(!out.join("unpacked").exists(), "what a killed run left behind goes");
}

#[test]
fn what_holds_no_database_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let archive = root.path().join("horse.zip");
    zip(&archive, &[("horse/readme.txt".to_owned(), vec![])]);
    for from in [root.path(), &archive] {
        let error = run("lsun", from, &root.path().join("out"), "--size 20").unwrap_err();
        assert!(error.contains("holds no data.mdb") && error.contains("https://www.yf.io/p/lsun"), "{error}");
    }
}
