//! Whether a task keeps the conditions under which its mixed derivative is right, tried on drawn tokens.

use super::targets::Targets;
use super::task::{At, Noise, Share, Task, TaskFacts, Tokens, Total, Want};
use crate::error::ModelError;
use crate::init::{normal, tensor_rng};

/// The images on which a task is tried.
pub const NUM_IMAGES: usize = 4;

/// Relative difference that rounding in f64 may make.
const ROUNDING: f64 = 1e-9;

/// Relative difference between a gradient and a difference of losses; tokens are f32.
const DERIVATIVE: f64 = 1e-3;

/// Relative difference between quotients of differences over two steps: what jumps makes one of a multiple.
const JUMP: f64 = 0.5;

/// Directions along which jumps are looked for.
const NUM_DIRECTIONS: u64 = 8;

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// x + step·v.
fn shifted(x: &[f64], step: f64, v: &[f64]) -> Vec<f64> {
    x.iter().zip(v).map(|(x, v)| x + step * v).collect()
}

/// A task at one point.
struct Trial<'a> {
    task: &'a dyn Task,
    facts: &'a TaskFacts,
    y: &'a Targets,
    totals: Vec<Total>,
    taps: Vec<Vec<f32>>,
}

impl Trial<'_> {
    fn tokens<'z>(&self, taps: &'z [Vec<f32>]) -> Vec<Tokens<'z>> {
        let reads = self.task.reads().iter().zip(taps);
        let tokens = |per_image, values| Tokens { per_image, dim: self.facts.dim, values };
        reads.map(|(tap, values)| tokens(tap.tokens(self.facts.num_patches()), &values[..])).collect()
    }

    fn at(&self, c: &[f64], taps: &[Vec<f32>], noise: Option<Noise>) -> Result<Share, ModelError> {
        let z = &self.tokens(taps);
        self.task.evaluate(&At { c, z, y: self.y, totals: &self.totals, noise }, Want::BOTH)
    }

    /// The sum over both halves of the batch.
    fn halves(&self, c: &[f64], noise: Option<Noise>) -> Result<Share, ModelError> {
        let half = NUM_IMAGES / 2;
        let of = |images: std::ops::Range<usize>| {
            let z: Vec<Tokens<'_>> = self.tokens(&self.taps).iter().map(|z| z.slice(images.clone())).collect();
            let noise = noise.map(|noise| noise.skip(images.start));
            let y = &self.y.slice(images);
            self.task.evaluate(&At { c, z: &z, y, totals: &self.totals, noise }, Want::BOTH)
        };
        let (mut all, rest) = (of(0..half)?, of(half..NUM_IMAGES)?);
        all.loss += rest.loss;
        all.figures.iter_mut().zip(rest.figures).for_each(|(all, figure)| *all += figure);
        all.dc.iter_mut().zip(rest.dc).for_each(|(all, d)| *all += d);
        all.dz.iter_mut().zip(rest.dz).for_each(|(all, d)| all.extend(d));
        Ok(all)
    }
}

/// ‖a − b‖/‖b‖.
fn relative(a: &[f64], b: &[f64]) -> f64 {
    let difference = norm(&shifted(a, -1.0, b));
    if difference == 0.0 { 0.0 } else { difference / norm(b).max(1e-300) }
}

/// Loss, figures and gradients in a row.
fn flat(share: &Share) -> Vec<f64> {
    let all = [share.loss].into_iter().chain(share.figures.iter().copied()).chain(share.dc.iter().copied());
    all.chain(share.dz.iter().flatten().copied()).collect()
}

/// Tries a task of these shapes on drawn tokens with the targets `y` of [`NUM_IMAGES`] images. What it cannot see is a
/// condition that breaks elsewhere only.
///
/// # Errors
/// [`ModelError::Config`] with the reason: the loss couples images of a batch (batch norm), is another function at each
/// call (dropout that is redrawn, running statistics), jumps (a matching that moves), has gradients that are not its own
/// or not finite, or what is returned has a wrong length; and any error of the task.
pub fn check(task: &dyn Task, facts: &TaskFacts, y: &Targets) -> Result<(), ModelError> {
    let refused = |problem: &str| Err(ModelError::Config(problem.to_owned()));
    if y.len() != NUM_IMAGES {
        let problem = format!("a task is tried on {NUM_IMAGES} images, got targets of {}", y.len());
        return Err(ModelError::Config(problem));
    }
    let mut rng = tensor_rng(1, "conditions");
    let mut draw = |num: usize| (0..num).map(|_| normal(&mut rng)).collect::<Vec<f64>>();
    let mut tap =
        |per_image: usize| -> Vec<f32> { draw(NUM_IMAGES * per_image * facts.dim).iter().map(|v| *v as f32).collect() };
    let taps = task.reads().iter().map(|read| tap(read.tokens(facts.num_patches()))).collect();
    let trial = Trial { task, facts, y, totals: task.totals(y), taps };
    if trial.totals.iter().flatten().any(|total| !(total.is_finite() && *total > 0.0)) {
        return refused("what its loss is divided by must be finite and above 0");
    }
    // Away from initial values, at which layers may be zero.
    let c: Vec<f64> = task.init(1).iter().map(|v| f64::from(*v)).collect();
    let c = shifted(&c, 0.1, &draw(c.len()));

    let whole = trial.at(&c, &trial.taps, None)?;
    let lengths = |share: &Share| share.dz.iter().map(Vec::len).eq(trial.taps.iter().map(Vec::len));
    if whole.dc.len() != task.layout().len || !lengths(&whole) || whole.figures.len() != task.figures().len() {
        return refused("it returns gradients or figures of another length than it announces");
    }
    if flat(&whole).iter().any(|value| !value.is_finite()) {
        return refused("its loss, figures or gradients are not finite");
    }

    let elsewhere = shifted(&c, 0.1, &draw(c.len()));
    let again = [trial.at(&c, &trial.taps, None)?, {
        trial.at(&elsewhere, &trial.taps, None)?;
        trial.at(&c, &trial.taps, None)?
    }];
    if again.iter().any(|share| flat(share) != flat(&whole)) {
        return refused(
            "its loss is another function at each call, as with dropout that is redrawn or running statistics: a mixed \
             derivative of it would be noise; draw nothing in the head and keep no state besides its parameters",
        );
    }
    let noise = Noise { rate: 0.3, seed: 1, outer: 2, pass: 3, first_image: 0 };
    for noise in [None, Some(noise)] {
        let whole = trial.at(&c, &trial.taps, noise)?;
        if relative(&flat(&trial.halves(&c, noise)?), &flat(&whole)) > ROUNDING {
            return refused(
                "its loss couples the images of a batch, as batch norm and contrastive losses do: two halves with the \
                 batch's total do not add up to the whole, so results would depend on micro-batches; use layer norm or \
                 group norm, and divide by the total alone",
            );
        }
    }

    for direction in 0..NUM_DIRECTIONS {
        let mut rng = tensor_rng(direction, "direction");
        let v: Vec<f64> = c.iter().map(|_| normal(&mut rng)).collect();
        let quotient = |alpha: f64| {
            let epsilon = alpha / norm(&v).max(1e-15);
            let at = |step: f64| Ok::<_, ModelError>(trial.at(&shifted(&c, step, &v), &trial.taps, None)?.dz.concat());
            let (plus, minus) = (at(epsilon)?, at(-epsilon)?);
            Ok::<_, ModelError>(plus.iter().zip(&minus).map(|(p, m)| (p - m) / (2.0 * epsilon)).collect::<Vec<f64>>())
        };
        let (coarse, fine) = (quotient(0.01)?, quotient(0.00125)?);
        if norm(&coarse).max(norm(&fine)) > 0.0 && relative(&coarse, &fine) > JUMP {
            return refused(
                "its gradient for the tokens jumps as its parameters move, as with a matching of predictions to \
                 targets: a mixed derivative of it would be wrong; let targets alone decide what belongs together",
            );
        }
    }

    let wrong = |measured: f64, gradient: &[f64], d: &[f64]| {
        let predicted: f64 = gradient.iter().zip(d).map(|(g, d)| g * d).sum();
        let scale = predicted.abs() + norm(gradient) * norm(d) / (d.len().max(1) as f64).sqrt();
        (measured - predicted).abs() > DERIVATIVE * scale
    };
    let v = draw(c.len());
    let loss = |step: f64| Ok::<_, ModelError>(trial.at(&shifted(&c, step, &v), &trial.taps, None)?.loss);
    let moved = |sign: f64, d: &[Vec<f64>]| -> Vec<Vec<f32>> {
        let tap = |(z, d): (&Vec<f32>, &Vec<f64>)| z.iter().zip(d).map(|(z, d)| z + (sign * d) as f32).collect();
        trial.taps.iter().zip(d).map(tap).collect()
    };
    let d: Vec<Vec<f64>> = trial.taps.iter().map(|z| draw(z.len()).iter().map(|v| 1e-3 * v).collect()).collect();
    let (plus, minus) = (moved(1.0, &d), moved(-1.0, &d));
    let taps = plus.iter().flatten().zip(minus.iter().flatten());
    // The step that rounding to f32 has left.
    let d: Vec<f64> = taps.map(|(plus, minus)| 0.5 * (f64::from(*plus) - f64::from(*minus))).collect();
    let of_z = 0.5 * (trial.at(&c, &plus, None)?.loss - trial.at(&c, &minus, None)?.loss);
    let of_c = (loss(1e-5)? - loss(-1e-5)?) / 2e-5;
    if wrong(of_c, &whole.dc, &v) || wrong(of_z, &whole.dz.concat(), &d) {
        return refused("its gradients are not the derivatives of its loss");
    }
    Ok(())
}
