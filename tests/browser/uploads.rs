//! Uploads, those that are refused among them: a sentence each, and the page goes on.

use std::path::Path;

use crate::stage::Stage;

/// A picture of one color, whose file is a fraction of its pixels.
fn one_color(width: u32, height: u32) -> Vec<u8> {
    let mut file = vec![];
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0xff; width.div_ceil(8) as usize * height as usize]).unwrap();
    writer.finish().unwrap();
    file
}

#[test]
fn what_is_no_picture_or_too_large_is_refused_with_a_sentence() {
    let stage = Stage::new();
    stage.page.take_face(2);
    let before = stage.page.picture("after");
    let hundred_megapixels = one_color(10_000, 10_000);
    assert!(hundred_megapixels.len() < 1 << 20, "{}", hundred_megapixels.len());
    let refused: [(&str, &[u8], &str); 4] = [
        ("nothing.png", b"", "The body is empty, expected a picture."),
        ("notes.txt", b"no picture at all\n", "notes"),
        ("huge.png", &hundred_megapixels, "The picture has 10000 by 10000 pixels, more than 50000000"),
        ("heavy.png", &vec![0; (32 << 20) + 1], "The file has 33554433 bytes, more than 33554432"),
    ];
    for (name, bytes, expected) in refused {
        stage.page.browser.choose_file("#file", &stage.write(name, bytes));
        stage.page.wait_until_it_says(expected);
        let said = stage.page.said();
        assert!(said.ends_with('.') && said.lines().count() == 1, "{said}");
        assert!(stage.page.holds("document.getElementById('said').className === 'error'"));
        assert_eq!(stage.page.picture("after"), before, "the picture is still there");
        stage.page.browser.screenshot(&format!("refused-{name}").replace('.', "-"));
    }
    stage.page.nudge("slider-Smiling", 20);
    stage.page.wait();
    assert_ne!(stage.page.picture("after"), before);
    assert_eq!(stage.page.said(), "");
    stage.page.browser.console_is_clean_but_for(&["status of 400", "status of 413"]);
}

#[test]
fn a_photograph_with_an_awkward_name_is_edited_as_the_command_does() {
    let stage = Stage::new();
    let photograph = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/photographs/astronaut.jpg");
    let upload = stage.path("-it's me & you.jpg");
    std::fs::copy(photograph, &upload).unwrap();
    stage.page.browser.choose_file("#file", &upload);
    stage.page.wait_until_it_says("drag a slider");
    stage.page.wait();
    let warning = stage.page.text("#warning");
    assert!(warning.contains("cartoon faces, not for pictures like -it's me & you"), "{warning}");
    stage.page.browser.screenshot("photograph");
    stage.save("#original", "-it's me & you.png");
    stage.page.nudge("slider-Beard", 30);
    stage.page.wait();
    stage.page_and_command_agree();
    stage.page.take_face(0);
    assert_eq!(stage.page.text("#warning"), "", "a face is what the model was made for");
    stage.page.browser.console_is_clean_but_for(&[]);
}
