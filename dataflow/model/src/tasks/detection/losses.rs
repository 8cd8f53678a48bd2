//! The losses of a location, each with its derivative.

use crate::tasks::layers::activation::{sigmoid, softplus};

/// Weight α of the class that is there in the focal loss; the others have 1 − α.
const FOCAL_ALPHA: f64 = 0.25;
/// Exponent γ of the focal loss.
const FOCAL_GAMMA: i32 = 2;

/// Focal loss (arXiv 1708.02002) of one class's logit: −α·(1 − p)^γ·ln p where the class is there, else
/// −(1 − α)·p^γ·ln(1 − p), with p its sigmoid. Returns it and its derivative.
#[must_use]
pub fn focal(logit: f64, is_there: bool) -> (f64, f64) {
    // Both are one formula, of the logit against the class that is there.
    let (x, alpha, sign) = if is_there { (-logit, FOCAL_ALPHA, -1.0) } else { (logit, 1.0 - FOCAL_ALPHA, 1.0) };
    let (p, surprise) = (sigmoid(x), softplus(x));
    let weight = alpha * p.powi(FOCAL_GAMMA);
    (weight * surprise, sign * weight * (p + f64::from(FOCAL_GAMMA) * sigmoid(-x) * surprise))
}

/// Binary cross entropy of a logit and a target in [0, 1], and its derivative.
#[must_use]
pub fn binary_cross_entropy(logit: f64, target: f64) -> (f64, f64) {
    (softplus(logit) - logit * target, sigmoid(logit) - target)
}

/// 1 − GIoU (arXiv 1902.09630) of two boxes around one point, as distances from it to the left, top, right and bottom
/// edge, all above 0; and its derivatives for the first box. Where an edge of both is the same, the derivative is that of
/// neither side but 0 for the part that changes.
#[must_use]
pub fn giou(found: [f64; 4], target: [f64; 4]) -> (f64, [f64; 4]) {
    let pair = |f: fn(f64, f64) -> f64, side: usize| f(found[side], target[side]);
    let sides = |f: fn(f64, f64) -> f64| [pair(f, 0) + pair(f, 2), pair(f, 1) + pair(f, 3)];
    let [[inner_w, inner_h], [outer_w, outer_h]] = [sides(f64::min), sides(f64::max)];
    let [found_w, found_h] = [found[0] + found[2], found[1] + found[3]];
    let (shared, hull) = (inner_w * inner_h, outer_w * outer_h);
    let union = found_w * found_h + (target[0] + target[2]) * (target[1] + target[3]) - shared;
    let derivative = std::array::from_fn(|side| {
        let across = |w: f64, h: f64| if side % 2 == 0 { h } else { w };
        let d_shared = if found[side] < target[side] { across(inner_w, inner_h) } else { 0.0 };
        let d_hull = if found[side] > target[side] { across(outer_w, outer_h) } else { 0.0 };
        let d_union = across(found_w, found_h) - d_shared;
        -(d_shared * union - shared * d_union) / (union * union) - (d_union * hull - union * d_hull) / (hull * hull)
    });
    (2.0 - shared / union - union / hull, derivative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, keyed, uniform};

    /// A difference of fourth order.
    fn slope(f: impl Fn(f64) -> f64, at: f64) -> f64 {
        let d = |h: f64| (f(at + h) - f(at - h)) / (2.0 * h);
        (4.0 * d(1e-3) - d(2e-3)) / 3.0
    }

    #[test]
    fn derivatives_of_logits_are_those_of_differences() {
        for i in -60..=60 {
            let logit = f64::from(i) * 0.2 + 0.05;
            for is_there in [false, true] {
                let error = slope(|x| focal(x, is_there).0, logit) - focal(logit, is_there).1;
                assert!(error.abs() < 1e-11, "focal at {logit}: {error:e}");
            }
            for target in [0.0, 0.3, 1.0] {
                let error = slope(|x| binary_cross_entropy(x, target).0, logit) - binary_cross_entropy(logit, target).1;
                assert!(error.abs() < 1e-11, "cross entropy at {logit}: {error:e}");
            }
        }
        assert_eq!(focal(900.0, true), (0.0, -0.0));
        assert!(focal(-900.0, true).0.is_finite());
    }

    #[test]
    fn derivatives_of_giou_are_those_of_differences() {
        let mut rng = keyed(1, Purpose::Eval, 0, 0);
        for _ in 0..200 {
            let mut draw = || std::array::from_fn(|_| 0.2 + 3.0 * uniform(&mut rng));
            let (found, target): ([f64; 4], [f64; 4]) = (draw(), draw());
            let (loss, derivative) = giou(found, target);
            assert!((0.0..2.0).contains(&loss));
            // Differences are those of one side alone: an edge that passes the target's has a kink.
            for side in (0..4).filter(|side| (found[*side] - target[*side]).abs() > 3e-3) {
                let with = |x| {
                    let mut moved = found;
                    moved[side] = x;
                    giou(moved, target).0
                };
                let error = slope(with, found[side]) - derivative[side];
                assert!(error.abs() < 1e-9, "{found:?} {target:?}: {error:e}");
            }
        }
    }

    #[test]
    fn giou_of_known_boxes() {
        assert!(giou([1.0; 4], [1.0; 4]).0.abs() < 1e-15);
        // 2×2 in 4×4: a quarter shared, nothing beside both.
        assert!((giou([1.0; 4], [2.0; 4]).0 - 0.75).abs() < 1e-15);
        // [-1, 1]×[-2, 2] and [-2, 2]×[-1, 1]: 4 of 12 shared, a hull of 16.
        let crossed = giou([1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 2.0, 1.0]).0;
        assert!((crossed - (1.0 - (4.0 / 12.0 - 4.0 / 16.0))).abs() < 1e-15);
    }
}
