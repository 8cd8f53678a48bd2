//! One outer iteration of MLO-MAE (Guo et al., TMLR 2025, arXiv 2402.18128, Algorithm 1), in the paper's letters.
//!
//! θ is encoder and decoder, c the downstream head, φ the masking network. The training pipeline calls the same
//! functions, each in a stage of its own with queues between them: [`Lane::score`], [`Lane::pretrain`],
//! [`Hypergradient::finetune`], [`Hypergradient::direction`], [`Hypergradient::along`], and [`Lane::update`] after each
//! gradient.
//!
//! An outer iteration on random images (the example program `outer_iteration` runs several and prints the losses):
//!
//! ```
//! use std::sync::Arc;
//!
//! use mlomae_model::algorithm::{Batches, Constants, State, outer_iteration};
//! use mlomae_model::hypergradient::{Carried, Clean, Settings};
//! use mlomae_model::init::{normals, tensor_rng};
//! use mlomae_model::lane::{CpuLane, LabelledImages};
//! use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
//! use mlomae_model::masking::MaskRule;
//! use mlomae_model::tasks::Targets;
//! use mlomae_model::{Level, Model, ModelConfig, PerLevel, Vector};
//!
//! # fn main() -> Result<(), mlomae_model::ModelError> {
//! let config = ModelConfig { image: 8, dim: 24, depth: 1, dec_dim: 16, dec_depth: 1, ..ModelConfig::default() };
//! let model = Arc::new(Model::new(&config)?);
//! let mut lane = CpuLane::serial(model.clone(), 2);
//! let init = |level| Vector::from(model.init(level, 1));
//! let adamw = PerLevel::from_fn(|level| AdamW::new(AdamWConfig::default(), model.layout(level)));
//! let [theta, c, phi] = Level::ALL.map(init);
//! let mut state = State { theta, c, phi, adamw, carried: Carried::default() };
//!
//! let mut images = vec![0.0; 4 * config.image_values()]; // [4, 3, 8, 8]
//! normals(&mut images, 1.0, &mut tensor_rng(1, "images"));
//! let (images, targets) = (Vector::from(images), Targets::Classes([0, 1, 2, 3].into()));
//! let labelled = LabelledImages { images: &images, targets: &targets };
//! let constants = Constants {
//!     form: &Clean,
//!     settings: Settings::default(),
//!     rates: PerLevel { pretrain: &|_| 1e-4, finetune: &|_| 1e-3, mask: &|_| 1e-3 },
//!     rule: &|_| MaskRule::BY_SCORE,
//!     noise: &|_, _| None,
//! };
//! let pretrain = [images.clone(), images.clone()]; // two steps of level 1
//! let batches = Batches { pretrain: &pretrain, finetune: labelled, validation: labelled };
//! outer_iteration(&mut lane, &constants, &mut state, &batches, 0, &mut |_| {})?;
//! let steps = [state.adamw.pretrain.step, state.adamw.finetune.step, state.adamw.mask.step];
//! assert_eq!(steps, [2, 1, 1]);
//! # Ok(())
//! # }
//! ```

use crate::error::ModelError;
use crate::hypergradient::{Along, Carried, Hypergradient, Settings};
use crate::lane::{Direction, Downstream, FinetuneGradient, LabelledImages, Lane, PretrainGradient, Upstream};
use crate::level::PerLevel;
use crate::levels::optimizer::AdamW;
use crate::masking::{MaskRule, Scored};
use crate::search::{Moment, Progress};
use crate::tasks::Noise;
use crate::vector::Vector;

/// What an outer iteration changes: the three variables and their optimizers, in memory of the lane (see
/// [`Lane::upload`]).
#[derive(Clone, Debug)]
pub struct State {
    /// θ, flat under the layout of [`Level::Pretrain`](crate::Level::Pretrain).
    pub theta: Vector,
    /// c, flat under the layout of [`Level::Finetune`](crate::Level::Finetune).
    pub c: Vector,
    /// φ, flat under the layout of [`Level::Mask`](crate::Level::Mask); empty where nothing is learned.
    pub phi: Vector,
    /// AdamW of each level.
    pub adamw: PerLevel<AdamW>,
    /// What level 3 keeps from one outer iteration to the next.
    pub carried: Carried,
}

impl State {
    /// The same state in memory of `lane`.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    pub fn upload(self, lane: &dyn Lane) -> Result<Self, ModelError> {
        let State { theta, c, phi, adamw, carried } = self;
        let adamw = PerLevel::try_from_fn(|level| {
            let of_level = adamw[level].clone();
            let (m, v) = (lane.upload(&of_level.m)?, lane.upload(&of_level.v)?);
            Ok::<_, ModelError>(of_level.with_moments(m, v))
        })?;
        let [theta, c, phi] = [lane.upload(&theta)?, lane.upload(&c)?, lane.upload(&phi)?];
        Ok(State { theta, c, phi, adamw, carried: carried.upload(lane)? })
    }
}

/// Hyperparameters, as functions where they change over the run.
#[derive(Clone, Copy)]
pub struct Constants<'a> {
    /// Form of the hypergradient.
    pub form: &'a dyn Hypergradient,
    /// Numbers and variants of level 3.
    pub settings: Settings,
    /// Learning rate of each level by its step, counted from 0 over the run: level-1 steps for level 1, outer
    /// iterations for levels 2 and 3.
    pub rates: PerLevel<&'a dyn Fn(u64) -> f64>,
    /// How the batch of a level-1 step, counted from 0 over the run, is masked by φ.
    pub rule: &'a dyn Fn(u64) -> MaskRule,
    /// Dropout of the head by outer iteration and by number of the pass within it (see [`Hypergradient`]); none without
    /// dropout.
    pub noise: &'a dyn Fn(u64, u64) -> Option<Noise>,
}

/// The batches of one outer iteration.
#[derive(Clone, Copy, Debug)]
pub struct Batches<'a> {
    /// Unlabelled, one for each of the k level-1 steps, each `[batch, C, H, W]`; k must be the same in every iteration.
    pub pretrain: &'a [Vector],
    /// Batch F of level 2.
    pub finetune: LabelledImages<'a>,
    /// Batch V of level 3.
    pub validation: LabelledImages<'a>,
}

/// What an observer is called with, in the order of the algorithm.
#[derive(Debug)]
pub enum Event<'a> {
    /// The batch of a level-1 step was masked.
    Scored(&'a Scored),
    /// θ was updated with this gradient.
    Pretrain(&'a PretrainGradient),
    /// c was updated with this gradient.
    Finetune(&'a FinetuneGradient),
    /// v0, v1 and w at the updated θ and c.
    Direction(&'a Direction),
    /// The branches of the search that is on were trained; φ is that of its decision, where it has ended.
    Search(&'a Progress),
    /// φ was updated with this hypergradient, or a search for its next value has begun.
    Hypergradient(&'a Along),
}

/// Outer iteration `outer`, counted from 0: k level-1 steps, then one step of level 2 and one of level 3. Where masks
/// are not learned, level 1 alone.
///
/// `see` is called after each part, see [`Event`].
///
/// # Errors
/// Any error of the lane. The steps done before it stay in `s`.
#[rustfmt::skip]
pub fn outer_iteration(
    lane: &mut dyn Lane, m: &Constants<'_>, s: &mut State, x: &Batches<'_>, outer: u64, see: &mut dyn FnMut(Event<'_>),
) -> Result<(), ModelError> {
    // Level 1: θ ← θ − η ∂L_m/∂θ, k times. L_m weighs each masked patch's loss by its score.
    let k = x.pretrain.len() as u64;
    for (step, x_p) in (outer * k..).zip(x.pretrain) {
        let rule = MaskRule { is_random: s.carried.is_random, ..(m.rule)(step) };
        let scored = lane.score(Some(&s.theta), &s.phi, x_p, &rule)?;
        see(Event::Scored(&scored));
        let g = lane.pretrain(&s.theta, &s.phi, x_p, &scored)?;
        s.theta = lane.update(&mut s.adamw.pretrain, &s.theta, &g.gradient, (m.rates.pretrain)(step))?;
        see(Event::Pretrain(&g));
    }
    let Some(x_p) = x.pretrain.last().filter(|_| lane.model().is_learned()) else { return Ok(()) };

    // Level 2: c ← c − η ∂L_f/∂c, the encoder frozen.
    let noise = |pass| (m.noise)(outer, pass);
    let (finetune, validation) = (x.finetune, x.validation);
    let bank = &s.carried.bank;
    let f = m.form.finetune(lane, &Downstream { theta: &s.theta, c: &s.c, finetune, validation, bank }, &noise)?;
    s.c = lane.update(&mut s.adamw.finetune, &s.c, &f.gradient, (m.rates.finetune)(outer))?;
    see(Event::Finetune(&f));

    // Level 3: v1 and w at the updated θ and c, then φ ← φ − η ∂φ.
    let at = Downstream { theta: &s.theta, c: &s.c, finetune, validation, bank };
    let mut v = m.form.direction(lane, &at, f, &m.settings, &noise)?;
    see(Event::Direction(&v));
    s.carried.add_response(v.response.take(), &m.settings);
    if m.settings.precondition {
        for v in [&mut v.v1, &mut v.w] {
            *v = lane.preconditioned(v, &s.adamw.pretrain.v, s.adamw.pretrain.step, &s.adamw.pretrain.config)?;
        }
    }
    let last = (outer + 1) * k - 1;
    let (rule, rate) = (&(m.rule)(last), (m.rates.pretrain)(last));
    let now = Moment { theta: &s.theta, adamw: &s.adamw.pretrain, images: x_p, rule, rate, finetune, validation };
    // A branch search that is on goes on by a step, and may decide on φ.
    if let Some(progress) = s.carried.advance_search(lane, &s.phi, &now, &m.settings)? {
        if let Some((_, policy)) = &progress.end {
            s.phi = policy.phi.clone();
        }
        see(Event::Search(&progress));
    }
    let (estimator, want_signal) = (m.settings.estimator, false);
    let at = Upstream { theta: &s.theta, phi: &s.phi, images: x_p, rule, estimator, want_signal };
    let g = s.carried.along(m.form, lane, &at, [v.v1, v.w], &m.settings)?;
    let rate = (m.rates.mask)(outer);
    s.phi = s.carried.update(lane, &mut s.adamw.mask, &s.phi, &g.gradient, rate, (Some(&now), &m.settings))?;
    see(Event::Hypergradient(&g));
    Ok(())
}
