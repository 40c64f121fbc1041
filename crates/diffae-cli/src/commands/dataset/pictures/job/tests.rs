//! Tests of what all data sets share: resuming, broken originals, another data set, changed files.

use std::fs;
use std::path::Path;

use image::ImageFormat;

use crate::commands::dataset::pictures::made_up::{
    assert_near, colors, encoded, folder, gradient, manifest, names, run, snapshot,
};

/// Number of pictures, more than one batch.
const COUNT: usize = 300;

fn name(idx: usize) -> String {
    format!("{idx:03}.png")
}

fn write(from: &Path, idx: usize, blue: u8) {
    folder(from, &[(name(idx), encoded(&gradient(16, 16, blue), ImageFormat::Png))]);
}

fn break_(from: &Path, idx: usize) {
    folder(from, &[(name(idx), b"no picture".to_vec())]);
}

#[test]
fn an_interrupted_run_goes_on_without_looking_at_what_is_done() {
    for (options, key) in [("--size 8", None), ("--size 8 --format lmdb", Some("8-00299"))] {
        let root = tempfile::tempdir().unwrap();
        let (from, out) = (root.path().join("from"), root.path().join("out"));
        (0..COUNT).for_each(|idx| write(&from, idx, 100));
        (280..COUNT).for_each(|idx| break_(&from, idx));
        let error = run("folder", &from, &out, options).unwrap_err();
        assert!(error.contains("of 300 originals cannot be used, more than one in 100"), "{error}");
        assert!(manifest(&out).get("counts").is_none(), "it is not finished");
        let done = if key.is_some() { 0..256 } else { 0..0 };
        let already: Vec<usize> = match key {
            Some(_) => done.collect(),
            None => (0..COUNT).filter(|&idx| out.join("images").join(name(idx)).exists()).collect(),
        };
        assert!(already.len() > 20, "{}", already.len());
        for &idx in &already {
            write(&from, idx, 200);
        }
        (280..COUNT).for_each(|idx| write(&from, idx, 100));
        run("folder", &from, &out, options).unwrap();
        let data = if key.is_some() { out.clone() } else { out.join("images") };
        assert_eq!(names(&data).len(), COUNT);
        for idx in [already[0], already[20], 299] {
            assert_near(&colors(&data, idx, 8, &[(3, 5)]), &[[6.5, 10.5, 100.]], 4.);
        }
        let last = key.map_or_else(|| name(299), str::to_owned);
        assert_eq!(names(&data).last(), Some(&last));
        let before = snapshot(&out);
        run("folder", &from, &out, options).unwrap();
        assert!(snapshot(&out) == before);
    }
}

#[test]
fn few_broken_originals_are_left_out_and_counted() {
    let root = tempfile::tempdir().unwrap();
    let (from, labels) = (root.path().join("from"), root.path().join("labels.csv"));
    (0..COUNT).for_each(|idx| write(&from, idx, u8::try_from(idx % 250).unwrap()));
    break_(&from, 7);
    break_(&from, 270);
    fs::write(&labels, "file,Odd\n007.png,1\n008.png,0\n271.png,1\n").unwrap();
    for (format, rows) in [("folder", "008.png,0\n271.png,1"), ("lmdb", "8-00007,0\n8-00269,1")] {
        let out = root.path().join(format);
        let options = format!("--size 8 --format {format} --labels {}", labels.display());
        run("folder", &from, &out, &options).unwrap();
        assert_eq!(manifest(&out)["broken"], serde_json::json!(["007.png", "270.png"]));
        assert_eq!(fs::read_to_string(out.join("attributes.csv")).unwrap(), format!("file,Odd\n{rows}\n"));
        let data = if format == "lmdb" { out.clone() } else { out.join("images") };
        assert_eq!(names(&data).len(), COUNT - 2);
        assert_near(&colors(&data, 269, 8, &[(3, 5)]), &[[6.5, 10.5, 21.]], 4.);
        let before = snapshot(&out);
        run("folder", &from, &out, &options).unwrap();
        assert!(snapshot(&out) == before);
    }
}

#[test]
fn other_originals_are_another_data_set() {
    let root = tempfile::tempdir().unwrap();
    let (from, out) = (root.path().join("from"), root.path().join("out"));
    (0..3).for_each(|idx| write(&from, idx, 0));
    run("folder", &from, &out, "--size 8").unwrap();
    let before = snapshot(&out);
    for options in ["--size 8 --limit 2", "--size 8 --format lmdb", "--size 16"] {
        let error = run("folder", &from, &out, options).unwrap_err();
        assert!(error.contains("holds another data set (Lanczos, center crop; 8 pixels, PNG files)"), "{error}");
    }
    write(&from, 3, 0);
    let error = run("folder", &from, &out, "--size 8").unwrap_err();
    assert!(error.contains("another data set"), "{error}");
    assert!(snapshot(&out) == before);
}

#[test]
fn a_file_that_is_gone_is_made_again_and_one_that_was_changed_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (from, out) = (root.path().join("from"), root.path().join("out"));
    (0..3).for_each(|idx| write(&from, idx, 0));
    run("folder", &from, &out, "--size 8").unwrap();
    let contents = || snapshot(&out).into_values().map(|(bytes, _)| bytes).collect::<Vec<_>>();
    let whole = contents();
    fs::remove_file(out.join("images/001.png")).unwrap();
    fs::remove_file(out.join("sources.csv")).unwrap();
    run("folder", &from, &out, "--size 8").unwrap();
    assert_eq!(contents(), whole);
    fs::copy(from.join("001.png"), out.join("images/001.png")).unwrap();
    let error = run("folder", &from, &out, "--size 8").unwrap_err();
    assert!(error.contains("some were changed after it was made"), "{error}");

    let out = root.path().join("lmdb");
    run("folder", &from, &out, "--size 8 --format lmdb").unwrap();
    crate::commands::dataset::pictures::made_up::database(&out, &[("8-00001".to_owned(), vec![7])]);
    let error = run("folder", &from, &out, "--size 8 --format lmdb").unwrap_err();
    assert!(error.contains("finished LMDB, but not with what its manifest says"), "{error}");
}
