//! Phones, dark pages, and screenshots to look at.

use serde_json::Value;

use crate::stage::Stage;

/// Elements that reach beyond the right edge of the screen.
const TOO_WIDE: &str = "
    const width = document.documentElement.clientWidth;
    return [...document.body.querySelectorAll('*')].filter((one) => one.getBoundingClientRect().right > width + 1)
        .map((one) => one.outerHTML.slice(0, 80));
";
/// Contrast of text and background of an element, as WCAG 2 defines it.
const CONTRAST: &str = "
    const channels = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255);
    const luminance = (color) => {
        const [r, g, b] = channels(color).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const one = document.querySelector(arguments[0]);
    const opaque = (element) => {
        const { backgroundColor } = getComputedStyle(element);
        if (!/, 0\\)$/.test(backgroundColor)) return backgroundColor;
        return element.parentElement ? opaque(element.parentElement) : arguments[1];
    };
    const [x, y] = [luminance(getComputedStyle(one).color), luminance(opaque(one))];
    return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
";
/// Minimum contrast of text, WCAG 2.2, criterion 1.4.3.
const MIN_CONTRAST: f64 = 4.5;

#[track_caller]
fn everything_can_be_read(stage: &Stage, canvas: &str) {
    for element in ["#said", "h2", "#save", "label.file", "#command", "#psnr", "#reset"] {
        let contrast = stage.page.browser.script(CONTRAST, &[element.into(), canvas.into()]).as_f64().unwrap();
        assert!(contrast >= MIN_CONTRAST, "{element} has a contrast of {contrast:.2}");
    }
}

#[test]
fn a_light_and_a_dark_page_can_be_read() {
    let stage = Stage::new();
    stage.page.browser.screenshot("light-empty");
    stage.page.take_face(0);
    stage.page.nudge("slider-Smiling", 40);
    stage.page.nudge("cut", 30);
    stage.page.wait();
    stage.page.browser.screenshot("light");
    everything_can_be_read(&stage, "rgb(255, 255, 255)");
    stage.page.browser.become_dark();
    let is_dark = "getComputedStyle(document.getElementById('save')).backgroundColor === 'rgb(34, 34, 34)'";
    assert!(stage.page.holds(is_dark));
    stage.page.browser.choose_file("#file", &stage.write("notes.txt", b"no picture"));
    stage.page.wait_until_it_says("notes");
    stage.page.browser.screenshot("dark");
    everything_can_be_read(&stage, "rgb(18, 18, 18)");
    stage.page.browser.console_is_clean_but_for(&["status of 400"]);
}

#[test]
fn a_phone_shows_everything_without_scrolling_sideways() {
    let stage = Stage::new();
    let is_in_sight = |css: &str| {
        let place = format!("document.querySelector('{css}').getBoundingClientRect()");
        stage.page.holds(&format!("{place}.top >= 0 && {place}.bottom <= innerHeight"))
    };
    for width in [412, 320] {
        stage.page.browser.become_phone(width, 740);
        stage.page.take_face(0);
        stage.page.nudge("slider-Smiling", 40);
        for element in [".wipe", "#slider-Smiling", "#said"] {
            assert!(is_in_sight(element), "{element} is out of sight while a slider moves, {width} pixels");
        }
        stage.page.wait();
        stage.page.browser.screenshot_of_screen(&format!("phone-{width}-editing"));
        stage.page.browser.click("#vary");
        stage.page.browser.click("#keep");
        stage.page.wait();
        stage.page.browser.screenshot(&format!("phone-{width}"));
        let too_wide = stage.page.browser.script(TOO_WIDE, &[]);
        assert_eq!(too_wide, Value::Array(vec![]), "{width} pixels");
        assert!(stage.page.holds(&format!("document.documentElement.scrollWidth <= {width}")), "{width} pixels");
    }
    stage.page.browser.console_is_clean_but_for(&[]);
}
