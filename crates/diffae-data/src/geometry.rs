//! The place of a volume's voxels in space.

/// Map from the index of a voxel to its place in millimeters, in the axes of `NIfTI`: x towards the patient's right, y towards the
/// front, z towards the head (RAS+).
///
/// `place = A [column, row, slice, 1]`, with a row of A for each of x, y and z.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// Rows of the affine map.
    pub affine: [[f64; 4]; 3],
}

impl Geometry {
    /// Returns the geometry of voxels of other sizes: `factors` are new sizes in units of the old ones, for slice, row and column.
    /// The volume fills the same space.
    #[must_use]
    pub fn scaled(self, factors: [f64; 3]) -> Self {
        let [slice, row, column] = factors;
        let by_column = [column, row, slice];
        // The center of the first voxel moves with the edge of the volume in place.
        let offset = by_column.map(|factor| (factor - 1.) / 2.);
        let affine = self.shifted(offset).map(|line| {
            let [x, y, z, place] = line;
            [x * by_column[0], y * by_column[1], z * by_column[2], place]
        });
        Self { affine }
    }

    /// Returns the geometry of a part that begins at a voxel, by slice, row and column.
    #[must_use]
    pub fn moved(self, [slice, row, column]: [f64; 3]) -> Self {
        Self { affine: self.shifted([column, row, slice]) }
    }

    /// Returns the lengths of a voxel in millimeters, for slice, row and column.
    #[must_use]
    pub fn spacing(self) -> [f64; 3] {
        [2, 1, 0].map(|axis| self.affine.iter().map(|line| line[axis] * line[axis]).sum::<f64>().sqrt())
    }

    /// Returns whether voxels have a size along every axis.
    pub(crate) fn is_regular(&self) -> bool {
        let [a, b, c] = self.affine;
        let minor = |i: usize, j: usize| b[i] * c[j] - b[j] * c[i];
        let volume = a[0] * minor(1, 2) - a[1] * minor(0, 2) + a[2] * minor(0, 1);
        self.affine.iter().flatten().all(|value| value.is_finite()) && volume.abs() > 0.
    }

    /// Returns for columns, rows and slices of an ordered volume the axis that runs most along the way from right to left, from
    /// front to back, and from foot to head, and whether it must be turned around.
    pub(crate) fn axes_along(self) -> [(usize, bool); 3] {
        const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        /// Sign of x, y and z along the ordered columns, rows and slices.
        const SIGNS: [f64; 3] = [-1., -1., 1.];
        let [slice, row, column] = self.spacing();
        let lengths = [column, row, slice];
        let along = |to: usize, axis: usize| self.affine[to][axis] / lengths[axis];
        let fit = |order: &[usize; 3]| (0..3).map(|to| along(to, order[to]).abs()).sum::<f64>();
        let best = ORDERS.into_iter().reduce(|best, order| if fit(&order) > fit(&best) { order } else { best });
        let best = best.unwrap_or(ORDERS[0]);
        [0, 1, 2].map(|to| (best[to], along(to, best[to]) * SIGNS[to] < 0.))
    }

    /// Returns the geometry of a volume whose axes are put in an order and turned around; `sides` are its new sides.
    pub(crate) fn with_axes(self, order: [(usize, bool); 3], sides: [usize; 3]) -> Self {
        let affine = self.affine.map(|line| {
            let (mut steps, mut place) = ([0.; 3], line[3]);
            for ((step, (axis, is_turned)), side) in steps.iter_mut().zip(order).zip(sides) {
                *step = if is_turned { -line[axis] } else { line[axis] };
                if is_turned {
                    place += line[axis] * (side as f64 - 1.);
                }
            }
            [steps[0], steps[1], steps[2], place]
        });
        Self { affine }
    }

    fn shifted(self, by: [f64; 3]) -> [[f64; 4]; 3] {
        self.affine.map(|[x, y, z, place]| [x, y, z, place + x * by[0] + y * by[1] + z * by[2]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_of_fewer_voxels_fills_the_same_space() {
        let geometry = Geometry { affine: [[-2., 0., 0., 10.], [0., 3., 0., 20.], [0., 0., 4., 30.]] };
        let is_near = |got: [f64; 3], expected: [f64; 3]| got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(is_near(geometry.spacing(), [4., 3., 2.]));
        let halved = geometry.scaled([2., 1., 4.]);
        assert!(is_near(halved.spacing(), [8., 3., 8.]));
        // The edges of the first voxel stay: at column -0.5.
        let edge = |geometry: Geometry, axis: usize| geometry.affine[axis][3] - 0.5 * geometry.affine[axis][axis];
        for axis in 0..3 {
            assert!((edge(geometry, axis) - edge(halved, axis)).abs() < 1e-12);
        }
        assert_eq!(geometry.moved([1., 0., 2.]).affine, [[-2., 0., 0., 6.], [0., 3., 0., 20.], [0., 0., 4., 34.]]);
    }
}
