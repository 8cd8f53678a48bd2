//! A task on a batch: by grains, on several threads, with the same bits for any number of them.

use std::ops::Range;

use super::targets::Targets;
use super::task::{At, Noise, Share, Task, Tokens, Total, Want};
use crate::error::ModelError;
use crate::parallel::compute::Compute;
use crate::parallel::sum::TreeSum;

/// Whether the task is evaluated on whole batches: where its head reads one token an image, it costs next to nothing.
#[must_use]
pub fn is_whole(task: &dyn Task) -> bool {
    task.reads().iter().all(|tap| tap.is_pooled())
}

/// A batch on which a task is evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The task.
    pub task: &'a dyn Task,
    /// Its targets; of several ranks, those of all.
    pub y: &'a Targets,
    /// [`Task::totals`] of these.
    pub totals: &'a [Total],
    /// Dropout of the head.
    pub noise: Option<Noise>,
    /// Images of a grain.
    pub grain: usize,
}

/// What the grains of a batch add up to: loss, figures and ∂ℓ/∂c.
pub type Sum = TreeSum<Share>;

impl Batch<'_> {
    /// A sum for all grains of the batch.
    #[must_use]
    pub fn sum(&self) -> Sum {
        TreeSum::new(self.y.len().div_ceil(self.grain))
    }

    /// The grains of the images `place`, which begin with a grain.
    fn grains(&self, place: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (grain, end) = (self.grain, place.end);
        place.step_by(grain).map(move |start| start..(start + grain).min(end))
    }

    /// Calls `of_grain` with the tokens and targets of each grain among the images `place`, whose tokens `z` are, and
    /// joins the cotangents that it returns.
    fn each_grain(
        &self,
        z: &[Tokens<'_>],
        place: Range<usize>,
        mut of_grain: impl FnMut(&At<'_>, usize) -> Result<Vec<Vec<f64>>, ModelError>,
    ) -> Result<Vec<Vec<f64>>, ModelError> {
        self.check(z, place.len())?;
        let mut dz = vec![Vec::new(); z.len()];
        let first = place.start;
        for grain in self.grains(place) {
            let tokens: Vec<Tokens<'_>> = z.iter().map(|z| z.slice(grain.start - first..grain.end - first)).collect();
            let noise = self.noise.map(|noise| noise.skip(grain.start));
            let (y, index) = (&self.y.slice(grain.clone()), grain.start / self.grain);
            let at = At { c: &[], z: &tokens, y, totals: self.totals, noise };
            let joined = dz.iter_mut().zip(of_grain(&at, index)?);
            joined.for_each(|(all, dz)| all.extend(dz));
        }
        Ok(dz)
    }

    /// Evaluates the images `place`, grain by grain. Loss, figures and ∂ℓ/∂c go to `sum`; returns ∂ℓ/∂Z, with empty taps
    /// unless wanted.
    ///
    /// # Errors
    /// [`ModelError::Targets`] when targets or taps are not those of the task.
    pub fn piece(
        &self,
        c: &[f64],
        z: &[Tokens<'_>],
        place: Range<usize>,
        want: Want,
        sum: Option<&Sum>,
    ) -> Result<Vec<Vec<f64>>, ModelError> {
        self.each_grain(z, place, |at, index| {
            let mut share = self.task.evaluate(&At { c, ..*at }, want)?;
            let dz = std::mem::take(&mut share.dz);
            if let Some(sum) = sum {
                sum.add(index, share, add);
            }
            Ok(dz)
        })
    }

    /// (δ₋ − δ₊)/2ε for each tap of the images `place`, where δ± = ∂ℓ/∂Z at the two `sides`, c + εv and c − εv.
    ///
    /// # Errors
    /// As [`Batch::piece`].
    pub fn difference(
        &self,
        [plus, minus]: [&[f64]; 2],
        epsilon: f64,
        z: &[Tokens<'_>],
        place: Range<usize>,
    ) -> Result<Vec<Vec<f64>>, ModelError> {
        let want = Want { dc: false, dz: true };
        self.each_grain(z, place, |at, _| {
            let at = |c| self.task.evaluate(&At { c, ..*at }, want);
            let (plus, minus) = (at(plus)?.dz, at(minus)?.dz);
            let of_tap = |(minus, plus): (Vec<f64>, Vec<f64>)| {
                minus.iter().zip(&plus).map(|(m, p)| (m - p) / (2.0 * epsilon)).collect()
            };
            Ok(minus.into_iter().zip(plus).map(of_tap).collect())
        })
    }

    /// Evaluates the whole batch: at once where [`is_whole`] says so, else grain by grain on the threads of `compute`.
    ///
    /// # Errors
    /// As [`Batch::piece`].
    pub fn evaluate(&self, compute: &Compute, c: &[f64], z: &[Tokens<'_>], want: Want) -> Result<Share, ModelError> {
        let num_images = self.y.len();
        self.check(z, num_images)?;
        if is_whole(self.task) || num_images == 0 {
            return self.task.evaluate(&At { c, z, y: self.y, totals: self.totals, noise: self.noise }, want);
        }
        let (sum, grains) = (self.sum(), self.grains(0..num_images).collect::<Vec<_>>());
        let parts = compute.map(grains.len(), |i| {
            let grain = grains[i].clone();
            let z: Vec<Tokens<'_>> = z.iter().map(|z| z.slice(grain.clone())).collect();
            self.piece(c, &z, grain, want, Some(&sum))
        });
        let mut dz = vec![Vec::new(); if want.dz { z.len() } else { 0 }];
        for part in parts {
            dz.iter_mut().zip(part?).for_each(|(all, dz)| all.extend(dz));
        }
        Ok(Share { dz, ..sum.finish().unwrap_or_default() })
    }

    fn check(&self, z: &[Tokens<'_>], num_images: usize) -> Result<(), ModelError> {
        let refused = |problem: String| Err(ModelError::Targets { problem });
        if let Targets::Several(tasks) = self.y
            && let Some(other) = tasks.iter().find(|targets| targets.len() != self.y.len())
        {
            return refused(format!("targets of {} images for one task, of {} for another", self.y.len(), other.len()));
        }
        match z.iter().find(|z| z.images() != num_images) {
            Some(z) => refused(format!("targets of {num_images} images, tokens of {}", z.images())),
            None => Ok(()),
        }
    }
}

/// all += share, but for ∂ℓ/∂Z.
fn add(all: &mut Share, share: Share) {
    all.loss += share.loss;
    all.figures.iter_mut().zip(share.figures).for_each(|(all, figure)| *all += figure);
    all.dc.iter_mut().zip(share.dc).for_each(|(all, dc)| *all += dc);
}
