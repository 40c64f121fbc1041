//! `demo`, and the built-in model elsewhere.

use std::fs;

use crate::support::{FEW_INVERSION_STEPS, FEW_STEPS, Workspace, photograph};

#[test]
fn the_demo_needs_nothing_and_shows_everything() {
    let workspace = Workspace::new();
    let finished = workspace.run(&["demo", "--steps", "2"]).succeeds();
    assert!(finished.stdout().contains("index.html"), "{}", finished.stdout());
    let sheets = ["edits.png", "interpolations.png", "reconstructions.png", "samples.png", "variations.png"];
    let files = workspace.files("diffae-demo");
    assert_eq!(files, [&sheets[..1], &["index.html", "interpolation.gif"], &sheets[1..]].concat());
    for sheet in sheets {
        let picture = image::open(workspace.path("diffae-demo").join(sheet)).unwrap().to_rgb8();
        // Three rows or columns of cells at least, and not of one color.
        assert!(picture.width() > 300 && picture.height() > 200, "{sheet}: {:?}", picture.dimensions());
        assert!(picture.pixels().any(|pixel| pixel.0[0] < 100), "{sheet} is empty");
    }
    let page = fs::read_to_string(workspace.path("diffae-demo/index.html")).unwrap();
    assert_eq!(page.matches("src=\"data:image/").count(), 6);
    assert_eq!(page.matches("src=").count(), 6, "the page needs another file");
    // The pictures' base64 may spell anything, but has no colon.
    assert!(!page.contains("://"), "the page needs the net");
    assert!(page.contains("<meta name=\"viewport\"") && page.contains("prefers-color-scheme:dark"));
    assert!(!page.contains("<p></p>"), "every exhibit is explained");
    let film = fs::File::open(workspace.path("diffae-demo/interpolation.gif")).unwrap();
    let film = image::codecs::gif::GifDecoder::new(std::io::BufReader::new(film)).unwrap();
    assert_eq!(image::ImageDecoder::dimensions(&film), (512, 512));
    // Once more replaces what the first one wrote, but nothing that the user has changed.
    workspace.run(&["demo", "--steps", "1"]).succeeds();
    assert_ne!(fs::read_to_string(workspace.path("diffae-demo/index.html")).unwrap(), page);
    fs::write(workspace.path("diffae-demo/edits.png"), "mine").unwrap();
    workspace.run(&["demo", "--steps", "1"]).fails_with("edits.png is not what an earlier demo wrote; use --force");
    assert_eq!(fs::read_to_string(workspace.path("diffae-demo/edits.png")).unwrap(), "mine");
}

#[test]
fn the_built_in_model_can_do_everything_by_its_name() {
    let workspace = Workspace::new();
    // A folder of that name changes nothing.
    fs::create_dir(workspace.path("toonheads")).unwrap();
    let info = workspace.run(&["info", "toonheads", "--json"]).succeeds().json();
    assert_eq!(info["image_size"], 64);
    assert_eq!((&info["can_sample"], &info["can_edit"]), (&true.into(), &true.into()));
    let photograph = photograph();
    let reconstruct = ["reconstruct", "--model", "toonheads", &photograph, "--out", "r"];
    workspace.run(&[&reconstruct[..], &FEW_STEPS, &FEW_INVERSION_STEPS].concat()).succeeds();
    let edit = ["edit", "--model", "toonheads", &photograph, "--out", "e", "--attribute", "smiling"];
    workspace.run(&[&edit[..], &FEW_STEPS, &FEW_INVERSION_STEPS].concat()).succeeds();
    // It knows how far to go.
    let listed = workspace.run(&["edit", "--model", "toonheads", "--list"]).succeeds().stdout();
    let full_strength = listed.lines().find_map(|line| line.strip_prefix("Smiling")?.split("full strength: ").nth(1));
    let edited = format!("astronaut_smiling_+{}.png", full_strength.unwrap());
    assert!(workspace.files("e").contains(&edited) && listed.lines().count() == 13, "{edited} {listed}");
    let sample = ["sample", "--model", "toonheads", "-n", "2", "--out", "s", "--latent-steps", "2"];
    workspace.run(&[&sample[..], &FEW_STEPS].concat()).succeeds();
    assert_eq!(workspace.files("s"), ["sample_00000.png", "sample_00001.png", "sheet.png"]);
    workspace.run(&["info", "./toonheads"]).fails_with("toonheads");
}
