//! The choice of CPU kernels and of the number of threads.

use crate::support::{FEW_STEPS, Workspace, checkpoint};

/// Samples one picture into `out`; its bytes.
fn sample(workspace: &Workspace, out: &str, options: &[&str], environment: &[(&str, &str)]) -> Vec<u8> {
    let model = checkpoint("autoenc16_latent");
    let args = ["sample", "--model", &model, "-n", "1", "--latent-steps", "2", "--out", out];
    workspace.run_with_environment(&[&args[..], &FEW_STEPS, options].concat(), environment).succeeds();
    image::open(workspace.path(out).join("sample_00000.png")).unwrap().into_rgb8().into_raw()
}

#[track_caller]
fn assert_same_picture(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst <= 1, "pictures differ by {worst}");
}

#[test]
fn exact_work_and_other_thread_counts_give_the_same_picture() {
    let workspace = Workspace::new();
    let expected = sample(&workspace, "default", &[], &[]);
    for (out, options) in
        [("exact", &["--exact"][..]), ("one", &["--threads", "1"]), ("both", &["--exact", "--threads", "3"])]
    {
        assert_same_picture(&sample(&workspace, out, options, &[]), &expected);
    }
}

#[test]
fn one_thread_gives_the_same_bits_each_time() {
    let workspace = Workspace::new();
    let [first, second] = ["a", "b"].map(|out| sample(&workspace, out, &["--threads", "1"], &[]));
    assert_eq!(first, second);
}

#[test]
fn kernels_by_name_give_the_same_picture() {
    let workspace = Workspace::new();
    let expected = sample(&workspace, "default", &[], &[]);
    for name in ["portable", "candle"] {
        assert_same_picture(&sample(&workspace, name, &[], &[("DIFFAE_KERNELS", name)]), &expected);
    }
    // As if it were not set.
    assert_eq!(sample(&workspace, "empty", &[], &[("DIFFAE_KERNELS", "")]), expected);
    // Network calls in the form in which cards record them, on the CPU.
    let composed = sample(&workspace, "composed", &[], &[("DIFFAE_KERNELS", "candle")]);
    let graphs = [("DIFFAE_KERNELS", "candle"), ("DIFFAE_CUDA_KERNELS", "graphs")];
    assert_eq!(sample(&workspace, "graphs", &[], &graphs), composed);
}

#[test]
fn no_threads_are_refused() {
    Workspace::new().run(&["info", &checkpoint("ddpm16"), "--threads", "0"]).fails_with("must be at least 1");
}

#[test]
fn unknown_kernels_are_refused_with_the_names_that_there_are() {
    let workspace = Workspace::new();
    let (info, environment) = (["info", &checkpoint("ddpm16")], [("DIFFAE_KERNELS", "nonsense")]);
    workspace.run_with_environment(&info, &environment).fails_with("DIFFAE_KERNELS");
    workspace.run_with_environment(&info, &environment).fails_with("\"nonsense\"");
    workspace.run_with_environment(&info, &environment).fails_with("candle, portable, neon, avx2, avx512");
    let of_cards = [("DIFFAE_CUDA_KERNELS", "nonsense")];
    workspace.run_with_environment(&info, &of_cards).fails_with("DIFFAE_CUDA_KERNELS");
    workspace.run_with_environment(&info, &of_cards).fails_with("candle, own, cudnn, graphs");
}

#[test]
fn tf32_is_for_cards_of_nvidia() {
    let workspace = Workspace::new();
    let model = checkpoint("ddpm16");
    workspace.run(&["sample", "--model", &model, "--dtype", "tf32", "--out", "out"]).fails_with("CUDA cards");
    let train = ["train", "--preset", "smoke", "--data", env!("CARGO_MANIFEST_DIR"), "--dtype", "tf32", "--out", "out"];
    workspace.run(&train).fails_with("CUDA cards");
    workspace.run(&["import", &model, "--dtype", "tf32", "--out", "out"]).fails_with("no number type of files");
    assert!(workspace.files(".").is_empty());
}
