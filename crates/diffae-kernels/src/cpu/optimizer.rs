//! Adam and an exponential moving average of the parameters, in one pass.

use super::parallel::{Shared, for_each_range};
use super::simd::{LANES, Simd, Task, run};

/// The numbers of one step. `m = beta_1 m + (1 - beta_1) g`, `v = beta_2 v + (1 - beta_2) g^2`,
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

/// What one parameter consists of; `ema` may be empty.
#[derive(Debug)]
pub(crate) struct Buffers<'a> {
    pub(crate) parameter: &'a mut [f32],
    pub(crate) gradient: &'a [f32],
    pub(crate) m: &'a mut [f32],
    pub(crate) v: &'a mut [f32],
    pub(crate) ema: &'a mut [f32],
}

/// Updates a parameter. All buffers but `ema` have the same length; `ema` has it or none.
pub(crate) fn step(buffers: Buffers<'_>, factors: Factors) {
    let Buffers { parameter, gradient, m, v, ema } = buffers;
    let len = parameter.len().min(gradient.len()).min(m.len()).min(v.len());
    let has_ema = ema.len() >= len && !ema.is_empty();
    let gradient = gradient.as_ptr();
    let pointers = [parameter.as_mut_ptr(), m.as_mut_ptr(), v.as_mut_ptr(), ema.as_mut_ptr()].map(Shared);
    let gradient = Shared(gradient.cast_mut());
    for_each_range(len, 16_384, |start, end| {
        let [p, m, v, ema] = pointers.map(|pointer| pointer.get().wrapping_add(start));
        let ema = has_ema.then_some(ema);
        let task = Step { g: gradient.get().wrapping_add(start), p, m, v, ema, len: end - start, factors };
        // SAFETY: each task has its own range of all buffers.
        unsafe { run(task) };
    });
}

/// The sum of squares, in f64 over blocks.
pub(crate) fn sum_of_squares(x: &[f32]) -> f64 {
    const BLOCK: usize = 16_384;
    let blocks = x.len().div_ceil(BLOCK);
    let mut sums = vec![0f64; blocks];
    let to = Shared(sums.as_mut_ptr());
    super::parallel::for_each(blocks, |i| {
        let part = &x[i * BLOCK..x.len().min((i + 1) * BLOCK)];
        // SAFETY: each task writes its own sum.
        unsafe { *to.get().add(i) = f64::from(run(Squares(part))) };
    });
    sums.iter().sum()
}

struct Squares<'a>(&'a [f32]);

impl Task for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: only elements of the slice are read.
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

struct Step {
    g: *const f32,
    p: *mut f32,
    m: *mut f32,
    v: *mut f32,
    ema: Option<*mut f32>,
    len: usize,
    factors: Factors,
}

impl Task for Step {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { g, p, m, v, ema, len, factors } = self;
        // SAFETY: all buffers have `len` elements.
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
