//! The page of the demo, with a note that tells its own files from those of others.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use base64::Engine;
use diffae_data::Overwrite;
use diffae_infer::BUILT_IN_MODEL;

use super::{ANIMATION, PAGE};

/// Start of the last line of the page, a comment with a checksum of each file.
const NOTE: &str = "<!-- diffae demo wrote";
const STYLE: &str = "\
:root{color-scheme:light dark;--ground:#fff;--ink:#222;--faint:#f2f2f2}\
@media(prefers-color-scheme:dark){:root{--ground:#17181a;--ink:#e4e4e4;--faint:#2a2c2f}}\
*{box-sizing:border-box}\
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:var(--ink);\
background:var(--ground)}\
h1{font-size:1.7rem;line-height:1.25}h2{font-size:1.25rem;margin:2.2rem 0 0}p{margin:.3rem 0 .8rem;max-width:46rem}\
code{background:var(--faint);padding:.1rem .3rem;border-radius:3px}\
figure{margin:0;overflow-x:auto}\
img{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px}\
img.sheet{min-width:44rem}";

/// One picture of the page.
pub(super) struct Exhibit {
    pub(super) file: &'static str,
    pub(super) title: &'static str,
    pub(super) text: &'static str,
    pub(super) bytes: Vec<u8>,
}

/// Returns the page, which needs no other file.
pub(super) fn page(exhibits: &[Exhibit], num_steps: usize) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Diffusion Autoencoder: what it does</title>\n<style>{STYLE}</style>\n\
         <h1>What a Diffusion Autoencoder does</h1>\n<p>Made by <code>diffae demo</code> {} with its built-in model, \
         <code>--model {BUILT_IN_MODEL}</code>, in {} steps. The model knows cartoon faces of 64 pixels and nothing \
         else.</p>\n",
        env!("CARGO_PKG_VERSION"),
        num_steps,
    );
    for Exhibit { file, title, text, bytes } in exhibits {
        let [kind, class] = if *file == ANIMATION { ["gif", "film"] } else { ["png", "sheet"] };
        let data = base64::engine::general_purpose::STANDARD.encode(bytes);
        html.extend([
            format!("<h2>{title}</h2>\n<p>{text}</p>\n"),
            format!(
                "<figure><img class=\"{class}\" alt=\"{title}\" src=\"data:image/{kind};base64,{data}\"></figure>\n"
            ),
        ]);
    }
    html += "<p>The model has learned from faces of the style ToonHead by Johan Melin, CC BY 4.0, with parts and colors drawn \
             at random.</p>\n</html>\n";
    let files = exhibits.iter().map(|exhibit| (exhibit.file, checksum(&exhibit.bytes)));
    let all = files.chain([(PAGE, checksum(html.as_bytes()))]);
    let note = all.fold(String::new(), |note, (file, sum)| note + " " + file + "=" + &sum);
    format!("{html}{NOTE}{note} -->\n")
}

/// Returns the policy for existing files: results of a former demo that nobody has changed are replaced, all others
/// only if the user asked for it.
///
/// # Errors
/// If a file exists that is to be kept.
pub(super) fn former_results(folder: &Path, names: &[String], overwrite: Overwrite) -> Result<Overwrite> {
    let there: Vec<&String> = names.iter().filter(|name| folder.join(name).exists()).collect();
    if overwrite == Overwrite::Replace || there.is_empty() {
        return Ok(overwrite);
    }
    let page = fs::read_to_string(folder.join(PAGE)).unwrap_or_default();
    let noted = checksums(&page);
    for name in there {
        let path = folder.join(name);
        let found = if name == PAGE {
            page.rfind(NOTE).map(|end| page.as_bytes()[..end].to_vec())
        } else {
            fs::read(&path).ok()
        };
        let is_former = found.is_some_and(|bytes| noted.get(name.as_str()) == Some(&checksum(&bytes)));
        if !is_former {
            bail!("{} is not what an earlier demo wrote; use --force to replace it", path.display())
        }
    }
    Ok(Overwrite::Replace)
}

/// Returns files and their checksums, as the last line of a page names them.
fn checksums(page: &str) -> BTreeMap<&str, String> {
    let note = page.lines().last().and_then(|line| line.strip_prefix(NOTE)).unwrap_or_default();
    let entries = note.split_whitespace().filter_map(|entry| entry.split_once('='));
    entries.map(|(file, sum)| (file, sum.to_owned())).collect()
}

fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(folder: &Path) -> Result<Overwrite> {
        former_results(folder, &["a.png".to_owned(), PAGE.to_owned()], Overwrite::Refuse)
    }

    fn write(folder: &Path) {
        let html = "<html></html>\n";
        let note = format!("{NOTE} a.png={} {PAGE}={} -->\n", checksum(b"a"), checksum(html.as_bytes()));
        fs::write(folder.join("a.png"), "a").unwrap();
        fs::write(folder.join(PAGE), format!("{html}{note}")).unwrap();
    }

    #[test]
    fn only_unchanged_results_of_a_demo_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(check(path).unwrap(), Overwrite::Refuse, "nothing is there");
        write(path);
        assert_eq!(check(path).unwrap(), Overwrite::Replace);
        fs::write(path.join("a.png"), "changed").unwrap();
        assert!(check(path).unwrap_err().to_string().contains("a.png is not what an earlier demo wrote"));
        write(path);
        fs::remove_file(path.join("a.png")).unwrap();
        assert_eq!(check(path).unwrap(), Overwrite::Replace, "a missing file is no loss");
        let page = fs::read_to_string(path.join(PAGE)).unwrap();
        fs::write(path.join(PAGE), page.replace("<html>", "<html lang=\"fr\">")).unwrap();
        assert!(check(path).unwrap_err().to_string().contains("index.html"));
        fs::write(path.join(PAGE), "my own page").unwrap();
        assert!(check(path).unwrap_err().to_string().contains("use --force to replace it"));
        let all = [PAGE.to_owned()];
        assert_eq!(former_results(path, &all, Overwrite::Replace).unwrap(), Overwrite::Replace);
    }
}
