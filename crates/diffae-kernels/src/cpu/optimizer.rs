//! Adam and an exponential moving average of the parameters, in one pass.

use super::length::{LengthResult, check_length};
use super::parallel::{Shared, for_each, for_each_range};
use super::simd::{LANES, Simd, Task, run};

/// Coefficients of one step, computed from the settings of Adam and the number of the step.
///
/// `m = beta_1 m + (1 - beta_1) g`, `v = beta_2 v + (1 - beta_2) g^2`,
/// `p = p (1 - decay) - step m / (sqrt(v) * inv_sqrt_correction + eps)`, `ema = d ema + (1 - d) p`, with `g` scaled first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) gradient_scale: f32,
    pub(crate) beta_1: f32,
    pub(crate) beta_2: f32,
    /// Learning rate over the bias correction of m.
    pub(crate) step: f32,
    /// One over the square root of the bias correction of v.
    pub(crate) inv_sqrt_correction: f32,
    pub(crate) eps: f32,
    /// Learning rate times weight decay.
    pub(crate) decay: f32,
    pub(crate) ema_decay: f32,
}

/// A parameter, its gradient and its optimizer state: slices of one length, but that `ema` may be empty.
#[derive(Debug)]
pub(crate) struct Buffers<'a> {
    pub(crate) parameter: &'a mut [f32],
    pub(crate) gradient: &'a [f32],
    pub(crate) m: &'a mut [f32],
    pub(crate) v: &'a mut [f32],
    /// Moving average of the parameter, or empty.
    pub(crate) ema: &'a mut [f32],
}

/// Updates a parameter and its state.
///
/// # Errors
/// If the lengths differ.
pub(crate) fn step(buffers: Buffers<'_>, factors: Factors) -> LengthResult<()> {
    let Buffers { parameter, gradient, m, v, ema } = buffers;
    let len = parameter.len();
    check_length("the gradient of a parameter", gradient.len(), &[len])?;
    check_length("the first moments of a parameter", m.len(), &[len])?;
    check_length("the second moments of a parameter", v.len(), &[len])?;
    if !ema.is_empty() {
        check_length("the moving average of a parameter", ema.len(), &[len])?;
    }
    let ema = (!ema.is_empty()).then(|| Shared::new(ema));
    let buffers = [parameter, m, v].map(Shared::new);
    for_each_range(len, 16_384, |start, end| {
        let len = end - start;
        let [p, m, v] = buffers.map(|buffer| buffer.part(start, len));
        let task = Step { g: &gradient[start..end], p, m, v, ema: ema.map(|ema| ema.part(start, len)), factors };
        // SAFETY: all buffers have the length of `g`, and ranges are disjoint.
        unsafe { run(task) };
    });
    Ok(())
}

/// Number of values whose squares are added up in f32.
pub(crate) const SQUARES_BLOCK: usize = 16_384;

/// Computes the sums of squares of blocks, in f32.
pub(crate) fn block_squares(x: &[f32]) -> Vec<f64> {
    let blocks = x.len().div_ceil(SQUARES_BLOCK);
    let mut sums = vec![0f64; blocks];
    let to = Shared::new(&mut sums);
    for_each(blocks, |i| {
        let part = &x[i * SQUARES_BLOCK..x.len().min((i + 1) * SQUARES_BLOCK)];
        // SAFETY: the task reads a slice; `part` has checked the place, and each task writes its own sum.
        unsafe { *to.part(i, 1) = f64::from(run(Squares(part))) };
    });
    sums
}

/// Sum of squares of a slice.
struct Squares<'a>(&'a [f32]);

impl Task for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: `at` plus the number of lanes is at most the length of the slice.
        unsafe {
            let mut sums = [S::splat(0.); 4];
            for (i, at) in (0..self.0.len()).step_by(LANES).enumerate() {
                let x = S::load_first(self.0.as_ptr().add(at), LANES.min(self.0.len() - at));
                sums[i % 4] = S::fma(x, x, sums[i % 4]);
            }
            S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
        }
    }
}

/// Update of one range; all buffers have the length of `g`.
struct Step<'a> {
    g: &'a [f32],
    p: *mut f32,
    m: *mut f32,
    v: *mut f32,
    ema: Option<*mut f32>,
    factors: Factors,
}

impl Task for Step<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { g, p, m, v, ema, factors } = self;
        let (g, len) = (g.as_ptr(), g.len());
        // SAFETY: `at + count <= len`, and all buffers have `len` elements.
        unsafe {
            let (beta_1, rest_1) = (S::splat(factors.beta_1), S::splat(1. - factors.beta_1));
            let (beta_2, rest_2) = (S::splat(factors.beta_2), S::splat(1. - factors.beta_2));
            let (step, eps) = (S::splat(factors.step), S::splat(factors.eps));
            let correction = S::splat(factors.inv_sqrt_correction);
            let (scale, keep) = (S::splat(factors.gradient_scale), S::splat(1. - factors.decay));
            let rest_ema = S::splat(1. - factors.ema_decay);
            for at in (0..len).step_by(LANES) {
                let count = LANES.min(len - at);
                let gradient = S::mul(S::load_first(g.add(at), count), scale);
                let first = S::fma(S::load_first(m.add(at), count), beta_1, S::mul(rest_1, gradient));
                let squared = S::mul(gradient, gradient);
                let second = S::fma(S::load_first(v.add(at), count), beta_2, S::mul(rest_2, squared));
                let size = S::fma(S::sqrt(second), correction, eps);
                let old = S::mul(S::load_first(p.add(at), count), keep);
                let parameter = S::fnma(step, S::div(first, size), old);
                S::store_first(m.add(at), count, first);
                S::store_first(v.add(at), count, second);
                S::store_first(p.add(at), count, parameter);
                if let Some(ema) = ema {
                    let average = S::load_first(ema.add(at), count);
                    S::store_first(ema.add(at), count, S::fma(rest_ema, S::sub(parameter, average), average));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_other_lengths_are_refused() {
        let factors = Factors {
            gradient_scale: 1.,
            beta_1: 0.,
            beta_2: 0.,
            step: 1.,
            inv_sqrt_correction: 1.,
            eps: 0.,
            decay: 0.,
            ema_decay: 0.,
        };
        let fits = |[gradient, m, v, ema]: [usize; 4]| {
            let (mut p, gradient) = (vec![0.; 5], vec![2.; gradient]);
            let [mut m, mut v, mut ema] = [m, v, ema].map(|len| vec![0.; len]);
            let buffers = Buffers { parameter: &mut p, gradient: &gradient, m: &mut m, v: &mut v, ema: &mut ema };
            step(buffers, factors).is_ok_and(|()| p == [-1.; 5])
        };
        assert!(fits([5, 5, 5, 5]) && fits([5, 5, 5, 0]));
        for lengths in [[4, 5, 5, 5], [5, 6, 5, 5], [5, 5, 4, 5], [5, 5, 5, 4]] {
            assert!(!fits(lengths), "{lengths:?}");
        }
    }
}
