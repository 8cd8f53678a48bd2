//! AdamW in one sweep.

use super::dispatch::dispatch;
use super::lengths::same_len;
use super::simd::{Simd, sweep};

/// The constants of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// This step's number, from 1.
    pub step: u64,
}

/// One step of AdamW as PyTorch defines it, out of place: `next` receives the new parameters, m and v are
/// updated in place.
///
/// θ' = θ (1 - lr·wd) - lr/(1 - β1ᵗ) · m / (√v / √(1 - β2ᵗ) + eps), with m and v updated first. Bias
/// corrections are computed in `f64`.
///
/// # Panics
/// If the lengths differ, or the step is 0.
pub fn adamw(next: &mut [f32], theta: &[f32], grad: &[f32], m: &mut [f32], v: &mut [f32], s: &AdamWStep) {
    for len in [theta.len(), grad.len(), m.len(), v.len()] {
        same_len(next.len(), len, "adamw");
    }
    assert!(s.step > 0, "adamw: steps count from 1");
    let power = |beta: f32| f64::from(beta).powf(s.step as f64);
    let c = Constants {
        keep: (1.0 - f64::from(s.lr) * f64::from(s.weight_decay)) as f32,
        lerp1: (1.0 - f64::from(s.beta1)) as f32,
        beta2: s.beta2,
        lerp2: (1.0 - f64::from(s.beta2)) as f32,
        root_correction: (1.0 - power(s.beta2)).sqrt() as f32,
        eps: s.eps,
        rate: (-f64::from(s.lr) / (1.0 - power(s.beta1))) as f32,
    };
    dispatch!(adamw_on(next: &mut [f32], theta: &[f32], grad: &[f32], m: &mut [f32], v: &mut [f32], c: Constants))
}

/// What is the same for all parameters of a step.
#[derive(Clone, Copy)]
struct Constants {
    keep: f32,
    lerp1: f32,
    beta2: f32,
    lerp2: f32,
    root_correction: f32,
    eps: f32,
    rate: f32,
}

#[inline(always)]
fn adamw_on<S: Simd>(s: S, next: &mut [f32], theta: &[f32], grad: &[f32], m: &mut [f32], v: &mut [f32], c: Constants) {
    let (keep, lerp1, beta2) = (s.splat(c.keep), s.splat(c.lerp1), s.splat(c.beta2));
    let (lerp2, root, eps, rate) = (s.splat(c.lerp2), s.splat(c.root_correction), s.splat(c.eps), s.splat(c.rate));
    let len = next.len();
    assert!(theta.len() == len && grad.len() == len && m.len() == len && v.len() == len);
    sweep!(S, len, |i, w| {
        // SAFETY: i + w <= len, the length of all five slices.
        unsafe {
            let g = s.load_n(grad.as_ptr().add(i), w);
            let old = s.load_n(m.as_ptr().add(i), w);
            let m1 = s.fma(s.sub(g, old), lerp1, old);
            let v1 = s.fma(s.mul(g, g), lerp2, s.mul(s.load_n(v.as_ptr().add(i), w), beta2));
            let denom = s.add(s.div(s.sqrt(v1), root), eps);
            let kept = s.mul(s.load_n(theta.as_ptr().add(i), w), keep);
            s.store_n(m.as_mut_ptr().add(i), w, m1);
            s.store_n(v.as_mut_ptr().add(i), w, v1);
            s.store_n(next.as_mut_ptr().add(i), w, s.fma(rate, s.div(m1, denom), kept));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, each_isa, values, wide};

    #[test]
    fn steps_follow_the_definition() {
        for len in [1, 3, 17, 27, 65, 1000] {
            let start = values(len, 1);
            let (lr, wd, b1, b2, eps) = (1e-2f64, 0.1f64, 0.9f64, 0.95f64, 1e-8f64);
            let (mut theta, mut m, mut v) = (wide(&start), vec![0.0; len], vec![0.0; len]);
            for step in 1..=5u64 {
                let grad = wide(&values(len, 10 + step));
                for i in 0..len {
                    let g = grad[i];
                    theta[i] *= 1.0 - lr * wd;
                    m[i] = b1 * m[i] + (1.0 - b1) * g;
                    v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                    let denom = (v[i] / (1.0 - b2.powi(step as i32))).sqrt() + eps;
                    theta[i] -= lr / (1.0 - b1.powi(step as i32)) * m[i] / denom;
                }
            }
            each_isa(|isa| {
                let (mut now, mut next) = (start.clone(), vec![f32::NAN; len]);
                let (mut m1, mut v1) = (vec![0.0; len], vec![0.0; len]);
                for step in 1..=5 {
                    let s = AdamWStep { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
                    adamw(&mut next, &now, &values(len, 10 + step), &mut m1, &mut v1, &s);
                    std::mem::swap(&mut now, &mut next);
                }
                assert_close(&now, &theta, 1e-6, &format!("theta of {len} {isa:?}"));
                assert_close(&m1, &m, 1e-6, &format!("m of {len} {isa:?}"));
                assert_close(&v1, &v, 1e-6, &format!("v of {len} {isa:?}"));
            });
        }
    }
}
