//! `diffae train` on data as real programs write them: archives, tables, databases, labels.

use std::fs;

use image::{Rgb, RgbImage};

use crate::support::{Finished, Workspace, checkpoint, fixture};

/// Settings that make a run of all stages a matter of seconds.
const TINY: [&str; 10] = [
    "--set",
    "autoencoder.images=16",
    "--set",
    "latent.images=64",
    "--set",
    "classifier.images=64",
    "--set",
    "run.preview_every_images=0",
    "--set",
    "data.validation_share=0.25",
];

fn train(workspace: &Workspace, data: &str, more: &[&str]) -> Finished {
    let fixed = ["train", "--preset", "smoke", "--threads", "1", "--out", "run", "--data", data];
    workspace.run(&[&fixed[..], &TINY, more].concat())
}

/// Trains up to the codes of all pictures, and returns how many there are with what was said.
fn num_codes(data: &str, more: &[&str]) -> (usize, String) {
    let workspace = Workspace::new();
    let said = train(&workspace, &fixture(data), more).succeeds().stderr();
    (encoded(&workspace), said)
}

fn encoded(workspace: &Workspace) -> usize {
    let count = |file: &str| {
        let bytes = fs::read(workspace.path("run").join(file)).ok()?;
        Some(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("z_sem").unwrap().shape()[0])
    };
    ["codes.safetensors", "codes-validation.safetensors"].into_iter().filter_map(count).sum()
}

/// Pictures in two folders, `a` and `b`, alternately.
fn pictures(workspace: &Workspace, count: u8) {
    for i in 0..count {
        let folder = workspace.path("pictures").join(["a", "b"][usize::from(i % 2)]);
        fs::create_dir_all(&folder).unwrap();
        RgbImage::from_pixel(16, 16, Rgb([i * 6, 250 - i * 6, 90])).save(folder.join(format!("{i}.png"))).unwrap();
    }
}

fn attributes(workspace: &Workspace) -> Vec<String> {
    let list = workspace.run(&["edit", "-m", "run", "--list"]).succeeds().stdout();
    list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn a_shard_that_is_cut_off_is_refused_by_name() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("shards")).unwrap();
    fs::copy(fixture("datasets/dot.tar"), workspace.path("shards/0.tar")).unwrap();
    fs::copy(fixture("datasets/cut.tar"), workspace.path("shards/1.tar")).unwrap();
    for data in ["shards", "shards/1.tar"] {
        let refused = train(&workspace, data, &[]).fails_with("shards/1.tar: the archive is cut off after 9000 bytes");
        assert!(refused.stderr().contains("0002.png"), "{}", refused.stderr());
    }
}

#[test]
fn one_picture_a_sample_is_trained_on() {
    let (count, said) = num_codes("datasets/masks.tar", &[]);
    assert_eq!(count, 10, "{said}");
    assert!(said.contains("jpg (10), seg.png (10)") && said.contains("jpg is taken"), "{said}");
    assert_eq!(said.matches("seg.png (10)").count(), 1, "{said}");
    let (count, _) = num_codes("datasets/masks.tar", &["--set", "data.picture_key=*"]);
    assert_eq!(count, 20);
    let workspace = Workspace::new();
    let key = ["--set", "data.picture_key=tif"];
    let refused = train(&workspace, &fixture("datasets/masks.tar"), &key).fails_with("seg.png (10)");
    assert!(refused.stderr().contains("no sample has a picture under --picture-key tif"), "{}", refused.stderr());
}

#[test]
fn archives_of_a_mac_and_of_a_folder_train() {
    assert_eq!(num_codes("datasets/mac.tar", &["--set", "data.validation_share=0"]).0, 4);
    let workspace = Workspace::new();
    fs::write(workspace.path("labels.csv"), "file,Low\ncat/0.png,1\ncat/1.png,0\n./dog/2.png,0\n").unwrap();
    let said = train(&workspace, &fixture("datasets/dot.tar"), &["--labels", "folders"]).succeeds().stderr();
    assert_eq!(attributes(&workspace), ["cat", "dog"], "{said}");
    let classify = ["train", "--out", "run", "--resume", "--stage", "classifier", "--labels", "labels.csv"];
    let said = workspace.run(&classify).succeeds().stderr();
    assert!(said.contains("labels.csv: 3 of 8 pictures are labeled"), "{said}");
    assert_eq!(attributes(&workspace), ["Low"]);
}

#[test]
fn compressed_archives_are_read_or_named() {
    let all = ["--set", "data.validation_share=0"];
    let autoencoder = [&all[..], &["--stage", "autoencoder"]].concat();
    train(&Workspace::new(), &fixture("datasets/gzip_named.tar"), &autoencoder).succeeds();
    assert_eq!(num_codes("datasets/frames.tar.zst", &all).0, 8);
    train(&Workspace::new(), &fixture("datasets/pictures.tar.xz"), &all).fails_with("xz --decompress");
    let workspace = Workspace::new();
    let whole = fs::read(fixture("datasets/frames.tar.zst")).unwrap();
    fs::write(workspace.path("cut.tar.zst"), &whole[..whole.len() - whole.len().div_ceil(3)]).unwrap();
    let cut = train(&workspace, "cut.tar.zst", &[]).fails_with("the compressed archive is cut off or damaged");
    assert!(!cut.stderr().contains("Error") && !cut.stderr().contains('{'), "{}", cut.stderr());
}

#[test]
fn a_database_of_one_file_with_keys_of_its_own_trains() {
    assert_eq!(num_codes("datasets/lsun.lmdb", &["--set", "data.validation_share=0"]).0, 8);
}

#[cfg(feature = "parquet")]
#[test]
fn tables_give_one_picture_a_row() {
    let (count, said) = num_codes("datasets/masks.parquet", &[]);
    assert_eq!(count, 12, "{said}");
    assert!(said.contains("mask, image hold pictures; image is taken"), "{said}");
    let (count, said) = num_codes("datasets/nulls.parquet", &["--set", "data.validation_share=0"]);
    assert_eq!(count, 6, "{said}");
    assert_eq!(said.matches("2 of 8 rows left out").count(), 1, "{said}");
    let paths = train(&Workspace::new(), &fixture("datasets/paths.parquet"), &[]).fails_with("but no pictures");
    assert!(paths.stderr().contains("/tmp/filetest/pics/p0.png"), "{}", paths.stderr());
}

#[cfg(not(feature = "parquet"))]
#[test]
fn without_parquet_a_table_is_named() {
    train(&Workspace::new(), &fixture("datasets/masks.parquet"), &[]).fails_with("--features parquet");
}

/// Each unreadable picture is named once over all stages and resumptions; all are counted.
#[test]
fn unreadable_pictures_are_named_once_and_counted_over_the_run() {
    let workspace = Workspace::new();
    pictures(&workspace, 40);
    let broken = ["a/0.png", "a/18.png", "b/7.png", "b/21.png", "b/33.png"];
    for name in broken {
        fs::write(workspace.path("pictures").join(name), "no picture").unwrap();
    }
    let lenient = ["--labels", "folders", "--set", "data.max_broken_share=0.2"];
    let first = [&lenient[..], &["--stage", "autoencoder"]].concat();
    let mut said = train(&workspace, "pictures", &first).succeeds().stderr();
    for stage in ["latent", "classifier"] {
        let resumed = workspace.run(&["train", "--out", "run", "--resume", "--stage", stage]).succeeds().stderr();
        assert!(resumed.contains("5 of 40 pictures could not be read and were left out"), "{resumed}");
        said += &resumed;
    }
    for name in broken {
        let named: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert_eq!(named.len(), 1, "{name}: {said}");
        assert!(named[0].contains("left out") && named[0].contains("it is text"), "{}", named[0]);
    }
    assert_eq!(encoded(&workspace), 35);
    let listed = fs::read_to_string(workspace.path("run/unreadable.csv")).unwrap();
    assert_eq!(listed.lines().count(), 6, "{listed}");
    // The share is watched over both splits.
    let workspace_of_few = Workspace::new();
    pictures(&workspace_of_few, 40);
    for name in broken {
        fs::write(workspace_of_few.path("pictures").join(name), "no picture").unwrap();
    }
    let refused = train(&workspace_of_few, "pictures", &[]).fails_with("of 40 pictures could not be read");
    assert!(refused.stderr().contains("data.max_broken_share") && refused.stderr().contains("unreadable.csv"));
}

#[test]
fn pictures_of_which_none_can_be_read_are_named_with_the_reason() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("bad")).unwrap();
    for number in 0..12 {
        fs::write(workspace.path("bad").join(format!("{number}.png")), "no picture").unwrap();
    }
    train(&workspace, "bad", &[]).fails_with("bad/");
    let tolerant = ["--set", "data.max_broken_share=1"];
    train(&workspace, "bad", &tolerant).fails_with("none of its pictures can be read: cannot read ");
}

#[test]
fn pictures_of_other_formats_are_counted() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("phone")).unwrap();
    for name in ["0.HEIC", "1.heic", "2.cr2"] {
        fs::write(workspace.path("phone").join(name), "").unwrap();
    }
    train(&workspace, "phone", &[]).fails_with(
        "phone that are read, only 2 HEIC pictures and 1 camera raw picture (0.HEIC, 1.heic, 2.cr2); convert",
    );
    RgbImage::new(16, 16).save(workspace.path("phone/3.png")).unwrap();
    let all = ["--stage", "autoencoder", "--set", "data.validation_share=0"];
    let said = train(&workspace, "phone", &all).succeeds().stderr();
    assert_eq!(said.matches("left out: 2 HEIC pictures").count(), 1, "{said}");
}

/// A folder of a picture, an archive that is not read, and an archive with pictures of which one is not read.
fn mixed_data(workspace: &Workspace) {
    fs::create_dir(workspace.path("mixed")).unwrap();
    RgbImage::new(16, 16).save(workspace.path("mixed/a.png")).unwrap();
    fs::write(workspace.path("mixed/z.zip"), "PK\x03\x04").unwrap();
    let picture = fs::read(workspace.path("mixed/a.png")).unwrap();
    let members = ["b.png", "c.heic"].map(|name| member(name, &picture));
    fs::write(workspace.path("mixed/0.tar"), [members.concat(), vec![0; 1024]].concat()).unwrap();
}

/// A member of a tar archive, with its header.
fn member(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let length = format!("{:011o}", content.len());
    for (at, text) in [(0, name), (100, "0000644"), (124, &length), (148, "        "), (156, "0"), (257, "ustar")] {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [&header[..], content, &padding].concat()
}

#[test]
fn every_command_names_what_it_leaves_out() {
    let workspace = Workspace::new();
    mixed_data(&workspace);
    let all = ["--stage", "autoencoder", "--set", "data.validation_share=0"];
    let trained = train(&workspace, "mixed", &all).succeeds().stderr();
    let model = checkpoint("autoenc16_latent");
    let encode = |input: &str| {
        workspace.run(&["encode", "--model", &model, input, "--semantic-only", "--out", "codes.safetensors", "--force"])
    };
    let encoded = encode("mixed").succeeds();
    assert!(encoded.stdout().contains("the codes of 2 pictures"), "{}", encoded.stdout());
    for said in [trained, encoded.stderr()] {
        let zip = "mixed: not read and left out: 1 .zip file (z.zip); unpack it first: unzip FILE -d FOLDER";
        assert_eq!(said.matches(zip).count(), 1, "{said}");
        assert_eq!(said.matches("left out: 1 HEIC picture (0.tar/c.heic); convert it").count(), 1, "{said}");
    }
    let archive = encode("mixed/0.tar").succeeds().stderr();
    assert!(archive.contains("mixed/0.tar: not read and left out: 1 HEIC picture (c.heic)"), "{archive}");
    encode("mixed/z.zip").fails_with("it is a zip file; unpack it first: unzip FILE -d FOLDER");
}

#[test]
fn labels_without_a_header_and_attributes_of_one_name_are_refused() {
    let workspace = Workspace::new();
    pictures(&workspace, 8);
    for (text, found) in [
        ("0.png,1\n1.png,0\n", "labels.csv: the first line is a row of labels (0.png: 1), not a header"),
        ("0,1\n1,0\n", "labels.csv: the first line is a row of labels (0: 1), not a header"),
        ("file,Red,red\n0.png,1,0\n1.png,0,1\n", "Red and red in the header are one attribute"),
        ("file,Blond Hair,Blond_Hair\n0.png,1,0\n1.png,0,1\n", "Blond Hair and Blond_Hair in the header"),
    ] {
        fs::write(workspace.path("labels.csv"), text).unwrap();
        train(&workspace, "pictures", &["--labels", "labels.csv"]).fails_with(found);
    }
}

/// A run of all stages on labels that a program has written.
fn classified(text: &[u8]) -> (Vec<String>, String) {
    let workspace = Workspace::new();
    pictures(&workspace, 8);
    fs::write(workspace.path("labels.csv"), text).unwrap();
    let said = train(&workspace, "pictures", &["--labels", "labels.csv"]).succeeds().stderr();
    (attributes(&workspace), said)
}

#[test]
fn labels_of_pandas_train() {
    let (names, said) = classified(b",file,Red,Same\n0,0.png,True,1.0\n1,1.png,False,1.0\n2,./b/5.png,False,1.0\n");
    assert_eq!(names, ["Red"]);
    assert!(said.contains("labels.csv: 3 of 8 pictures are labeled"), "{said}");
    assert!(said.contains("attribute Same is the same for all pictures and is left out"), "{said}");
}

#[test]
fn labels_that_contradict_themselves_are_refused_at_once() {
    let workspace = Workspace::new();
    pictures(&workspace, 8);
    fs::copy(workspace.path("pictures/a/0.png"), workspace.path("pictures/b/0.png")).unwrap();
    fs::copy(fixture("datasets/columns.csv"), workspace.path("columns.csv")).unwrap();
    fs::copy(fixture("datasets/bool.csv"), workspace.path("bool.csv")).unwrap();
    for (file, text, found) in [
        ("ambiguous.csv", "file,Red\n0.png,0\n1.png,1\n", "0.png may be a/0.png or b/0.png"),
        (
            "twice.csv",
            "file,Red\na/2.png,0\n1.png,1\n2.png,1\n",
            "lines 2 and 4 contradict each other on Red of a/2.png",
        ),
        ("column.csv", "file,Red,Red\n2.png,1,0\n", "attribute Red occurs twice"),
        ("empty.csv", "file,Red\n2.png,1\n1.png,\n", "line 3, column Red: the value is empty"),
        ("third.csv", "file,Red\n2.png,maybe\n", "line 2, column Red: \"maybe\" is no label"),
    ] {
        fs::write(workspace.path(file), text).unwrap();
        let refused = train(&workspace, "pictures", &["--labels", file]).fails_with(found);
        assert!(refused.stderr().contains(file), "{}", refused.stderr());
        assert!(!workspace.path("run/checkpoints").exists(), "nothing was trained");
    }
    train(&workspace, "pictures", &["--labels", "columns.csv"]).fails_with("columns.csv: attribute Red occurs twice");
    fs::remove_file(workspace.path("pictures/b/0.png")).unwrap();
    train(&workspace, "pictures", &["--labels", "bool.csv"]).succeeds();
    assert_eq!(attributes(&workspace), ["A", "B"]);
}

#[test]
fn tensors_are_trained_on_and_evaluated_as_they_are_encoded() {
    let workspace = Workspace::new();
    let model = checkpoint("autoenc16_latent");
    let few = ["--steps", "2", "--latent-steps", "2", "--out", "made.safetensors"];
    workspace.run(&[&["sample", "--model", &model, "-n", "10"], &few[..]].concat()).succeeds();
    train(&workspace, "made.safetensors", &[]).succeeds();
    assert_eq!(encoded(&workspace), 10);
    let recon = |data: &str, out: &str| {
        let args = ["eval", "recon", "--model", &model, "--steps", "2", "--json", "--data", data, "--out", out];
        workspace.run(&args).succeeds().stdout()
    };
    let report = recon("made.safetensors", "eval");
    assert!(report.contains("\"count\": 10"), "{report}");
    for (settings, problem) in [
        ("model.image_channels=1", "is [3, 16, 16], the model expects [1, 16, 16]"),
        ("data.crop=celeba", "tensors are not cropped"),
    ] {
        fs::remove_dir_all(workspace.path("run")).unwrap();
        train(&workspace, "made.safetensors", &["--set", settings]).fails_with(problem);
    }
    fs::write(workspace.path("empty.safetensors"), "").unwrap();
    for data in ["empty.safetensors", "missing.safetensors"] {
        train(&workspace, data, &[]).fails_with(data);
    }
}
