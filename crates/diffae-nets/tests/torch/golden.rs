//! Tests of files that PyTorch wrote.

use std::borrow::Cow;
use std::path::PathBuf;

use diffae_nets::weights::torch::{TorchDtype, TorchFile};
use serde_json::json;

fn open_golden(name: &str) -> TorchFile {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", name].iter().collect();
    TorchFile::open(&path).unwrap()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|number| f32::from_le_bytes(number.try_into().unwrap())).collect()
}

#[test]
fn latent_statistics_agree_with_the_latents() {
    let file = open_golden("latent.pkl");
    assert_eq!(file.root_keys().collect::<Vec<_>>(), ["conds", "conds_mean", "conds_std"]);
    let tensors = file.root_tensors().unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["conds", "conds_mean", "conds_std"]);

    let conds = file.read(&tensors["conds"]).unwrap();
    assert_eq!((conds.dtype, conds.shape.as_slice()), (TorchDtype::F32, &[64, 32][..]));
    assert!(matches!(conds.bytes, Cow::Borrowed(_)));
    let mean = file.read(&tensors["conds_mean"]).unwrap();
    assert_eq!(mean.shape, [32]);

    let conds = f32s(&conds.bytes);
    for (column, mean) in f32s(&mean.bytes).into_iter().enumerate() {
        let got = conds.iter().skip(column).step_by(32).sum::<f32>() / 64.0;
        assert!((got - mean).abs() < 1e-5, "column {column} has mean {got}, expected {mean}");
    }
}

#[test]
fn the_classifier_has_its_tensors_and_parameters() {
    let file = open_golden("classifier.ckpt");
    let expected_keys = ["epoch", "global_step", "hyper_parameters", "pytorch-lightning_version", "state_dict"];
    assert_eq!(file.root_keys().collect::<Vec<_>>(), expected_keys);
    assert_eq!(file.json_under("global_step").unwrap(), Some(json!(7)));
    assert_eq!(file.json_under("pytorch-lightning_version").unwrap(), Some(json!("1.4.5")));
    let expected = json!({"manipulate_znormalize": true, "style_ch": 32});
    assert_eq!(file.json_under("hyper_parameters").unwrap(), Some(expected));
    assert_eq!(file.json_under("missing").unwrap(), None);

    let tensors = file.tensors_under("state_dict").unwrap();
    let shapes: Vec<_> =
        tensors.values().map(|tensor| (tensor.name(), tensor.view().unwrap().shape.as_slice())).collect();
    let expected_shapes = [
        ("classifier.bias", &[5][..]),
        ("classifier.weight", &[5, 32]),
        ("conds_mean", &[1, 32]),
        ("conds_std", &[1, 32]),
        ("ema_classifier.bias", &[5]),
        ("ema_classifier.weight", &[5, 32]),
    ];
    assert_eq!(shapes, expected_shapes);
    for tensor in tensors.values() {
        let read = file.read(tensor).unwrap();
        assert_eq!(read.bytes.len(), 4 * read.shape.iter().product::<usize>());
        assert!(f32s(&read.bytes).iter().all(|number| number.is_finite()));
    }
}

#[test]
fn files_before_pytorch_1_6_have_their_tensors() {
    // Written with `_use_new_zipfile_serialization=False`: `weight` and `transposed` share a storage.
    let file = open_golden("legacy.pth");
    let tensors = file.root_tensors().unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["half", "num_batches_tracked", "transposed", "weight"]);
    let weight = file.read(&tensors["weight"]).unwrap();
    let numbers: Vec<f32> = (0..12).map(|number| number as f32).collect();
    assert_eq!((weight.shape.as_slice(), f32s(&weight.bytes)), (&[3, 4][..], numbers));
    let transposed = file.read(&tensors["transposed"]).unwrap();
    assert_eq!(f32s(&transposed.bytes)[..4], [0., 4., 8., 1.]);
    let half = file.read(&tensors["half"]).unwrap();
    assert_eq!((half.dtype, half.bytes.as_ref()), (TorchDtype::F16, &[0x00, 0x3e, 0x00, 0xc0][..]));
    let count = file.read(&tensors["num_batches_tracked"]).unwrap();
    assert_eq!((count.dtype, count.bytes[0]), (TorchDtype::I64, 7));
}

#[test]
fn every_protocol_of_both_formats_has_the_same_tensors() {
    let faults: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "..", "tests", "fixtures", "faults", "checkpoints"].iter().collect();
    let read = |name: &str| {
        let file = TorchFile::open(&faults.join(name)).unwrap();
        let tensors = file.root_tensors().unwrap();
        ["conds", "conds_mean", "conds_std"].map(|name| {
            let read = file.read(&tensors[name]).unwrap();
            (read.shape, read.bytes.into_owned())
        })
    };
    let expected = read("latent_zip_p2.pkl");
    assert_eq!(expected[0].0, [6, 4]);
    for protocol in 0..=5 {
        for format in ["zip", "legacy"] {
            assert_eq!(read(&format!("latent_{format}_p{protocol}.pkl")), expected, "{format} {protocol}");
        }
    }
    assert_eq!(read("latent_nocrc.pkl"), expected);
}
