//! The forms of the hypergradient ∂φ, the gradient of the validation loss L_v for φ through the unrolled steps of
//! levels 1 and 2 (arXiv 2402.18128): how its directions v1 and w are found, and the derivative of L_m along them.
//!
//! ∂φ = D[v1; θ; L_m; φ] + D[w; θ; L_m; φ], with w = ∂L_v/∂θ, v0 = ∂L_v/∂c and v1 = D[v0; c; L_f; θ].
//! D[v; x; L; y] = (∂L/∂y at x − εv − ∂L/∂y at x + εv) / 2ε, ε = α/‖v‖₂, is the central finite difference of a
//! Hessian-vector product: D ≈ −(∂²L/∂y∂x)·v. The learning rates of the unrolled steps are left out.
//!
//! A form is a type here and an entry of [`FORMS`]; no other code depends on which one is in use.

use crate::choice::{Choice, Named, Registry};
use crate::error::ModelError;
use crate::lane::{Direction, Downstream, FinetuneGradient, Lane, Upstream};
use crate::precision::Precision;
use crate::tasks::Noise;
use crate::vector::Vector;

/// The hypergradient, and the norms of its two terms.
#[derive(Clone, Debug)]
pub struct Along {
    /// ∂φ, flat, as long as φ.
    pub gradient: Vector,
    /// ‖D[v1; θ; L_m; φ]‖₂ (the path mask → finetune → pretrain → mask) and ‖D[w; θ; L_m; φ]‖₂ (mask → pretrain →
    /// mask), where the two are computed one by one.
    pub path_norms: Option<[f64; 2]>,
}

/// A way to compute the hypergradient, without state: one instance serves all stages and threads.
///
/// Every outer iteration, the level-2 stage calls [`finetune`](Hypergradient::finetune), updates c with its gradient,
/// and calls [`direction`](Hypergradient::direction) on the same lane and thread, with the same θ and batches. The
/// level-3 stage then calls [`along`](Hypergradient::along), perhaps on another lane of the device and another thread,
/// while level 2 may already work on the next iteration. All vectors are in memory of the lane's device and are never
/// written: results are new vectors.
///
/// `noise(pass)` is the head's dropout in one pass of the outer iteration, none without dropout. Pass 0 is level 2's
/// own step; a form numbers its other passes from 1, and calls `noise` once for each pass that has dropout, so that the
/// draws of two passes are independent.
pub trait Hypergradient: Named {
    /// L_f and its gradient for c on `at.finetune`, at the c before the step. A form that needs the encoder's passes
    /// again in [`direction`](Hypergradient::direction) returns them in [`FinetuneGradient::recorded`].
    ///
    /// # Errors
    /// Any error of the lane.
    fn finetune(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<FinetuneGradient, ModelError>;

    /// L_v, v0, v1 and w. `at` is as in [`finetune`](Hypergradient::finetune) but for `at.c`, which is the updated c;
    /// `finetune` is what that call returned. v1 and w are as long as θ, and zero on the decoder and on frozen weights.
    ///
    /// # Errors
    /// Any error of the lane, or when `finetune` has no recording that the form needs.
    fn direction(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        finetune: FinetuneGradient,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError>;

    /// ∂φ from v1 and w at `at.theta`, the θ of [`direction`](Hypergradient::direction), and at `at.phi`, the φ that
    /// AdamW will move. With a policy lag that φ is newer than the one that scored `at.images` in level 1, so the
    /// images must be scored and masked anew by `at.rule`.
    ///
    /// # Errors
    /// Any error of the lane.
    fn along(
        &self,
        lane: &mut dyn Lane,
        at: &Upstream<'_>,
        v1: Vector,
        w: Vector,
        alpha: f64,
    ) -> Result<Along, ModelError>;
}

/// Every form; the first is the default.
pub static FORMS: &[&dyn Hypergradient] = &[&Clean, &Published, &Tangent];

impl Registry for dyn Hypergradient {
    const WHAT: &'static str = "hypergradient";
    fn entries() -> &'static [&'static Self] {
        FORMS
    }
}

/// A form that was chosen by name.
pub type HypergradientChoice = Choice<dyn Hypergradient>;

/// The form where none is chosen. In tf32 and bf16 it is the derivative itself: differences of losses that are rounded
/// to 11 or 8 bits are noise.
#[must_use]
pub fn default_form(precision: Precision) -> HypergradientChoice {
    match precision {
        Precision::F32 => HypergradientChoice::default(),
        Precision::Tf32 | Precision::Bf16 => Choice::of(&Tangent),
    }
}

/// Why `form` is no good in `precision`, as a line; none if it is.
#[must_use]
pub fn doubt(form: HypergradientChoice, precision: Precision) -> Option<String> {
    (precision != Precision::F32 && form != default_form(precision)).then(|| {
        format!(
            "method.hypergradient = \"{form}\" with compute.precision = \"{precision}\": a finite difference of losses \
             in {precision} is mostly rounding; \"{}\" takes the derivative itself",
            default_form(precision)
        )
    })
}

/// v1 + w, which serves both paths. The two are freed before the passes that follow, whose activations are the peak of
/// memory.
fn joint(lane: &mut dyn Lane, v1: Vector, w: Vector) -> Result<Vector, ModelError> {
    lane.sum(&v1, &w)
}

/// One encoder pass over each labelled batch and one difference along v1 + w. Level 2's step has the head's dropout;
/// nothing of level 3 has, so that v1 is the derivative of a fixed function.
#[derive(Debug)]
pub struct Clean;

impl Named for Clean {
    fn name(&self) -> &'static str {
        "clean"
    }
    fn summary(&self) -> &'static str {
        "One joint encoder pass, one summed direction, no dropout, on a scratch copy of the weights"
    }
}

impl Hypergradient for Clean {
    fn finetune(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<FinetuneGradient, ModelError> {
        lane.finetune(at, noise(0), true)
    }

    fn direction(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        finetune: FinetuneGradient,
        alpha: f64,
        _: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        let recorded = finetune.recorded.ok_or_else(|| ModelError::Lane {
            lane: "any",
            problem: "level 2 has kept no passes for level 3".to_owned(),
        })?;
        lane.direction(at, recorded, alpha)
    }

    fn along(
        &self,
        lane: &mut dyn Lane,
        at: &Upstream<'_>,
        v1: Vector,
        w: Vector,
        alpha: f64,
    ) -> Result<Along, ModelError> {
        let v = joint(lane, v1, w)?;
        Ok(Along { gradient: lane.difference(at, &v, alpha)?, path_norms: None })
    }
}

/// The passes of the published program: an encoder pass for each quantity, a difference for each path, and the head's
/// dropout redrawn in each pass (1: validation, 2: c + εv0, 3: c − εv0).
#[derive(Debug)]
pub struct Published;

impl Named for Published {
    fn name(&self) -> &'static str {
        "published"
    }
    fn summary(&self) -> &'static str {
        "The passes of the published program, one difference for each path, with the head's dropout on"
    }
}

impl Hypergradient for Published {
    fn finetune(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<FinetuneGradient, ModelError> {
        lane.finetune(at, noise(0), false)
    }

    fn direction(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        _: FinetuneGradient,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        lane.direction_published(at, alpha, noise)
    }

    fn along(
        &self,
        lane: &mut dyn Lane,
        at: &Upstream<'_>,
        v1: Vector,
        w: Vector,
        alpha: f64,
    ) -> Result<Along, ModelError> {
        let (g0, g1) = (lane.difference(at, &v1, alpha)?, lane.difference(at, &w, alpha)?);
        let path_norms = Some([lane.norm(&g0)?, lane.norm(&g1)?]);
        Ok(Along { gradient: lane.sum(&g0, &g1)?, path_norms })
    }
}

/// As [`Clean`], but the derivative along v1 + w itself instead of a difference: no ε, and no mask flips between its
/// ends.
#[derive(Debug)]
pub struct Tangent;

impl Named for Tangent {
    fn name(&self) -> &'static str {
        "tangent"
    }
    fn summary(&self) -> &'static str {
        "As clean, with the derivative itself (forward mode) instead of a finite difference over the encoder"
    }
}

impl Hypergradient for Tangent {
    fn finetune(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<FinetuneGradient, ModelError> {
        Clean.finetune(lane, at, noise)
    }

    fn direction(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        finetune: FinetuneGradient,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        Clean.direction(lane, at, finetune, alpha, noise)
    }

    fn along(
        &self,
        lane: &mut dyn Lane,
        at: &Upstream<'_>,
        v1: Vector,
        w: Vector,
        _: f64,
    ) -> Result<Along, ModelError> {
        let v = joint(lane, v1, w)?;
        Ok(Along { gradient: lane.tangent(at, &v)?, path_norms: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_takes_the_derivative_itself() {
        let clean = HypergradientChoice::default();
        assert_eq!((default_form(Precision::F32), doubt(clean, Precision::F32)), (clean, None));
        assert!(doubt(clean, Precision::Bf16).is_some_and(|line| line.contains("\"clean\"")));
        assert_eq!(doubt(default_form(Precision::Bf16), Precision::Bf16), None);
    }
}
