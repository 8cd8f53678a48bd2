//! The forms of the hypergradient ∂φ, the gradient of the validation loss L_v for φ through the unrolled steps of
//! levels 1 and 2 (arXiv 2402.18128): how its directions v1 and w are found, and the derivative of L_m along them.
//!
//! ∂φ = D[v1; θ; L_m; φ] + D[w; θ; L_m; φ], with w = ∂L_v/∂θ, v0 = ∂L_v/∂c and v1 = D[v0; c; L_f; θ].
//! D[v; x; L; y] = (∂L/∂y at x − εv − ∂L/∂y at x + εv) / 2ε, ε = α/‖v‖₂, is the central finite difference of a
//! Hessian-vector product: D ≈ −(∂²L/∂y∂x)·v. The learning rates of the unrolled steps are left out.
//!
//! A form is a type here and an entry of [`FORMS`]; no other code depends on which one is in use.

use std::sync::Arc;

use crate::choice::{Choice, Named, Registry};
use crate::error::ModelError;
use crate::lane::{Direction, Downstream, FinetuneGradient, Lane, Recording, Response, Upstream};
use crate::levels::mask::cotangent_difference;
use crate::levels::optimizer::AdamW;
use crate::levels::vectors::{norm_wide, shifted_wide, step_size};
use crate::masking::arms::RatioArms;
use crate::masking::{MaskWeights, Needs};
use crate::policy::{self, Derivative, Estimator, Signal};
use crate::precision::Precision;
use crate::search::{Moment, Policy, PolicySearch, Progress, Search};
use crate::tasks::ridge::{Bank, Rows, respond_with_bank};
use crate::tasks::{At, Noise, Share, Targets, Tokens, Want};
use crate::vector::Vector;

/// Numbers and variants of level 3, the same over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// α of the finite differences: the step along v is ε = α/‖v‖₂.
    pub alpha: f64,
    /// λ of [`Ridge`], relative to the features' mean variance.
    pub ridge_penalty: f64,
    /// Earlier labelled pairs of batches whose features [`Ridge`] keeps in its head's data.
    pub ridge_bank: usize,
    /// What [`Cg`] adds to the Hessian of the head's loss.
    pub cg_damping: f64,
    /// Steps of [`Cg`].
    pub cg_steps: usize,
    /// What the policy's gradient goes through.
    pub estimator: Estimator,
    /// Whether v is divided by the root of level 1's second moments, so that utilities are those of AdamW's steps.
    pub precondition: bool,
    /// Hypergradients whose mean makes a step of φ, at least 1; with [`PolicySearch::Branch`] the fewest.
    pub average: u64,
    /// How φ follows from them.
    pub search: PolicySearch,
    /// Steps of level 1 that each branch of a [`Search`] trains.
    pub branch_steps: u64,
    /// How many of the last of them are judged, from 1 to all.
    pub branch_judges: u64,
    /// Whether the reward of a learned mask ratio is divided by the operations of its pass, relative to those at
    /// [`ModelConfig::mask_ratio`](crate::ModelConfig::mask_ratio).
    pub ratio_per_flop: bool,
}

impl Default for Settings {
    /// As published.
    fn default() -> Self {
        Settings {
            alpha: 0.01,
            ridge_penalty: 0.03,
            ridge_bank: 0,
            cg_damping: 0.01,
            cg_steps: 10,
            estimator: Estimator::Weights,
            precondition: false,
            average: 1,
            search: PolicySearch::Gradient,
            branch_steps: 32,
            branch_judges: 4,
            ratio_per_flop: false,
        }
    }
}

/// What level 3 keeps from one outer iteration to the next.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    /// Sum of the hypergradients since the last step of φ, none without one, and their number.
    pub sum: Option<(Vector, u64)>,
    /// Features of earlier labelled batches.
    pub bank: Bank,
    /// Running mean of the rewards of a learned mask ratio.
    pub ratio_baseline: Option<f32>,
    /// Whether random masks are in use in the place of those of φ, by the last decision of a search.
    pub is_random: bool,
    /// The search that is on.
    pub search: Option<Search>,
}

impl Carried {
    /// The same in memory of `lane`.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    pub fn upload(self, lane: &dyn Lane) -> Result<Self, ModelError> {
        let sum = self.sum.map(|(sum, num)| Ok::<_, ModelError>((lane.upload(&sum)?, num))).transpose()?;
        let search = self.search.map(|search| search.upload(lane)).transpose()?;
        Ok(Carried { sum, search, ..self })
    }

    /// Puts the features of a head in closed form into the bank.
    pub fn add_response(&mut self, response: Option<Response>, settings: &Settings) {
        if let Some(Response { rows, .. }) = response {
            self.bank.add(rows, settings.ridge_bank);
        }
    }

    /// ∂φ by `form` ([`Hypergradient::along`]) with that of a learned mask ratio, for which level 1's gradient is taken
    /// once more.
    ///
    /// # Errors
    /// Any error of the lane.
    pub fn along(
        &mut self,
        form: &dyn Hypergradient,
        lane: &mut dyn Lane,
        at: &Upstream<'_>,
        [v1, w]: [Vector; 2],
        settings: &Settings,
    ) -> Result<Along, ModelError> {
        let model = lane.model().clone();
        let Some(arms) = model.masking.ratio_arms().filter(|_| at.rule.ratio_arms) else {
            return form.along(lane, at, v1, w, settings);
        };
        let v = lane.sum(&v1, &w)?;
        let along = form.along(lane, at, v1, w, settings)?;
        let scored = lane.score(Some(at.theta), at.phi, at.images, at.rule)?;
        let of_loss = lane.pretrain(at.theta, at.phi, at.images, &scored)?.gradient;
        let c = &model.config;
        let flops = |num_visible| c.pass_flops(num_visible) as f64;
        let cost = if settings.ratio_per_flop { flops(scored.order.num_visible) / flops(c.num_visible()) } else { 1.0 };
        let reward = (lane.cosine(&v, &of_loss)? / cost) as f32;
        let place = arms.logits().range();
        let rho = lane.values(at.phi, place.clone())?;
        let baseline = self.ratio_baseline.unwrap_or(reward);
        let of_arms = RatioArms::gradient(&rho, arms.draw(&rho, at.rule), reward, baseline);
        self.ratio_baseline = Some(RatioArms::next_baseline(self.ratio_baseline, reward));
        let of_arms = policy::placed(lane, at.phi.len(), place, &of_arms)?;
        Ok(Along { gradient: lane.sum(&along.gradient, &of_arms)?, ratio_reward: Some(reward), ..along })
    }

    /// One outer iteration of the search around `phi` that is on, if there is one. Where it ends, the policy that
    /// follows is the newest from then on.
    ///
    /// # Errors
    /// As [`Search::advance`].
    pub fn advance_search(
        &mut self,
        lane: &mut dyn Lane,
        phi: &Vector,
        at: &Moment<'_>,
        settings: &Settings,
    ) -> Result<Option<Progress>, ModelError> {
        let Some(search) = &mut self.search else { return Ok(None) };
        let policy = Policy { phi: phi.clone(), is_random: self.is_random };
        let progress = search.advance(lane, &policy, at, settings)?;
        if let Some((_, policy)) = &progress.end {
            self.is_random = policy.is_random;
            self.search = None;
        }
        Ok(Some(progress))
    }

    /// What AdamW's step makes of φ with the hypergradient `gradient`. With a branch search that is a proposal: φ stays,
    /// and a search begins at `at`, which must be given.
    ///
    /// # Errors
    /// When the device fails, or `at` is missing.
    pub fn update(
        &mut self,
        lane: &mut dyn Lane,
        adamw: &mut AdamW,
        phi: &Vector,
        gradient: &Vector,
        rate: f64,
        (at, settings): (Option<&Moment<'_>>, &Settings),
    ) -> Result<Vector, ModelError> {
        let Some(mean) = self.mean(lane, gradient, settings)? else { return Ok(phi.clone()) };
        let plus = lane.update(adamw, phi, &mean, rate)?;
        match settings.search {
            PolicySearch::Gradient => Ok(plus),
            PolicySearch::Branch => {
                let missing = "a branch search needs level 1's moments and labelled batches".to_owned();
                let at = at.ok_or(ModelError::Lane { lane: "any", problem: missing })?;
                self.search = Some(Search::begin(lane, phi, plus, at)?);
                Ok(phi.clone())
            }
        }
    }

    /// Adds a hypergradient: the mean of the last `average` of them, as often as there are so many. While a search is
    /// on they go on adding up, so that the next mean is that of all since the last.
    fn mean(
        &mut self,
        lane: &mut dyn Lane,
        gradient: &Vector,
        settings: &Settings,
    ) -> Result<Option<Vector>, ModelError> {
        let average = settings.average;
        if average <= 1 && settings.search == PolicySearch::Gradient {
            return Ok(Some(gradient.clone()));
        }
        let (sum, num) = match self.sum.take() {
            Some((sum, num)) => (lane.sum(&sum, gradient)?, num + 1),
            None => (gradient.clone(), 1),
        };
        if num < average || self.search.is_some() {
            self.sum = Some((sum, num));
            return Ok(None);
        }
        lane.combined(1.0 / num as f64, &sum, 0.0, &sum).map(Some)
    }
}

/// The hypergradient, and the norms of its two terms.
#[derive(Clone, Debug)]
pub struct Along {
    /// ∂φ, flat, as long as φ.
    pub gradient: Vector,
    /// ‖D[v1; θ; L_m; φ]‖₂ (the path mask → finetune → pretrain → mask) and ‖D[w; θ; L_m; φ]‖₂ (mask → pretrain →
    /// mask), where the two are computed one by one.
    pub path_norms: Option<[f64; 2]>,
    /// What the patches' utilities say of it, where they are computed one by one and
    /// [`Upstream::want_signal`] asks.
    pub signal: Option<Signal>,
    /// The reward of the mask ratio, where it is learned: the cosine of v1 + w and ∂L_m/∂θ, over the cost where
    /// [`Settings::ratio_per_flop`] asks.
    pub ratio_reward: Option<f32>,
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
///
/// What a form does not write itself is that of [`Tangent`].
pub trait Hypergradient: Named {
    /// Whether it is the published hypergradient, but for how derivatives are taken and for dropout: only then has a
    /// golden file a value to hold it to.
    fn is_of_the_paper(&self) -> bool {
        true
    }

    /// Whether derivatives over θ are taken in forward mode, by pairs of values and derivatives, and not as differences.
    fn is_forward_mode(&self) -> bool {
        true
    }

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
    ) -> Result<FinetuneGradient, ModelError> {
        lane.finetune(at, noise(0), true)
    }

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
        settings: &Settings,
        _noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        lane.direction(at, recorded(finetune)?, settings.alpha)
    }

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
        _settings: &Settings,
    ) -> Result<Along, ModelError> {
        let v = joint(lane, v1, w)?;
        derivative(lane, at, &v, Derivative::Tangent)
    }
}

/// Every form; the first is the default.
pub static FORMS: &[&dyn Hypergradient] = &[&Clean, &Published, &Tangent, &Ridge, &Cg];

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
    (precision != Precision::F32 && !form.is_forward_mode()).then(|| {
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

/// The passes that level 2 has kept.
fn recorded(finetune: FinetuneGradient) -> Result<Recording, ModelError> {
    finetune
        .recorded
        .ok_or_else(|| ModelError::Lane { lane: "any", problem: "level 2 has kept no passes for level 3".to_owned() })
}

/// ∂φ along v. As published it is a derivative of ∂L_m/∂φ, which a lane takes at once. What goes through the utilities
/// of patches is computed from them, and so is what reads pixels in forward mode, where both are the same.
fn derivative(lane: &mut dyn Lane, at: &Upstream<'_>, v: &Vector, how: Derivative) -> Result<Along, ModelError> {
    let model = lane.model();
    let is_published = model.config.mask_weights == MaskWeights::Published && at.estimator == Estimator::Weights;
    let has_arms = model.masking.explore_arms().is_some();
    let is_tangent_of_pixels = how == Derivative::Tangent && model.masking.needs() == Needs::Pixels;
    if !is_published || is_tangent_of_pixels || has_arms {
        return policy::hypergradient(lane, at, v, how);
    }
    let gradient = match how {
        Derivative::Tangent => lane.tangent(at, v)?,
        Derivative::Difference(alpha) => lane.difference(at, v, alpha)?,
    };
    Ok(Along { gradient, path_norms: None, signal: None, ratio_reward: None })
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
    fn is_forward_mode(&self) -> bool {
        false
    }

    fn along(
        &self,
        lane: &mut dyn Lane,
        at: &Upstream<'_>,
        v1: Vector,
        w: Vector,
        settings: &Settings,
    ) -> Result<Along, ModelError> {
        let v = joint(lane, v1, w)?;
        derivative(lane, at, &v, Derivative::Difference(settings.alpha))
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
    fn is_forward_mode(&self) -> bool {
        false
    }

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
        settings: &Settings,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        lane.direction_published(at, settings.alpha, noise)
    }

    fn along(
        &self,
        lane: &mut dyn Lane,
        at: &Upstream<'_>,
        v1: Vector,
        w: Vector,
        settings: &Settings,
    ) -> Result<Along, ModelError> {
        let how = Derivative::Difference(settings.alpha);
        let (g0, g1) = (derivative(lane, at, &v1, how)?, derivative(lane, at, &w, how)?);
        let path_norms = Some([lane.norm(&g0.gradient)?, lane.norm(&g1.gradient)?]);
        let gradient = lane.sum(&g0.gradient, &g1.gradient)?;
        Ok(Along { gradient, path_norms, signal: None, ratio_reward: None })
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

impl Hypergradient for Tangent {}

/// The taps' features as rows of a regression; the head reads one tap with one token an image.
fn rows(z: &[Tokens<'_>], targets: Vec<f64>) -> Result<(usize, Rows), ModelError> {
    match z {
        [z] if z.per_image == 1 => {
            let features = z.values.iter().map(|&v| f64::from(v)).collect();
            Ok((z.dim, Rows { features, targets, num_rows: z.images() }))
        }
        _ => Err(ModelError::Targets { problem: "no closed-form head: the task reads more than one token".to_owned() }),
    }
}

/// The head's best response in closed form, ridge regression on the finetune batch (and a bank of earlier ones), instead
/// of one step of SGD: v1 is the path over that head, w the straight one, and their sum the exact derivative of the
/// best head's squared error for θ. Level 2 still trains c, whose losses are logged; v0 is not used.
///
/// A head that lags behind the encoder makes v1 oppose w; this one cannot lag. Batches of 250 or more labelled images,
/// together with the bank, give it a direction that agrees with that of unseen labels.
#[derive(Debug)]
pub struct Ridge;

impl Named for Ridge {
    fn name(&self) -> &'static str {
        "ridge"
    }
    fn summary(&self) -> &'static str {
        "The head's best response in closed form (ridge regression) with its exact derivative, then as tangent"
    }
}

impl Hypergradient for Ridge {
    fn is_of_the_paper(&self) -> bool {
        false
    }

    fn direction(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        finetune: FinetuneGradient,
        settings: &Settings,
        _: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        let (recorded, model) = (recorded(finetune)?, lane.model().clone());
        let (task, c) = (&model.task, wide(at.c)?);
        let targets = |y: &Targets| {
            let none = || ModelError::Targets { problem: "the task has no head in closed form".to_owned() };
            task.regression(y)?.ok_or_else(none)
        };
        let ((outputs, y_f), (_, y_v)) = (targets(at.finetune.targets)?, targets(at.validation.targets)?);
        let mut found = None;
        let [v1, w] = lane.pull_back(at, recorded, &mut |z_f, z_v| {
            let ((dim, f), (_, v)) = (rows(z_f, y_f.clone())?, rows(z_v, y_v.clone())?);
            let response = respond_with_bank(at.bank, [&f, &v], dim, outputs, settings.ridge_penalty)?;
            let y = at.validation.targets;
            let of_c = At { c: &c, z: z_v, y, total: task.total(y), noise: None };
            let share = task.evaluate(&of_c, Want { dc: true, dz: false })?;
            let both = [vec![response.d_finetune], vec![response.d_validation]];
            let (loss, accuracy) = (response.loss, response.accuracy);
            found = Some((share, Response { loss, accuracy, rows: [Arc::new(f), Arc::new(v)] }));
            Ok(both)
        })?;
        let (share, response) = found.ok_or_else(no_answer)?;
        let Share { loss, figures, dc: v0, .. } = share;
        Ok(Direction { loss, figures, v0, v1, w, response: Some(response) })
    }
}

fn no_answer() -> ModelError {
    ModelError::Lane { lane: "any", problem: "the cotangents of the taps were not asked for".to_owned() }
}

/// c in f64.
fn wide(c: &Vector) -> Result<Vec<f64>, ModelError> {
    Ok(c.to_host()?.iter().map(|&v| f64::from(v)).collect())
}

/// v1 with the inverse Hessian of the head's loss, ∂²L_f/∂c², instead of the identity: v1 = D[u; c; L_f; θ] where
/// (∂²L_f/∂c² + damping) u = v0, by conjugate gradients. Hessian-vector products are differences of the head's gradient
/// in f64, on the features of the finetune batch: no pass of the encoder.
#[derive(Debug)]
pub struct Cg;

impl Named for Cg {
    fn name(&self) -> &'static str {
        "cg"
    }
    fn summary(&self) -> &'static str {
        "As tangent, with the head's real Hessian, inverted by conjugate gradients, instead of the identity"
    }
}

/// Step of the differences of the head's gradient, in f64.
const HESSIAN_ALPHA: f64 = 1e-4;

/// u with (H + damping) u = `b` by at most `steps` conjugate gradients from zero, where `product` gives H·x.
///
/// # Errors
/// Those of `product`.
pub fn conjugate_gradients(
    b: &[f64],
    damping: f64,
    steps: usize,
    mut product: impl FnMut(&[f64]) -> Result<Vec<f64>, ModelError>,
) -> Result<Vec<f64>, ModelError> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (mut u, mut residual) = (vec![0.0; b.len()], b.to_vec());
    let mut direction = residual.clone();
    let mut square = dot(&residual, &residual);
    let enough = square * 1e-20;
    for _ in 0..steps {
        if square <= enough {
            break;
        }
        let moved = shifted_wide(&product(&direction)?, damping, &direction);
        let curvature = dot(&direction, &moved);
        // The Hessian of a loss that is not convex in c may have a direction in which it falls: stop there.
        if curvature <= 0.0 {
            break;
        }
        let step = square / curvature;
        u = shifted_wide(&u, step, &direction);
        residual = shifted_wide(&residual, -step, &moved);
        let next = dot(&residual, &residual);
        direction = shifted_wide(&residual, next / square, &direction);
        square = next;
    }
    // Without one step, the identity.
    Ok(if u.iter().all(|v| *v == 0.0) { b.to_vec() } else { u })
}

impl Hypergradient for Cg {
    fn is_of_the_paper(&self) -> bool {
        false
    }

    fn direction(
        &self,
        lane: &mut dyn Lane,
        at: &Downstream<'_>,
        finetune: FinetuneGradient,
        settings: &Settings,
        _: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        let (recorded, model) = (recorded(finetune)?, lane.model().clone());
        let (task, c) = (&model.task, wide(at.c)?);
        let (y_f, y_v) = (at.finetune.targets, at.validation.targets);
        let (total_f, total_v) = (task.total(y_f), task.total(y_v));
        let mut found = None;
        let [v1, w] = lane.pull_back(at, recorded, &mut |z_f, z_v| {
            let of_f =
                |c: &[f64], want: Want| task.evaluate(&At { c, z: z_f, y: y_f, total: total_f, noise: None }, want);
            let at_v = At { c: &c, z: z_v, y: y_v, total: total_v, noise: None };
            let mut share = task.evaluate(&at_v, Want::BOTH)?;
            let product = |x: &[f64]| {
                let epsilon = step_size(HESSIAN_ALPHA, norm_wide(x));
                let gradient = |sign: f64| of_f(&shifted_wide(&c, sign * epsilon, x), Want { dc: true, dz: false });
                let (plus, minus) = (gradient(1.0)?.dc, gradient(-1.0)?.dc);
                Ok(plus.iter().zip(&minus).map(|(plus, minus)| (plus - minus) / (2.0 * epsilon)).collect())
            };
            let u = conjugate_gradients(&share.dc, settings.cg_damping, settings.cg_steps, product)?;
            let dz_f = cotangent_difference(&c, &u, settings.alpha, |c| of_f(c, Want { dc: false, dz: true }))?;
            let dz_v = std::mem::take(&mut share.dz);
            found = Some(share);
            Ok([dz_f, dz_v])
        })?;
        let Share { loss, figures, dc: v0, .. } = found.ok_or_else(no_answer)?;
        Ok(Direction { loss, figures, v0, v1, w, response: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conjugate_gradients_invert_and_stop_where_there_is_no_minimum() {
        // A symmetric positive matrix and its inverse applied to b, by hand.
        let (h, b) = ([[4.0, 1.0], [1.0, 3.0]], [1.0, 2.0]);
        let product = |h: [[f64; 2]; 2]| {
            move |x: &[f64]| Ok(h.iter().map(|row| row[0] * x[0] + row[1] * x[1]).collect::<Vec<f64>>())
        };
        let u = conjugate_gradients(&b, 0.0, 2, product(h)).unwrap();
        assert!((u[0] - 1.0 / 11.0).abs() < 1e-12 && (u[1] - 7.0 / 11.0).abs() < 1e-12, "{u:?}");
        let damped = conjugate_gradients(&b, 1.0, 2, product(h)).unwrap();
        assert!((damped[0] - 2.0 / 19.0).abs() < 1e-12 && (damped[1] - 9.0 / 19.0).abs() < 1e-12, "{damped:?}");
        assert_eq!(conjugate_gradients(&b, 0.0, 5, product([[-1.0, 0.0], [0.0, -1.0]])).unwrap(), b);
        assert_eq!(conjugate_gradients(&[0.0; 2], 0.0, 5, product(h)).unwrap(), [0.0; 2]);
    }

    #[test]
    fn bf16_takes_the_derivative_itself() {
        let clean = HypergradientChoice::default();
        assert_eq!((default_form(Precision::F32), doubt(clean, Precision::F32)), (clean, None));
        assert!(doubt(clean, Precision::Bf16).is_some_and(|line| line.contains("\"clean\"")));
        for form in [default_form(Precision::Bf16), Choice::of(&Ridge), Choice::of(&Cg)] {
            assert_eq!(doubt(form, Precision::Bf16), None);
        }
    }
}
