//! mlomae with one more downstream task: how many objects does an image show? See docs/your-own-task.md.

use std::process::ExitCode;
use std::sync::Arc;

use mlomae_model::ModelError;
use mlomae_model::choice::Named;
use mlomae_model::tap::Tap;
use mlomae_model::tasks::plain::dfdx::prelude::*;
use mlomae_model::tasks::plain::{
    Init, Leaf, Leaves, ParamSpec, Plain, PlainTask, TapShape, Taped, constant, each_row,
};
use mlomae_model::tasks::{
    BoxTarget, Figure, Predictions, Targets, Task, TaskFacts, TaskKind, TaskOptions, TaskRegistry, Total,
};

/// Poisson regression on the CLS token: the number n of an image's objects has the expectation exp(z·w + b), and the loss
/// exp(o) − n·o.
#[derive(Debug)]
struct Count {
    dim: usize,
}

/// The numbers of objects, `[images, 1]`.
fn numbers(y: &Targets) -> Result<Leaf<(usize, usize)>, ModelError> {
    let number = |image| y.boxes(image).map_or(0, |boxes| boxes.iter().filter(|object| !object.ignored).count());
    constant((0..y.len()).map(|image| number(image) as f64).collect(), (y.len(), 1))
}

impl Count {
    /// o, `[images, 1]`.
    fn outputs<T: Tape<f64, Cpu>>(
        &self,
        c: &Leaves<'_, T>,
        z: Vec<Tensor<TapShape, f64, Cpu, T>>,
    ) -> Result<Tensor<(usize, usize), f64, Cpu, T>, ModelError> {
        let [z] = <[_; 1]>::try_from(z).map_err(|_| self.wrong("one tap"))?;
        let images = z.shape().0;
        Ok(z.reshape_like(&(images, self.dim)).matmul(c.matrix("head.weight")?)
            + each_row(c.vector("head.bias")?, images))
    }
}

impl PlainTask for Count {
    fn reads(&self) -> Vec<Tap> {
        vec![Tap::Cls]
    }
    fn params(&self, p: &mut ParamSpec) {
        p.add("head.weight", &[self.dim, 1], Init::Zeros);
        p.add("head.bias", &[1], Init::Zeros);
    }
    fn total(&self, y: &Targets) -> Total {
        [y.len().max(1) as f64, 1.0]
    }
    fn loss(&self, c: &Leaves<'_>, z: Vec<Taped<TapShape>>, y: &Targets, n: Total) -> Result<Taped<Rank0>, ModelError> {
        let o = self.outputs(c, z)?;
        let product = o.retaped::<OwnedTape<f64, Cpu>>() * numbers(y)?;
        Ok((o.exp() - product).sum::<Rank0, _>() / n[0])
    }
    fn predict(&self, c: &Leaves<'_, NoneTape>, z: Vec<Leaf<TapShape>>) -> Result<Predictions, ModelError> {
        let values = self.outputs(c, z)?.exp().as_vec();
        Ok(Predictions::Values { num: 1, values: values.iter().map(|value| *value as f32).collect() })
    }
    fn figures(&self) -> Vec<Figure> {
        vec![Figure::new("absolute_error", "objects")]
    }
    fn measure(
        &self,
        c: &Leaves<'_, NoneTape>,
        z: Vec<Leaf<TapShape>>,
        y: &Targets,
        n: Total,
    ) -> Result<Vec<f64>, ModelError> {
        Ok(vec![(self.outputs(c, z)?.exp() - numbers(y)?).abs().sum::<Rank0, _>().array() / n[0]])
    }
}

/// What configurations call `kind = "count"`.
struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "count"
    }
    fn summary(&self) -> &'static str {
        "How many objects an image shows: Poisson regression on the CLS token"
    }
}

impl TaskKind for Kind {
    fn build(&self, facts: &TaskFacts, _: &TaskOptions) -> Result<Arc<dyn Task>, ModelError> {
        Ok(Arc::new(Plain::new(Count { dim: facts.dim })?))
    }
    /// Targets such as the task learns from, here boxes: by them data are asked for the right kind, and the conditions of
    /// docs/your-own-task.md are tried.
    fn example(&self, _: &TaskFacts, num_images: usize, seed: u64) -> Targets {
        let object = BoxTarget { edges: [0.0, 0.0, 1.0, 1.0], class: 0, ignored: false, area: 1.0 };
        let num = |image: usize| (image + seed as usize) % 4;
        let ends = (0..num_images).scan(0, |end, image| {
            *end += num(image);
            Some(*end)
        });
        let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let boxes = vec![object; starts[num_images]];
        Targets::Boxes { starts: starts.into(), boxes: boxes.into() }
    }
}

fn main() -> ExitCode {
    mlomae_actors::cli::run_with(std::env::args_os(), TaskRegistry::shipped().with(Kind))
}
