//! AdamW with parameter groups, and learning rates with warm-up and cosine decay.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::layout::SharedLayout;
use crate::parallel::arena::Params;
use crate::parallel::compute::Compute;
use crate::vector::Vector;
use mlomae_kernels::{self as kernels, AdamWStep};

/// How a learning rate changes over the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Linear warm-up, then a half cosine to 0 at the run's end.
    Cosine,
    /// Linear warm-up, then constant.
    Constant,
}

/// Learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Learning rate after warm-up.
    pub base: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Steps of the whole run, where a cosine reaches zero.
    pub total_steps: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// Learning rate of step `step`, counted from 0; the first is already above 0.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.base * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.decay {
            Decay::Constant => self.base,
            Decay::Cosine => {
                let span = self.total_steps.saturating_sub(self.warmup_steps).max(1);
                let progress = ((step - self.warmup_steps) as f64 / span as f64).min(1.0);
                self.base * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

/// Which weights have weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DecayGroup {
    /// All trainable weights, as published.
    All,
    /// The matrices of linear layers: no biases, norms, tokens or position embeddings.
    Matrices,
}

/// Constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weights that decay.
    pub decay_group: DecayGroup,
}

impl Default for AdamWConfig {
    /// Betas (0.9, 0.95), eps 1e-8, weight decay 0.01 on everything, as published.
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, decay_group: DecayGroup::All }
    }
}

/// State of AdamW for one parameter set.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Constants.
    pub config: AdamWConfig,
    /// Steps done.
    pub step: u64,
    /// First moment, flat. Updated in place, or copy-on-write while a checkpoint shares it.
    pub m: Vector,
    /// Second moment, flat; as the first.
    pub v: Vector,
    /// Ranges with their weight decay, see [`pieces`].
    pieces: Vec<(Range<usize>, f64)>,
}

impl AdamW {
    /// Fresh state for the weights of `layout`.
    #[must_use]
    pub fn new(config: AdamWConfig, layout: &SharedLayout) -> Self {
        let zeros = || Vector::from(vec![0.0; layout.len]);
        AdamW { config, step: 0, m: zeros(), v: zeros(), pieces: pieces(&config, layout) }
    }

    /// State after `step` steps, with both moments flat.
    #[must_use]
    pub fn restored(config: AdamWConfig, layout: &SharedLayout, step: u64, m: Vector, v: Vector) -> Self {
        AdamW { config, step, m, v, pieces: pieces(&config, layout) }
    }

    /// The same state with copies of its moments in other memory, as after an upload.
    #[must_use]
    pub fn with_moments(self, m: Vector, v: Vector) -> Self {
        AdamW { m, v, ..self }
    }

    /// Runs of weights with one weight decay, in order and without gaps, NaN where they are frozen; for lanes that
    /// update weights elsewhere.
    #[must_use]
    pub fn pieces(&self) -> &[(Range<usize>, f64)] {
        &self.pieces
    }

    /// One step with learning rate `rate` on the CPU. The new values are in a buffer of their own, so that the old ones
    /// stay a snapshot for whoever shares them.
    ///
    /// # Errors
    /// When the moments are not in host memory.
    pub fn update(
        &mut self,
        compute: &Compute,
        values: &Params,
        gradient: &[f32],
        rate: f64,
    ) -> Result<Params, ModelError> {
        let elsewhere = || ModelError::Lane { lane: "cpu", problem: "moments are not in host memory".to_owned() };
        let m = self.m.host_mut().ok_or_else(elsewhere)?;
        let v = self.v.host_mut().ok_or_else(elsewhere)?;
        self.step += 1;
        let mut next = compute.arena.take(values.len());
        let c = self.config;
        let mut jobs = Vec::with_capacity(self.pieces.len());
        let (mut next_rest, mut m_rest, mut v_rest) = (&mut next[..], m, v);
        for (range, weight_decay) in &self.pieces {
            let n = range.len();
            let (next, m, v);
            (next, next_rest) = std::mem::take(&mut next_rest).split_at_mut(n);
            (m, m_rest) = std::mem::take(&mut m_rest).split_at_mut(n);
            (v, v_rest) = std::mem::take(&mut v_rest).split_at_mut(n);
            jobs.push(Mutex::new((range.clone(), *weight_decay, next, m, v)));
        }
        let step = self.step;
        compute.map(jobs.len(), |i| {
            let mut job = jobs[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (range, weight_decay, next, m, v) = &mut *job;
            if weight_decay.is_nan() {
                next.copy_from_slice(&values[range.clone()]);
                return;
            }
            let s = AdamWStep {
                lr: rate as f32,
                beta1: c.beta1 as f32,
                beta2: c.beta2 as f32,
                eps: c.eps as f32,
                weight_decay: *weight_decay as f32,
                step,
            };
            kernels::adamw(next, &values[range.clone()], &gradient[range.clone()], m, v, &s);
        });
        drop(jobs);
        Ok(Arc::new(next))
    }
}

/// Ranges of weights with one weight decay each (NaN: frozen), short enough that several threads share the sweep.
fn pieces(config: &AdamWConfig, layout: &SharedLayout) -> Vec<(Range<usize>, f64)> {
    const LARGEST: usize = 1 << 18;
    let mut runs: Vec<(Range<usize>, f64)> = Vec::new();
    for entry in &layout.entries {
        let decay = match (entry.trainable, config.decay_group) {
            (false, _) => f64::NAN,
            (true, DecayGroup::All) => config.weight_decay,
            (true, DecayGroup::Matrices) => {
                if entry.is_matrix() {
                    config.weight_decay
                } else {
                    0.0
                }
            }
        };
        match runs.last_mut() {
            Some((run, d)) if d.to_bits() == decay.to_bits() => run.end = entry.range().end,
            _ => runs.push((entry.range(), decay)),
        }
    }
    runs.into_iter()
        .flat_map(|(run, decay)| {
            run.clone().step_by(LARGEST).map(move |start| (start..(start + LARGEST).min(run.end), decay))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_warm_up_and_reach_zero() {
        let s = Schedule { base: 2.0, warmup_steps: 4, total_steps: 14, decay: Decay::Cosine };
        assert_eq!(s.rate(0), 0.5);
        assert_eq!(s.rate(3), 2.0);
        assert_eq!(s.rate(4), 2.0);
        assert!((s.rate(9) - 1.0).abs() < 1e-12);
        assert!(s.rate(14).abs() < 1e-12 && s.rate(1000).abs() < 1e-12);
        assert_eq!(Schedule { decay: Decay::Constant, ..s }.rate(500), 2.0);
    }
}
