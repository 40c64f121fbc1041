//! `diffae eval recon --protocol`: reconstructions as other programs measure them.

use std::fs;

use crate::evaluation::{figure, random_weights};
use crate::support::Workspace;

/// The figures of the authors of DBAE: pictures of 8 bits, LPIPS of `AlexNet`, and an SSIM over columns and colors.
#[test]
fn reconstructions_are_measured_as_those_of_dbae() {
    let workspace = Workspace::new();
    let data = large_pictures(&workspace);
    let weights = random_weights(&workspace, "alex");
    let args = ["eval", "recon", "--pictures", &data, "--data", &data, "--protocol", "dbae", "--json"];
    workspace.run(&[&args[..], &["--out", "none"]].concat()).fails_with("LPIPS of AlexNet");
    let report =
        workspace.run(&[&args[..], &["--out", "eval", "--lpips-weights", &weights]].concat()).succeeds().json();
    // Pictures of 8 bits are their own cut-off.
    assert_eq!(report["settings"]["protocol"], "dbae");
    let of = |name: &str| figure(&report, name, &[]);
    assert!(of("mse") < 1e-12 && of("lpips") < 1e-9, "{report}");
    assert!((of("ssim") - 1.).abs() < 1e-9 && (of("ssim_of_rows") - 1.).abs() < 1e-9, "{report}");
}

/// Waves of 40 pixels, as LPIPS needs 32; returns the folder.
fn large_pictures(workspace: &Workspace) -> String {
    let folder = workspace.path("large");
    fs::create_dir(&folder).unwrap();
    for name in ["a", "b"] {
        let wave = |x: u32, y: u32| u8::try_from((x * 7 + y * if name == "a" { 3 } else { 5 }) % 256).unwrap();
        let picture = image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([wave(x, y), wave(y, x), 90]));
        picture.save(folder.join(format!("{name}.png"))).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}
