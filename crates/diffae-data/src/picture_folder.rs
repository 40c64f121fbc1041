//! The picture files below a folder: searched through links, with a report of what is left out.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::listing::Listing;

/// Lists the picture files of a folder, searched recursively, in order of their names; by their endings, files
/// without any by their first bytes. Hidden files are left out.
///
/// Links are followed. A folder that is met twice, through a link or a circle of them, counts once, under its own name if
/// it is below the folder itself. Pictures of formats that are not read, archives, and links that lead nowhere, are warned of
/// once.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be read.
pub fn picture_files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(Listing::of(folder)?.into_files(folder))
}

/// Returns the reason why a folder has no pictures: [`Error::OnlyUnreadPictures`], or [`Error::NoPictures`] if there
/// are none of any kind.
#[must_use]
pub fn no_pictures(folder: &Path) -> Error {
    Listing::of(folder).map_or_else(|error| error, |listing| listing.left_out.no_pictures(folder))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use image::RgbImage;

    fn tree(pictures: &[&str], others: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in pictures.iter().chain(others) {
            fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        }
        for name in pictures {
            let file = folder.path().join(name);
            RgbImage::new(2, 2).save_with_format(file, image::ImageFormat::Png).unwrap();
        }
        for name in others {
            fs::write(folder.path().join(name), "text").unwrap();
        }
        folder
    }

    fn found(folder: &Path) -> Vec<String> {
        let relative = |path: PathBuf| path.strip_prefix(folder).unwrap().to_str().unwrap().replace('\\', "/");
        picture_files(folder).unwrap().into_iter().map(relative).collect()
    }

    #[test]
    fn hidden_and_foreign_files_are_left_out() {
        let pictures =
            ["b.png", "a/x.JPG", "a.png", ".hidden.png", "._b.png", ".cache/y.png", "__MACOSX/._a.png", "@eaDir/t.jpg"];
        let folder = tree(&pictures, &["Thumbs.db", "notes.txt", "LICENSE"]);
        assert_eq!(found(folder.path()), ["a/x.JPG", "a.png", "b.png"]);
    }

    #[test]
    fn pictures_without_an_ending_are_found_by_their_content() {
        let folder = tree(&["0001", "0002"], &["README", "BM"]);
        assert_eq!(found(folder.path()), ["0001", "0002"]);
    }

    #[test]
    fn formats_that_are_not_read_are_counted() {
        let folder = tree(&[], &["a.HEIC", "b.heic", "c.avif"]);
        let error = no_pictures(folder.path()).to_string();
        assert!(error.contains("1 AVIF picture and 2 HEIC pictures"), "{error}");
        let empty = tree(&[], &["notes.txt"]);
        assert!(matches!(no_pictures(empty.path()), Error::NoPictures { .. }));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_circles_end() {
        use std::os::unix::fs::symlink;
        let elsewhere = tree(&["e.png", "deep/f.png"], &[]);
        let folder = tree(&["real/a.png", "z.png"], &[]);
        let link = |target: &Path, name: &str| symlink(target, folder.path().join(name)).unwrap();
        link(elsewhere.path(), "linked");
        link(elsewhere.path(), "linked_again");
        link(folder.path(), "real/circle");
        link(&folder.path().join("real"), "alias");
        link(&elsewhere.path().join("e.png"), "file.png");
        link(Path::new("nowhere.png"), "dangling.png");
        symlink(folder.path(), elsewhere.path().join("back")).unwrap();
        assert_eq!(found(folder.path()), ["file.png", "linked/deep/f.png", "linked/e.png", "real/a.png", "z.png"]);
        assert_eq!(Listing::of(folder.path()).unwrap().dangling, [folder.path().join("dangling.png")]);
        // The folder itself may be a link.
        link(&folder.path().join("real"), "root");
        assert_eq!(found(&folder.path().join("root")).first().map(String::as_str), Some("a.png"));
    }

    #[cfg(unix)]
    #[test]
    fn pipes_are_not_waited_for() {
        let folder = tree(&["a.png"], &[]);
        let made = std::process::Command::new("mkfifo").arg(folder.path().join("pipe.png")).status().unwrap();
        assert!(made.success());
        assert_eq!(found(folder.path()), ["a.png"]);
    }
}
