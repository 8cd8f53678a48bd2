//! Golden files: one outer iteration computed by an independent reference in float64, and the error of ours against it.
//!
//! A golden file is a safetensors file with initial weights, the batches, and the results of the reference:
//! `expect.pretrainK.{loss,scores,mask,patch_loss}` and `.grad.NAME`, `expect.finetune.{loss,grad.NAME}`,
//! `expect.mask.{loss,v_head,v_encoder,indirect,hypergrad_direct,hypergrad_indirect,hypergrad,hypergrad_exact}.NAME`
//! and `expect.after.{pretrain,finetune,mask}.NAME`. The metadata key `config` has the shapes. Dropout is off, and the
//! masking network is the published one, which reads the patch embedding.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::algorithm::{Batches, Constants, Event, State, outer_iteration};
use crate::choice::Choice;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::hypergradient::{
    Carried, Clean, Hypergradient, HypergradientChoice, Published, Settings, Tangent, default_form,
};
use crate::lane::cpu::Cpus;
use crate::lane::{Device, LabelledImages, Lane, LaneSize, Upstream};
use crate::layout::Layout;
use crate::level::{Level, PerLevel};
use crate::levels::optimizer::{AdamW, AdamWConfig};
use crate::levels::vectors::narrow;
use crate::masking::MaskRule;
use crate::model::Model;
use crate::parallel::arena::{Arena, Buffer, Params};
use crate::policy::Estimator;
use crate::precision::Precision;
use crate::tasks::Targets;
use crate::vector::Vector;

/// The `config` metadata of a golden file: shapes as in [`ModelConfig`], the batch size, and the hyperparameters, which
/// all levels share.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)]
pub struct GoldenConfig {
    pub image: usize,
    pub patch: usize,
    pub channels: usize,
    pub dim: usize,
    pub depth: usize,
    pub heads: usize,
    pub dec_dim: usize,
    pub dec_depth: usize,
    pub dec_heads: usize,
    pub mask_hidden: usize,
    pub classes: usize,
    pub batch: usize,
    pub mask_ratio: f64,
    pub lr: f64,
    pub weight_decay: f64,
    pub alpha: f64,
}

/// A tensor of a golden file; integers are converted to floats.
#[derive(Clone, Debug)]
pub struct GoldenTensor {
    /// Shape, empty for scalars.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// A golden file's contents.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Shapes and constants.
    pub config: GoldenConfig,
    /// Tensors by name.
    pub tensors: BTreeMap<String, GoldenTensor>,
}

/// One compared quantity.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was compared, for example `pretrain0.grad [norm.bias]`: in brackets the tensor with the largest error.
    pub quantity: String,
    /// Relative error, of the worst tensor where there are several.
    pub error: f64,
    /// The largest error allowed.
    pub limit: f64,
    /// Whether the error is within the limit; NaN is not.
    pub ok: bool,
}

/// How an outer iteration is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Precision of the networks' products.
    pub precision: Precision,
    /// The one form of the hypergradient to run. None: every form, or in bf16, where finite differences are noise, the
    /// derivative itself.
    pub form: Option<HypergradientChoice>,
}

impl How {
    /// The form to compare everything with, and those of which the hypergradient is compared besides.
    fn forms(self) -> (HypergradientChoice, Vec<HypergradientChoice>) {
        match (self.form, self.precision) {
            (Some(form), _) => (form, Vec::new()),
            (None, Precision::Tf32 | Precision::Bf16) => (default_form(self.precision), Vec::new()),
            (None, _) => (Choice::of(&Clean), vec![Choice::of(&Tangent), Choice::of(&Published)]),
        }
    }
}

/// Bounds of shapes that are computed.
mod bounds {
    pub const IMAGE: usize = 1024;
    pub const ATTENTION: usize = 1 << 28;
}

/// Relative errors that an implementation may have.
struct Limits {
    /// Of losses, and of each patch's.
    value: f64,
    /// Of scores, which are `f32` in every precision, but from the second step on of trained weights.
    score: f64,
    /// Of gradients, tensor by tensor.
    gradient: f64,
    /// Of finite differences.
    difference: f64,
    /// Of weights after the step.
    after: f64,
    /// Of the masking network's weights after the step.
    after_mask: f64,
}

impl Limits {
    /// Those of bf16 are about twice the largest errors of the golden files here.
    fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => {
                Limits { value: 1e-5, score: 1e-5, gradient: 1e-4, difference: 1e-3, after: 1e-4, after_mask: 1e-3 }
            }
            Precision::Tf32 | Precision::Bf16 => {
                Limits { value: 1e-2, score: 1e-3, gradient: 4e-2, difference: 4e-2, after: 2e-3, after_mask: 4e-3 }
            }
        }
    }
}

impl Golden {
    /// Parses the `config` metadata.
    ///
    /// # Errors
    /// When it is not the expected JSON.
    pub fn parse_config(json: &str) -> Result<GoldenConfig, ModelError> {
        serde_json::from_str(json)
            .map_err(|error| ModelError::Config(format!("golden metadata `config` is not readable: {error}")))
    }

    /// Refuses shapes that contradict the file, before memory is allocated for them (the file is untrusted): it must
    /// hold all weights several times, a tensor or more for each block, and the images.
    fn check_shapes(&self) -> Result<(), ModelError> {
        let c = &self.config;
        let num_values: usize = self.tensors.values().map(|tensor| tensor.values.len()).sum();
        let grid = c.image.checked_div(c.patch).unwrap_or(0);
        let bounds: [(&str, &[usize], usize); 11] = [
            ("image", &[c.image], bounds::IMAGE),
            ("depth", &[c.depth], self.tensors.len()),
            ("dec_depth", &[c.dec_depth], self.tensors.len()),
            ("the images", &[c.batch, c.channels, c.image, c.image], num_values),
            ("the encoder", &[c.depth.max(1), c.dim, c.dim], num_values),
            ("the decoder", &[c.dec_depth.max(1), c.dec_dim, c.dec_dim], num_values),
            ("the patch embedding", &[c.channels, c.patch, c.patch, c.dim.max(c.dec_dim)], num_values),
            ("the positions", &[grid, grid, c.dim.max(c.dec_dim)], num_values),
            ("the masking network", &[grid, grid, c.dim, c.mask_hidden], num_values),
            ("the head", &[c.classes, c.dim.max(1)], num_values),
            ("the attention", &[c.batch, c.heads.max(c.dec_heads), grid * grid, grid * grid], bounds::ATTENTION),
        ];
        for (name, factors, limit) in bounds {
            let product = factors.iter().try_fold(1usize, |product, factor| product.checked_mul(*factor));
            if product.is_none_or(|product| product > limit) {
                let line =
                    format!("golden metadata `config` does not fit the file: {name} {factors:?} is above {limit}");
                return Err(ModelError::Config(line));
            }
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Result<&GoldenTensor, ModelError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ModelError::Tensor { name: name.into(), problem: "missing from the golden file".into() })
    }

    fn values(&self, name: &str, len: usize) -> Result<&[f32], ModelError> {
        let tensor = self.get(name)?;
        if tensor.values.len() == len {
            Ok(&tensor.values)
        } else {
            let problem = format!("must hold {len} values, got {} in shape {:?}", tensor.values.len(), tensor.shape);
            Err(ModelError::Tensor { name: name.into(), problem })
        }
    }

    fn params(&self, prefix: &str, layout: &Layout) -> Result<Params, ModelError> {
        let mut values = vec![0.0; layout.len];
        for entry in &layout.entries {
            values[entry.range()].copy_from_slice(self.values(&format!("{prefix}.{}", entry.name), entry.len)?);
        }
        Ok(Arc::new(Buffer::from_vec(values)))
    }

    fn labels(&self, name: &str, classes: usize) -> Result<Vec<i32>, ModelError> {
        let labels = self.values(name, self.config.batch)?;
        if let Some(bad) = labels.iter().find(|&&y| y < 0.0 || y as usize >= classes) {
            return Err(ModelError::Tensor {
                name: name.into(),
                problem: format!("labels must be below {classes}, got {bad}"),
            });
        }
        Ok(labels.iter().map(|&y| y as i32).collect())
    }

    /// Shapes of the networks: the published form, whose masking network reads the embedding.
    fn model(&self) -> Result<Arc<Model>, ModelError> {
        self.check_shapes()?;
        let c = &self.config;
        let config = ModelConfig {
            image: c.image,
            patch: c.patch,
            channels: c.channels,
            dim: c.dim,
            depth: c.depth,
            heads: c.heads,
            dec_dim: c.dec_dim,
            dec_depth: c.dec_depth,
            dec_heads: c.dec_heads,
            mask_ratio: c.mask_ratio,
            mask_hidden: c.mask_hidden,
            num_classes: c.classes,
            ..ModelConfig::default()
        };
        Ok(Arc::new(Model::new(&config)?))
    }

    fn world(&self, device: &dyn Device, num_threads: usize, precision: Precision) -> Result<World, ModelError> {
        let (model, c) = (self.model()?, &self.config);
        // Two micro-batches, so that the reduction over micro-batches is verified too.
        let grain = c.batch.div_ceil(2);
        let lane =
            device.lane(&model, &Arena::new(), grain, precision, LaneSize { num_threads, micro_batch: grain })?;
        let image_values = c.batch * model.config.image_values();
        let mut x_p = Vec::new();
        while self.tensors.contains_key(&format!("batch.pretrain{}.x", x_p.len())) {
            let values = self.values(&format!("batch.pretrain{}.x", x_p.len()), image_values)?;
            x_p.push(lane.upload(&values.to_vec().into())?);
        }
        if x_p.is_empty() {
            let problem = "missing from the golden file".into();
            return Err(ModelError::Tensor { name: "batch.pretrain0.x".into(), problem });
        }
        let adamw = AdamWConfig { weight_decay: c.weight_decay, ..AdamWConfig::default() };
        let init = |level: Level| self.params(&format!("init.{level}"), model.layout(level)).map(Vector::from);
        let state = State {
            theta: init(Level::Pretrain)?,
            c: init(Level::Finetune)?,
            phi: init(Level::Mask)?,
            adamw: PerLevel::from_fn(|level| AdamW::new(adamw, model.layout(level))),
            carried: Carried::default(),
        };
        let labelled = |name: &str| {
            let images = lane.upload(&self.values(&format!("batch.{name}.x"), image_values)?.to_vec().into())?;
            let classes = self.labels(&format!("batch.{name}.y"), c.classes)?;
            Ok::<_, ModelError>((images, Targets::Classes(classes.into())))
        };
        let (finetune, validation) = (labelled("finetune")?, labelled("mask")?);
        Ok(World { state: state.upload(&*lane)?, lane, x_p, finetune, validation })
    }

    /// As [`Golden::verify_on`], on `num_threads` threads of the processor.
    ///
    /// # Errors
    /// When the file lacks a tensor or its shapes do not fit.
    pub fn verify(&self, num_threads: usize, how: How) -> Result<Vec<Check>, ModelError> {
        self.verify_on(&Cpus, num_threads, how)
    }

    /// Runs one outer iteration on `device` as `how` says, and compares everything that the file expects.
    ///
    /// # Errors
    /// When the file lacks a tensor, its shapes do not fit, or the device fails.
    pub fn verify_on(&self, device: &dyn Device, num_threads: usize, how: How) -> Result<Vec<Check>, ModelError> {
        let world = self.world(device, num_threads, how.precision)?;
        let mut report = Report { golden: self, checks: Vec::new(), limits: Limits::of(how.precision) };
        let (first, others) = how.forms();
        report.iteration(&world, first)?;
        for form in others {
            report.form(&world, form)?;
        }
        Ok(report.checks)
    }

    /// Runs `num_outer` outer iterations with the first of the forms that [`Golden::verify`] would run, all on the
    /// file's batches. `see` gets the result of each, and returns whether to continue.
    ///
    /// # Errors
    /// When the file lacks a tensor, its shapes do not fit, or the device fails.
    pub fn trajectory(
        &self,
        device: &dyn Device,
        num_threads: usize,
        how: How,
        num_outer: u64,
        see: &mut dyn FnMut(&Lap) -> bool,
    ) -> Result<(), ModelError> {
        let mut world = self.world(device, num_threads, how.precision)?;
        let (form, _) = how.forms();
        for outer in 0..num_outer {
            let mut lap = Lap { outer, ..Lap::default() };
            let (lane, state) = world.iterate(self, form.get(), |event| {
                match event {
                    Event::Scored(scored) => {
                        let scores = scored.weights().unwrap_or_default();
                        let sum: f64 = scores.iter().map(|&p| f64::from(p)).sum();
                        lap.mean_scores.push(sum / scores.len() as f64);
                    }
                    Event::Pretrain(g) => lap.pretrain_losses.push(g.loss),
                    Event::Finetune(g) => lap.finetune_loss = g.loss,
                    Event::Direction(v) => lap.mask_loss = v.loss,
                    Event::Search(_) => {}
                    Event::Hypergradient(g) => lap.hypergradient_norm = norm(&g.gradient.to_host()?),
                }
                Ok(())
            })?;
            (world.lane, world.state) = (lane, state);
            if !see(&lap) {
                break;
            }
        }
        Ok(())
    }
}

/// The results of one outer iteration of a trajectory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lap {
    /// Index of the outer iteration, from 0.
    pub outer: u64,
    /// L_m of each level-1 step.
    pub pretrain_losses: Vec<f64>,
    /// Mean score of each level-1 step.
    pub mean_scores: Vec<f64>,
    /// L_f, before level 2's step.
    pub finetune_loss: f64,
    /// L_v, after level 2's step.
    pub mask_loss: f64,
    /// ‖∂φ‖₂.
    pub hypergradient_norm: f64,
}

/// The networks, initial state and batches of a golden file.
struct World {
    lane: Box<dyn Lane>,
    state: State,
    x_p: Vec<Vector>,
    finetune: (Vector, Targets),
    validation: (Vector, Targets),
}

impl World {
    /// One outer iteration with `form` from the state; returns the new one. `see` is called with every event.
    fn iterate(
        &self,
        golden: &Golden,
        form: &dyn Hypergradient,
        mut see: impl FnMut(Event<'_>) -> Result<(), ModelError>,
    ) -> Result<(Box<dyn Lane>, State), ModelError> {
        let lr = |_| golden.config.lr;
        let constants = Constants {
            form,
            settings: Settings { alpha: golden.config.alpha, ..Settings::default() },
            rates: PerLevel { pretrain: &lr, finetune: &lr, mask: &lr },
            rule: &|_| MaskRule::BY_SCORE,
            noise: &|_, _| None,
        };
        let labelled = |(images, targets)| LabelledImages { images, targets };
        let batches = Batches {
            pretrain: &self.x_p,
            finetune: labelled((&self.finetune.0, &self.finetune.1)),
            validation: labelled((&self.validation.0, &self.validation.1)),
        };
        let (mut lane, mut state, mut outcome) = (self.lane.fork()?, self.state.clone(), Ok(()));
        outer_iteration(&mut *lane, &constants, &mut state, &batches, 0, &mut |event| {
            if outcome.is_ok() {
                outcome = see(event);
            }
        })?;
        outcome.map(|()| (lane, state))
    }
}

struct Report<'a> {
    golden: &'a Golden,
    checks: Vec<Check>,
    limits: Limits,
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

impl Report<'_> {
    fn push(&mut self, quantity: String, error: f64, limit: f64) {
        self.checks.push(Check { quantity, error, limit, ok: error <= limit });
    }

    fn rename_last(&mut self, name: &str) {
        if let Some(check) = self.checks.last_mut() {
            let worst = check.quantity.split_once(' ').map(|(_, worst)| worst.to_owned());
            check.quantity = worst.map_or_else(|| name.to_owned(), |worst| format!("{name} {worst}"));
        }
    }

    /// One outer iteration with `form`, of which everything is compared.
    fn iteration(&mut self, world: &World, form: HypergradientChoice) -> Result<(), ModelError> {
        let golden = self.golden;
        let model = world.lane.model().clone();
        let layout = |level| model.layout(level);
        let Limits { value, score, gradient, after, after_mask, .. } = self.limits;
        let mut k = 0;
        let mut paths = None;
        let (lane, state) = world.iterate(golden, form.get(), |event| match event {
            Event::Scored(scored) => {
                self.values(&format!("pretrain{k}.scores"), scored.weights().unwrap_or_default(), score)?;
                let order = &scored.order;
                let mask = (0..order.rank.len()).map(|i| f32::from(u8::from(order.is_masked(i))));
                self.values(&format!("pretrain{k}.mask"), &mask.collect::<Vec<_>>(), 0.0)
            }
            Event::Pretrain(g) => {
                let name = format!("pretrain{k}");
                k += 1;
                self.scalar(&format!("{name}.loss"), g.loss)?;
                self.values(&format!("{name}.patch_loss"), &g.patch_loss.to_host()?, value)?;
                self.set(&format!("{name}.grad"), layout(Level::Pretrain), &g.gradient, gradient)
            }
            Event::Finetune(g) => {
                self.scalar("finetune.loss", g.loss)?;
                self.set("finetune.grad", layout(Level::Finetune), &g.gradient, gradient)
            }
            Event::Direction(v) => {
                paths = Some((v.v1.clone(), v.w.clone()));
                self.scalar("mask.loss", v.loss)?;
                self.set("mask.v_head", layout(Level::Finetune), &narrow(&v.v0).into(), gradient)?;
                self.set("mask.v_encoder", layout(Level::Pretrain), &v.w, gradient)?;
                self.set("mask.indirect", layout(Level::Pretrain), &v.v1, gradient)
            }
            Event::Search(_) => Ok(()),
            Event::Hypergradient(g) => self.hypergradient(form, layout(Level::Mask), &g.gradient),
        })?;
        self.whole("after.pretrain", layout(Level::Pretrain), &state.theta, after)?;
        self.whole("after.finetune", layout(Level::Finetune), &state.c, after)?;
        self.whole("after.mask", layout(Level::Mask), &state.phi, after_mask)?;
        if form == Choice::of(&Published) { self.paths(world, lane, &state, paths) } else { Ok(()) }
    }

    /// One outer iteration with `form`, of which the hypergradient and what leads to it are compared.
    fn form(&mut self, world: &World, form: HypergradientChoice) -> Result<(), ModelError> {
        let golden = self.golden;
        let model = world.lane.model().clone();
        let (gradient, is_published) = (self.limits.gradient, form == Choice::of(&Published));
        let mut paths = None;
        let (lane, state) = world.iterate(golden, form.get(), |event| match event {
            Event::Direction(v) if is_published => {
                paths = Some((v.v1.clone(), v.w.clone()));
                self.set("mask.indirect", model.layout(Level::Pretrain), &v.v1, gradient)?;
                self.rename_last("mask.indirect (published)");
                Ok(())
            }
            Event::Hypergradient(g) => self.hypergradient(form, model.layout(Level::Mask), &g.gradient),
            _ => Ok(()),
        })?;
        if is_published { self.paths(world, lane, &state, paths) } else { Ok(()) }
    }

    /// The hypergradient of a form against what it computes: the reference's difference, or its derivative.
    fn hypergradient(
        &mut self,
        form: HypergradientChoice,
        layout: &Layout,
        gradient: &Vector,
    ) -> Result<(), ModelError> {
        let is_derivative = form == Choice::of(&Tangent);
        if is_derivative {
            self.set("mask.hypergrad_exact", layout, gradient, self.limits.gradient)?;
            self.rename_last(&format!("mask.hypergrad_exact ({form})"));
            return Ok(());
        }
        self.set("mask.hypergrad", layout, gradient, self.limits.difference)?;
        self.rename_last(&format!("mask.hypergrad ({form})"));
        if form == Choice::of(&Clean) {
            self.set("mask.hypergrad_exact", layout, gradient, self.limits.difference)?;
        }
        Ok(())
    }

    /// The differences along each of the two paths, v1 and w.
    fn paths(
        &mut self,
        world: &World,
        mut lane: Box<dyn Lane>,
        state: &State,
        paths: Option<(Vector, Vector)>,
    ) -> Result<(), ModelError> {
        let (Some((v1, w)), Some(x_p)) = (paths, world.x_p.last()) else { return Ok(()) };
        let model = lane.model().clone();
        let (theta, phi) = (&state.theta, &world.state.phi);
        let rule = &MaskRule::BY_SCORE;
        let (estimator, want_signal) = (Estimator::Weights, false);
        let at = Upstream { theta, phi, images: x_p, rule, estimator, want_signal };
        for (name, v) in [("mask.hypergrad_direct", &w), ("mask.hypergrad_indirect", &v1)] {
            let gradient = lane.difference(&at, v, self.golden.config.alpha)?;
            self.set(name, model.layout(Level::Mask), &gradient, self.limits.difference)?;
        }
        Ok(())
    }

    fn scalar(&mut self, name: &str, ours: f64) -> Result<(), ModelError> {
        let expected = f64::from(self.golden.values(&format!("expect.{name}"), 1)?[0]);
        self.push(name.into(), ((ours - expected) / expected).abs(), self.limits.value);
        Ok(())
    }

    fn values(&mut self, name: &str, ours: &[f32], limit: f64) -> Result<(), ModelError> {
        let expected = self.golden.values(&format!("expect.{name}"), ours.len())?;
        let errors = ours.iter().zip(expected).map(|(&a, &e)| {
            let (a, e) = (f64::from(a), f64::from(e));
            if a == e { 0.0 } else { (a - e).abs() / e.abs().max(1e-30) }
        });
        // `f64::max` would drop a NaN, which must fail.
        let worse = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
        let error = errors.fold(0.0, worse);
        self.push(name.into(), error, limit);
        Ok(())
    }

    fn expected(&self, name: &str, layout: &Layout) -> Result<Vec<f32>, ModelError> {
        let mut expected = vec![0.0; layout.len];
        for entry in &layout.entries {
            let full = format!("expect.{name}.{}", entry.name);
            expected[entry.range()].copy_from_slice(self.golden.values(&full, entry.len)?);
        }
        Ok(expected)
    }

    /// Compares a flat vector as a whole, by the relative error of its norm. Weights after AdamW need this: its first
    /// steps divide the gradient by its own magnitude, so where the exact gradient is zero (the bias of the attention's
    /// keys), rounding decides the sign of a full step.
    fn whole(&mut self, name: &str, layout: &Layout, ours: &Vector, limit: f64) -> Result<(), ModelError> {
        let (ours, expected) = (ours.to_host()?, self.expected(name, layout)?);
        let difference: Vec<f32> = ours.iter().zip(&expected).map(|(a, e)| a - e).collect();
        self.push(name.into(), norm(&difference) / norm(&expected), limit);
        Ok(())
    }

    /// Compares a flat vector tensor by tensor, each by the relative error of its norm; the error of a tensor that is
    /// nearly zero is relative to the norm of the whole vector.
    fn set(&mut self, name: &str, layout: &Layout, ours: &Vector, limit: f64) -> Result<(), ModelError> {
        let (ours, expected) = (ours.to_host()?, self.expected(name, layout)?);
        let floor = 1e-3 * norm(&expected);
        let mut worst = (0.0, "");
        for entry in &layout.entries {
            let (a, e) = (&ours[entry.range()], &expected[entry.range()]);
            let difference: Vec<f32> = a.iter().zip(e).map(|(a, e)| a - e).collect();
            let error = norm(&difference) / norm(e).max(floor).max(f64::MIN_POSITIVE);
            if error > worst.0 || error.is_nan() {
                worst = (error, &entry.name);
            }
        }
        let quantity = if worst.1.is_empty() { name.to_owned() } else { format!("{name} [{}]", worst.1) };
        self.push(quantity, worst.0, limit);
        Ok(())
    }
}
