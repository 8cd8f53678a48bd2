//! One outer iteration of MLO-MAE (Guo et al., TMLR 2025, arXiv 2402.18128, Algorithm 1), in the paper's letters.
//!
//! θ is encoder and decoder, c the downstream head, φ the masking network. The stages of the pipeline call the same five functions, cut
//! apart by queues: [`Lane::score`], [`Lane::pretrain`], [`Hypergradient::finetune`], [`Hypergradient::direction`] and
//! [`Hypergradient::along`].

use crate::error::ModelError;
use crate::hypergradient::{Along, Hypergradient};
use crate::lane::{Direction, Downstream, FinetuneGradient, LabelledImages, Lane, PretrainGradient, Upstream};
use crate::level::PerLevel;
use crate::levels::optimizer::AdamW;
use crate::masking::{MaskRule, Scored};
use crate::tasks::Noise;
use crate::vector::Vector;

/// What an outer iteration changes: the three variables and their optimizers.
#[derive(Clone, Debug)]
pub struct State {
    /// θ.
    pub theta: Vector,
    /// c.
    pub c: Vector,
    /// φ.
    pub phi: Vector,
    /// AdamW of each level.
    pub adamw: PerLevel<AdamW>,
}

/// What the algorithm is told from outside.
#[derive(Clone, Copy)]
pub struct Constants<'a> {
    /// Form of the hypergradient.
    pub form: &'a dyn Hypergradient,
    /// α of the finite differences.
    pub alpha: f64,
    /// Learning rate of each level by its step.
    pub rates: PerLevel<&'a dyn Fn(u64) -> f64>,
    /// How level-1 step `k` is masked.
    pub rule: &'a dyn Fn(u64) -> MaskRule,
    /// Dropout of the head by outer iteration and pass.
    pub noise: &'a dyn Fn(u64, u64) -> Option<Noise>,
}

/// The batches of one outer iteration.
#[derive(Clone, Copy, Debug)]
pub struct Batches<'a> {
    /// Unlabelled, one a level-1 step (k of them), each `[batch, C, H, W]`.
    pub pretrain: &'a [Vector],
    /// F, of level 2.
    pub finetune: LabelledImages<'a>,
    /// V, of level 3.
    pub validation: LabelledImages<'a>,
}

/// What an observer sees, in the order of the algorithm.
#[derive(Debug)]
pub enum Event<'a> {
    /// A batch was masked.
    Scored(&'a Scored),
    /// A step of level 1 is done.
    Pretrain(&'a PretrainGradient),
    /// Level 2's step is done.
    Finetune(&'a FinetuneGradient),
    /// v0, v1 and w at the updated c.
    Direction(&'a Direction),
    /// Level 3's step is done.
    Hypergradient(&'a Along),
}

/// Outer iteration `outer`, counted from 0: k level-1 steps, one of level 2, one of level 3; the first alone where nothing is learned.
///
/// # Errors
/// When the lane fails.
#[rustfmt::skip]
pub fn outer_iteration(
    lane: &mut dyn Lane, m: &Constants<'_>, s: &mut State, x: &Batches<'_>, outer: u64, see: &mut dyn FnMut(Event<'_>),
) -> Result<(), ModelError> {
    // Level 1: θ ← θ − η ∂L_m/∂θ, k times. L_m weighs each masked patch's loss by its score.
    let k = x.pretrain.len() as u64;
    for (step, x_p) in (outer * k..).zip(x.pretrain) {
        let scored = lane.score(Some(&s.theta), &s.phi, x_p, &(m.rule)(step))?;
        see(Event::Scored(&scored));
        let g = lane.pretrain(&s.theta, &s.phi, x_p, &scored)?;
        s.theta = lane.update(&mut s.adamw.pretrain, &s.theta, &g.gradient, (m.rates.pretrain)(step))?;
        see(Event::Pretrain(&g));
    }
    let Some(x_p) = x.pretrain.last().filter(|_| lane.model().is_learned()) else { return Ok(()) };

    // Level 2: c ← c − η ∂L_f/∂c, the encoder frozen.
    let noise = |pass| (m.noise)(outer, pass);
    let (finetune, validation) = (x.finetune, x.validation);
    let f = m.form.finetune(lane, &Downstream { theta: &s.theta, c: &s.c, finetune, validation }, &noise)?;
    s.c = lane.update(&mut s.adamw.finetune, &s.c, &f.gradient, (m.rates.finetune)(outer))?;
    see(Event::Finetune(&f));

    // Level 3: v1 and w at the updated θ and c, then φ ← φ − η ∂φ.
    let at = Downstream { theta: &s.theta, c: &s.c, finetune, validation };
    let v = m.form.direction(lane, &at, f, m.alpha, &noise)?;
    see(Event::Direction(&v));
    let rule = &(m.rule)((outer + 1) * k - 1);
    let at = Upstream { theta: &s.theta, phi: &s.phi, images: x_p, rule };
    let g = m.form.along(lane, &at, &v.v1, &v.w, m.alpha)?;
    s.phi = lane.update(&mut s.adamw.mask, &s.phi, &g.gradient, (m.rates.mask)(outer))?;
    see(Event::Hypergradient(&g));
    Ok(())
}
