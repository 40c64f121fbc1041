//! `diffae align`: faces out of photographs.

use std::fs;

use crate::support::{Finished, Workspace, fixture};

/// The box that dlib's detector draws in the photograph.
const FACE: &str = "54,64,88,87";

fn align(workspace: &Workspace, pictures: &[&str], more: &[&str]) -> Finished {
    let landmarks = fixture("align/small_68.dat");
    workspace.run(&[&["align", "--landmarks", &landmarks, "--out", "out"], pictures, more].concat())
}

#[test]
fn a_face_is_cut_out_where_dlib_finds_it() {
    let workspace = Workspace::new();
    let photograph = fixture("align/astronaut.png");
    let finished = align(&workspace, &[&photograph], &["--box", FACE, "--size", "64", "--json"]).succeeds();
    let record: serde_json::Value = serde_json::from_slice(&fs::read(fixture("align/align.json")).unwrap()).unwrap();
    let (found, expected) = (&finished.json()[0], &record["small_68"][0]);
    assert_eq!(found["box"], expected["box"]);
    for (point, expected) in
        found["landmarks"].as_array().unwrap().iter().zip(expected["landmarks"].as_array().unwrap())
    {
        assert_eq!([point[0].as_f64(), point[1].as_f64()], [expected[0].as_f64(), expected[1].as_f64()]);
    }
    assert_eq!(found["landmarks"].as_array().unwrap().len(), 68);
    assert_eq!(workspace.files("out"), ["astronaut.png"]);
    assert_eq!(image::image_dimensions(workspace.path("out/astronaut.png")).unwrap(), (64, 64));
    let text = workspace.png_text("out/astronaut.png");
    assert!(text.contains(&("diffae:size".to_owned(), "64".to_owned())), "{text:?}");

    align(&workspace, &[&photograph], &["--box", FACE]).fails_with("exists already");
    align(&workspace, &[&photograph], &["--whole", "--force"]).succeeds();
    assert_eq!(image::image_dimensions(workspace.path("out/astronaut.png")).unwrap(), (256, 256));
}

#[test]
fn without_a_box_the_way_out_is_named() {
    let workspace = Workspace::new();
    let photograph = fixture("align/astronaut.png");
    align(&workspace, &[&photograph], &[]).fails_with("the position of the face is unknown: give --box");
    let boxes = workspace.path("boxes.csv");
    fs::write(&boxes, format!("file,left,top,width,height\nother.png,{FACE}\n")).unwrap();
    align(&workspace, &[&photograph], &["--boxes", "boxes.csv"]).fails_with("no box for astronaut");
    fs::write(&boxes, format!("astronaut.jpg,{FACE}\n")).unwrap();
    let listed = align(&workspace, &[&photograph], &["--boxes", "boxes.csv", "--json"]).succeeds().json();
    assert_eq!(listed[0]["box"], serde_json::json!([54, 64, 88, 87]));
    for path in ["out", "boxes.csv"] {
        let path = workspace.path(path);
        fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).unwrap();
    }
    align(&workspace, &[&photograph], &["--box", "1,2,3"]).fails_with("four whole numbers");
    align(&workspace, &[&photograph], &["--box", "500,0,80,80"]).fails_with("in a picture of 200x200");
    align(&workspace, &[&photograph], &["--box", FACE, "--size", "0"]).fails_with("0 is not in 1..=2048");
    assert_eq!(workspace.files("."), [""; 0]);
}

#[test]
fn a_damaged_landmark_model_is_named() {
    let workspace = Workspace::new();
    let photograph = fixture("align/astronaut.png");
    let whole = fs::read(fixture("align/small_68.dat")).unwrap();
    fs::write(workspace.path("short.dat"), &whole[..whole.len() >> 1]).unwrap();
    let run = |model: &str| workspace.run(&["align", &photograph, "--landmarks", model, "--box", FACE, "--out", "out"]);
    run("short.dat").fails_with("short.dat is not a landmark model of dlib: byte ");
    run(&photograph).fails_with("is not a landmark model");
    run("missing.dat").fails_with("missing.dat");
    assert_eq!(workspace.files("."), ["short.dat"]);
}

#[test]
fn an_unfit_picture_does_not_stop_the_others() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("photos")).unwrap();
    fs::copy(fixture("align/astronaut.png"), workspace.path("photos/a.png")).unwrap();
    fs::write(workspace.path("photos/b.png"), "no picture").unwrap();
    let finished = align(&workspace, &["photos"], &["--box", FACE, "--size", "16"]);
    let finished = finished.fails_with("1 of 2 images could not be aligned: b");
    assert!(finished.stderr().contains("cannot align b: cannot read photos/b.png"), "{}", finished.stderr());
    assert_eq!(workspace.files("out"), ["a.png"]);
    assert_eq!(workspace.files("."), ["out", "photos"]);
}
