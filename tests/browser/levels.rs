//! Levels of a hierarchical `z_sem` on the page.

use std::process::Command;

use image::{Rgb, RgbImage};

use crate::stage::{Stage, program};

/// Serves a model with parts of `z_sem` for maps of 16 and of 8 pixels, trained for a moment on two colors.
fn stage() -> Stage {
    let folder = tempfile::tempdir().unwrap();
    for (class, color) in [("red", [220, 30, 30]), ("blue", [20, 40, 200])] {
        std::fs::create_dir_all(folder.path().join("colors").join(class)).unwrap();
        for number in 0..8u8 {
            let shaded = |x: u32, y: u32| {
                let least = u8::try_from(x * y).unwrap_or(u8::MAX) >> 1;
                color.map(|value: u8| value.saturating_add(number * 3).max(least))
            };
            let picture = RgbImage::from_fn(16, 16, |x, y| Rgb(shaded(x, y)));
            picture.save(folder.path().join(format!("colors/{class}/{class}{number}.png"))).unwrap();
        }
    }
    let mut train = Command::new(program());
    train.args(["train", "--preset", "smoke", "--data", "colors", "--labels", "folders", "--out", "run", "--quiet"]);
    for setting in
        ["model.z_levels=[12,20]", "autoencoder.images=640", "latent.images=640", "run.preview_every_images=0"]
    {
        train.args(["--set", setting]);
    }
    assert!(train.current_dir(folder.path()).status().unwrap().success());
    Stage::in_folder(folder, &["-m", "run"])
}

#[test]
fn edits_and_blends_of_single_levels_have_the_pixels_of_the_command() {
    let stage = stage();
    let page = &stage.page;
    assert_eq!(page.text("#boxes"), " 16 px 8 px");
    let take = |name: &str| {
        let class = name.trim_end_matches(char::is_numeric);
        page.browser.choose_file("#file", &stage.path(&format!("colors/{class}/{name}.png")));
        page.wait();
        stage.save("#original", &format!("{name}.png"));
    };
    take("blue1");
    page.browser.click("#keep");
    take("red2");
    let reconstruction = page.picture("after");
    page.nudge("alpha", 50);
    page.wait();
    stage.page_and_command_agree();
    let whole = page.picture("after");
    let blended = |boxes: &[&str]| {
        for css in boxes {
            page.browser.click(css);
        }
        page.wait();
        stage.page_and_command_agree();
        (page.picture("after"), page.text("#command"))
    };
    let (coarse, command) = blended(&["#level-0"]);
    assert!(command.contains(" --levels 1 --frames"), "{command}");
    let (none, command) = blended(&["#level-1"]);
    assert!(command.starts_with("diffae reconstruct"), "{command}");
    let (fine, command) = blended(&["#level-0"]);
    assert!(command.contains(" --levels 0 --frames"), "{command}");
    assert_eq!(none, reconstruction);
    assert!(coarse != whole && fine != whole, "x_T is that of the first picture");
    let film = stage.save("#film", "red2-blue1.gif");
    std::fs::remove_file(stage.path("red2-blue1.gif")).unwrap();
    page.nudge("slider-red", -10);
    page.wait();
    let command = page.text("#command");
    assert!(command.contains(" -a red=-") && command.contains(" --levels 0 --out edited"), "{command}");
    stage.page_and_command_agree();
    assert_ne!(stage.save("#strip", "red2.red.png").len(), 0);
    page.browser.click("#level-1");
    page.wait();
    assert!(!page.text("#command").contains("--levels"), "all levels are the usual edit");
    page.nudge("alpha", 50);
    page.wait();
    assert_eq!(page.picture("after"), whole);
    assert_ne!(stage.save("#film", "red2-blue1.gif"), film, "a film of all levels is another one");
    page.browser.screenshot("levels");
    page.browser.console_is_clean_but_for(&[]);
}
