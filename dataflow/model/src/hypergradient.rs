//! The forms of the hypergradient ∂φ = D[v1; θ; L_m; φ] + D[w; θ; L_m; φ]: how v1 and w are found, and the derivative along them.
//!
//! A form is one entry of [`FORMS`]; nothing else asks which one is in use.

use crate::choice::{Choice, Named, Registry};
use crate::error::ModelError;
use crate::lane::{Direction, Downstream, FinetuneGradient, Lane, Upstream};
use crate::tasks::Noise;
use crate::vector::Vector;

/// The hypergradient, and what is known of its two paths.
#[derive(Clone, Debug)]
pub struct Along {
    /// ∂φ.
    pub gradient: Vector,
    /// Norms of the paths mask → finetune → pretrain → mask and mask → pretrain → mask, where they are computed one by one.
    pub path_norms: Option<[f64; 2]>,
}

/// A way to compute the hypergradient.
///
/// Level 2 calls [`finetune`](Hypergradient::finetune), updates c and calls [`direction`](Hypergradient::direction); level 3 calls
/// [`along`](Hypergradient::along). `noise` is the head's dropout by number of the pass; pass 0 is level 2's own step.
pub trait Hypergradient: Named {
    /// L_f and its gradient for c.
    ///
    /// # Errors
    /// When the lane fails.
    fn finetune(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<FinetuneGradient, ModelError>;

    /// v1 and w at the updated c (`at.c`).
    ///
    /// # Errors
    /// When the lane fails.
    fn direction(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        finetune: FinetuneGradient,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError>;

    /// ∂φ along v1 and w.
    ///
    /// # Errors
    /// When the lane fails.
    fn along(
        &self,
        lane: &mut dyn Lane,
        at: &Upstream<'_>,
        v1: &Vector,
        w: &Vector,
        alpha: f64,
    ) -> Result<Along, ModelError>;
}

/// Every form; the first is the default.
pub static FORMS: &[&dyn Hypergradient] = &[&Clean, &Published];

impl Registry for dyn Hypergradient {
    const WHAT: &'static str = "hypergradient";
    fn entries() -> &'static [&'static Self] {
        FORMS
    }
}

/// A form that was chosen by name.
pub type HypergradientChoice = Choice<dyn Hypergradient>;

/// One encoder pass over each batch, one difference along v1 + w, no dropout in any of it.
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
        v1: &Vector,
        w: &Vector,
        alpha: f64,
    ) -> Result<Along, ModelError> {
        let v = lane.sum(v1, w)?;
        Ok(Along { gradient: lane.difference(at, &v, alpha)?, path_norms: None })
    }
}

/// The passes of the published program: one for each quantity, a difference for each path, dropout redrawn in each.
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
        v1: &Vector,
        w: &Vector,
        alpha: f64,
    ) -> Result<Along, ModelError> {
        let (g0, g1) = (lane.difference(at, v1, alpha)?, lane.difference(at, w, alpha)?);
        let path_norms = Some([lane.norm(&g0)?, lane.norm(&g1)?]);
        Ok(Along { gradient: lane.sum(&g0, &g1)?, path_norms })
    }
}
