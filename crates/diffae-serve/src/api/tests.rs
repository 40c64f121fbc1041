//! Tests of the routes, without a network.

use axum::body::{Body as HttpBody, Bytes, to_bytes};
use axum::http::Request;
use diffae_infer::{Codes, built_in_pictures, no_observer};
use tower::ServiceExt;

use super::*;

const SETTINGS: PipelineSettings = PipelineSettings { num_steps: 2, num_latent_steps: 2, ..PipelineSettings::DEFAULT };

struct Api {
    router: Router,
    pipeline: Pipeline,
}

impl Api {
    fn new() -> Self {
        let (pipeline, events) = (Pipeline::from_built_in().unwrap(), Events::new());
        let app = App {
            pipeline: pipeline.clone(),
            settings: SETTINGS,
            model: "toonheads".into(),
            faces: built_in_pictures().unwrap().into(),
            worker: Worker::start(pipeline.clone(), events.clone()),
            events,
            store: Arc::default(),
        };
        Self { router: router(app, Guard { token: None, is_loopback: true }), pipeline }
    }

    async fn ask(&self, method: &str, path: &str, body: impl Into<HttpBody>) -> (StatusCode, Bytes) {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        (status, to_bytes(response.into_body(), MAX_BODY).await.unwrap())
    }

    async fn json(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, bytes) = self.ask(method, path, body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }

    async fn picture(&self, method: &str, path: &str, body: &Value) -> RgbImage {
        let (status, bytes) = self.ask(method, path, body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&bytes));
        image::load_from_memory(&bytes).unwrap().into_rgb8()
    }

    async fn refused(&self, method: &str, path: &str, body: impl Into<HttpBody>) -> (u16, String) {
        let (status, bytes) = self.ask(method, path, body).await;
        let said: Value = serde_json::from_slice(&bytes).unwrap();
        (status.as_u16(), said["error"].as_str().unwrap().to_owned())
    }
}

#[tokio::test]
async fn pictures_are_those_of_the_pipeline() {
    let api = Api::new();
    let model = api.json("GET", "/api/model", &Value::Null).await;
    assert_eq!(model["faces"].as_array().unwrap().len(), 8);
    let smiling = model["attributes"].as_array().unwrap().iter().find(|one| one["name"] == "Smiling").unwrap();
    let strength = smiling["full_strength"].as_f64().unwrap();
    let face = built_in_pictures().unwrap()[2].1.clone();
    let codes = api.pipeline.encode(std::slice::from_ref(&face), &SETTINGS, &mut no_observer).unwrap();
    let described = api.json("POST", "/api/faces/2/codes", &Value::Null).await;
    let id = described["codes"].as_str().unwrap();
    assert_eq!(api.picture("GET", &format!("/api/codes/{id}/original"), &Value::Null).await, face);
    let expected = |codes: &Codes| api.pipeline.decode(codes, &SETTINGS, &mut no_observer).unwrap().remove(0);
    let reconstruction = api.picture("GET", &format!("/api/codes/{id}/reconstruction"), &Value::Null).await;
    assert_eq!(reconstruction, expected(&codes));
    let edits = json!({ "codes": id, "edits": { "Smiling": strength, "Beard": 0.1 } });
    let edited = api.pipeline.edit_many(&codes, &[("Smiling", strength), ("Beard", 0.1)]).unwrap();
    assert_eq!(api.picture("POST", "/api/edit", &edits).await, expected(&edited));
    let other = api.json("POST", "/api/faces/3/codes", &Value::Null).await;
    let blend = json!({ "from": id, "to": other["codes"], "alpha": 1.0 });
    let there = format!("/api/codes/{}/reconstruction", other["codes"].as_str().unwrap());
    assert_eq!(api.picture("POST", "/api/blend", &blend).await, api.picture("GET", &there, &Value::Null).await);
    let varied = api.pipeline.variations(&codes, 2, &SETTINGS, &mut no_observer).unwrap();
    let variation = json!({ "codes": id, "index": 1 });
    assert_eq!(api.picture("POST", "/api/variation", &variation).await, varied[1]);
    let sampled = api.json("POST", "/api/sample", &json!({ "index": 5 })).await;
    let path = format!("/api/codes/{}/reconstruction", sampled["codes"].as_str().unwrap());
    let expected = api.pipeline.sample_at(&[5], &SETTINGS, &mut no_observer).unwrap().remove(0);
    assert_eq!(api.picture("GET", &path, &Value::Null).await, expected);
    let strip = json!({ "codes": id, "attribute": "Smiling", "strengths": [0.0, strength] });
    assert!(api.picture("POST", "/api/strip", &strip).await.width() > 2 * 64);
    let film = json!({ "from": id, "to": other["codes"], "frames": 3 });
    assert!(api.ask("POST", "/api/film", film.to_string()).await.1.starts_with(b"GIF89a"));
    let (_, bytes) = api.ask("GET", &format!("/api/codes/{id}"), "").await;
    let folder = std::env::temp_dir().join(format!("diffae-serve-{}.safetensors", std::process::id()));
    std::fs::write(&folder, bytes).unwrap();
    let read = Codes::read(&folder).unwrap();
    std::fs::remove_file(&folder).unwrap();
    assert_eq!((read.names, read.fingerprint), (vec!["face_3".to_owned()], codes.fingerprint.clone()));
}

#[tokio::test]
async fn what_cannot_be_done_is_a_sentence_with_its_status() {
    let api = Api::new();
    let ask = |path: &'static str, body: &'static str| api.refused("POST", path, body);
    assert_eq!(ask("/api/codes", "").await, (400, "the body is empty, expected a picture".to_owned()));
    let (status, said) = ask("/api/codes?name=notes.txt", "no picture").await;
    assert!(status == 400 && said.contains("notes"), "{said}");
    let (status, said) = ask("/api/edit", r#"{"codes": "0", "edits": {}}"#).await;
    assert!(status == 404 && said.contains("upload the picture again"), "{said}");
    assert_eq!(ask("/api/edit", "{").await.0, 400);
    assert_eq!(ask("/api/edit", "{}").await.0, 400);
    assert_eq!(ask("/api/faces/8/codes", "").await, (404, "there is no face 8; the model has 8".to_owned()));
    let (status, said) = api.refused("POST", "/api/codes", vec![0; MAX_BODY + 1]).await;
    assert_eq!((status, said.as_str()), (413, "the request has more than 33554432 bytes"));
    assert!(api.refused("GET", "/api/nothing", "").await.1.contains("nothing at this address"));
    assert_eq!(api.refused("DELETE", "/api/model", "").await.0, 405);
    let (status, said) = ask("/api/faces/x/codes", "").await;
    assert!(status == 400 && said.contains('x'), "{said}");
    for (body, expected) in [
        (r#"{"index": 0, "steps": 0}"#, "steps is 0, expected 1 to 1000"),
        (r#"{"index": 0, "sampler": "euler"}"#, "unknown sampler"),
        (r#"{"index": -1}"#, "-1"),
    ] {
        let (status, said) = ask("/api/sample", body).await;
        assert!(status == 400 && said.contains(expected), "{said}");
    }
    let id = api.json("POST", "/api/faces/0/codes", &Value::Null).await["codes"].clone();
    let refused = |path: &'static str, body: Value| api.refused("POST", path, body.to_string());
    let (status, said) = refused("/api/edit", json!({ "codes": id, "edits": { "Halo": 1.0 } })).await;
    assert!(status == 422 && said.contains("Smiling"), "{said}");
    for (route, body) in [
        ("/api/edit", json!({ "codes": id, "edits": { "Smiling": 0.1 }, "levels": [0] })),
        ("/api/blend", json!({ "from": id, "to": id, "alpha": 0.5, "levels": [0] })),
        ("/api/strip", json!({ "codes": id, "attribute": "Smiling", "strengths": [0.0, 0.1], "levels": [0] })),
        ("/api/film", json!({ "from": id, "to": id, "frames": 2, "levels": [0] })),
    ] {
        let (status, said) = refused(route, body).await;
        assert!(status == 422 && said.contains("has no levels"), "{status} {said}");
    }
    let (status, said) = refused("/api/blend", json!({ "from": id, "to": id, "alpha": 1.5 })).await;
    assert!(status == 400 && said.contains("alpha is 1.5"), "{said}");
    assert_eq!(refused("/api/film", json!({ "from": id, "to": id, "frames": 61 })).await.0, 400);
}

#[tokio::test]
async fn large_pictures_are_refused_by_what_they_say_of_themselves() {
    let api = Api::new();
    let mut header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    header.extend([0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10, 8, 2, 0, 0, 0]);
    let checksum = crc(&header[12..]);
    header.extend(checksum.to_be_bytes());
    header.extend(b"\0\0\0\0IDAT");
    header.extend(crc(b"IDAT").to_be_bytes());
    let (status, said) = api.refused("POST", "/api/codes", header).await;
    assert!(status == 413 && said.contains("10000 by 10000 pixels"), "{status} {said}");
    let (status, _) = api.ask("POST", "/api/codes", vec![0; MAX_BODY + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

/// Computes the CRC-32 of a PNG chunk.
fn crc(bytes: &[u8]) -> u32 {
    let shift = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc: u32, &byte| (0..8).fold(crc ^ u32::from(byte), shift))
}

#[tokio::test]
async fn progress_comes_as_events_to_the_client_that_asked() {
    let api = Api::new();
    let request = Request::builder().uri("/api/events?client=me").header(header::HOST, "localhost");
    let response = api.router.clone().oneshot(request.body(HttpBody::empty()).unwrap()).await.unwrap();
    let mut events = response.into_body().into_data_stream();
    api.json("POST", "/api/faces/0/codes?client=other", &Value::Null).await;
    api.json("POST", "/api/faces/1/codes?client=me", &Value::Null).await;
    let mut next = async || String::from_utf8(events.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(next().await, "retry: 1000\n\n");
    let event = next().await;
    let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
    // On a slow machine it has a preview, too.
    let (purpose, done, total) = (&event["purpose"], &event["done"], &event["total"]);
    assert_eq!(json!([purpose, done, total]), json!(["encode", 1, 3]));
}

#[test]
fn the_description_names_every_route() {
    let described: Value = serde_json::from_str(OPENAPI).unwrap();
    let routes = include_str!("../api.rs").lines().filter_map(|line| line.trim().strip_prefix(".route(\"/api/"));
    let routes: Vec<&str> = routes.filter_map(|rest| rest.split('"').next()).collect();
    assert!(routes.len() > 10);
    for route in routes.into_iter().filter(|&route| route != "openapi.json") {
        assert!(described["paths"].get(format!("/api/{route}")).is_some(), "{route}");
        assert!(PAGE.contains(route.split('/').next().unwrap()), "the page uses {route}");
    }
}
