//! Edits: sliders by keys and by the pointer, the command that makes the same, the wipe, a reload.

use std::time::Duration;

use image::Rgb;

use crate::page::{LEFT, RIGHT};
use crate::stage::Stage;

const TAB: char = '\u{e004}';
const ENTER: &str = "\u{e007}";
const SPACE: &str = " ";

#[test]
fn sliders_give_the_pixels_of_the_command() {
    let stage = Stage::new();
    stage.page.take_face(4);
    let reconstruction = stage.page.picture("after");
    stage.save("#original", "face_5.png");
    stage.page_and_command_agree();
    stage.page.nudge("slider-Smiling", 30);
    stage.page.wait();
    assert_ne!(stage.page.picture("after"), reconstruction, "nothing is edited");
    assert_eq!(stage.page.text("#slider-Smiling ~ output"), "+60%");
    stage.page_and_command_agree();
    stage.page.nudge("slider-Beard", -40);
    stage.page.browser.drag("#slider-Dark_Hair", &[40, 70]);
    stage.page.nudge("slider-Smiling", -5);
    stage.page.wait();
    assert_eq!(stage.page.text("#command").matches("-a ").count(), 3);
    stage.page_and_command_agree();
    stage.page.browser.click("#copy");
    stage.page.wait_until_it_says("Copied.");
    stage.page.browser.click("#reset");
    stage.page.wait();
    assert_eq!(stage.page.picture("after"), reconstruction);
    stage.page.browser.console_is_clean_but_for(&[]);
}

#[test]
fn a_quick_drag_ends_with_the_newest_value() {
    let stage = Stage::new();
    stage.page.take_face(1);
    stage.save("#original", "face_2.png");
    let count =
        "window.moves = 0; document.getElementById('slider-Smiling').addEventListener('input', () => moves += 1)";
    stage.page.browser.script(count, &[]);
    let there_and_back: Vec<i32> = (1..=60).chain((20..60).rev()).collect();
    stage.page.browser.drag("#slider-Smiling", &there_and_back);
    let moves = stage.page.browser.script("return moves", &[]).as_u64().unwrap();
    assert!(moves > 10, "{moves} moves are no drag");
    stage.page.wait();
    stage.page_and_command_agree();
    // Nothing older follows.
    let newest = stage.page.picture("after");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stage.page.picture("after"), newest);
    stage.page.browser.console_is_clean_but_for(&[]);
}

/// Requests go over several connections: an older one may come last, and the server takes it for the newest.
#[test]
fn a_move_that_an_older_request_overtakes_is_made_up_for() {
    let stage = Stage::new();
    stage.page.take_face(0);
    stage.save("#original", "face_1.png");
    let overtaken = "const slider = document.getElementById('slider-Smiling');
        slider.stepUp(40); slider.dispatchEvent(new Event('input'));
        await new Promise((resume) => setTimeout(resume, 10));
        const older = await post('/api/edit', { codes: state.a.codes, edits: {} }).catch((error) => error);
        return older.status;";
    assert_eq!(stage.page.browser.script(overtaken, &[]), 409, "the page does not ask again");
    stage.page.wait();
    stage.page_and_command_agree();
    stage.page.browser.console_is_clean_but_for(&[]);
}

#[test]
fn drawing_variations_leaves_a_running_edit_alone() {
    let stage = Stage::new();
    stage.page.take_face(0);
    stage.save("#original", "face_1.png");
    // Both within one task of the browser, so that no edit can be over before.
    let both = "const slider = document.getElementById('slider-Smiling');
        slider.stepUp(40); slider.dispatchEvent(new Event('input'));
        const edit = document.getElementById('command').textContent;
        document.getElementById('vary').click(); return edit;";
    let edit = stage.page.browser.script(both, &[]).as_str().unwrap().to_owned();
    stage.page.wait();
    assert_eq!(stage.page.text("#command"), edit);
    stage.page_and_command_agree();
    assert!(stage.page.holds("document.querySelectorAll('#variations img').length === 8"));
}

#[test]
fn the_keyboard_alone_is_enough() {
    let stage = Stage::new();
    let browser = &stage.page.browser;
    let go_to = |selector: &str| {
        for _ in 0..80 {
            browser.press(&TAB.to_string());
            if stage.page.holds(&format!("document.activeElement.matches('{selector}')")) {
                let is_seen = "(document.activeElement.closest('.file') ?? document.activeElement)";
                assert!(
                    stage.page.holds(&format!("getComputedStyle({is_seen}).outlineStyle === 'solid'")),
                    "{selector}"
                );
                return;
            }
        }
        panic!("no key leads to {selector}");
    };
    go_to("#file");
    go_to("#faces button");
    browser.press(ENTER);
    stage.page.wait();
    let reconstruction = stage.page.picture("after");
    go_to("#original");
    browser.press(ENTER);
    go_to("#slider-Smiling");
    browser.press(&RIGHT.to_string().repeat(12));
    browser.press(&LEFT.to_string().repeat(2));
    stage.page.wait();
    assert_ne!(stage.page.picture("after"), reconstruction);
    assert_eq!(stage.page.text("#slider-Smiling ~ output"), "+20%");
    stage.page_and_command_agree();
    go_to("#sample");
    browser.press(SPACE);
    stage.page.wait();
    assert!(stage.page.text("#command").starts_with("diffae sample "));
    browser.console_is_clean_but_for(&[]);
}

#[test]
fn the_wipe_shows_both_pictures() {
    let stage = Stage::new();
    stage.page.take_face(0);
    stage.page.nudge("slider-Dark_Skin", 60);
    stage.page.nudge("cut", 50);
    stage.page.wait();
    let (before, after) = (stage.page.picture("before"), stage.page.picture("after"));
    let seen = stage.page.browser.picture_of(".wipe");
    let (mut differing, mut from_before, mut from_after) = (0, 0, 0);
    // The corners are round, and the cut goes through a column.
    for (x, y) in (0..64).flat_map(|x| (4..60).map(move |y| (x, y))).filter(|(x, _)| !(31..33).contains(x)) {
        let place = |at: u32| ((2 * at + 1) * seen.width()).div_euclid(2 * after.width());
        let Rgb(pixel) = *seen.get_pixel(place(x), place(y));
        let Rgb(expected) = *(if x < 32 { &before } else { &after }).get_pixel(x, y);
        let Rgb(other) = *(if x < 32 { &after } else { &before }).get_pixel(x, y);
        let is_near = |color: [u8; 3]| pixel.iter().zip(color).all(|(&p, q)| p.abs_diff(q) <= 1);
        differing += usize::from(expected != other);
        from_before += usize::from(x < 32 && is_near(expected) && !is_near(other));
        from_after += usize::from(x >= 32 && is_near(expected) && !is_near(other));
        assert!(is_near(expected), "{x}, {y}: {pixel:?}, expected {expected:?}");
    }
    assert!(from_before > 200 && from_after > 200, "{from_before} and {from_after} of {differing} tell");
    stage.page.browser.console_is_clean_but_for(&[]);
}

#[test]
fn a_reload_begins_anew() {
    let stage = Stage::new();
    stage.page.take_face(2);
    stage.page.nudge("slider-Smiling", 20);
    stage.page.nudge("cut", 40);
    stage.page.browser.click("#keep");
    stage.page.nudge("alpha", 5);
    stage.page.nudge("steps", 0);
    stage.page.browser.press("\u{e013}");
    stage.page.wait();
    assert!((stage.page.value("steps") - 11.).abs() < 0.1, "{}", stage.page.value("steps"));
    stage.page.browser.command("POST", "/refresh", &serde_json::json!({}));
    stage.page.wait();
    assert_eq!(stage.page.said(), "Choose a face, or drop a picture.");
    for (control, value) in [("cut", 0.), ("alpha", 0.), ("steps", 10.), ("slider-Smiling", 0.)] {
        assert!((stage.page.value(control) - value).abs() < 0.01, "{control} is {}", stage.page.value(control));
    }
    assert!(stage.page.holds("[...document.querySelectorAll('#sliders input, #save, #codes, #copy, #film, #cut')].every((one) => one.disabled)"));
    assert!(stage.page.holds("!document.getElementById('after').getAttribute('src')"));
    stage.page.take_face(3);
    stage.save("#original", "face_4.png");
    stage.page.nudge("slider-Smiling", 10);
    stage.page.wait();
    stage.page_and_command_agree();
    stage.page.browser.console_is_clean_but_for(&[]);
}
