//! Boxes of many faces, as detectors write them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::face_box::FaceBox;
use crate::error::{Error, Result};

/// A map from photographs to boxes.
#[derive(Debug, Clone, Default)]
pub struct FaceBoxes(BTreeMap<String, FaceBox>);

impl FaceBoxes {
    /// Reads a CSV file of lines `NAME,LEFT,TOP,WIDTH,HEIGHT`, in whole pixels. A first line without numbers is a
    /// header. Names are file names, with or without their ending.
    ///
    /// # Errors
    /// [`Error::FaceBoxes`] if the file cannot be read, a line does not fit, or a name stands twice.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |problem: String| Error::FaceBoxes { path: path.to_owned(), problem };
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let mut boxes = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            // A name may hold commas, numbers may not.
            let mut cells: Vec<&str> = line.rsplitn(5, ',').map(str::trim).collect();
            cells.reverse();
            let is_header = number == 1 && cells.iter().skip(1).all(|cell| cell.parse::<f64>().is_err());
            if is_header {
                continue;
            }
            let &[name, ref numbers @ ..] = &cells[..] else { continue };
            let face_box = numbers.join(",").parse::<FaceBox>();
            let face_box = face_box.map_err(|error| failed(format!("line {number} is {line:?}: {error}")))?;
            if boxes.insert(stem(name.trim_matches('"')), face_box).is_some() {
                return Err(failed(format!("line {number}: {name} has two boxes")));
            }
        }
        Ok(Self(boxes))
    }

    /// Returns the box of a photograph, by its name with or without the ending.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<FaceBox> {
        self.0.get(&stem(name)).copied()
    }
}

/// Returns a name without folders and ending.
fn stem(name: &str) -> String {
    let path = Path::new(name);
    let is_picture = path.extension().is_some_and(|ending| image::ImageFormat::from_extension(ending).is_some());
    let name = if is_picture { path.file_stem() } else { path.file_name() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<FaceBoxes> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boxes.csv");
        fs::write(&path, text).unwrap();
        FaceBoxes::open(&path)
    }

    #[test]
    fn lines_are_boxes_and_names_need_no_ending() {
        let boxes =
            read("file,left,top,width,height\na.jpg,1,2,30,40\n\"b, c.png\", -5,6,70,80\n\nd.2,0,0,9,9\n").unwrap();
        let numbers = |name: &str| boxes.of(name).map(FaceBox::numbers);
        assert_eq!(numbers("a"), Some([1, 2, 30, 40]));
        assert_eq!(numbers("folder/a.png"), numbers("a"));
        assert_eq!(numbers("b, c"), Some([-5, 6, 70, 80]));
        assert_eq!(numbers("d.2"), Some([0, 0, 9, 9]));
        assert_eq!(numbers("d"), None);
    }

    #[test]
    fn lines_that_do_not_fit_are_named() {
        for (text, hint) in [
            ("a.jpg,1,2,30,40\nb.jpg,1,2,x,40\n", "line 2"),
            ("a.jpg,1,2,30\n", "line 1"),
            ("a.jpg,1,2,30,40\na.png,1,2,30,40\n", "two boxes"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains("boxes.csv") && message.contains(hint), "{message}");
        }
        assert!(FaceBoxes::open(Path::new("none.csv")).is_err());
    }
}
