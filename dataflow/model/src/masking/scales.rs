//! Scores on several scales: a patch's logit is a mixture of the mean logits of the blocks that it lies in, of several
//! sizes. Large blocks mask whole parts of an image, small ones details, and how much each size counts is learned:
//!
//! logitᵢ = Σ_s γ_s · blockₛ(i), γ = softmax(gates), where blockₛ(i) is the mean logit of the network over the s × s
//! block of patches that i lies in. Blocks begin at the upper left corner; those at the other borders may be cut.

use std::sync::Arc;

use crate::layout::{Layout, Weight};

/// Name of the gates in φ.
pub const GATES: &str = "scale.gates";

/// The scales of a masking, with their gates in φ.
#[derive(Clone, Debug)]
pub struct Scales {
    sizes: Arc<[usize]>,
    grid: usize,
    gates: Weight,
}

impl Scales {
    /// Scales of these sides in patches, whose gates [`GATES`] `[S]` are added to `layout`; none for no sizes and for
    /// the single patch alone, which is the network's own logit.
    #[must_use]
    pub fn add_to(layout: &mut Layout, sizes: &Arc<[usize]>, grid: usize) -> Option<Self> {
        if matches!(sizes[..], [] | [1]) {
            return None;
        }
        let gates = layout.add(GATES, &[sizes.len()]);
        Some(Scales { sizes: sizes.clone(), grid, gates })
    }

    /// Sides of the blocks in patches, `[S]`.
    #[must_use]
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Where the gates `[S]` lie in φ. They are 0 at the beginning: all scales count the same.
    #[must_use]
    pub const fn gates(&self) -> Weight {
        self.gates
    }

    /// The mean of `values` `[L]` of an image over the block of side `size` of each patch, `[L]`. The map is its own
    /// transpose: a block's patches have equal shares in each other.
    fn block_means(&self, values: &[f64], size: usize) -> Vec<f64> {
        let (grid, blocks) = (self.grid, self.grid.div_ceil(size));
        let block = |patch: usize| patch / grid / size * blocks + patch % grid / size;
        let mut sums = vec![(0.0, 0.0); blocks * blocks];
        for (patch, value) in values.iter().enumerate() {
            let (sum, num) = &mut sums[block(patch)];
            *sum += value;
            *num += 1.0;
        }
        (0..values.len()).map(|patch| sums[block(patch)]).map(|(sum, num)| sum / num).collect()
    }

    /// Logits `[batch, L]` from those of the network `[batch, L]` at `phi`.
    #[must_use]
    pub fn mix(&self, phi: &[f32], logits: &[f32]) -> Vec<f32> {
        let weights = softmax(&phi[self.gates.range()]);
        let mut out = Vec::with_capacity(logits.len());
        for image in logits.chunks_exact(self.grid * self.grid) {
            out.extend(self.mixture(&weights, image).into_iter().map(|value| value as f32));
        }
        out
    }

    /// Σ_s γ_s·blockₛ of `values` `[L]` of an image.
    fn mixture(&self, weights: &[f64], values: &[f32]) -> Vec<f64> {
        let values: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        let mut out = vec![0.0; values.len()];
        for (&size, weight) in self.sizes.iter().zip(weights) {
            out.iter_mut().zip(self.block_means(&values, size)).for_each(|(out, mean)| *out += weight * mean);
        }
        out
    }

    /// The gradient `[batch, L]` of the network's logits, which were `logits`, from that of the mixed ones, `dmixed`
    /// `[batch, L]`; adds the gradient of the gates to `dphi` if it is given. The sums run in f64 over the batch in its
    /// order.
    #[must_use]
    pub fn backward(&self, phi: &[f32], logits: &[f32], dmixed: &[f32], dphi: Option<&mut [f32]>) -> Vec<f32> {
        let (weights, num_patches) = (softmax(&phi[self.gates.range()]), self.grid * self.grid);
        let mut dlogits = Vec::with_capacity(dmixed.len());
        let mut dweights = vec![0.0; weights.len()];
        for (logits, dmixed) in logits.chunks_exact(num_patches).zip(dmixed.chunks_exact(num_patches)) {
            dlogits.extend(self.mixture(&weights, dmixed).into_iter().map(|value| value as f32));
            let logits: Vec<f64> = logits.iter().map(|&value| f64::from(value)).collect();
            for (&size, dweight) in self.sizes.iter().zip(&mut dweights) {
                let means = self.block_means(&logits, size);
                *dweight += means.iter().zip(dmixed).map(|(mean, &d)| mean * f64::from(d)).sum::<f64>();
            }
        }
        if let Some(dphi) = dphi {
            let mean: f64 = weights.iter().zip(&dweights).map(|(weight, d)| weight * d).sum();
            let gates = dphi[self.gates.range()].iter_mut().zip(weights.iter().zip(&dweights));
            gates.for_each(|(dgate, (weight, d))| *dgate += (weight * (d - mean)) as f32);
        }
        dlogits
    }
}

/// exp(xᵢ)/Σ exp(xⱼ) in f64.
#[must_use]
pub fn softmax(x: &[f32]) -> Vec<f64> {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = x.iter().map(|&x| (f64::from(x) - f64::from(top)).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{normals, tensor_rng};
    use crate::level::Level;
    use crate::masking::{Masking, MaskingFacts};
    use crate::parallel::arena::Buffer;
    use crate::parallel::compute::Compute;

    fn draw(name: &str, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        normals(&mut values, 1.0, &mut tensor_rng(6, name));
        values
    }

    /// The formula, written out for each patch: Σ_s softmax(gates)_s times the mean of the logits in the block.
    fn formula(sizes: &[usize], grid: usize, gates: &[f64], logits: &[f64]) -> Vec<f64> {
        let sum: f64 = gates.iter().map(|gate| gate.exp()).sum();
        let of_patch = |patch: usize| {
            let of_size = |(&size, gate): (&usize, &f64)| {
                let (top, left) = (patch / grid / size * size, patch % grid / size * size);
                let rows = top..(top + size).min(grid);
                let cells = rows.flat_map(|y| (left..(left + size).min(grid)).map(move |x| logits[y * grid + x]));
                let cells: Vec<f64> = cells.collect();
                gate.exp() / sum * cells.iter().sum::<f64>() / cells.len() as f64
            };
            sizes.iter().zip(gates).map(of_size).sum()
        };
        (0..grid * grid).map(of_patch).collect()
    }

    #[test]
    fn logits_and_gradients_are_those_of_the_formula() {
        let (grid, batch, sizes) = (5, 2, [1, 2, 4]);
        let mut layout = Layout::new(Level::Mask);
        let scales = Scales::add_to(&mut layout, &sizes.into(), grid).unwrap();
        let (gates, logits) = (draw("gates", 3), draw("logits", batch * 25));
        let cotangent = draw("cotangent", batch * 25);
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (wide_gates, wide_logits) = (wide(&gates), wide(&logits));
        let all = |gates: &[f64], logits: &[f64]| -> Vec<f64> {
            logits.chunks_exact(25).flat_map(|image| formula(&sizes, grid, gates, image)).collect()
        };
        for (got, expected) in scales.mix(&gates, &logits).iter().zip(all(&wide_gates, &wide_logits)) {
            assert!((f64::from(*got) - expected).abs() < 1e-6, "{got} {expected}");
        }
        let value = |gates: &[f64], logits: &[f64]| -> f64 {
            all(gates, logits).iter().zip(&cotangent).map(|(mixed, &c)| mixed * f64::from(c)).sum()
        };
        let mut dgates = vec![0.0; 3];
        let dlogits = scales.backward(&gates, &logits, &cotangent, Some(&mut dgates));
        let moved = |x: &[f64], i: usize, step: f64| {
            let mut x = x.to_vec();
            x[i] += step;
            x
        };
        for (i, got) in dgates.iter().enumerate() {
            let at = |step| value(&moved(&wide_gates, i, step), &wide_logits);
            let expected = (at(1e-4) - at(-1e-4)) / 2e-4;
            assert!((f64::from(*got) - expected).abs() < 1e-5, "gate {i}: {got} {expected}");
        }
        for (i, got) in dlogits.iter().enumerate() {
            let at = |step| value(&wide_gates, &moved(&wide_logits, i, step));
            let expected = (at(1e-4) - at(-1e-4)) / 2e-4;
            assert!((f64::from(*got) - expected).abs() < 1e-5, "logit {i}: {got} {expected}");
        }
    }

    fn facts(scales: &[usize]) -> MaskingFacts {
        MaskingFacts { patch_values: 8, channels: 2, hidden: 6, scales: scales.into(), ..MaskingFacts::of_grid(5, 9) }
    }

    fn maskings(scales: &[usize]) -> [Box<dyn Masking>; 2] {
        let facts = facts(scales);
        [Box::new(super::super::linear::Linear::new(&facts)), Box::new(super::super::token::TokenMlp::new(&facts))]
    }

    #[test]
    fn one_scale_of_single_patches_is_the_network_itself() {
        let input = Arc::new(Buffer::from_vec(draw("images", 3 * 25 * 8)));
        let compute = Compute::serial(2);
        for (plain, (alone, scaled)) in maskings(&[]).iter().zip(maskings(&[1]).iter().zip(maskings(&[1, 2]).iter())) {
            assert_eq!(plain.layout(), alone.layout());
            let (phi, scaled_phi) = (plain.init(3), scaled.init(3));
            assert_eq!(phi[..], scaled_phi[..phi.len()], "the gates come last");
            assert_eq!(scaled_phi[phi.len()..], [0.0; 2]);
            let p = |masking: &dyn Masking, phi: &[f32]| {
                masking.forward(&compute, phi, &input, &[]).unwrap().scores.to_vec()
            };
            assert_eq!(p(&**plain, &phi), p(&**alone, &phi));
            // A gate that is far above the others is the scale alone.
            let mut far = scaled_phi.to_vec();
            far[phi.len()] = 50.0;
            for (one, other) in p(&**plain, &phi).iter().zip(p(&**scaled, &far)) {
                assert!((one - other).abs() < 1e-6, "{one} {other}");
            }
        }
    }

    #[test]
    fn maskings_have_the_gradient_of_scores_on_several_scales() {
        let input = Arc::new(Buffer::from_vec(draw("images", 3 * 25 * 8)));
        let cotangent = draw("cotangent", 3 * 25);
        for masking in maskings(&[1, 2, 4]) {
            let mut phi: Vec<f32> = masking.init(4).to_vec();
            let start = phi.len() - 3;
            phi[start..].copy_from_slice(&[0.4, -0.3, 0.8]);
            // Weights of a size at which scores differ.
            phi[..start].iter_mut().zip(draw("phi", start)).for_each(|(w, d)| *w += 0.2 * d);
            let gradient = |compute: &Compute| {
                let trace = masking.forward(compute, &phi, &input, &[]).unwrap();
                let mut gradient = vec![0.0; phi.len()];
                masking.backward(compute, &phi, &trace, &cotangent, Some(&mut gradient), false);
                (trace.scores.to_vec(), gradient)
            };
            let (scores, got) = gradient(&Compute::serial(2));
            let threads = Compute::new(3, 2, crate::parallel::arena::Arena::new()).unwrap();
            assert_eq!((scores, got.clone()), gradient(&threads), "threads change nothing");
            // A gradient in f32 is that of the scores' differences, the gates' and a share of the weights'.
            for i in (0..phi.len()).filter(|i| *i >= start || i % 7 == 0) {
                let at = |step: f32| {
                    let mut moved = phi.clone();
                    moved[i] += step;
                    let scores = masking.forward(&Compute::serial(2), &moved, &input, &[]).unwrap().scores;
                    scores.iter().zip(&cotangent).map(|(&p, &c)| f64::from(p) * f64::from(c)).sum::<f64>()
                };
                let expected = (at(1e-3) - at(-1e-3)) / f64::from(2e-3f32);
                let bound = 2e-3 + 2e-2 * expected.abs();
                assert!((f64::from(got[i]) - expected).abs() < bound, "{masking:?} {i}: {} {expected}", got[i]);
            }
        }
    }
}
