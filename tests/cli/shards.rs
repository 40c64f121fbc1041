//! `encode --shard`, and files of codes that are joined and described.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{ListAccessor, Row, RowAccessor};
use safetensors::SafeTensors;

use crate::evaluation::{pictures, random_weights};
use crate::support::{Workspace, checkpoint};

/// A file of codes without the command line that made it.
#[derive(PartialEq)]
pub(crate) struct Contents {
    text: BTreeMap<String, String>,
    /// Shape and bytes of each tensor.
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

pub(crate) fn contents(path: &Path) -> Contents {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut text: BTreeMap<String, String> = metadata.metadata().clone().unwrap().into_iter().collect();
    text.remove("diffae:command").unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), view.data().to_vec())));
    Contents { text, tensors: tensors.collect() }
}

/// The names and the codes of a table.
fn table(path: &Path) -> Vec<(String, Vec<f32>)> {
    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let row = |row: Row| {
        let z_sem = row.get_list(1).unwrap();
        let values = (0..z_sem.len()).map(|idx| z_sem.get_float(idx).unwrap()).collect();
        (row.get_string(0).unwrap().clone(), values)
    };
    reader.get_row_iter(None).unwrap().map(|read| row(read.unwrap())).collect()
}

/// Encodes eight pictures, as a whole or in shards, and returns the file.
fn encode(workspace: &Workspace, data: &str, out: &str, more: &[&str]) -> PathBuf {
    let model = checkpoint("autoenc16_latent");
    let args = ["encode", "--model", &model, data, "--steps", "3", "--json", "--out", out];
    let told = workspace.run(&[&args[..], more].concat()).succeeds().json();
    workspace.path(told["files"][0].as_str().unwrap())
}

#[test]
fn shards_merge_to_the_codes_of_one_run_to_the_bit() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let whole = encode(&workspace, &data, "whole.safetensors", &[]);
    for shard in ["1/3", "2/3", "3/3"] {
        // Of another size of batch, and one after the other as the tasks of a cluster are not.
        encode(&workspace, &data, "codes.safetensors", &["--shard", shard, "--batch-size", "2"]);
    }
    let [first, second, third] = [1, 2, 3].map(|number| format!("codes-0000{number}-of-00003.safetensors"));
    let merge = |files: &[&str], out: &str| workspace.run(&[&["codes", "merge"], files, &["--out", out]].concat());
    merge(&[&third, &first, &second], "merged.safetensors").succeeds();
    assert!(contents(&workspace.path("merged.safetensors")) == contents(&whole));
    let told = workspace.run(&["codes", "info", &second, "merged.safetensors", "--json"]).succeeds().json();
    assert_eq!((&told["codes"][0]["shard"], &told["codes"][0]["count"]), (&"2/3".into(), &3.into()));
    assert_eq!((&told["codes"][1]["shard"], &told["codes"][1]["count"]), (&serde_json::Value::Null, &8.into()));
    let shown = workspace.run(&["codes", "info", &second]).succeeds().stdout();
    assert!(shown.contains("codes of 3 images") && shown.contains("x_T       3 x 3 x 16 x 16"), "{shown}");
    let to_parquet =
        |files: &[&str], out: &str| workspace.run(&[&["codes", "to-parquet"], files, &["--out", out]].concat());
    if cfg!(feature = "parquet") {
        to_parquet(&[&third, &first, &second], "shards.parquet").succeeds();
        to_parquet(&["merged.safetensors"], "merged.parquet").succeeds();
        let rows = table(&workspace.path("shards.parquet"));
        assert!(rows.len() == 8 && rows == table(&workspace.path("merged.parquet")));
        let z_sem: Vec<u8> = rows.iter().flat_map(|(_, z_sem)| z_sem).flat_map(|value| value.to_le_bytes()).collect();
        assert!(z_sem == contents(&whole).tensors["z_sem"].1);
        to_parquet(&[&third, &first], "bad.parquet").fails_with("of 3 shards 2 are missing");
    }
    to_parquet(&["merged.safetensors"], "merged.csv").fails_with("expected a name that ends in .parquet");
    // A CSV has every digit, and `encode` writes the same at once.
    let to_csv = ["codes", "to-csv", &third, &first, &second, "--out", "shards.csv"];
    workspace.run(&to_csv).succeeds();
    let model = checkpoint("autoenc16_latent");
    workspace.run(&["encode", "--model", &model, &data, "--out", "at_once.csv"]).succeeds();
    let with_steps = ["encode", "--model", &model, &data, "--out", "steps.csv", "--steps", "3"];
    workspace.run(&with_steps).fails_with("a table holds z_sem alone");
    let [joined, at_once] =
        ["shards.csv", "at_once.csv"].map(|name| std::fs::read_to_string(workspace.path(name)).unwrap());
    assert!(joined == at_once && joined.lines().count() == 9 && joined.starts_with("name,z_0,z_1,"), "{joined}");
    let numbers = joined.lines().skip(1).flat_map(|line| line.split(',').skip(1));
    let bytes: Vec<u8> = numbers.flat_map(|number| number.parse::<f32>().unwrap().to_le_bytes()).collect();
    assert!(bytes == contents(&whole).tensors["z_sem"].1);
    let args = ["encode", "--model", "toonheads", &data, "--out", "part.csv", "--shard", "1/2"];
    workspace.run(&args).fails_with("--out ends in .safetensors");
    // What is missing or twice there is named, and nothing is written.
    merge(&[&third, &first], "bad.safetensors").fails_with("of 3 shards 2 are missing");
    merge(&[&third, &first, &first], "bad.safetensors").fails_with("it is shard 1/3, and so is");
    for mixed in [[first.as_str(), "merged.safetensors"], ["merged.safetensors", first.as_str()]] {
        merge(&mixed, "bad.safetensors").fails_with("it is no shard");
    }
    assert!(!workspace.path("bad.safetensors").exists());
}

#[test]
fn codes_that_do_not_belong_together_are_not_joined() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    encode(&workspace, &data, "a.safetensors", &["--shard", "1/2"]);
    encode(&workspace, &data, "b.safetensors", &[]);
    encode(&workspace, &data, "c.safetensors", &["--inversion", "ddim"]);
    let merge = |files: &[&str]| workspace.run(&[&["codes", "merge"], files, &["--out", "m.safetensors"]].concat());
    merge(&["b.safetensors", "c.safetensors"]).fails_with("its chain differs from that of b.safetensors");
    // Files that are no shards keep their order; the names of the second copy are made unique.
    merge(&["b.safetensors", "b.safetensors"]).succeeds();
    let told = workspace.run(&["codes", "info", "m.safetensors", "--json"]).succeeds().json();
    assert_eq!(told["codes"][0]["count"], 16);
    // Damage is told as that of codes.
    std::fs::write(workspace.path("text.safetensors"), "text").unwrap();
    workspace.run(&["codes", "info", "text.safetensors"]).fails_with("cannot read the codes: text.safetensors is not");
    for wrong in ["0/2", "3/2", "x", "1"] {
        let args = ["encode", "--model", "toonheads", &data, "--out", "d.safetensors", "--shard", wrong];
        workspace.run(&args).fails_with("is no shard");
    }
    let many = ["encode", "--model", "toonheads", &data, "--out", "d.safetensors", "--shard", "1/9"];
    workspace.run(&many).fails_with("shard 1/9 of 8 pictures is empty");
}

#[test]
fn a_task_of_a_job_array_knows_its_shard() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let model = checkpoint("autoenc16_latent");
    let args = ["encode", "--model", &model, &data, "--semantic-only", "--out", "z.safetensors", "--shard", "slurm"];
    workspace.run(&args).fails_with("expected a task of a whole Slurm array");
    let array = ["ID", "MIN", "MAX", "COUNT"].map(|name| format!("SLURM_ARRAY_TASK_{name}"));
    let variables: Vec<(&str, &str)> = array.iter().map(String::as_str).zip(["1", "0", "3", "4"]).collect();
    workspace.run_with_environment(&args, &variables).succeeds();
    assert!(workspace.path("z-00002-of-00004.safetensors").is_file());
}

#[test]
fn an_evaluation_takes_over_what_shards_have_measured() {
    let workspace = Workspace::new();
    let data = pictures(&workspace, "data");
    let model = checkpoint("autoenc16_latent");
    let lines: Vec<String> =
        (0..8).map(|number| format!("{number}.png,{},{}", number % 2, u8::from(number > 2))).collect();
    std::fs::write(workspace.path("labels.csv"), format!("file,Odd,Large\n{}\n", lines.join("\n"))).unwrap();
    let weights = random_weights(&workspace, "efficientnet-lite0");
    let files = ["--labels", "labels.csv", "--features", "efficientnet-lite0", "--feature-weights", &weights];
    let all = |out: &str, more: &[&str]| {
        let args =
            ["eval", "all", "--model", &model, "--data", &data, "--steps", "2", "--batch-size", "3", "--out", out];
        workspace.run(&[&args[..], &files, more].concat())
    };
    let text = |out: &str, name: &str| std::fs::read_to_string(workspace.path(out).join(name)).unwrap();
    // Eight pictures are too few for few-shot, and nothing else fails.
    let is_whole = |out: &str, more: &[&str]| all(out, more).fails_with("some measures failed: few-shot");
    is_whole("whole", &[]);
    for shard in ["3/3", "1/3", "2/3"] {
        is_whole("shards", &["--shard", shard]);
        assert!(!workspace.path("shards/all.json").exists() && !workspace.path("shards/recon/recon.json").exists());
    }
    is_whole("shards", &[]);
    assert!(text("shards", "all.json") == text("whole", "all.json"));
    // The header alone, since nothing was measured once more.
    for measure in ["recon", "z-usage", "inversion"] {
        let own = text(&format!("shards/{measure}"), &format!("{measure}.items.jsonl"));
        assert_eq!(own.lines().count(), 1, "{measure}: {own}");
    }
    for name in ["recon/recon.png", "recon/recon.psnr.png", "inversion/inversion.psnr.png"] {
        let picture = |out: &str| std::fs::read(workspace.path(out).join(name)).unwrap();
        let pixels = |out: &str| image::load_from_memory(&picture(out)).unwrap();
        assert!(pixels("shards") == pixels("whole"), "{name}");
    }
    // What a shard has not measured, the evaluation of the whole does; a shard that is torn counts as far as it goes.
    let gone = ["recon/recon.items-00002-of-00003.jsonl", "fid/generated-00001-of-00003.features"];
    for name in gone {
        std::fs::remove_file(workspace.path("shards").join(name)).unwrap();
    }
    let torn = workspace.path("shards/fid/real-00003-of-00003.features");
    let bytes = std::fs::read(&torn).unwrap();
    std::fs::write(&torn, &bytes[..bytes.len() - 3]).unwrap();
    for own in ["recon/recon.items.jsonl", "fid/generated.features", "fid/real.features", "z_sem/encoded.safetensors"] {
        std::fs::remove_file(workspace.path("shards").join(own)).unwrap();
    }
    is_whole("shards", &[]);
    assert!(text("shards", "all.json") == text("whole", "all.json"));
    let measured = text("shards/recon", "recon.items.jsonl").lines().count() - 1;
    // Three pictures of two kinds of x_T.
    assert_eq!(measured, 6);
    // A shard of other settings is not mixed in, and --force begins anew without any.
    let recon = |more: &[&str]| {
        let args = ["eval", "recon", "--model", &model, "--data", &data, "--out", "shards/recon"];
        workspace.run(&[&args[..], more].concat())
    };
    recon(&["--steps", "3", "--shard", "1/3"]).fails_with("another evaluation (steps is [2], not [3])");
    let told = recon(&["--steps", "2", "--shard", "slurm"]);
    told.fails_with("no job array");
    recon(&["--steps", "3", "--force"]).succeeds();
    assert!(!workspace.path("shards/recon/recon.items-00001-of-00003.jsonl").exists());
    let told = recon(&["--steps", "3", "--shard", "2/2"]).succeeds().stdout();
    assert!(told.contains("shard 2/2 is measured") && told.contains("without --shard"), "{told}");
}
