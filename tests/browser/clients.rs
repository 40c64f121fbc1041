//! Several pages at once, and a server that is stopped and started again.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::page::Page;
use crate::served::Served;
use crate::stage::{Stage, program};

#[test]
fn two_browsers_get_their_own_pictures() {
    let stage = Stage::new();
    let other = stage.beside();
    for (stage, idx) in [(&stage, 0), (&other, 7)] {
        stage.page.take_face(idx);
        stage.save("#original", &format!("face_{}.png", idx + 1));
    }
    std::thread::scope(|scope| {
        for (stage, presses) in [(&stage, 1), (&other, -1)] {
            scope.spawn(move || {
                for _ in 0..12 {
                    stage.page.nudge("slider-Smiling", 2 * presses);
                    stage.page.nudge("slider-Dark_Hair", presses);
                }
            });
        }
    });
    for stage in [&stage, &other] {
        stage.page.wait();
        stage.page_and_command_agree();
        stage.page.browser.console_is_clean_but_for(&[]);
    }
}

/// A browser opens six connections to a server; a page that listened on one for ever would stop the seventh page.
#[test]
fn eight_tabs_of_a_browser_all_work() {
    let stage = Stage::new();
    let browser = &stage.page.browser;
    let tabs: Vec<String> = (0..8)
        .map(|idx| {
            let tab = browser.new_tab();
            browser.go(&format!("http://{}/", stage.address));
            stage.page.wait();
            stage.page.take_face(idx);
            stage.page.nudge("slider-Smiling", 10);
            tab
        })
        .collect();
    let mut pictures = vec![];
    for tab in &tabs {
        browser.go_to_tab(tab);
        stage.page.wait();
        pictures.push(stage.page.picture("after"));
    }
    assert!((1..8).all(|idx| !pictures[..idx].contains(&pictures[idx])), "two tabs show the same");
    browser.go_to_tab(&tabs[7]);
    stage.save("#original", "face_8.png");
    stage.page_and_command_agree();
    browser.console_is_clean_but_for(&[]);
}

#[test]
fn a_server_that_stops_is_told_and_missed_until_it_is_back() {
    let mut stage = Stage::new();
    stage.page.take_face(4);
    stage.save("#original", "face_5.png");
    stage.page.browser.click("#keep");
    let before = stage.page.picture("after");
    let mut served = stage.served.take().unwrap();
    let ended = Command::new("kill").args(["-INT", &served.child.id().to_string()]).status().unwrap();
    assert!(ended.success() && served.child.wait().unwrap().success());
    stage.page.wait_until_it_says("The server does not answer; this page goes on when it is back.");
    stage.page.browser.screenshot("server-stopped");
    stage.page.nudge("slider-Smiling", 25);
    stage.page.wait();
    assert!(stage.page.said().starts_with("The server does not answer"), "{}", stage.page.said());
    assert_eq!(stage.page.picture("after"), before);
    let port = stage.address.rsplit(':').next().unwrap().parse().unwrap();
    stage.served = Some(Served::start(program(), stage.folder.path(), port, &[]));
    // The move that was missed is made up for, though the new server knows no codes.
    let started = Instant::now();
    while stage.page.said().starts_with("The server") || stage.page.picture("after") == before {
        assert!(started.elapsed() < Duration::from_mins(1), "{}", stage.page.said());
        std::thread::sleep(Duration::from_millis(100));
    }
    stage.page.wait();
    stage.page_and_command_agree();
    stage.page.nudge("alpha", 10);
    stage.page.wait();
    stage.page_and_command_agree();
    stage.page.browser.console_is_clean_but_for(&["net::ERR_", "status of 404"]);
}

#[test]
fn the_address_with_its_token_opens_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(program(), folder.path(), 0, &["--token", "a-long-secret"]);
    let page = Page::open(&format!("{}/?token=a-long-secret#", served.address), folder.path());
    page.take_face(0);
    page.nudge("slider-Smiling", 10);
    page.wait();
    assert!(page.text("#command").contains("Smiling") && page.said().is_empty(), "{}", page.said());
    page.browser.console_is_clean_but_for(&[]);
}
