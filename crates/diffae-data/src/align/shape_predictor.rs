//! Landmarks of faces by an ensemble of regression trees, from the files that dlib's `shape_predictor` writes.

use std::fs;
use std::path::Path;

use image::RgbImage;

use super::dlib_stream::{DlibStream, MIN_FLOAT_BYTES, MIN_INTEGER_BYTES};
use super::face_box::FaceBox;
use crate::error::{Error, Result};
use crate::notices::counted;

/// Supported version of dlib's format.
const VERSION: i64 = 1;
/// Maximum size of a file. dlib's model of 68 points has 95 MiB.
const MAX_BYTES: u64 = 1 << 30;

/// A model that finds the landmarks of a face.
///
/// It begins with the mean shape and adds corrections. Each cascade looks at pixels whose places follow the shape so far;
/// each tree of a cascade compares pairs of them on the way to a leaf, which holds a correction of all points:
///
/// `shape <- shape + leaf(pixels(shape))`, in coordinates where the face box is the unit square.
///
/// # Source
/// Kazemi and Sullivan 2014, "One Millisecond Face Alignment with an Ensemble of Regression Trees"; the file format and the
/// rounding are those of dlib 19 and 20.
#[derive(Debug)]
pub struct ShapePredictor {
    /// Mean position of each point, x and y, with the face box as the unit square.
    mean_shape: Vec<[f32; 2]>,
    cascades: Vec<Cascade>,
}

#[derive(Debug)]
struct Cascade {
    probes: Vec<Probe>,
    trees: Vec<Tree>,
}

/// A pixel to sample, relative to a point of the shape.
#[derive(Debug)]
struct Probe {
    anchor: usize,
    delta: [f32; 2],
}

/// A full binary tree, level by level: the children of node `i` are `2 i + 1` and `2 i + 2`, leaves come after all splits.
#[derive(Debug)]
struct Tree {
    splits: Vec<Split>,
    /// Shifts of the points at each leaf, `[num_leaves, num_points, 2]`.
    leaves: Vec<f32>,
}

/// A split of a tree: takes the first child if `pixel[first] - pixel[second] > threshold`.
#[derive(Debug)]
struct Split {
    first: usize,
    second: usize,
    threshold: f32,
}

impl ShapePredictor {
    /// Reads a model, such as dlib's `shape_predictor_68_face_landmarks.dat`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::LandmarkModel`] if it is damaged or something else.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        let num_bytes = fs::metadata(path).map_err(failed)?.len();
        if num_bytes > MAX_BYTES {
            let problem = format!("the file has {}, expected {MAX_BYTES} at most", counted(num_bytes, "byte"));
            return Err(Error::LandmarkModel { path: path.to_owned(), offset: 0, problem });
        }
        Self::from_bytes(&fs::read(path).map_err(failed)?, path)
    }

    /// Reads a model from memory, with `path` as its name in messages.
    ///
    /// # Errors
    /// [`Error::LandmarkModel`] if it is damaged or something else.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut stream = DlibStream::new(bytes, path);
        let version = stream.integer()?;
        if version != VERSION {
            return Err(stream.problem(format!("format version {version}, expected {VERSION}")));
        }
        let shape = stream.column()?;
        if shape.is_empty() || shape.len() % 2 != 0 {
            return Err(stream.problem(format!("a shape of {}, expected pairs", counted(shape.len(), "coordinate"))));
        }
        let mean_shape: Vec<[f32; 2]> = shape.chunks_exact(2).map(|point| [point[0], point[1]]).collect();
        let forests = read_vector(&mut stream, MIN_INTEGER_BYTES, |stream| {
            read_vector(stream, 2 * MIN_INTEGER_BYTES, |stream| Tree::read(stream, shape.len()))
        })?;
        let anchors = read_vector(&mut stream, MIN_INTEGER_BYTES, |stream| {
            read_vector(stream, MIN_INTEGER_BYTES, DlibStream::index)
        })?;
        let deltas = read_vector(&mut stream, MIN_INTEGER_BYTES, |stream| {
            read_vector(stream, 2 * MIN_FLOAT_BYTES, |stream| Ok([stream.float()?, stream.float()?]))
        })?;
        stream.finish()?;
        if forests.len() != anchors.len() || forests.len() != deltas.len() {
            let (forests, anchors, deltas) = (forests.len(), anchors.len(), deltas.len());
            let [forests, anchors, deltas] =
                [(forests, "forest"), (anchors, "anchor"), (deltas, "delta")].map(|(count, noun)| counted(count, noun));
            return Err(stream.problem(format!("{forests}, {anchors} and {deltas}, expected as many of each")));
        }
        let parts = forests.into_iter().zip(anchors).zip(deltas);
        let cascades = parts.map(|((trees, anchors), deltas)| Cascade::new(trees, &anchors, &deltas, mean_shape.len()));
        match cascades.collect() {
            Ok(cascades) => Ok(Self { mean_shape, cascades }),
            Err(problem) => Err(stream.problem(problem)),
        }
    }

    /// Returns the number of landmarks.
    #[must_use]
    pub fn num_points(&self) -> usize {
        self.mean_shape.len()
    }

    /// Finds the landmarks of the face in a box: x and y in pixels, rounded as dlib rounds them; points beyond the
    /// picture occur.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if no part of the box is in the picture.
    pub fn landmarks(&self, picture: &RgbImage, face_box: FaceBox) -> Result<Vec<[f64; 2]>> {
        face_box.check_overlap(picture)?;
        let mut shape = self.mean_shape.clone();
        let mut pixels = Vec::new();
        for cascade in &self.cascades {
            let turn = similarity(&self.mean_shape, &shape);
            let intensity = |probe: &Probe| {
                let [x, y] = shape[probe.anchor];
                let [dx, dy] = probe.delta;
                let place = [turn[0] * dx - turn[1] * dy + x, turn[1] * dx + turn[0] * dy + y];
                intensity_at(picture, face_box.pixel_of(place))
            };
            pixels.clear();
            pixels.extend(cascade.probes.iter().map(intensity));
            for tree in &cascade.trees {
                for (point, correction) in shape.iter_mut().zip(tree.correction(&pixels, self.mean_shape.len())) {
                    point[0] += correction[0];
                    point[1] += correction[1];
                }
            }
        }
        Ok(shape.into_iter().map(|point| face_box.pixel_of(point)).collect())
    }
}

impl Cascade {
    fn new(
        trees: Vec<Tree>,
        anchors: &[usize],
        deltas: &[[f32; 2]],
        num_points: usize,
    ) -> std::result::Result<Self, String> {
        if anchors.len() != deltas.len() {
            return Err(format!(
                "{} and {}, expected as many of each",
                counted(anchors.len(), "anchor"),
                counted(deltas.len(), "delta")
            ));
        }
        if let Some(anchor) = anchors.iter().find(|&&anchor| anchor >= num_points) {
            return Err(format!("an anchor is {anchor}, expected less than {num_points}"));
        }
        let pixels = trees.iter().flat_map(|tree| &tree.splits).flat_map(|split| [split.first, split.second]);
        if let Some(pixel) = pixels.max().filter(|&pixel| pixel >= anchors.len()) {
            return Err(format!("a split looks at pixel {pixel}, expected less than {}", anchors.len()));
        }
        let probes = anchors.iter().zip(deltas).map(|(&anchor, &delta)| Probe { anchor, delta }).collect();
        Ok(Self { probes, trees })
    }
}

impl Tree {
    fn read(stream: &mut DlibStream<'_>, leaf_length: usize) -> Result<Self> {
        let splits = read_vector(stream, 2 * MIN_INTEGER_BYTES + MIN_FLOAT_BYTES, |stream| {
            Ok(Split { first: stream.index()?, second: stream.index()?, threshold: stream.float()? })
        })?;
        let num_leaves = stream.length(2 * MIN_INTEGER_BYTES)?;
        if num_leaves != splits.len() + 1 {
            let splits = counted(splits.len(), "split");
            return Err(stream.problem(format!("a tree has {splits}, so its leaves cannot number {num_leaves}")));
        }
        let mut leaves = Vec::new();
        for _ in 0..num_leaves {
            let length = stream.append_column(&mut leaves)?;
            if length != leaf_length {
                return Err(stream.problem(format!("a leaf has {}, expected {leaf_length}", counted(length, "value"))));
            }
        }
        Ok(Self { splits, leaves })
    }

    /// Returns the shift of each point at the leaf that `pixels` lead to.
    fn correction(&self, pixels: &[f32], num_points: usize) -> impl Iterator<Item = [f32; 2]> + '_ {
        let mut node = 0;
        while let Some(split) = self.splits.get(node) {
            let child = if pixels[split.first] - pixels[split.second] > split.threshold { 1 } else { 2 };
            node = 2 * node + child;
        }
        let leaf_idx = node - self.splits.len();
        self.leaves.chunks_exact(2).skip(leaf_idx * num_points).take(num_points).map(|pair| [pair[0], pair[1]])
    }
}

/// Reads a vector element by element.
fn read_vector<'a, T>(
    stream: &mut DlibStream<'a>,
    min_bytes: usize,
    mut element: impl FnMut(&mut DlibStream<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let length = stream.length(min_bytes)?;
    let mut elements = Vec::new();
    for _ in 0..length {
        elements.push(element(stream)?);
    }
    Ok(elements)
}

/// Fits the similarity that takes one shape nearest to another, without its shift: cosine and sine, times the scale.
///
/// With both shapes moved to their means, as complex numbers: `sum(conj(from) * to) / sum(|from|^2)`, Umeyama 1991 in the
/// plane.
fn similarity(from: &[[f32; 2]], to: &[[f32; 2]]) -> [f32; 2] {
    let count = from.len() as f64;
    let mean = |shape: &[[f32; 2]], axis: usize| shape.iter().map(|point| f64::from(point[axis])).sum::<f64>() / count;
    let (from_mean, to_mean) = ([mean(from, 0), mean(from, 1)], [mean(to, 0), mean(to, 1)]);
    let (mut cosine, mut sine, mut size) = (0., 0., 0.);
    for (from, to) in from.iter().zip(to) {
        let (x, y) = (f64::from(from[0]) - from_mean[0], f64::from(from[1]) - from_mean[1]);
        let (u, v) = (f64::from(to[0]) - to_mean[0], f64::from(to[1]) - to_mean[1]);
        cosine += x * u + y * v;
        sine += x * v - y * u;
        size += x * x + y * y;
    }
    if size <= 0. {
        return [1., 0.]; // a shape of one place has no direction
    }
    #[expect(clippy::cast_possible_truncation, reason = "the model computes in f32")]
    let turn = [(cosine / size) as f32, (sine / size) as f32];
    turn
}

/// Returns the mean of red, green and blue, rounded down; 0 beyond the picture.
fn intensity_at(picture: &RgbImage, [x, y]: [f64; 2]) -> f32 {
    let inside = x >= 0. && y >= 0. && x < f64::from(picture.width()) && y < f64::from(picture.height());
    if !inside {
        return 0.;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "inside the picture, which has u32 sides"
    )]
    let (x, y) = (x as u32, y as u32);
    let sum: u16 = picture.get_pixel(x, y).0.iter().map(|&channel| u16::from(channel)).sum();
    f32::from(sum.div_euclid(3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::align::fixtures::{bytes, json, photograph};

    fn small() -> ShapePredictor {
        ShapePredictor::from_bytes(&bytes("small_68.dat"), Path::new("small_68.dat")).unwrap()
    }

    #[test]
    fn landmarks_are_those_of_dlib() {
        let (predictor, picture, record) = (small(), photograph(), json());
        assert_eq!(predictor.num_points(), 68);
        assert!(record.small_68.len() >= 5);
        for expected in &record.small_68 {
            let (left, top, width, height) = expected.r#box;
            let face_box = FaceBox::new(left, top, width, height).unwrap();
            assert_eq!(predictor.landmarks(&picture, face_box).unwrap(), expected.landmarks, "{face_box:?}");
        }
    }

    #[test]
    fn a_box_beside_the_picture_is_refused() {
        let face_box = FaceBox::new(-100, 0, 100, 100).unwrap();
        let error = small().landmarks(&photograph(), face_box).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }

    #[test]
    fn a_truncated_file_is_an_error_wherever_it_ends() {
        let whole = bytes("small_68.dat");
        let path = Path::new("small_68.dat");
        let step = whole.len().div_euclid(50);
        for length in (0..whole.len()).step_by(step).chain([1, 2, 3, whole.len() - 1]) {
            let error = ShapePredictor::from_bytes(&whole[..length], path).unwrap_err();
            assert!(matches!(error, Error::LandmarkModel { .. }), "{length}: {error}");
        }
        let longer = [&whole[..], &[0]].concat();
        let error = ShapePredictor::from_bytes(&longer, path).unwrap_err();
        assert!(error.to_string().contains("there is 1 byte more"), "{error}");
    }

    #[test]
    fn flipped_bits_are_errors_or_models_and_never_panics() {
        let whole = bytes("small_68.dat");
        let (picture, face_box) = (photograph(), FaceBox::new(54, 64, 88, 87).unwrap());
        let mut num_refused = 0;
        for (idx, position) in (0..whole.len()).step_by(97).enumerate() {
            let mut damaged = whole.clone();
            damaged[position] ^= 1 << (idx % 8);
            match ShapePredictor::from_bytes(&damaged, Path::new("damaged.dat")) {
                Ok(predictor) => {
                    assert_eq!(predictor.landmarks(&picture, face_box).unwrap().len(), predictor.num_points());
                }
                Err(_) => num_refused += 1,
            }
        }
        assert!(num_refused > 100, "{num_refused}");
    }

    #[test]
    fn other_files_are_no_models() {
        for (name, content, expected) in [
            ("empty.dat", &b""[..], "ends in the middle"),
            ("text.dat", b"landmarks", "begins with 108"),
            ("version.dat", &[1, 2, 0, 0], "format version 2, expected 1"),
            ("shape.dat", &[1, 1, 0x81, 1, 0x81, 1, 1, 1, 1, 1], "a shape of 1 coordinate, expected pairs"),
            ("picture.dat", &bytes("astronaut.png"), "begins with 137"),
        ] {
            let error = ShapePredictor::from_bytes(content, Path::new(name)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(expected), "{error}");
        }
        let missing = ShapePredictor::open(Path::new("no/such.dat")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused() {
        let head = [1, 1, 0x81, 2, 0x81, 1, 1, 0, 1, 0, 1, 1, 1, 0]; // version 1, a shape of one point at (0.5 * 0, 1)
        let one_tree = [1, 1, 1, 1, 1, 1, 1, 0, 1, 4, 1, 0, 1, 0]; // a forest of a tree of a split (pixels 0 and 4, 0)
        let leaf = [0x81, 2, 0x81, 1, 1, 0, 1, 0, 1, 0, 1, 0];
        let tree = [&one_tree[..], &[1, 2], &leaf, &leaf].concat();
        let refused = |parts: &[&[u8]], expected: &str| {
            let error = ShapePredictor::from_bytes(&parts.concat(), Path::new("a.dat")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let (anchor, delta) = ([1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0]);
        refused(&[&head, &tree, &anchor, &delta], "pixel 4, expected less than 1");
        refused(&[&head, &tree, &[1, 1, 1, 1, 1, 1], &delta], "an anchor is 1, expected less than 1");
        refused(&[&head, &tree, &anchor, &[1, 1, 1, 0]], "1 anchor and 0 deltas");
        refused(&[&head, &tree, &[1, 0], &delta], "1 forest, 0 anchors and 1 delta");
        refused(&[&head, &one_tree, &[1, 1], &leaf], "a tree has 1 split, so its leaves cannot number 1");
        refused(&[&head, &one_tree, &[1, 2], &leaf, &[0x81, 1, 0x81, 1, 1, 0, 1, 0]], "a leaf has 1 value, expected 2");
    }
}
