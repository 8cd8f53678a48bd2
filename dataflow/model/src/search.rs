//! The branch search: whether the policy should go along a mean hypergradient, against it, or give way to random masks
//! is decided by what each of the three does to the encoder.
//!
//! AdamW makes a step s of a mean hypergradient. The candidates are φ + s, φ − s and random masks without weights. From
//! the same θ and the same moments of AdamW, each trains a copy of the encoder ([`Branch`]) on the same batches, with
//! the same random draws and learning rates, one step of level 1 an outer iteration, as the run's own batches stream
//! by: level 3 keeps no batch. After its last steps each copy is judged on the labelled pair of that outer iteration,
//! which is newer than all that made s, by the squared error of the best head in closed form ([`ridge`]) on the
//! validation batch. The lowest mean wins. What all share, data, draws and labels, cancels in the comparison.
//!
//! A hypergradient looks one step ahead, and to first order; this looks as many steps ahead as it trains, and measures.
//! It costs three steps of level 1 for each outer iteration of the search.
//!
//! [`ridge`]: crate::tasks::ridge

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::hypergradient::Settings;
use crate::lane::{LabelledImages, Lane};
use crate::levels::optimizer::AdamW;
use crate::masking::MaskRule;
use crate::tap::Tap;
use crate::tasks::Targets;
use crate::tasks::ridge::{Rows, respond};
use crate::vector::Vector;

/// How the policy follows from hypergradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PolicySearch {
    /// By steps of AdamW along them, as published.
    #[default]
    Gradient,
    /// By such a step, its opposite or random masks, whichever of three copies of the encoder is the best after
    /// `policy.branch_steps` steps, by held-out labels.
    Branch,
}

/// What a branch trains with. A candidate wins over those listed after it where losses are equal: as a step of the
/// gradient would have it, else nothing learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Candidate {
    /// φ + s.
    Plus,
    /// Random masks and a loss without weights.
    Random,
    /// φ − s.
    Minus,
}

impl Candidate {
    /// All candidates, in the order of the arrays here.
    pub const ALL: [Candidate; 3] = [Candidate::Plus, Candidate::Random, Candidate::Minus];

    /// Its name in logs and checkpoints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Candidate::Plus => "plus",
            Candidate::Random => "random",
            Candidate::Minus => "minus",
        }
    }

    /// Its number in the logs: the sign of the step, 0 for none.
    #[must_use]
    pub const fn sign(self) -> f64 {
        match self {
            Candidate::Plus => 1.0,
            Candidate::Random => 0.0,
            Candidate::Minus => -1.0,
        }
    }

    /// How it masks where the policy masks by `rule`.
    fn rule(self, rule: &MaskRule) -> MaskRule {
        MaskRule { is_random: self == Candidate::Random, ..rule.clone() }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One version of the policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// φ, flat.
    pub phi: Vector,
    /// Whether random masks are in use in the place of those of φ, by the decision of a branch search.
    pub is_random: bool,
}

/// A copy of the encoder in training under a candidate.
#[derive(Clone, Debug)]
pub struct Branch {
    /// φ of the candidate; for random masks the φ that stays.
    pub phi: Vector,
    /// θ.
    pub theta: Vector,
    /// Level 1's optimizer.
    pub adamw: AdamW,
}

impl Branch {
    fn upload(self, lane: &dyn Lane) -> Result<Self, ModelError> {
        let Branch { phi, theta, adamw } = self;
        let (m, v) = (lane.upload(&adamw.m)?, lane.upload(&adamw.v)?);
        Ok(Branch { phi: lane.upload(&phi)?, theta: lane.upload(&theta)?, adamw: adamw.with_moments(m, v) })
    }
}

/// Losses of the candidates on a labelled pair, in the order of [`Candidate::ALL`]; none where the branch's features
/// have no best head, as when it has diverged.
pub type Judgement = [Option<f32>; 3];

/// What level 1 and the labels of an outer iteration give a search.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// θ after level 1's steps.
    pub theta: &'a Vector,
    /// Level 1's optimizer after them.
    pub adamw: &'a AdamW,
    /// The last batch x_p of level 1, `[batch, C, H, W]`.
    pub images: &'a Vector,
    /// How the policy masks x_p.
    pub rule: &'a MaskRule,
    /// Learning rate of the step that level 1 took with x_p.
    pub rate: f64,
    /// Batch F of level 2.
    pub finetune: LabelledImages<'a>,
    /// Batch V of level 3.
    pub validation: LabelledImages<'a>,
}

/// A search that is on.
#[derive(Clone, Debug)]
pub struct Search {
    /// The branches, in the order of [`Candidate::ALL`].
    pub branches: [Branch; 3],
    /// Steps that each has trained.
    pub num_steps: u64,
    /// How they were judged so far, in order.
    pub judged: Vec<Judgement>,
}

/// What a search has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The best candidate; none if every branch has diverged, and then the policy stays as it is.
    pub winner: Option<Candidate>,
    /// Mean losses over the judgements, in the order of [`Candidate::ALL`].
    pub losses: [Option<f64>; 3],
    /// Number of judgements.
    pub num_judged: usize,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (candidate, loss) in Candidate::ALL.iter().zip(self.losses) {
            match loss {
                Some(loss) => write!(f, "{candidate} {loss:.4}, ")?,
                None => write!(f, "{candidate} diverged, ")?,
            }
        }
        write!(f, "mean of {} labelled pairs: ", self.num_judged)?;
        match self.winner {
            Some(Candidate::Random) => f.write_str("random masks"),
            Some(winner) => write!(f, "the policy moves to {winner}"),
            None => f.write_str("the policy stays"),
        }
    }
}

/// What an outer iteration has brought a search.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Losses on this iteration's labelled pair, where it was judged by.
    pub judgement: Option<Judgement>,
    /// The decision with the policy that follows from it, where the search has ended.
    pub end: Option<(Decision, Policy)>,
}

impl Search {
    /// A search around `phi` whose step leads to `plus`, from θ and level 1's moments at `at`.
    ///
    /// # Errors
    /// When the lane fails.
    pub fn begin(lane: &mut dyn Lane, phi: &Vector, plus: Vector, at: &Moment<'_>) -> Result<Self, ModelError> {
        // φ − s = 2φ − (φ + s).
        let minus = lane.combined(2.0, phi, -1.0, &plus)?;
        let branch = |phi| Branch { phi, theta: at.theta.clone(), adamw: at.adamw.clone() };
        Ok(Search { branches: [branch(plus), branch(phi.clone()), branch(minus)], num_steps: 0, judged: Vec::new() })
    }

    /// The same in memory of `lane`.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    pub fn upload(self, lane: &dyn Lane) -> Result<Self, ModelError> {
        let [plus, random, minus] = self.branches;
        Ok(Search { branches: [plus.upload(lane)?, random.upload(lane)?, minus.upload(lane)?], ..self })
    }

    /// One outer iteration of the search, which was on around `policy`: a step of each branch, a judgement if it is one
    /// of the last [`Settings::branch_judges`], and the decision after [`Settings::branch_steps`] steps.
    ///
    /// # Errors
    /// When the lane fails, or targets are not those of the task.
    pub fn advance(
        &mut self,
        lane: &mut dyn Lane,
        policy: &Policy,
        at: &Moment<'_>,
        settings: &Settings,
    ) -> Result<Progress, ModelError> {
        for (candidate, branch) in Candidate::ALL.into_iter().zip(&mut self.branches) {
            let scored = lane.score(Some(&branch.theta), &branch.phi, at.images, &candidate.rule(at.rule))?;
            let g = lane.pretrain(&branch.theta, &branch.phi, at.images, &scored)?;
            branch.theta = lane.update(&mut branch.adamw, &branch.theta, &g.gradient, at.rate)?;
        }
        self.num_steps += 1;
        if self.num_steps + settings.branch_judges <= settings.branch_steps {
            return Ok(Progress { judgement: None, end: None });
        }
        let judgement = self.judgement(lane, at, settings.ridge_penalty)?;
        self.judged.push(judgement);
        let end = (self.num_steps >= settings.branch_steps).then(|| {
            let decision = self.decision();
            let policy = match decision.winner {
                Some(winner) => {
                    Policy { phi: self.branches[winner as usize].phi.clone(), is_random: winner == Candidate::Random }
                }
                None => policy.clone(),
            };
            (decision, policy)
        });
        Ok(Progress { judgement: Some(judgement), end })
    }

    /// The squared error of each branch's best head on the validation batch.
    fn judgement(&self, lane: &mut dyn Lane, at: &Moment<'_>, penalty: f64) -> Result<Judgement, ModelError> {
        let model = lane.model().clone();
        let none = || ModelError::Targets { problem: "the task has no head in closed form".to_owned() };
        if model.task.reads() != [Tap::Cls] {
            return Err(none());
        }
        let targets = |y: &Targets| model.task.regression(y)?.ok_or_else(none);
        let (outputs, y_f) = targets(at.finetune.targets)?;
        let (_, y_v) = targets(at.validation.targets)?;
        let mut judgement = [None; 3];
        for (loss, branch) in judgement.iter_mut().zip(&self.branches) {
            let mut rows = |images: &Vector, targets: &[f64]| {
                let features = lane.features(&branch.theta, images)?.into_iter().map(f64::from).collect::<Vec<_>>();
                let num_rows = features.len() / model.config.dim;
                Ok::<_, ModelError>(Rows { features, targets: targets.to_vec(), num_rows })
            };
            let (f, v) = (rows(at.finetune.images, &y_f)?, rows(at.validation.images, &y_v)?);
            // Features without a head, not finite or all the same, are those of a branch that has diverged.
            let response = respond(&f, &v, model.config.dim, outputs, penalty).ok();
            *loss = response.map(|response| response.loss as f32).filter(|loss| loss.is_finite());
        }
        Ok(judgement)
    }

    /// The candidate with the lowest mean loss among those that have one at every judgement.
    fn decision(&self) -> Decision {
        let num_judged = self.judged.len();
        let mean = |place: usize| {
            let losses: Option<Vec<f64>> = self.judged.iter().map(|all| all[place].map(f64::from)).collect();
            losses.filter(|losses| !losses.is_empty()).map(|losses| losses.iter().sum::<f64>() / num_judged as f64)
        };
        let losses = [0, 1, 2].map(mean);
        let mut winner: Option<(Candidate, f64)> = None;
        for (candidate, loss) in Candidate::ALL.into_iter().zip(losses) {
            if let Some(loss) = loss
                && winner.is_none_or(|(_, best)| loss < best)
            {
                winner = Some((candidate, loss));
            }
        }
        Decision { winner: winner.map(|(candidate, _)| candidate), losses, num_judged }
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
