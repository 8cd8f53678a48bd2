//! Several tasks on one labelled batch: L = Σ λₜ·Lₜ, with the heads side by side in c.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::metrics::{Metrics, Several};
use super::predictions::Predictions;
use super::targets::Targets;
use super::task::{At, Figure, Part, Share, Task, Tokens, Total, Want, wrong_kind};
use crate::error::ModelError;
use crate::layout::{Layout, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::tap::Tap;

/// Several tasks as one. Tensors and figures are those of its parts, with `NAME.` before them; the loss of each part,
/// unweighted, is its figure `NAME.loss`. Targets are [`Targets::Several`], in the order of the parts.
#[derive(Clone, Debug)]
pub struct Weighted {
    parts: Arc<[Part]>,
    /// The place in c of each part's head.
    places: Vec<Range<usize>>,
    /// Which of the taps each part reads, in its order.
    taps: Vec<Vec<usize>>,
    reads: Vec<Tap>,
    layout: SharedLayout,
    figures: Vec<Figure>,
    /// The part that counts alone, unweighted; none where all do.
    only: Option<usize>,
}

impl Weighted {
    /// The tasks together; none where there is none.
    #[must_use]
    pub fn new(parts: Vec<Part>) -> Option<Self> {
        let mut layout = Layout::new(Level::Finetune);
        let (mut reads, mut taps, mut places) = (Vec::<Tap>::new(), Vec::new(), Vec::new());
        let mut figures = Vec::new();
        for Part { name, task, .. } in &parts {
            let start = layout.len;
            for entry in &task.layout().entries {
                let weight = layout.add(format!("{name}.{}", entry.name), &entry.shape);
                layout.entries[weight.entry].trainable = entry.trainable;
            }
            places.push(start..layout.len);
            let place = |tap: &Tap| {
                reads.iter().position(|read| read == tap).unwrap_or_else(|| {
                    reads.push(*tap);
                    reads.len() - 1
                })
            };
            taps.push(task.reads().iter().map(place).collect());
            let owned = |figure: &str, unit| Figure { name: Cow::Owned(format!("{name}.{figure}")), unit };
            figures.push(owned("loss", task.loss_unit()));
            figures.extend(task.figures().iter().map(|figure| owned(&figure.name, figure.unit)));
        }
        (!parts.is_empty()).then(|| Weighted {
            parts: parts.into(),
            places,
            taps,
            reads,
            layout: Arc::new(layout),
            figures,
            only: None,
        })
    }

    fn targets<'a>(&self, y: &'a Targets) -> Result<&'a [Targets], ModelError> {
        match y {
            Targets::Several(targets) if targets.len() == self.parts.len() => Ok(targets),
            Targets::Several(targets) => {
                let problem = format!("{} tasks learn together, got targets of {}", self.parts.len(), targets.len());
                Err(ModelError::Targets { problem })
            }
            _ => Err(wrong_kind("targets of several tasks", y)),
        }
    }
}

impl Task for Weighted {
    fn reads(&self) -> &[Tap] {
        &self.reads
    }

    fn layout(&self) -> &SharedLayout {
        &self.layout
    }

    fn init(&self, seed: u64) -> Buffer {
        Buffer::from_vec(self.parts.iter().flat_map(|part| part.task.init(seed).to_vec()).collect())
    }

    /// The parts' where they agree.
    fn loss_unit(&self) -> &'static str {
        let mut units = self.parts.iter().map(|part| part.task.loss_unit());
        let first = units.next().unwrap_or_default();
        if units.all(|unit| unit == first) { first } else { "weighted" }
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn total(&self, y: &Targets) -> Total {
        self.totals(y).first().copied().unwrap_or([1.0; 2])
    }

    fn totals(&self, y: &Targets) -> Vec<Total> {
        // Targets of another kind are refused by the evaluation.
        let targets = self.targets(y).unwrap_or_default();
        self.parts.iter().zip(targets).map(|(part, targets)| part.task.total(targets)).collect()
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let targets = self.targets(at.y)?;
        let mut all = Share {
            loss: 0.0,
            figures: Vec::with_capacity(self.figures.len()),
            dc: vec![0.0; if want.dc { self.layout.len } else { 0 }],
            dz: at.z.iter().map(|z| vec![0.0; z.values.len()]).filter(|_| want.dz).collect(),
        };
        for (i, part) in self.parts.iter().enumerate() {
            let weight = match self.only {
                None => part.weight,
                Some(only) if only == i => 1.0,
                Some(_) => {
                    all.figures.extend(std::iter::repeat_n(0.0, 1 + part.task.figures().len()));
                    continue;
                }
            };
            let z: Vec<Tokens<'_>> = self.taps[i].iter().filter_map(|tap| at.z.get(*tap).copied()).collect();
            let c = &at.c[self.places[i].clone()];
            let share = part.task.evaluate(&At { c, z: &z, y: &targets[i], totals: &at.totals[i..=i], ..*at }, want)?;
            all.loss += weight * share.loss;
            all.figures.push(share.loss);
            all.figures.extend(share.figures);
            if want.dc {
                let to = &mut all.dc[self.places[i].clone()];
                to.iter_mut().zip(share.dc).for_each(|(to, d)| *to = weight * d);
            }
            for (tap, dz) in self.taps[i].iter().zip(share.dz) {
                all.dz[*tap].iter_mut().zip(dz).for_each(|(to, d)| *to += weight * d);
            }
        }
        Ok(all)
    }

    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        let of_part = |(i, part): (usize, &Part)| {
            let z: Vec<Tokens<'_>> = self.taps[i].iter().filter_map(|tap| z.get(*tap).copied()).collect();
            part.task.predict(&c[self.places[i].clone()], &z)
        };
        self.parts.iter().enumerate().map(of_part).collect::<Result<_, _>>().map(Predictions::Several)
    }

    fn metrics(&self) -> Box<dyn Metrics> {
        Box::new(Several::new(self.parts.iter().map(|part| (part.name.clone(), part.task.metrics())).collect()))
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn only(&self, part: usize) -> Option<Arc<dyn Task>> {
        (part < self.parts.len()).then(|| Arc::new(Weighted { only: Some(part), ..self.clone() }) as Arc<dyn Task>)
    }
}
