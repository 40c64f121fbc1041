//! Files of weights as other tools write them: read, or named for what they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use diffae_nets::weights::safetensors_bytes;
use diffae_nets::weights::torch::TorchFile;
use safetensors::SafeTensors;

use crate::support::{Finished, Workspace, checkpoint, fixture};

/// A golden model with latent net.
const MODEL: &str = "autoenc16_latent";
/// The option that a file with nothing but parameters needs.
const SIZE: [&str; 2] = ["--image-size", "16"];

fn fault(name: &str) -> String {
    fixture(&format!("faults/checkpoints/{name}"))
}

/// The tensors of the golden checkpoint whose names begin so.
fn golden_tensors(prefix: &str) -> BTreeMap<String, Tensor> {
    let file = TorchFile::open(Path::new(&checkpoint(MODEL))).unwrap();
    let tensors = file.tensors_under("state_dict").unwrap();
    let of_prefix = tensors.into_iter().filter(|(name, _)| name.starts_with(prefix));
    of_prefix
        .map(|(name, tensor)| {
            let read = file.read(&tensor).unwrap();
            let tensor = Tensor::from_raw_buffer(&read.bytes, DType::F32, &read.shape, &Device::Cpu).unwrap();
            (name, tensor)
        })
        .collect()
}

/// Writes the averaged parameters under their released names, as converters do.
fn write_average(workspace: &Workspace, name: &str) {
    let bytes = safetensors_bytes(&golden_tensors("ema_model."), &BTreeMap::new()).unwrap();
    let path = workspace.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The bytes of all tensors of a safetensors file.
fn tensors(workspace: &Workspace, file: &str) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(workspace.path(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
}

#[test]
fn pretrained_safetensors_give_the_numbers_of_the_checkpoint() {
    let workspace = Workspace::new();
    write_average(&workspace, "ema.safetensors");
    let golden = fixture(&format!("golden/{MODEL}/golden.safetensors"));
    let ckpt = checkpoint(MODEL);
    for (name, model, flags) in [("ckpt", ckpt.as_str(), &[][..]), ("safetensors", "ema.safetensors", &SIZE[..])] {
        let (codes, pictures) = (format!("{name}_codes.safetensors"), format!("{name}_x.safetensors"));
        let encode = ["encode", "--model", model, &golden, "--out", &codes, "--steps", "2"];
        workspace.run(&[&encode[..], flags].concat()).succeeds();
        let decode = ["decode", "--model", model, &codes, "--out", &pictures, "--steps", "2"];
        workspace.run(&[&decode[..], flags].concat()).succeeds();
    }
    for file in ["codes", "x"] {
        let [ckpt, converted] =
            ["ckpt", "safetensors"].map(|name| tensors(&workspace, &format!("{name}_{file}.safetensors")));
        assert!(!ckpt.is_empty() && ckpt == converted, "{file}");
    }
}

#[test]
fn pretrained_safetensors_are_imported() {
    let workspace = Workspace::new();
    write_average(&workspace, "weights/model.safetensors");
    let latent = fixture(&format!("golden/{MODEL}/latent.pkl"));
    let import = |model: &str, out: &str| {
        workspace.run(&["import", model, "--latent", &latent, "--out", out, SIZE[0], SIZE[1]]).succeeds();
    };
    import(&checkpoint(MODEL), "from_ckpt");
    import("weights/model.safetensors", "from_file");
    import("weights", "from_folder");
    let of = |folder: &str| tensors(&workspace, &format!("{folder}/model.safetensors"));
    assert_eq!(of("from_ckpt"), of("from_file"));
    assert_eq!(of("from_ckpt"), of("from_folder"));
    workspace.run(&["info", "weights"]).fails_with("--image-size").fails_with("model.safetensors");
}

/// Writes the averaged parameters as two shards with their index.
fn write_shards(workspace: &Workspace, folder: &str) {
    fs::create_dir_all(workspace.path(folder)).unwrap();
    let mut first = golden_tensors("ema_model.");
    let middle = first.keys().nth(first.len().div_ceil(2)).unwrap().clone();
    let second = first.split_off(&middle);
    let mut map = BTreeMap::new();
    for (number, shard) in [(1, first), (2, second)] {
        let file = format!("model-0000{number}-of-00002.safetensors");
        fs::write(workspace.path(&format!("{folder}/{file}")), safetensors_bytes(&shard, &BTreeMap::new()).unwrap())
            .unwrap();
        map.extend(shard.into_keys().map(|name| (name, file.clone())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(workspace.path(&format!("{folder}/model.safetensors.index.json")), index).unwrap();
}

#[test]
fn hyper_parameters_are_found_beside_an_index_and_in_a_header() {
    let told = fs::read(fixture(&format!("golden/{MODEL}/hyper_parameters.json"))).unwrap();
    for name in ["hparams.json", "model.json", "config.json", "hyper_parameters.json"] {
        let workspace = Workspace::new();
        write_shards(&workspace, "sharded");
        workspace.run(&["info", "sharded"]).fails_with("--image-size");
        fs::write(workspace.path("sharded").join(name), &told).unwrap();
        workspace.run(&["info", "sharded"]).succeeds();
        workspace.run(&["info", "sharded/model.safetensors.index.json"]).succeeds();
    }
    let workspace = Workspace::new();
    let text = BTreeMap::from([("img_size".to_owned(), "16".to_owned())]);
    let bytes = safetensors_bytes(&golden_tensors("ema_model."), &text).unwrap();
    fs::write(workspace.path("told.safetensors"), bytes).unwrap();
    workspace.run(&["info", "told.safetensors"]).succeeds();
}

#[test]
fn one_shard_of_a_model_leads_to_the_others() {
    let workspace = Workspace::new();
    write_shards(&workspace, "sharded");
    let shard = "sharded/model-00001-of-00002.safetensors";
    let is_shard = "model-00001-of-00002.safetensors is shard 1 of 2 of a model; ";
    let with_index = format!("{is_shard}name the index of all, model.safetensors.index.json, or the folder");
    for command in [&["info", shard][..], &["import", shard, "--out", "model"]] {
        workspace.run(command).fails_with(&with_index);
    }
    fs::remove_file(workspace.path("sharded/model.safetensors.index.json")).unwrap();
    let alone = format!("{is_shard}put all shards and their index, model.safetensors.index.json, into one folder");
    workspace.run(&["info", shard]).fails_with(&alone);
}

#[test]
fn the_choice_of_parameters_is_an_option_of_every_command() {
    let workspace = Workspace::new();
    let ckpt = checkpoint(MODEL);
    let fingerprint = |model: &str, choice: &str| {
        workspace.run(&["info", model, "--weights", choice, "--json"]).succeeds().json()["fingerprint"].clone()
    };
    assert_eq!(fingerprint(&ckpt, "auto"), fingerprint(&ckpt, "ema"));
    assert_ne!(fingerprint(&ckpt, "model"), fingerprint(&ckpt, "ema"));
    workspace.run(&["import", &ckpt, "--weights", "model", "--out", "online"]).succeeds();
    assert_eq!(fingerprint("online", "auto"), fingerprint(&ckpt, "model"));
    // Measures whose own --weights are those of another network have the option under its other name.
    for measure in ["fid", "ppl"] {
        let help = workspace.run(&["eval", measure, "--help"]).succeeds().stdout();
        assert!(help.contains("--model-weights <SET>") && help.contains("--weights <FILE>"), "{help}");
    }
}

#[test]
fn parameters_that_do_not_say_that_they_are_an_average_are_taken_with_a_word() {
    let workspace = Workspace::new();
    let tensors = golden_tensors("ema_model.");
    let plain = tensors.into_iter().map(|(name, tensor)| (name.replace("ema_model.", "model."), tensor)).collect();
    fs::write(workspace.path("m.safetensors"), safetensors_bytes(&plain, &BTreeMap::new()).unwrap()).unwrap();
    let finished = workspace.run(&["info", "m.safetensors", SIZE[0], SIZE[1]]).succeeds();
    let stderr = finished.stderr();
    assert!(stderr.contains("WARN") && stderr.contains("model.*") && stderr.contains("m.safetensors"), "{stderr}");
    workspace.run(&["info", "m.safetensors", SIZE[0], SIZE[1], "--weights", "ema"]).fails_with("--weights model");
}

/// Imports the small golden model with these statistics.
fn import_with(workspace: &Workspace, latent: &str) -> Finished {
    workspace.run(&["import", &checkpoint(MODEL), "--latent", latent, "--out", "model", "--force"])
}

#[test]
fn archives_without_checksums_are_read_with_one_warning() {
    let workspace = Workspace::new();
    // Of width 4, where the model has 32: it was read to the end.
    let finished = import_with(&workspace, &fault("latent_nocrc.pkl"));
    let finished = finished.fails_with("the width of the latent statistics is 4");
    assert_eq!(finished.stderr().matches("saved without checksums").count(), 1, "{}", finished.stderr());
}

#[test]
fn every_protocol_of_both_formats_is_read() {
    let workspace = Workspace::new();
    for format in ["zip", "legacy"] {
        for protocol in 0..=5 {
            let file = fault(&format!("latent_{format}_p{protocol}.pkl"));
            import_with(&workspace, &file).fails_with("the width of the latent statistics is 4");
        }
    }
}

#[test]
fn what_is_no_checkpoint_is_named_with_the_way_out() {
    let workspace = Workspace::new();
    for (file, kind, way_out) in [
        ("torchscript.pt", "is a TorchScript program (torch.jit.save), not a file of weights; save", "torch.jit.load"),
        (
            "exported.pt2",
            "is an exported program (torch.export.save), not a file of weights; save",
            "torch.export.load",
        ),
        ("whole_module.pt", "an object of torch.nn.modules.container.Sequential", "state_dict()"),
        ("dcp", "dcp is not a model", "model.a"),
    ] {
        for command in [&["info"][..], &["import", "--out", "model"]] {
            let path = fault(file);
            workspace.run(&[command, &[&path]].concat()).fails_with(kind).fails_with(way_out).fails_with(file);
        }
        assert!(!workspace.path("model").exists());
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    let workspace = Workspace::new();
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let cut = &fs::read(fixture(&format!("golden/{MODEL}/golden.safetensors"))).unwrap()[..9000];
    for (name, content, expected) in [
        ("a.onnx", &b"\x08\x0a\x12\x07pytorch\x1a\x062.15.0"[..], "an ONNX model"),
        ("a.h5", b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
        ("a.npy", b"\x93NUMPY\x01\0", "a NumPy array"),
        ("a.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("a.ckpt.gz", b"\x1f\x8b\x08\0", "packed with gzip, not a file of weights; unpack it first"),
        ("a.tar", &tar, "a tar archive, not a file of weights; unpack it first"),
        ("old.pt", b"sys_info\0\0\0", "before PyTorch 0.2"),
        ("cut.safetensors", cut, "cut off"),
        ("header.safetensors", &cut[..100], "cut off"),
        ("page.safetensors", b"<!DOCTYPE html>", "a web page"),
    ] {
        fs::write(workspace.path(name), content).unwrap();
        workspace.run(&["info", name]).fails_with(expected).fails_with(name);
    }
    let one = BTreeMap::from([("a".to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap())]);
    fs::write(workspace.path("one.safetensors"), safetensors_bytes(&one, &BTreeMap::new()).unwrap()).unwrap();
    workspace.run(&["info", "one.safetensors"]).fails_with("its only tensor is a");
    fs::create_dir(workspace.path("unet")).unwrap();
    fs::write(workspace.path("unet/config.json"), "{\"_class_name\": \"UNet2DModel\"}").unwrap();
    workspace.run(&["info", "unet"]).fails_with("a UNet2DModel of diffusers").fails_with("unet is not a model");
}
