//! Blends, samples, variations, and the files that the page saves.

use image::AnimationDecoder;

use crate::stage::Stage;

#[test]
fn a_blend_has_the_pixels_of_the_command() {
    let stage = Stage::new();
    assert!(stage.page.holds("document.getElementById('levels').hidden"), "the model has no levels");
    stage.page.take_face(1);
    stage.save("#original", "face_2.png");
    stage.page.browser.click("#keep");
    stage.page.take_face(6);
    stage.save("#original", "face_7.png");
    stage.page.nudge("slider-Smiling", 20);
    stage.page.nudge("alpha", 17);
    stage.page.wait();
    assert_eq!(stage.page.text("#alpha-value"), "0.34");
    assert_eq!(stage.page.text("#slider-Smiling ~ output"), "0", "a blend is of pictures as they are");
    stage.page_and_command_agree();
    let blend = stage.page.picture("after");
    stage.page.nudge("slider-Smiling", 20);
    stage.page.wait();
    assert_eq!(stage.page.text("#alpha-value"), "0", "an edit is of A");
    stage.page_and_command_agree();
    assert_ne!(stage.page.picture("after"), blend);
    let gif = stage.save("#film", "face_7-face_2.gif");
    let film = image::codecs::gif::GifDecoder::new(std::io::Cursor::new(gif)).unwrap();
    let frames = film.into_frames().collect_frames().unwrap();
    assert_eq!(frames.len(), 24);
    assert!(frames[0].buffer() != frames[12].buffer());
    stage.page.browser.console_is_clean_but_for(&[]);
}

#[test]
fn samples_are_drawn_edited_and_saved() {
    let stage = Stage::new();
    stage.page.browser.script("document.getElementById('sampler').value = 'dpm++2m'", &[]);
    stage.page.browser.script("document.getElementById('steps').value = '5'", &[]);
    stage.page.browser.click("#sample");
    stage.page.wait();
    stage.page_and_command_agree();
    let first = stage.page.picture("after");
    stage.page.browser.click("#sample");
    stage.page.wait();
    stage.page_and_command_agree();
    assert_ne!(stage.page.picture("after"), first);
    stage.page.browser.click("#samples button:first-child");
    stage.page.wait();
    assert_eq!(stage.page.picture("after"), first);
    stage.save("#codes", "sample_00000.safetensors");
    stage.page.nudge("slider-Smiling", 25);
    stage.page.wait();
    stage.page_and_command_agree();
    assert!(stage.page.holds("document.getElementById('original').disabled"), "a sample has no original");
    // Noise that a sampler adds is in no file, so no command makes the same pixels of an edit.
    stage.page.browser.script("document.getElementById('sampler').value = 'ddpm-small'", &[]);
    stage.page.browser.click("#sample");
    stage.page.wait();
    stage.page_and_command_agree();
    let sampled = stage.page.picture("after");
    stage.page.nudge("slider-Smiling", 25);
    stage.page.wait();
    assert_eq!(stage.page.text("#command"), "–");
    assert_ne!(stage.page.picture("after"), sampled);
    stage.page.browser.console_is_clean_but_for(&[]);
}

#[test]
fn variations_follow_steps_and_sampler() {
    let stage = Stage::new();
    stage.page.take_face(3);
    stage.save("#original", "face_4.png");
    stage.page.browser.script("document.getElementById('steps').value = ''", &[]);
    stage.page.browser.click("#steps");
    stage.page.browser.press("2");
    stage.page.browser.script("document.getElementById('sampler').value = 'dpm++2m'", &[]);
    stage.page.nudge("slider-Smiling", 20);
    stage.page.browser.click("#vary");
    stage.page.wait();
    stage.page.browser.screenshot("variations");
    stage.page.browser.click("#variations button:nth-child(4)");
    stage.page.wait();
    let line = stage.page.text("#command");
    assert!(line.contains("--steps 2 --sampler dpm++2m") && line.ends_with("face_4_variation_003.png"), "{line}");
    assert_eq!(stage.page.text("#slider-Smiling ~ output"), "0", "variations are of the picture as it is");
    stage.page_and_command_agree();
    stage.page.browser.click("#sample");
    stage.page.wait();
    stage.page_and_command_agree();
    stage.page.browser.click("#steps");
    stage.page.browser.press("\u{e003}0");
    for button in ["#vary", "#sample"] {
        stage.page.browser.click(button);
        stage.page.wait();
        assert_eq!(stage.page.said(), "Steps must be a whole number from 1 to 200.");
    }
    stage.page.browser.console_is_clean_but_for(&[]);
}

#[test]
fn files_are_what_their_buttons_say() {
    let stage = Stage::new();
    stage.page.take_face(5);
    stage.page.nudge("slider-Beard", 50);
    stage.page.wait();
    let read = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().into_rgb8();
    assert_eq!(read(&stage.save("#save", "face_6.result.png")), stage.page.picture("after"));
    assert_eq!(read(&stage.save("#original", "face_6.png")), stage.page.picture("before"));
    let strip = read(&stage.save("#strip", "face_6.Beard.png"));
    assert!(strip.width() >= 5 * 64 && strip.height() >= 64, "{:?}", strip.dimensions());
    let codes = stage.save("#codes", "face_6.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&codes).unwrap();
    assert!(tensors.names().contains(&"z_sem"), "{:?}", tensors.names());
    stage.page.browser.console_is_clean_but_for(&[]);
}
