//! `diffae serve`: the page and its API from outside.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::http;
use crate::served::Served;
use crate::support::Workspace;

fn start(workspace: &Workspace, more: &[&str]) -> Served {
    Served::start(Path::new(env!("CARGO_BIN_EXE_diffae")), &workspace.path("."), 0, more)
}

impl Served {
    /// Returns the status and the body of a response.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, Vec<u8>) {
        http::request(&self.address, (method, path), headers, body).unwrap()
    }

    fn post(&self, path: &str, body: &Value) -> Vec<u8> {
        let (status, bytes) = self.ask("POST", path, "Content-Type: application/json\r\n", body.to_string().as_bytes());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
        bytes
    }

    fn upload(&self, picture: &[u8], name: &str) -> Value {
        let (status, bytes) = self.ask("POST", &format!("/api/codes?name={name}"), "", picture);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }
}

fn pixels(bytes: &[u8]) -> image::RgbImage {
    image::load_from_memory(bytes).unwrap().into_rgb8()
}

#[test]
fn the_page_edits_as_the_command_does() {
    let workspace = Workspace::new();
    let served = start(&workspace, &[]);
    let (status, page) = served.ask("GET", "/", "", b"");
    assert!(status == 200 && String::from_utf8(page).unwrap().contains("<title>diffae</title>"));
    let (_, face) = served.ask("GET", "/api/faces/4", "", b"");
    std::fs::write(workspace.path("face.png"), &face).unwrap();
    let codes = served.upload(&face, "face.png")["codes"].clone();
    let edited = served.post("/api/edit", &json!({ "codes": codes, "edits": { "Smiling": -0.25, "Beard": 0.5 } }));
    let edit = ["edit", "-m", "toonheads", "face.png", "-a", "Smiling=-0.25", "-a", "Beard=0.5", "--out", "edited"];
    workspace.run(&edit).succeeds();
    assert_eq!(pixels(&edited), workspace.pixels("edited/face_Smiling_-0.25_Beard_+0.5.png"));
    let asked = json!({ "index": 3, "steps": 5, "sampler": "dpm++2m", "spacing": "karras" });
    let sample: Value = serde_json::from_slice(&served.post("/api/sample", &asked)).unwrap();
    let (_, sampled) =
        served.ask("GET", &format!("/api/codes/{}/reconstruction", sample["codes"].as_str().unwrap()), "", b"");
    let decoding = ["--steps", "5", "--sampler", "dpm++2m", "--spacing", "karras"];
    workspace
        .run(&[&["sample", "-m", "toonheads", "--index", "3", "--out", "samples"], &decoding[..]].concat())
        .succeeds();
    assert_eq!(pixels(&sampled), workspace.pixels("samples/sample_00003.png"));
    // A sample is decoded and edited as it was made, a picture of any kind as it was uploaded.
    let id = sample["codes"].as_str().unwrap();
    let (_, codes) = served.ask("GET", &format!("/api/codes/{id}"), "", b"");
    std::fs::write(workspace.path("sample.safetensors"), codes).unwrap();
    let edited = served.post("/api/edit", &json!({ "codes": id, "edits": { "Smiling": 0.3 } }));
    let edit = ["edit", "-m", "toonheads", "sample.safetensors", "-a", "Smiling=0.3", "--out", "edited"];
    workspace.run(&edit).succeeds();
    let name = workspace.files("edited").into_iter().find(|name| name.contains("Smiling_+0.3.")).unwrap();
    assert_eq!(pixels(&edited), workspace.pixels(&format!("edited/{name}")));
    let decode = ["decode", "-m", "toonheads", "sample.safetensors", "--out", "decoded"];
    workspace.run(&decode).succeeds();
    assert_eq!(pixels(&sampled), workspace.pixels("decoded/sample_00003.png"));
    let told = workspace.png_text("decoded/sample_00003.png");
    assert!(told.iter().all(|(key, _)| key != "diffae:inversion"), "nothing was inverted: {told:?}");
    // Any other chain decodes it, too.
    let other = ["decode", "-m", "toonheads", "sample.safetensors", "--steps", "7", "--out", "other"];
    workspace.run(&other).succeeds();
    assert_eq!(
        workspace.png_text("other/sample_00003.png").iter().find(|(key, _)| key == "diffae:sampler").unwrap().1,
        "dpm++2m"
    );
    workspace.run(&[&edit[..7], &["other", "--inversion", "exact"]].concat()).fails_with("nothing is inverted");
    // Samples of several chains are taken one by one, whatever the batch.
    let second = json!({ "index": 4, "steps": 3, "sampler": "ddpm-small" });
    let second: Value = serde_json::from_slice(&served.post("/api/sample", &second)).unwrap();
    assert_eq!((&sample["is_repeatable"], &second["is_repeatable"]), (&true.into(), &false.into()));
    let second_id = second["codes"].as_str().unwrap();
    let (_, codes) = served.ask("GET", &format!("/api/codes/{second_id}"), "", b"");
    std::fs::write(workspace.path("second.safetensors"), codes).unwrap();
    for batch_size in ["1", "2"] {
        let both = ["edit", "-m", "toonheads", "sample.safetensors", "second.safetensors", "-a", "Smiling=0.3"];
        let both = [&both[..], &["--batch-size", batch_size, "--out", "both"]].concat();
        workspace.run(&both).fails_with("take samples of several chains one by one");
    }
    // The server knows the noise that the sampler adds.
    let (_, shown) = served.ask("GET", &format!("/api/codes/{second_id}/reconstruction"), "", b"");
    let unedited = served.post("/api/edit", &json!({ "codes": second_id, "edits": {} }));
    assert_eq!(pixels(&unedited), pixels(&shown));
    // Beside a picture it goes along the chain of that; codes of the paper's inversion do not go with exact ones.
    let between =
        ["interpolate", "-m", "toonheads", "face.png", "sample.safetensors", "--frames", "2", "--out", "between"];
    workspace.run(&between).succeeds();
    workspace.run(&["reconstruct", "-m", "toonheads", "face.png", "--out", "exact"]).succeeds();
    assert_eq!(workspace.pixels("between/frame_0000.png"), workspace.pixels("exact/face.png"));
    let deep = image::DynamicImage::from(pixels(&face)).into_rgb16();
    let deep = image::imageops::resize(&deep, 90, 100, image::imageops::FilterType::Triangle);
    deep.save(workspace.path("deep.png")).unwrap();
    let codes = served.upload(&std::fs::read(workspace.path("deep.png")).unwrap(), "deep.png");
    assert!(codes["has_original"].as_bool().unwrap());
    let path = format!("/api/codes/{}/reconstruction", codes["codes"].as_str().unwrap());
    workspace.run(&["reconstruct", "-m", "toonheads", "deep.png", "--out", "deep"]).succeeds();
    assert_eq!(pixels(&served.ask("GET", &path, "", b"").1), workspace.pixels("deep/deep.png"));
    let blend = json!({ "from": codes["codes"], "to": id, "alpha": 0.5 });
    assert_eq!(pixels(&served.post("/api/blend", &blend)).dimensions(), (64, 64));
}

#[test]
fn many_clients_get_their_own_pictures_or_a_clear_answer() {
    let workspace = Workspace::new();
    let served = start(&workspace, &["--threads", "2"]);
    let faces: Vec<Value> = (0..4)
        .map(|idx| {
            let (_, face) = served.ask("GET", &format!("/api/faces/{idx}"), "", b"");
            served.upload(&face, "face.png")["codes"].clone()
        })
        .collect();
    let edit = |codes: &Value, client: usize| json!({ "codes": codes, "edits": { "Smiling": 0.3 }, "client": client.to_string() });
    let expected: Vec<Vec<u8>> = faces.iter().map(|codes| served.post("/api/edit", &edit(codes, 0))).collect();
    let answers: Vec<(usize, u16, Vec<u8>)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..32_usize)
            .map(|client| {
                let (served, body) = (&served, edit(&faces[client % 4], client).to_string());
                scope.spawn(move || {
                    let json = "Content-Type: application/json\r\n";
                    let (status, bytes) = served.ask("POST", "/api/edit", json, body.as_bytes());
                    (client, status, bytes)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut num_pictures = 0;
    for (client, status, bytes) in answers {
        match status {
            200 => {
                assert_eq!(bytes, expected[client % 4], "client {client}");
                num_pictures += 1;
            }
            other => {
                let said = String::from_utf8(bytes).unwrap();
                assert!(other == 503 && said.contains("the server is busy"), "{other}: {said}");
            }
        }
    }
    assert!(num_pictures >= 16, "{num_pictures} of 32");
}

#[test]
fn other_machines_need_a_token_and_other_sites_are_refused() {
    let workspace = Workspace::new();
    workspace
        .run(&["serve", "--host", "0.0.0.0", "--port", "0"])
        .fails_with("needs a token (--token) of 12 characters");
    workspace.run(&["serve", "--token", "short", "--port", "0"]).fails_with("12 characters");
    let served = start(&workspace, &["--token", "a-long-secret"]);
    assert_eq!(served.ask("GET", "/api/model", "", b"").0, 401);
    assert_eq!(served.ask("GET", "/api/model", "Authorization: Bearer a-long-secret\r\n", b"").0, 200);
    assert_eq!(served.ask("GET", "/?token=a-long-secret", "", b"").0, 200);
    assert_eq!(served.ask("GET", "/?token=a-long-secret", "Origin: http://example.org\r\n", b"").0, 403);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_server_with_a_client_that_listens() {
    let workspace = Workspace::new();
    let mut served = start(&workspace, &[]);
    let mut listener = TcpStream::connect(&served.address).unwrap();
    let head = format!("GET /api/events?client=me HTTP/1.1\r\nHost: {}\r\n\r\n", served.address);
    listener.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 8];
    listener.read_exact(&mut first).unwrap();
    assert!(Command::new("kill").args(["-INT", &served.child.id().to_string()]).status().unwrap().success());
    let status = served.child.wait().unwrap();
    assert_eq!(status.code(), Some(0), "a server that is ended is no failure");
}
